"""Arenas are data: what is wrong in one is said with its place, and what decides a result is told from what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vantage.core.errors import UserError
from vantage.study import models
from vantage.study.arenas import arena, arenas, names, parse
from vantage.study.contest import entrant, read_entry
from vantage.study.jobs import TRAINING
from vantage.tasks.registry import TASKS, make_task

TOY = """
name = "toy"
field = "toy"
function = "tests.study.hooks:learn"
[budget]
unit = "pulls"
size = 100
[scoring]
metric = "regret"
direction = "lower"
"""


def test_every_built_in_arena_is_read_and_names_a_task_that_there_is() -> None:
    assert {"arithmetic", "cartpole", "pendulum", "grid"} <= set(names())
    for each in arenas():
        assert each.name in names()
        assert each.description
        assert each.function or each.task.partition(":")[0] in TASKS
        assert each.budget.unit in ("samples", "tokens", "environment steps") or each.function


def test_a_users_file_is_an_arena_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    (tmp_path / "model").mkdir()
    file = tmp_path / "own.toml"
    file.write_text(
        'name = "own"\nfield = "language"\ndata = "own.jsonl"\nverifier = "exact"\n[model]\npath = "model"\n'
        '[budget]\nunit = "tokens"\nsize = 1e5\n[scoring]\nmetric = "pass@1"\n'
    )
    own = arena(str(file))
    assert own.data == str(tmp_path / "own.jsonl")
    assert own.model is not None
    assert own.model.path == str(tmp_path / "model")
    before = own.decides()
    (tmp_path / "own.jsonl").write_text('{"prompt": "1+1=", "answer": "3"}\n')
    assert own.decides() != before


def test_a_warm_start_may_have_a_task_and_options_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        'name = "own"\nfield = "language"\ntask = "addition:digits=2"\noptions = { max_new_tokens = 3, training = 4 }\n'
        '[budget]\nunit = "tokens"\nsize = 1e5\n[scoring]\nmetric = "pass@1"\n[model]\n'
    )
    asked = []

    def noted(spec: str, **given: Any) -> Any:
        asked.append((spec, given["options"]))
        return make_task(spec, **given)

    monkeypatch.setattr(models, "make_task", noted)
    for number, more in enumerate(("", "options = { max_new_tokens = 3 }", 'task = "addition:digits=1"\noptions = {}')):
        own = parse(text + more, "the file", None)
        models.make(own, tmp_path / str(number), lambda message: None)
        assert (tmp_path / str(number) / "config.json").is_file()
    assert asked == [
        ("addition:digits=2", {"max_new_tokens": 3, "training": 4}),
        ("addition:digits=2", {"max_new_tokens": 3}),
        ("addition:digits=1", {}),
    ]
    assert parse(text, "the file", None).decides() != parse(text + "options = {}", "the file", None).decides()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("size = 100", "size = 0"), "above 0"),
        (("size = 100", 'size = "many"'), "budget.size: expected a number"),
        (('direction = "lower"', 'direction = "down"'), "one of 'higher', 'lower'"),
        (('metric = "regret"', 'metrics = "regret"'), "did you mean metric"),
        (('function = "tests.study.hooks:learn"', 'function = "tests.study.hooks"'), "module:function"),
        (('function = "tests.study.hooks:learn"', ""), "give either a task"),
        (('function = "tests.study.hooks:learn"', 'task = "cartpole"'), "unknown unit 'pulls'"),
        (('name = "toy"', "name = "), "not TOML"),
        (("size = 100", "size = 100\nlength = 1"), "unknown field 'length'"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: tuple[str, str], told: str) -> None:
    assert change[0] in TOY
    with pytest.raises(UserError, match=r"the file") as caught:
        parse(TOY.replace(*change), "the file", None)
    assert told in str(caught.value)


def test_unknown_arenas_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean .*cartpole"):
        arena("cartpol")
    with pytest.raises(UserError, match=r"cannot read the arena .*none\.toml"):
        arena(str(tmp_path / "none.toml"))


def test_what_decides_a_result_is_neither_name_nor_text_nor_the_number_of_seeds() -> None:
    toy = parse(TOY, "toy", None)
    same = replace(toy, name="other", description="new words", seeds=9, scoring=replace(toy.scoring, optimum=0.0))
    assert same.decides() == toy.decides()
    for other in (
        replace(toy, budget=replace(toy.budget, size=101)),
        replace(toy, scoring=replace(toy.scoring, points=3)),
        replace(toy, options={"slip": 0.1}),
    ):
        assert other.decides() != toy.decides()


def test_defaults_apply_where_a_method_has_them_and_the_users_settings_win() -> None:
    where = replace(arena("cartpole"), defaults={"lr": 1e-2, "group_size": 8, "update.epochs": 3, "no.such.part": 1})
    ours = entrant(where, "ppo", {"gamma": 0.9})
    assert ours.arm.settings["lr"] == 1e-2
    assert ours.arm.settings["gamma"] == 0.9
    assert ours.arm.settings["lam"] == 0.95
    assert "group_size" not in ours.arm.settings
    assert "epochs=3" in ours.arm.parts["update"]
    assert ours.settings == {"lr": 1e-2, "update.epochs": 3, "gamma": 0.9}
    assert entrant(where, "ppo", {"lr": 3e-4}).arm.settings["lr"] == 3e-4
    # A setting that is the method's own default decides nothing.
    assert entrant(arena("cartpole"), "ppo", {"lr": 3e-4}).settings == {}
    assert ours.function == TRAINING


def test_entries_are_read_with_their_settings() -> None:
    assert read_entry("grpo") == ("grpo", {})
    assert read_entry("grpo:group_size=16,update.optimizer.lr=1e-3") == (
        "grpo",
        {"group_size": 16, "update.optimizer.lr": 1e-3},
    )
    assert read_entry("sb3-ppo:hidden=[32,32],anneal=true") == ("sb3-ppo", {"hidden": [32, 32], "anneal": True})
    with pytest.raises(UserError, match="name=value"):
        read_entry("grpo:group_size")


def test_what_cannot_enter_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match="did you mean"):
        entrant(arena("cartpole"), "pppo", {})
    with pytest.raises(UserError, match="no setting 'group_sise'"):
        entrant(arena("arithmetic"), "grpo", {"group_sise": 8})
    with pytest.raises(UserError, match="control arenas"):
        entrant(arena("arithmetic"), "sb3-ppo", {})
    with pytest.raises(UserError, match="did you mean n_steps"):
        entrant(arena("cartpole"), "sb3-ppo", {"n_step": 8})
