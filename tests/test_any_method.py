"""Any method trains any policy on any task: every page takes two steps wherever the task offers what it needs.

Where it does not, the method is refused in the words of `vantage.tasks.offers` before a task is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import vantage
from vantage import api
from vantage.core import Trainer
from vantage.core.errors import UserError
from vantage.core.trainer import Schedule
from vantage.methods import registry
from vantage.tasks.offers import OFFERS, WORDS
from vantage.tasks.registry import check_needs, make_task, offers

SMALL = {"prompts": 2, "group_size": 4, "rows": 4, "length": 8, "minibatches": 1, "epochs": 1, "episodes": 4, "batch": 4,
         "rounds": 1, "lr": 1e-3, "temperature": 1.0, "micro_batch": 4}  # fmt: skip
"""Settings that keep a step small, of the pages that have them."""
OF_TASK = {"cartpole": {"right_at": 20.0}}
"""An episode of the pole scores its length: what counts as right must lie between a short and a long one."""


def answers(spec: str) -> Any:
    """Questions whose answers are right or wrong by their first token, so that a model with random weights has both."""
    task = make_task(
        spec, options={"evaluated": 4} if spec.startswith("masked") else {"max_new_tokens": 4, "evaluated": 4}
    )
    task.score = lambda batch, where: {"correct": (batch.action[:, 0] % 2).float()}
    return task


WHERE: dict[str, Callable[[str], Any]] = {
    "addition:digits=1": answers,
    "cartpole": make_task,
    "calculator:terms=2,digits=1": answers,
    "preference:arms=4": make_task,
    "pendulum": make_task,
    "offline": make_task,
    "inventory": make_task,
    "masked:addition:digits=1": answers,
    "flow2d:ring": make_task,
    "tsp:nodes=5": make_task,
    "prune-digits": make_task,
}
"""Tasks that are tried, in this order, and what makes each small."""
BOTH = ("addition:digits=1", "cartpole")
"""Every page is tried on these; one that neither offers enough is tried on the first other one that does."""
TRAINING = [page.name for page in registry.pages() if isinstance(page.make(), vantage.Method)]


def small(name: str, spec: str = "") -> vantage.Method:
    known, chosen = registry.page(name).settings(), {**SMALL, **OF_TASK.get(spec, {})}
    return vantage.method(name, **{key: value for key, value in chosen.items() if key in known})


def fits(method: vantage.Method, spec: str) -> bool:
    offered = offers(spec)
    assert offered is not None
    return method.declared("needs") <= offered


def test_a_page_of_a_field_without_a_rollout_loop_says_that_it_cannot_be_trained() -> None:
    others = sorted(set(registry.names()) - set(TRAINING))
    assert len(others) >= 10
    for name in others:
        with pytest.raises(UserError, match=f"{name} has no rollout loop"):
            vantage.method(name)


def test_what_the_user_made_is_not_refused() -> None:
    assert offers("./mine.py:size=3") is None
    assert offers("Hopper-v5") == OFFERS["gym"]
    assert offers("gym:LunarLander-v3") == OFFERS["gym"]

    class Own:
        name = "addition:digits=1"
        offers = ("episodes", "turns")

    assert offers(Own()) == {"episodes", "turns"}
    check_needs("otc", {"episodes", "turns"}, Own())


def test_pairs_of_a_file_are_seen_in_its_first_row(tmp_path: Any) -> None:
    pairs, problems = tmp_path / "pairs.jsonl", tmp_path / "problems.jsonl"
    pairs.write_text('{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n')
    problems.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    check_needs("dpo", {"pairs"}, "", data=str(pairs))
    check_needs("grpo", {"episodes"}, "", data=str(problems))
    with pytest.raises(
        UserError, match=r"dpo needs stored preference pairs, which the file .*problems.jsonl does not offer"
    ):
        check_needs("dpo", {"pairs"}, "", data=str(problems))
    with pytest.raises(
        UserError, match=r"padded-sorting, preference, game, --data FILE with the fields chosen and rejected"
    ):
        check_needs("dpo", {"pairs"}, "", data=str(pairs), options={"format": "problems"})


@pytest.mark.parametrize("spec", BOTH)
@pytest.mark.parametrize("name", TRAINING)
def test_it_is_refused_before_anything_loads_or_it_runs(name: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = small(name, spec)
    if fits(method, spec):
        takes_two_steps(method, spec)
        return

    def load(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the task was made")

    monkeypatch.setattr(api, "make_task", load)
    missing = [WORDS[word] for word in WORDS if word in method.declared("needs") - OFFERS[spec.partition(":")[0]]]
    with pytest.raises(UserError) as caught:
        vantage.train(method, spec)
    assert f"{name} needs {' and '.join(missing)}, which the task '{spec}' does not offer" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in TRAINING if not any(fits(small(name), spec) for spec in BOTH)])
def test_it_runs_on_a_task_that_offers_what_it_needs(name: str) -> None:
    method = small(name)
    takes_two_steps(method, next(spec for spec in WHERE if fits(method, spec)))


def takes_two_steps(method: vantage.Method, spec: str) -> None:
    task = WHERE[spec](spec)
    policy = method.policy_for(task)
    before = [p.detach().clone() for p in policy.parameters()]
    torch.manual_seed(0)
    history = (
        Trainer(method, task, policy, task.make_engine(policy, seed=0), Schedule(2), seed=0, micro_batch=4)
        .run()
        .history
    )
    losses = [value for line in history for key, value in line.items() if key.startswith("loss/")]
    assert losses
    assert all(math.isfinite(value) for value in losses)
    assert any(not torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=False))
