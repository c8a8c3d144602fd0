"""Small random models and batches for the tests of the language policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from vantage.core.trajectories import Trajectories
from vantage.policies.language import LanguagePolicy
from vantage.policies.tiny import new_tokenizer

CONFIGS: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def make(
    architecture: str = "llama", dtype: torch.dtype = torch.float64, config: Any = None, **settings: Any
) -> LanguagePolicy:
    """A policy of two layers with grouped-query attention and tied embeddings, weights large enough to matter."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    if config is None:
        config = CONFIGS[architecture](
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.3,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LanguagePolicy(model, tokenizer, **settings)


def batch_of(
    prompts: list[int], completions: list[int], same: list[int] | None = None, vocabulary: int = 100, seed: int = 0
) -> Trajectories:
    """Rows of random tokens with these lengths; rows with equal `same` have equal prompts (then of equal length)."""
    generator = torch.Generator().manual_seed(seed)
    rows, width, steps = len(prompts), max(prompts), max(completions)
    tokens = torch.randint(3, vocabulary, (rows, width), generator=generator)
    if same is not None:
        tokens = tokens[torch.tensor([same.index(key) for key in same])]
    length, size = torch.tensor(prompts), torch.tensor(completions)
    tokens = tokens.where(torch.arange(width) < length[:, None], 0)
    place = torch.arange(steps)
    last = place == size[:, None] - 1
    return Trajectories(
        {
            "observation": {"tokens": tokens, "length": length},
            "action": torch.randint(3, vocabulary, (rows, steps), generator=generator).where(place < size[:, None], 0),
            "length": size,
            "mask": place < size[:, None],
            "group": torch.tensor(same if same is not None else list(range(rows))),
            "prompt": torch.tensor(same if same is not None else list(range(rows))),
            "terminated": last & (torch.arange(rows) % 2 == 0)[:, None],
            "truncated": last & (torch.arange(rows) % 2 == 1)[:, None],
        }
    )


@contextlib.contextmanager
def exact_norms(model: Any) -> Iterator[None]:
    """Let the module's own norms, which work in float32 whatever the model's type, work in float64."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.double()
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    kinds = {type(module) for module in model.modules() if hasattr(module, "variance_epsilon")}
    old = {kind: kind.forward for kind in kinds}
    for kind in kinds:
        kind.forward = forward
    try:
        yield
    finally:
        for kind in kinds:
            kind.forward = old[kind]


def reference(policy: LanguagePolicy, batch: Trajectories) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, hidden) of every token by the module's own forward, one unpadded row at a time."""
    model: Any = policy.model
    logp, entropy = (torch.zeros(batch.action.shape, dtype=torch.float64) for _ in range(2))
    hidden = torch.zeros(*batch.action.shape, model.config.hidden_size, dtype=torch.float64)
    double = next(model.parameters()).dtype == torch.float64
    for row in range(len(batch)):
        size, count = int(batch.observation["length"][row]), int(batch.length[row])
        tokens = torch.cat([batch.observation["tokens"][row, :size], batch.action[row, :count]])
        with exact_norms(model) if double else contextlib.nullcontext():
            output = model(input_ids=tokens[None], output_hidden_states=True, use_cache=False)
        scores = torch.log_softmax(output.logits[0, size - 1 : -1].double() / policy.temperature, -1)
        logp[row, :count] = scores.gather(-1, tokens[size:, None]).squeeze(-1)
        entropy[row, :count] = -(scores.exp() * scores).sum(-1)
        hidden[row, :count] = output.hidden_states[-1][0, size - 1 : -1].double()
    return logp, entropy, hidden
