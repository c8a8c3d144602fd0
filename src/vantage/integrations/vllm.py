"""Rollouts by vLLM behind the interface of `LanguageEngine`: the learner's weights are pushed to it when they have changed.

vLLM 0.10.2 or later (the first whose `logprobs_mode="processed_logprobs"` reports the distribution that was drawn from,
temperature and truncation included), in the learner's process on one device.

Exercised against vLLM 0.32.0 on CPU (AVX2), eager and compiled, with small Llama, Qwen2 and Qwen3 models, tied and untied:
what is pushed is what it draws with, log-probabilities agreeing to 3e-5 in float32 (in bfloat16 they differ by up to 0.2);
streams of rows, truncation, stop tokens and strings, the prefix cache, adapters, and GRPO with truncated importance sampling.
Tested only against a stand-in: a GPU, where weights are loaded in another way (`load_into`), sleep mode, every other version.
Not tested: float16, quantised weights, several devices. On CPU a version is needed whose `reload_weights` takes weights, and
heads of a size that its attention has (0.32.0: 32, 64 and others, not 16).
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import TrainingError, UserError, require
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.lora import head_unties, merged_state
from vantage.rollouts.language import LanguageEngine
from vantage.rollouts.mismatch import record_mismatch
from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.sampling import Sampling, row_seeds


class VllmEngine(LanguageEngine):
    """Samples completions from a `LanguagePolicy` with vLLM.

    Rows have the columns of `LanguageEngine`, with two differences. `logp_sampling` [N, T] is always there: it is what vLLM
    says of each drawn token, under the distribution that it drew from. `logp_old` [N, T] is computed by the policy itself,
    in one pass without gradient, so that the ratio of an objective compares the learner with the learner; the difference between
    the two is recorded (`mismatch/...`), and `TruncatedImportance` corrects for it. `entropy_old` is left to the component
    that declares it. vLLM truncates by min-p before top-k and top-p, not after them as `Sampling` says: where they are
    combined it draws from fewer tokens, and `logp_sampling` is of what it drew from.

    Conversations through a live cache (`converse`) are not offered; `respond` is.

    Args:
        policy: the policy that acts.
        sampling: how tokens are drawn and when a completion ends; its temperature is ignored, the policy's is used.
        llm: a `vllm.LLM` of the same architecture in this process, with `logprobs_mode="processed_logprobs"`; None makes one.
        seeded: give each row a random stream of its own, which vLLM draws row by row; False is faster but not reproducible.
        sleep: free vLLM's memory between rollouts (`enable_sleep_mode`).
        **options: of `vllm.LLM`, such as `gpu_memory_utilization` (on CPU a share of the machine's memory) and
            `max_model_len`.

    Raises:
        ImportError: vLLM is not installed; the message names the extra.
        UserError: adapters lie on an output layer that shares its weights with the embedding, as vLLM will have it.
    """

    def __init__(
        self,
        policy: Any,
        *,
        sampling: Sampling | None = None,
        llm: Any = None,
        seeded: bool = True,
        sleep: bool = False,
        **options: Any,
    ) -> None:
        if head_unties(policy.model):
            raise UserError(
                "lora: the output layer shares its weights with the embedding, and vLLM cannot give it adapters of its own: leave"
                " it out of lora_targets, or take backend=auto"
            )
        self.policy = policy
        self.sampling = sampling or Sampling()
        made = llm if llm is not None else make_llm(policy, enable_sleep_mode=sleep, **options)
        self.tokens: Any = VllmTokens(policy, made, seeded, sleep)
        self._counts = {"rows": 0}

    def sample(self, prompts: Prompts, count: int, context: Context, **settings: Any) -> Trajectories:
        """Sample `count` completions of each prompt, as `LanguageEngine.sample`."""
        return self._judged(super().sample(prompts, count, context, **settings), context)

    def resume(
        self, batch: Trajectories, rows: Tensor, positions: Tensor, count: int, context: Context, **settings: Any
    ) -> Trajectories:
        """Sample from the middle of completions, as `LanguageEngine.resume`."""
        return self._judged(super().resume(batch, rows, positions, count, context, **settings), context)

    def respond(self, batch: Trajectories, texts: Any, context: Context, **settings: Any) -> Trajectories:
        """Append a text to each completion and continue sampling, as `LanguageEngine.respond`."""
        return self._judged(super().respond(batch, texts, context, **settings), context)

    def _conversations(self, *given: Any, **settings: Any) -> Completions:
        # vLLM keeps no cache that a conversation could continue from.
        raise UserError("converse needs a live cache, which vLLM does not offer: use respond, or backend='auto'")

    def _rows(self, found: Completions, *given: Any) -> Trajectories:
        return super()._rows(found, *given).replace(entropy_old=None)

    def _judged(self, batch: Trajectories, context: Context) -> Trajectories:
        batch = batch.replace(logp_old=context.evaluate(batch, "logp"))
        record_mismatch(batch, context)
        return batch


def make_llm(policy: Any, **options: Any) -> Any:
    """Return a `vllm.LLM` with the policy's architecture; its weights are arbitrary until they are pushed.

    vLLM is kept in this process, so that weights are handed over without being copied through a pipe. It seeds the random
    states of the process when it starts: they are restored.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    vllm: Any = require("vllm", "vllm")
    dtype = next(policy.model.parameters()).dtype
    settings = {
        "dtype": str(dtype).removeprefix("torch."),
        "load_format": "dummy",
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": 0.4,
        **options,
    }
    config = copy.deepcopy(policy.model.config)
    # transformers names the architecture only when it writes weights, and vLLM chooses its model by that name.
    config.architectures = [type(policy.model).__name__]
    with tempfile.TemporaryDirectory() as folder, _random_states_kept():
        config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        return vllm.LLM(model=folder, **settings)


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch (also of the present CUDA device) when the block ends."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that vLLM seeds
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


_HELD: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()
"""Of each `vllm.LLM`, the checksum of the weights that were last pushed to it, by whichever policy."""


@dataclass
class VllmTokens:
    """The method `generate` of `TokenEngine`, by vLLM."""

    policy: Any
    llm: Any
    seeded: bool = True
    sleep: bool = False

    @property
    def pad_token_id(self) -> int:
        """Fills rows on the right."""
        return int(self.policy.tokenizer.pad_token_id)

    def push(self) -> bool:
        """Hand the policy's weights to vLLM if it holds others; return whether they were handed over.

        Adapters are multiplied into the weights. What vLLM has cached of prompts was computed by the old weights: it is
        dropped.

        Raises:
            TrainingError: vLLM keeps its cache of prompts, as it does while other requests are running.
        """
        model = self.policy.model
        present = checksum(model.parameters()).cpu()
        held = _HELD.pop(self.llm, None)
        if held is not None and torch.equal(present, held):
            _HELD[self.llm] = held
            return False
        with torch.no_grad():
            adapted = bool(getattr(self.policy, "_adapted", ()))
            named = merged_state(model) if adapted else dict(model.named_parameters())
            self.llm.collective_rpc(load_into, args=([(name, tensor.detach()) for name, tensor in named.items()],))
        # Versions that do not report success return None.
        if self.llm.reset_prefix_cache() is False:
            raise TrainingError("vLLM did not drop its cache of prompts, which the old weights computed")
        _HELD[self.llm] = present
        return True

    def generate(
        self,
        prefixes: Sequence[Sequence[int]],
        n: int | Sequence[int] = 1,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        max_new_tokens: Sequence[int] | None = None,
    ) -> Completions:
        """Complete each prefix `n` times, as `TokenEngine.generate`.

        `logp` and `entropy` of the result are NaN: vLLM does not report them. `logp_sampling` is NaN where it gave none.
        """
        settings = Sampling() if sampling is None else sampling
        counts = [n] * len(prefixes) if isinstance(n, int) else list(n)
        prefix = torch.arange(len(prefixes)).repeat_interleave(torch.tensor(counts))
        total = len(prefix)
        limits = (
            [settings.max_new_tokens] * total if max_new_tokens is None else [int(limit) for limit in max_new_tokens]
        )
        seeds = row_seeds(seed, torch.arange(total))
        # One request a row: a row has its own limit and stream. The prompt's cache is shared among them by vLLM.
        requests = [{"prompt_token_ids": list(prefixes[index])} for index in prefix.tolist()]
        parameters = [
            self.parameters(replace(settings, max_new_tokens=limit), stream if self.seeded else None)
            for limit, stream in zip(limits, seeds.tolist(), strict=True)
        ]
        if self.sleep:
            self.llm.wake_up(tags=["weights"])
        self.push()
        if self.sleep:
            self.llm.wake_up(tags=["kv_cache"])
        outputs = [request.outputs[0] for request in self.llm.generate(requests, parameters, use_tqdm=False)]
        if self.sleep:
            self.llm.sleep(level=2)
            _HELD.pop(self.llm, None)
        return self._completions(outputs, settings, prefix, seeds)

    def open(self, *given: Any, **settings: Any) -> Any:
        """Raise an error: there is no live cache."""
        raise UserError("a live session needs the engine's own cache: use backend='auto' instead of vllm")

    def parameters(self, sampling: Sampling, seed: int | None) -> Any:
        """Return `vllm.SamplingParams` for one row."""
        vllm: Any = require("vllm", "vllm")
        stops = sorted({*self.policy.stop_tokens, *sampling.stop_tokens})
        return vllm.SamplingParams(
            n=1,
            temperature=0.0 if sampling.greedy else sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop_strings) or None,
            stop_token_ids=stops,
            # The policy says what ends a completion, not the configuration that vLLM read.
            ignore_eos=True,
            logprobs=0,
            # Generators take 64 bits; the sign is dropped for those that allow none.
            seed=None if seed is None else seed % 2**63,
            detokenize=bool(sampling.stop_strings),
            # Stop strings are looked for in the text of all tokens, special ones too, as the engine does.
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
        )

    def _completions(self, outputs: Sequence[Any], sampling: Sampling, prefix: Tensor, seeds: Tensor) -> Completions:
        device = next(self.policy.model.parameters()).device
        length = torch.tensor([len(output.token_ids) for output in outputs], dtype=torch.int64)
        width = int(length.max()) if len(outputs) else 0
        inside = torch.arange(width) < length.unsqueeze(-1)
        tokens = torch.full((len(outputs), width), self.pad_token_id)
        tokens[inside] = torch.tensor([token for output in outputs for token in output.token_ids], dtype=torch.int64)
        drawn = torch.zeros(len(outputs), width)
        if not sampling.greedy:
            drawn[inside] = torch.tensor([number for output in outputs for number in _logps(output)])
        unknown = torch.full((len(outputs), width), torch.nan, device=device)
        return Completions(
            tokens=tokens.to(device),
            length=length.to(device),
            logp=unknown,
            logp_sampling=drawn.to(device),
            logp_raw=unknown,
            entropy=unknown,
            forced=torch.zeros(len(outputs), width, dtype=torch.bool, device=device),
            finished=torch.tensor(
                [output.finish_reason == "stop" for output in outputs], dtype=torch.bool, device=device
            ),
            prefix=prefix.to(device),
            seed=seeds.to(device),
        )


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of each tensor's bits, read as integers: [tensors] int64.

    One pass over the weights. Their version counters would cost nothing, but fused optimisers do not move them.
    """
    return torch.stack([tensor.view(_BITS[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors])


def load_into(worker: Any, weights: list[tuple[str, Tensor]]) -> None:
    """Run in vLLM's worker: copy named weights into its model, which joins and splits them as its own layers need.

    On CPU vLLM packs the matrices for its kernels once they are loaded, and keeps no parameter to copy into: there they go
    through its `reload_weights`, which packs them anew. That passes over an output layer which shares the embedding (it is
    given no weights of its own), whose packed copy would stay the old one: it is packed here.
    """
    model = worker.model_runner.model
    if worker.device.type != "cpu":
        model.load_weights(weights)
        return
    worker.reload_weights(weights_iterator=iter(weights))
    for layer in model.modules():
        # Embeddings and output layers keep their weight beside the packed copy, the others are left with an empty one.
        if hasattr(layer, "cpu_linear") and layer.weight.numel():
            layer.quant_method.process_weights_after_loading(layer)


def _logps(output: Any) -> list[float]:
    """Return the reported log-probability of each drawn token; NaN where there is none."""
    if output.logprobs is None:
        return [torch.nan] * len(output.token_ids)
    found = []
    for token, reported in zip(output.token_ids, output.logprobs, strict=True):
        entry = reported.get(token)
        found.append(torch.nan if entry is None or entry.logprob is None else float(entry.logprob))
    return found
