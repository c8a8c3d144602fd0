"""The bridge to vLLM against a stand-in with the real interface's shapes; `test_vllm_itself.py` runs vLLM."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import vantage
from tests.integrations import fake_vllm
from tests.policies.language_tools import make
from vantage.config import read_config
from vantage.core.context import Context
from vantage.core.errors import TrainingError, UserError
from vantage.core.protocols import Prompts
from vantage.core.trainer import Schedule, Trainer
from vantage.integrations.vllm import VllmEngine, load_into
from vantage.policies.lora import LoraSettings
from vantage.rollouts.tokens.sampling import Sampling
from vantage.selection.importance import TruncatedImportance

PROMPTS = Prompts(torch.tensor([4, 9]), ["12+34=", "5+6="])


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    monkeypatch.setattr(fake_vllm.LLM, "noise", 0.0)
    monkeypatch.setattr(fake_vllm.LLM, "silent", ())
    monkeypatch.setattr(fake_vllm.LLM, "keeps_cache", False)


def context_of(policy: Any, engine: Any) -> Context:
    generator = torch.Generator().manual_seed(3)
    return Context(method=None, policy=policy, engine=engine, task=None, generator=generator)  # type: ignore[arg-type]


def made(dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Any, VllmEngine, Context]:
    policy = make(dtype=dtype)
    settings.setdefault("sampling", Sampling(max_new_tokens=7))
    engine = VllmEngine(policy, **settings)
    return policy, engine, context_of(policy, engine)


def test_rows_have_the_engines_columns_and_the_policys_own_logp() -> None:
    policy, engine, context = made()
    batch = engine.sample(PROMPTS, 3, context)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.prompt.tolist() == [4, 4, 4, 9, 9, 9]
    assert batch.mask.sum(-1).tolist() == batch.length.tolist()
    assert int(batch.length.max()) <= 7
    judged = policy.evaluate(batch, frozenset({"logp"})).logp
    torch.testing.assert_close(batch.logp_old, judged)
    # The same weights in the same type: what vLLM reports is the policy's own, to rounding.
    torch.testing.assert_close(batch.logp_sampling, batch.logp_old, atol=2e-5, rtol=0)
    ended = batch.terminated.any(-1)
    last = batch.action.gather(1, batch.length.unsqueeze(-1) - 1).squeeze(-1)
    assert torch.equal(ended, last == policy.stop_tokens[0])
    assert torch.equal(batch.truncated.any(-1), ~ended)
    assert "entropy_old" not in batch
    assert not batch.logp_old.requires_grad
    recorded = context.metrics.collect()
    assert 0 <= recorded["mismatch/logp"] < 1e-5
    assert recorded["mismatch/max"] < 2e-5


def test_rows_have_streams_of_their_own_that_follow_from_the_runs_generator() -> None:
    _, engine, context = made()
    first = engine.sample(PROMPTS, 2, context)
    again = engine.sample(PROMPTS, 2, context_of(engine.policy, engine))
    assert torch.equal(first.action, again.action)
    seeds = [chosen.seed for chosen in engine.tokens.llm.calls.parameters[:4]]
    assert len(set(seeds)) == 4
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)
    _, free, context = made(seeded=False)
    free.sample(PROMPTS, 1, context)
    assert all(chosen.seed is None for chosen in free.tokens.llm.calls.parameters)


def test_settings_are_mapped() -> None:
    policy, engine, context = made(
        sampling=Sampling(top_p=0.9, top_k=5, min_p=0.05, max_new_tokens=4, stop_strings=("ab",), stop_tokens=(17,))
    )
    policy.temperature = 0.7
    engine.sample(PROMPTS, 1, context)
    chosen = engine.tokens.llm.calls.parameters[0]
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.min_p) == (0.7, 0.9, 5, 0.05)
    assert (chosen.max_tokens, chosen.stop, chosen.detokenize) == (4, ["ab"], True)
    assert chosen.stop_token_ids == sorted({*policy.stop_tokens, 17})
    assert (chosen.logprobs, chosen.ignore_eos) == (0, True)
    assert (chosen.skip_special_tokens, chosen.spaces_between_special_tokens) == (False, False)
    engine.sample(PROMPTS, 1, context, greedy=True, limit=2)
    chosen = engine.tokens.llm.calls.parameters[-1]
    assert (chosen.temperature, chosen.max_tokens) == (0.0, 2)


def test_greedy_rows_are_drawn_with_certainty() -> None:
    _, engine, context = made()
    batch = engine.sample(PROMPTS, 2, context, greedy=True)
    assert torch.equal(batch.action[0], batch.action[1])
    assert bool((batch.logp_sampling == 0).all())
    assert bool((batch.logp_old[batch.mask] < 0).all())


def test_weights_are_pushed_when_they_changed_and_only_then() -> None:
    policy, engine, context = made()
    llm = engine.tokens.llm
    engine.sample(PROMPTS, 1, context)
    engine.sample(PROMPTS, 1, context)
    engine.complete(["1+1="], 1, seed=0)
    assert (llm.calls.pushes, llm.calls.resets) == (1, 1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1, fused=True)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    batch = engine.sample(PROMPTS, 2, context)
    assert (llm.calls.pushes, llm.calls.resets) == (2, 2)
    for (name, mine), (_, other) in zip(policy.model.named_parameters(), llm.model.named_parameters(), strict=True):
        assert torch.equal(mine, other), name
    torch.testing.assert_close(batch.logp_sampling, batch.logp_old, atol=2e-5, rtol=0)
    policy.load_state_dict({name: value * 0.5 for name, value in policy.state_dict().items()})
    engine.sample(PROMPTS, 1, context)
    assert llm.calls.pushes == 3


def test_an_engine_that_two_policies_share_is_given_the_weights_of_the_one_that_acts() -> None:
    policy, engine, _ = made()
    other = make(dtype=torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    second = VllmEngine(other, sampling=Sampling(max_new_tokens=7), llm=engine.tokens.llm)
    for _ in range(2):
        for acting, owner in ((engine, policy), (second, other)):
            batch = acting.sample(PROMPTS, 1, context_of(owner, acting))
            torch.testing.assert_close(batch.logp_sampling, batch.logp_old, atol=5e-5, rtol=0)
    assert engine.tokens.llm.calls.pushes == 4


def test_a_cache_of_the_old_weights_is_not_gone_on_with() -> None:
    _, engine, context = made()
    fake_vllm.LLM.keeps_cache = True
    for _ in range(2):
        with pytest.raises(TrainingError, match="cache of prompts"):
            engine.sample(PROMPTS, 1, context)
    fake_vllm.LLM.keeps_cache = False
    engine.sample(PROMPTS, 1, context)
    assert engine.tokens.llm.calls.pushes == 3


def test_weights_that_are_packed_for_cpu_are_packed_anew() -> None:
    """As in vLLM: linear layers keep an empty weight beside the packed copy, an output layer that is tied is passed over."""

    class Packed(torch.nn.Module):
        def __init__(self, weight: torch.nn.Parameter, keeps: bool) -> None:
            super().__init__()
            self.weight, self.quant_method = weight, self
            self.keeps = keeps
            self.process_weights_after_loading(self)

        def process_weights_after_loading(self, layer: Any) -> None:
            packed = layer.weight.detach().clone()
            layer.cpu_linear = lambda x: x @ packed.T
            if not layer.keeps:
                layer.weight = torch.nn.Parameter(torch.empty(0))

    embedding = torch.nn.Parameter(torch.eye(2))
    model = torch.nn.ModuleDict(
        {
            "norm": torch.nn.LayerNorm(2),
            "linear": Packed(torch.nn.Parameter(torch.eye(2)), keeps=False),
            "head": Packed(embedding, keeps=True),
        }
    )

    def reload_weights(weights_iterator: Any) -> None:
        for name, value in weights_iterator:
            if name == "embedding":
                embedding.data.copy_(value)
            else:
                model[name].weight = torch.nn.Parameter(value)
                model[name].process_weights_after_loading(model[name])

    worker = SimpleNamespace(
        device=torch.device("cpu"), model_runner=SimpleNamespace(model=model), reload_weights=reload_weights
    )
    load_into(worker, [("linear", torch.full((2, 2), 2.0)), ("embedding", torch.full((2, 2), 3.0))])
    one = torch.ones(1, 2)
    assert model["linear"].cpu_linear(one).tolist() == [[4.0, 4.0]]
    assert model["head"].cpu_linear(one).tolist() == [[6.0, 6.0]]


def test_random_states_are_as_before_vllm_was_made() -> None:
    policy = make(dtype=torch.float32)

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002 - the state that vLLM seeds

    def seed() -> None:
        random.seed(1)
        np.random.seed(2)  # noqa: NPY002
        torch.manual_seed(3)

    seed()
    expected = drawn()
    seed()
    VllmEngine(policy)
    assert drawn() == expected


def test_adapters_are_multiplied_into_what_is_pushed() -> None:
    pytest.importorskip("peft")
    from vantage.policies.language import LanguagePolicy

    policy = LanguagePolicy.new("tiny", lora=LoraSettings(rank=2, alpha=4.0))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    engine = VllmEngine(policy, sampling=Sampling(max_new_tokens=5))
    batch = engine.sample(PROMPTS, 2, context_of(policy, engine))
    torch.testing.assert_close(batch.logp_sampling, batch.logp_old, atol=5e-5, rtol=0)


def test_sleep_frees_the_weights_and_they_come_back() -> None:
    _, engine, context = made(sleep=True)
    for _ in range(2):
        batch = engine.sample(PROMPTS, 1, context)
        torch.testing.assert_close(batch.logp_sampling, batch.logp_old, atol=2e-5, rtol=0)
    calls = engine.tokens.llm.calls
    assert calls.sleeping == ["wake weights", "wake kv_cache", "sleep 2"] * 2
    assert calls.pushes == 2


def test_mismatch_is_measured() -> None:
    _, engine, context = made()
    fake_vllm.LLM.noise = 0.5
    batch = engine.sample(PROMPTS, 8, context)
    gap = (batch.logp_old - batch.logp_sampling)[batch.mask]
    recorded = context.metrics.collect()
    assert recorded["mismatch/logp"] == pytest.approx(float(gap.abs().mean()), rel=1e-5)
    assert recorded["mismatch/max"] == pytest.approx(float(gap.abs().max()), rel=1e-5)
    assert recorded["mismatch/kl"] == pytest.approx(float((gap.exp() - 1 - gap).mean()), rel=1e-4)
    assert recorded["mismatch/kl"] > 1e-3


def test_tokens_without_a_reported_number_are_left_alone() -> None:
    _, engine, context = made()
    fake_vllm.LLM.noise, fake_vllm.LLM.silent = 0.5, (1,)
    batch = engine.sample(PROMPTS, 2, context)
    assert bool(batch.logp_sampling[:, 1][batch.mask[:, 1]].isnan().all())
    weighed = TruncatedImportance()(batch, context)
    assert bool(weighed.weight.isfinite().all())
    assert bool((weighed.weight[:, 1] == 1).all())
    assert all(value == value for value in context.metrics.collect().values())


def test_completions_go_on_from_the_middle_and_after_an_inserted_text() -> None:
    _, engine, context = made()
    batch = engine.sample(PROMPTS, 2, context)
    rows = (batch.length >= 2).nonzero().squeeze(-1)[:1]
    resumed = engine.resume(batch, rows, torch.tensor([1]), 3, context)
    assert len(resumed) == 3
    assert bool((resumed.action[:, 0] == batch.action[rows, 0]).all())
    assert not bool(resumed.mask[:, 0].any())
    assert bool(resumed.logp_old.isfinite().all())
    assert bool((resumed.length <= 7).all())
    answered = engine.respond(batch, ["=7", None, None, "=8"], context)
    inserted = ~answered.mask & (torch.arange(answered.steps) < answered.length.unsqueeze(-1))
    assert inserted.sum(-1).tolist() == [2, 0, 0, 2]
    assert bool(answered.logp_old.isfinite().all())
    torch.testing.assert_close(
        answered.logp_sampling[answered.mask], answered.logp_old[answered.mask], atol=2e-5, rtol=0
    )


def test_what_needs_a_live_cache_is_refused() -> None:
    _, engine, context = made()
    with pytest.raises(UserError, match="respond"):
        engine.converse(PROMPTS, 1, context, lambda rows, texts: texts)
    with pytest.raises(UserError, match="auto"):
        engine.tokens.open([[1]])


def test_a_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(dtype=torch.float32)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"vantage\[vllm\]"):
        VllmEngine(policy)


def letters(problem: Any, completion: str) -> float:
    """Share of letters: some variance in every group."""
    return sum(map(str.isalpha, completion)) / max(len(completion), 1)


def test_grpo_learns_through_the_bridge_with_the_correction() -> None:
    from vantage.tasks.language.problems import problem_set
    from vantage.tasks.language.task import LanguageTask

    letters.isolated = False  # type: ignore[attr-defined]
    task = LanguageTask(problem_set("addition:digits=1"), letters, max_new_tokens=4)
    policy = task.make_policy(seed=0)
    engine = VllmEngine(policy, sampling=Sampling(max_new_tokens=4))
    fake_vllm.LLM.noise = 0.3
    method = vantage.method("grpo", prompts=2, group_size=8, lr=1e-3, beta=0)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    corrected = method.replace(selection=(TruncatedImportance(),))
    outcome = Trainer(corrected, task, policy, engine, Schedule(3), seed=0).run()
    assert outcome.status == "finished"
    assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert engine.tokens.llm.calls.pushes == 3
    for line in outcome.history[1:]:
        assert line["mismatch/logp"] > 0.01
        assert 0.5 < line["importance/weight"] < 1.5
        # The ratio of the objective compares the learner with the learner: before its first update it is 1.
        assert line["kl/old"] < 1e-6


def test_a_run_asks_for_it_by_name(tmp_path: Any) -> None:
    options = {"max_new_tokens": 4, "evaluated": 4}
    settings = {"prompts": 2, "group_size": 2}
    run = vantage.train(
        "grpo", "addition:digits=1", steps=2, out=tmp_path / "run", settings=settings, options=options, engine="vllm"
    )
    assert run.outcome.status == "finished"
    assert any("mismatch/logp" in row for row in run.metrics)
    assert any("eval/pass@1" in row for row in run.metrics)
    # The run's folder knows it, for those who go on with it or judge it.
    assert read_config(tmp_path / "run").options["engine"] == "vllm"
    assert "pass@1" in vantage.evaluate(tmp_path / "run", samples=1)
    again = vantage.resume(tmp_path / "run", report=lambda _: None)
    assert again.outcome.status == "finished"
    assert again.metrics == run.metrics


def test_it_is_refused_before_anything_is_made(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'vlm' is not known"):
        vantage.train("grpo", "addition", engine="vlm", out=tmp_path / "a")
    with pytest.raises(UserError, match="task cartpole has none"):
        vantage.train("ppo", "cartpole", engine="vllm", out=tmp_path / "b")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'vantage\[vllm\]'"):
        vantage.train("grpo", "addition", engine="vllm", out=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
