"""The bridge to vLLM against vLLM itself, in its build for CPU; skipped where that is not installed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vantage
from tests.integrations.test_vllm import PROMPTS, context_of, letters
from tests.policies.language_tools import CONFIGS, make
from vantage.core.trainer import Schedule, Trainer
from vantage.integrations.vllm import VllmEngine
from vantage.policies.language import LanguagePolicy
from vantage.policies.lora import LoraSettings
from vantage.policies.tiny import new_tokenizer
from vantage.rollouts.language import LanguageEngine
from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.sampling import Sampling, truncate
from vantage.selection.importance import TruncatedImportance

pytestmark = pytest.mark.slow

CLOSE = 2e-4
"""Log-probabilities in float32 of two implementations: ten times the largest difference seen."""


@dataclass
class Bridge:
    """A policy, the bridge to vLLM and the engine to hold it against."""

    policy: Any
    engine: VllmEngine
    own: LanguageEngine
    states_kept: bool

    def sample(self, count: int, **settings: Any) -> Any:
        return self.engine.sample(PROMPTS, count, context_of(self.policy, self.engine), **settings)

    def change(self, scale: float = 0.1) -> None:
        """An update of every parameter."""
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter.mul_(1 + scale * torch.randn(parameter.shape, generator=generator))


def policy_of(kind: str) -> Any:
    """Llama with an output layer of its own, or Qwen2 with biases that shares it with the embedding; heads of 32."""
    if kind == "llama":
        return LanguagePolicy.new("small")
    config = CONFIGS["qwen2"](
        vocab_size=len(new_tokenizer()),
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    policy = make(dtype=torch.float32, config=config)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return policy


def states() -> tuple[Any, Any, Any]:
    numpy = np.random.get_state()  # noqa: NPY002 - the state that vLLM seeds
    return random.getstate(), numpy[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def bridge(request: pytest.FixtureRequest) -> Bridge:
    pytest.importorskip("vllm", reason="needs vLLM, which is not installed")
    platform = pytest.importorskip("vllm.platforms").current_platform
    if not platform.is_cpu():
        pytest.skip("written for vLLM's build for CPU, whose float32 is exact enough to compare with")
    policy = policy_of(request.param)
    before = states()
    engine = VllmEngine(
        policy,
        sampling=Sampling(max_new_tokens=12),
        max_model_len=512,
        enforce_eager=True,
        kv_cache_memory_bytes=2**27,
    )
    kept = before == states()
    return Bridge(policy, engine, LanguageEngine(policy, sampling=Sampling(max_new_tokens=12)), kept)


def test_random_states_are_as_before_it_started(bridge: Bridge) -> None:
    assert bridge.states_kept


def test_what_is_pushed_is_what_it_draws_with(bridge: Bridge) -> None:
    greedy: list[Tensor] = []
    for _ in range(3):
        context = context_of(bridge.policy, bridge.engine)
        batch = bridge.engine.sample(PROMPTS, 16, context)
        torch.testing.assert_close(batch.logp_sampling, batch.logp_old, atol=CLOSE, rtol=0)
        recorded = context.metrics.collect()
        assert recorded["mismatch/max"] < CLOSE
        assert 0 <= recorded["mismatch/kl"] < 1e-6
        found = bridge.sample(1, greedy=True)
        expected = bridge.own.sample(PROMPTS, 1, context, greedy=True)
        assert torch.equal(found.action, expected.action)
        greedy.append(found.action)
        bridge.change(0.3)
    assert not all(torch.equal(greedy[0], other) for other in greedy[1:])


def test_the_cache_of_prompts_is_dropped_with_the_weights(bridge: Bridge) -> None:
    tokens = bridge.engine.tokens
    tokens.push()
    prompt = {"prompt_token_ids": [10 + place % 80 for place in range(300)]}
    settings = tokens.parameters(Sampling(max_new_tokens=2), 1)

    def cached() -> int:
        return int(tokens.llm.generate([prompt], settings, use_tqdm=False)[0].num_cached_tokens)

    assert cached() == 0
    assert cached() >= 128
    assert not tokens.push()
    assert cached() >= 128
    bridge.change()
    assert tokens.push()
    assert cached() == 0


def test_rows_draw_from_streams_of_their_own(bridge: Bridge) -> None:
    first, again = bridge.sample(8), bridge.sample(8)
    assert torch.equal(first.action, again.action)
    assert len({tuple(row) for row in first.action.tolist()}) > 8
    prompts, settings = bridge.engine.encode(PROMPTS.items), Sampling(max_new_tokens=12)
    several = bridge.engine.tokens.generate(prompts, 8, settings, seed=5)
    alone = bridge.engine.tokens.generate(prompts[:1], 1, settings, seed=5)
    size = int(alone.length[0])
    assert int(several.length[0]) == size
    assert torch.equal(several.tokens[0, :size], alone.tokens[0, :size])


def logits_of(bridge: Bridge, prompts: list[list[int]], found: Completions, row: int) -> tuple[Tensor, Tensor]:
    """Logits [T, V] of the policy at the tokens [T] of a completion."""
    tokens = found.tokens[row, : int(found.length[row])]
    prompt = prompts[int(found.prefix[row])]
    with torch.no_grad():
        logits = bridge.policy.model(torch.tensor([[*prompt, *tokens.tolist()]])).logits[0, len(prompt) - 1 : -1]
    return logits, tokens


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(top_p=0.6, max_new_tokens=12),
        Sampling(top_k=5, max_new_tokens=12),
        Sampling(min_p=0.1, max_new_tokens=12),
        Sampling(temperature=0.7, top_k=20, top_p=0.8, max_new_tokens=12),
        Sampling(top_p=0.8, min_p=0.1, max_new_tokens=12),
    ],
    ids=["top-p", "top-k", "min-p", "temperature, top-k, top-p", "min-p, then top-p"],
)
def test_what_it_reports_is_of_the_truncated_distribution(bridge: Bridge, settings: Sampling) -> None:
    prompts = bridge.engine.encode(PROMPTS.items)
    found = bridge.engine.tokens.generate(prompts, 16, settings, seed=9)
    gaps, cut = [], 0
    for row in range(len(found.tokens)):
        logits, tokens = logits_of(bridge, prompts, found, row)
        kept = logits / settings.temperature
        for step in (Sampling(min_p=settings.min_p), Sampling(top_k=settings.top_k, top_p=settings.top_p)):
            kept = truncate(kept, step)
        logp = kept.log_softmax(-1).gather(1, tokens.unsqueeze(-1)).squeeze(-1)
        gaps.append((logp - found.logp_sampling[row, : len(tokens)]).abs())
        cut += int((kept == -torch.inf).sum())
    assert cut > 0
    # A token on the edge of the nucleus may fall on either side of it by rounding: hardly any do.
    assert float((torch.cat(gaps) > CLOSE).float().mean()) < 0.02


def test_completions_end_where_those_of_the_engine_end(bridge: Bridge) -> None:
    def both(**settings: Any) -> tuple[Completions, Completions]:
        chosen = Sampling(greedy=True, **settings)
        found = bridge.engine.complete(PROMPTS.items, 1, seed=0, sampling=chosen)
        expected = bridge.own.complete(PROMPTS.items, 1, seed=0, sampling=chosen)
        assert torch.equal(found.tokens, expected.tokens), settings
        assert torch.equal(found.length, expected.length), settings
        assert torch.equal(found.finished, expected.finished), settings
        return found, expected

    plain, _ = both(max_new_tokens=24)
    ids = plain.tokens[1, : int(plain.length[1])].tolist()
    assert len(ids) > 5
    text = bridge.policy.tokenizer.decode(ids[2:4])
    # The limit cuts before, at and after the token that ends the completion.
    for limit in (3, 4, 24):
        both(max_new_tokens=limit, stop_tokens=(ids[3],))
        both(max_new_tokens=limit, stop_strings=(text, "no such text"))
    found, _ = both(max_new_tokens=24, stop_strings=(text,))
    assert bool(found.finished[1])
    assert text in bridge.policy.tokenizer.decode(found.tokens[1, : int(found.length[1])])


def test_special_tokens_stand_in_the_text_that_stop_strings_are_looked_for_in(bridge: Bridge) -> None:
    user = bridge.policy.tokenizer.convert_tokens_to_ids("<user>")
    chosen = Sampling(max_new_tokens=6, stop_strings=("<user>",))
    found = bridge.engine.complete(PROMPTS.items, 200, seed=3, sampling=chosen)
    held = (found.tokens == user).any(-1)
    assert int(held.sum()) > 0
    assert bool(found.finished[held].all())
    last = found.tokens.gather(1, found.length.unsqueeze(-1) - 1).squeeze(-1)
    assert bool((last[held] == user).all())


def test_completions_go_on_from_the_middle_and_after_an_inserted_text(bridge: Bridge) -> None:
    context = context_of(bridge.policy, bridge.engine)
    batch = bridge.engine.sample(PROMPTS, 2, context)
    rows = (batch.length >= 2).nonzero().squeeze(-1)[:1]
    resumed = bridge.engine.resume(batch, rows, torch.tensor([1]), 3, context)
    answered = bridge.engine.respond(batch, ["=7", None, None, "=8"], context)
    assert bool((resumed.action[:, 0] == batch.action[rows, 0]).all())
    for given in (resumed, answered):
        torch.testing.assert_close(given.logp_sampling[given.mask], given.logp_old[given.mask], atol=CLOSE, rtol=0)


def test_adapters_are_multiplied_into_what_is_pushed(bridge: Bridge) -> None:
    pytest.importorskip("peft")
    if bridge.policy.model.config.model_type != "llama":
        pytest.skip("once is enough")
    policy = LanguagePolicy.new("small", lora=LoraSettings(rank=2, alpha=4.0))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    engine = VllmEngine(policy, sampling=Sampling(max_new_tokens=12), llm=bridge.engine.tokens.llm)
    batch = engine.sample(PROMPTS, 8, context_of(policy, engine))
    torch.testing.assert_close(batch.logp_sampling, batch.logp_old, atol=CLOSE, rtol=0)
    # It holds the other policy's weights now, and is given the first one's again.
    assert bridge.engine.tokens.push()


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_grpo_learns_with_the_correction(bridge: Bridge, top_p: float) -> None:
    from vantage.tasks.language.problems import problem_set
    from vantage.tasks.language.task import LanguageTask

    letters.isolated = False  # type: ignore[attr-defined]
    task = LanguageTask(problem_set("addition:digits=1"), letters, max_new_tokens=4)
    engine = VllmEngine(bridge.policy, sampling=Sampling(max_new_tokens=4, top_p=top_p), llm=bridge.engine.tokens.llm)
    method = vantage.method("grpo", prompts=2, group_size=8, lr=1e-3, beta=0).replace(
        selection=(TruncatedImportance(),)
    )
    before = {name: value.clone() for name, value in bridge.policy.state_dict().items()}
    outcome = Trainer(method, task, bridge.policy, engine, Schedule(3), seed=0).run()
    assert outcome.status == "finished"
    assert any(not torch.equal(value, before[name]) for name, value in bridge.policy.state_dict().items())
    assert len(outcome.history) == 4
    for line in outcome.history[1:]:
        assert line["kl/old"] < 1e-6
        if top_p == 1:
            assert line["mismatch/max"] < CLOSE
            assert line["importance/weight"] == pytest.approx(1, abs=CLOSE)
        else:
            # The nucleus holds at least 0.7, so each of its tokens is drawn at most 1 / 0.7 times as often.
            assert 0.01 < line["mismatch/logp"] < line["mismatch/max"] < -np.log(0.7) + CLOSE
            assert 0.7 - CLOSE < line["importance/weight"] < 0.99
