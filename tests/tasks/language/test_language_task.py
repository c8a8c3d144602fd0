"""The task: prompts, verdicts, evaluation, stored samples, and what it says of bad settings."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tests.harness import recording
from vantage.core.errors import TrainingError, UserError
from vantage.core.trajectories import Trajectories
from vantage.metrics import Metrics
from vantage.rewards.grading import Noted
from vantage.rewards.verifiers import Rewards
from vantage.rollouts.plans import Shuffled
from vantage.rollouts.tokens.completions import Completions
from vantage.tasks.language.loading import task_from_data, task_from_spec
from vantage.tasks.language.problems import problem_set
from vantage.tasks.language.task import LanguageTask
from vantage.tasks.registry import make_task


@pytest.fixture(scope="module")
def task():
    return task_from_spec("addition:digits=1", options={"max_new_tokens": 4, "evaluated": 6, "stored": 3})


@pytest.fixture(scope="module")
def policy(task):
    return task.make_policy(seed=0)


def run(policy, task):
    metrics = Metrics()
    return SimpleNamespace(generator=torch.Generator().manual_seed(0), policy=policy, task=task, **recording(metrics))


def rows(task, policy, ids, texts):
    """Rows whose completions are these texts and the end token."""
    encoded = [[*policy.tokenizer(text)["input_ids"], policy.tokenizer.eos_token_id] for text in texts]
    length = torch.tensor([len(row) for row in encoded])
    steps = int(length.max())
    action = torch.tensor([row + [0] * (steps - len(row)) for row in encoded])
    mask = torch.arange(steps) < length[:, None]
    return Trajectories(
        {"action": action, "length": length, "mask": mask, "prompt": torch.tensor(ids), "advantage": mask * 0.5,
         "terminated": torch.arange(steps) == length[:, None] - 1}
    )  # fmt: skip


def test_right_answers_score_one(task, policy):
    answers = [task.problems.problem("train", i).answer for i in range(3)]
    context = run(policy, task)
    batch = rows(task, policy, [0, 1, 2, 2], [*answers, answers[2] + "0"])
    named = task.score(batch, context)
    task.observe(batch, context)
    assert {name: value.tolist() for name, value in named.items()} == {"correct": [1.0, 1.0, 1.0, 0.0]}
    assert context.metrics.collect()["finished"] == 1.0
    assert task.prompts(torch.tensor([1])).items == [task.problems.problem("train", 1).prompt]


def test_verifiers_are_recorded_apart_and_weighed(policy):
    checks = Rewards(
        {
            "correct": lambda p, text: float(text == p.answer),
            "short": lambda p, text: None if text == "" else 1.0 / len(text),
        },
        {"short": 0.5},
    )
    task = LanguageTask(problem_set("addition:digits=1"), checks)
    answer = task.problems.problem("train", 0).answer
    named = task.score(rows(task, policy, [0, 0, 0], [answer, "1234", ""]), run(policy, task))
    assert named["correct"].tolist() == [1.0, 0.0, 0.0]
    assert named["short"][:2].tolist() == [0.5 / len(answer), 0.125]
    assert math.isnan(named["short"][2])


def test_a_verifier_that_fails_costs_its_row(policy):
    def check(problem, text):
        if text == "bad":
            raise ValueError("no")
        return 1.0

    task = LanguageTask(problem_set("addition:digits=1"), check)
    context = run(policy, task)
    with pytest.warns(RuntimeWarning, match="failed on 1 of 2"):
        named = task.score(rows(task, policy, [0, 0], ["bad", "good"]), context)
    assert named["correct"].tolist() == [0.0, 1.0]
    assert set(named) == {"correct"}
    assert context.metrics.collect()["verifier/errors"] == 0.5


def test_a_verifier_that_fails_on_most_rows_ends_the_run(policy):
    def mostly(problem, completion):
        return {"5": 1.0}.get(completion, "yes")

    problems = problem_set("addition:digits=1")
    texts = ["5", "6", "7", "8"]
    task = LanguageTask(problems, Rewards({"mine": mostly}), failing=0.75)
    with pytest.warns(RuntimeWarning, match="failed on 3 of 4 rows"):
        task.score(rows(task, policy, [0, 1, 2, 3], texts), run(policy, task))
    task = LanguageTask(problems, Rewards({"mine": mostly}))
    with pytest.raises(
        TrainingError, match=r"'mine' failed on 3 of 4 rows, more than the share of 0.5 .*; row 1: ValueError: .*'yes'"
    ):
        task.score(rows(task, policy, [0, 1, 2, 3], texts), run(policy, task))


def test_what_verifiers_note_is_recorded_and_is_no_reward(policy):
    task = LanguageTask(
        problem_set("addition:digits=1"), Rewards({"mine": lambda problem, text: Noted(1.0, {"unsafe_tests": 2})})
    )
    where = run(policy, task)
    found = task.score(rows(task, policy, [0, 1], ["5", "6"]), where)
    assert {name: values.tolist() for name, values in found.items()} == {"mine": [1.0, 1.0]}
    assert where.metrics.collect() == {"verifier/unsafe_tests": 2.0, "verifier/errors": 0.0}


def test_the_road_from_prompts_to_rewards(task, policy):
    engine = task.make_engine(policy)
    batch = engine.sample(task.prompts(torch.tensor([3, 1])), 3, run(policy, task))
    assert engine.max_length == 4
    assert batch.prompt.tolist() == [3, 3, 3, 1, 1, 1]
    assert task.score(batch, run(policy, task))["correct"].shape == (6,)


def test_a_few_problems_to_learn_from_come_again_and_again():
    whole = task_from_spec("addition:digits=1")
    few = task_from_spec("addition:digits=1", options={"training": 5})
    assert (few.size, few.evaluated) == (5, whole.evaluated)
    drawn = SimpleNamespace(task=few, generator=torch.Generator().manual_seed(0))
    source = Shuffled()
    source.prepare(drawn)
    found = source(15, drawn)
    assert found.ids.bincount().tolist() == [3] * 5
    assert set(found.items) == set(whole.prompts(torch.arange(5)).items)
    assert task_from_spec("addition:digits=1", options={"training": 10**9}).size == whole.size
    policy = few.make_policy(seed=0)
    known = {
        str(few.problems.problem("train", index).prompt): few.problems.problem("train", index) for index in range(5)
    }

    class Remembers:
        """Solves two of the five problems, and no other."""

        def complete(self, items, count, *, seed):
            self.texts = [
                known[item].answer if item in known and place < 2 else "x" for place, item in enumerate(items)
            ]
            length, tokens = torch.ones(len(items), dtype=torch.long), torch.zeros(len(items), 1)
            return SimpleNamespace(tokens=tokens, length=length, finished=length > 0)

        def decode(self, rows):
            return self.texts

    few._engine = Remembers()
    few._engine.policy = policy
    judged = few.evaluate(policy, samples=1, seed=0)
    assert (judged["training"], judged["pass@1"]) == (0.4, 0.0)
    for bad in (0, -3, 2.5, "many"):
        with pytest.raises(UserError, match=f"training={bad!r} is out of range"):
            task_from_spec("addition:digits=1", options={"training": bad})


def test_evaluation_counts_right(task, policy, monkeypatch):
    engine = task.make_engine(policy)
    problems = [task.problems.problem("test", i) for i in range(6)]
    assert task.evaluated == 6

    def complete(items, count, *, seed, sampling=None):
        assert items == [p.prompt for p in problems]
        assert (count, seed) == (4, 7)
        # Of each problem's four answers as many are right as its number says, at most 4; the wrong ones agree.
        texts = [p.answer if j < min(i, 4) else "999" for i, p in enumerate(problems) for j in range(4)]
        ids = [policy.tokenizer(text)["input_ids"] for text in texts]
        length = torch.tensor([len(row) for row in ids])
        tokens = torch.tensor([row + [0] * (4 - len(row)) for row in ids])
        blank = torch.zeros(24, 4)
        finished = torch.arange(24) < 18
        return Completions(tokens, length, blank, blank, blank, blank, blank.bool(), finished, length, length)

    monkeypatch.setattr(engine, "complete", complete)
    judged = task.evaluate(policy, samples=4, seed=7)
    assert judged["pass@1"] == pytest.approx((0 + 1 + 2 + 3 + 4 + 4) / 24)
    assert judged["pass@4"] == pytest.approx(5 / 6)
    assert judged["maj@4"] == pytest.approx((0 + 0 + 0.5 + 1 + 1 + 1) / 6)
    assert judged["truncated"] == pytest.approx(0.25)


def test_evaluation_is_of_the_policy_given_and_follows_from_its_seed(task, policy):
    task.make_engine(policy)
    one, two = task.evaluate(policy, samples=2, seed=1), task.evaluate(policy, samples=2, seed=1)
    assert one == two
    assert set(one) == {"pass@1", "pass@2", "maj@2", "length", "truncated"}
    assert set(task.evaluate(task.make_policy(seed=3), samples=1, seed=1)) == {"pass@1", "length", "truncated"}


def test_some_rows_of_a_step_are_stored(task, policy, tmp_path):
    task.make_engine(policy)
    batch = rows(task, policy, [0, 1, 2, 3, 4], ["a", "bb", "ccc", "dd", "e"])
    batch = batch.replace(rewards=torch.zeros(5)).replace(rewards=None)
    batch = batch.replace(rewards={"correct": torch.tensor([0.0, 1, 0, 1, 1])})
    with task.writer(tmp_path) as writer:
        writer(SimpleNamespace(step=0, batch=None))
        writer(SimpleNamespace(step=1, batch=batch))
    from vantage.tasks.language.samples import read_samples

    found = read_samples(tmp_path)
    assert [row["completion"] for row in found] == ["a", "ccc", "e"]
    assert [row["rewards"] for row in found] == [{"correct": 0.0}, {"correct": 0.0}, {"correct": 1.0}]
    assert [row["advantage"] for row in found] == [0.5] * 3
    assert [row["problem"] for row in found] == [0, 2, 4]
    assert found[1]["prompt"] == task.problems.problem("train", 2).prompt
    assert all(row["finished"] for row in found)


def test_options_reach_the_policy_and_the_engine():
    task = task_from_spec(
        "addition:digits=1",
        options={
            "architecture": "qwen3",
            "prefix_sharing": False,
            "dtype": "bfloat16",
            "top_k": 3,
            "stop_strings": "x,y",
        },
    )
    policy = task.make_policy(seed=1)
    assert policy.model.config.model_type == "qwen3"
    assert policy.prefix_sharing is False
    assert next(policy.parameters()).dtype == torch.bfloat16
    sampling = task.make_engine(policy).sampling
    assert (sampling.top_k, sampling.stop_strings) == (3, ("x", "y"))


def test_adapters_by_option(tmp_path):
    pytest.importorskip("peft")
    task = task_from_spec("addition:digits=1", options={"lora_rank": 2, "lora_targets": "q_proj,v_proj"})
    policy = task.make_policy(seed=0)
    assert {name.split(".")[-4] for name in policy.state_dict()} == {"q_proj", "v_proj"}


def test_the_seed_decides_a_fresh_model(task):
    one, two, three = (next(task.make_policy(seed=seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


# the user's own problems ------------------------------------------------------------------------------------------------


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_own_problems_with_their_own_names(tmp_path):
    data = lines(tmp_path / "d.jsonl", [{"q": f"what is {i}?", "a": f"it is\n#### {i}"} for i in range(40)])
    task = make_task(
        "",
        data=data,
        verifier="numeric",
        options={"fields": "prompt=q,answer=a", "answer_after": "####", "held_out": 0.25, "evaluated": 3},
    )
    assert 20 <= task.size < 40
    assert task.evaluated == 3
    policy = task.make_policy()
    problem = task.problems.problem("train", 0)
    named = task.score(rows(task, policy, [0, 0], [f"surely {problem.answer}", "none"]), run(policy, task))
    assert named["correct"].tolist() == [1.0, 0.0]


def test_several_verifiers_by_text(tmp_path):
    data = lines(tmp_path / "d.jsonl", [{"prompt": f"{i}", "answer": f"{i}"} for i in range(30)])
    task = task_from_data(data, "correct=exact && marked*0.5=regex:!$", {})
    policy = task.make_policy()
    answer = task.problems.problem("train", 0).answer
    named = task.score(rows(task, policy, [0, 0], [answer, answer + "!"]), run(policy, task))
    assert {name: value.tolist() for name, value in named.items()} == {"correct": [1.0, 0.0], "marked": [0.0, 0.5]}


def test_demonstrations_need_no_answer(tmp_path):
    said = [[{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": f"ho {i}"}] for i in range(20)]
    data = lines(tmp_path / "d.jsonl", [{"messages": messages} for messages in said])
    task = task_from_data(data, options={"format": "demonstrations", "held_out": 0.2})
    problem = task.problems.problem("train", 0)
    assert problem.prompt[0]["content"].replace("hi", "ho") == problem.solution


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_token": 3}, r"no option 'max_new_token'; did you mean max_new_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"preset": "vast"}, "preset 'vast'"),
        ({"lora_rank": -1}, "rank=-1"),
    ],
)
def test_bad_options_are_named(options, match):
    def prepared():
        task = task_from_spec("addition:digits=1", options=options)
        return task.make_engine(task.make_policy())

    with pytest.raises(UserError, match=match):
        prepared()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "poems"}, "format='poems'"),
        ({"fields": "q"}, "role=field"),
        ({"format": "demonstrations", "test": "x"}, "'test'"),
    ],
)
def test_bad_reading_options_are_named(tmp_path, options, match):
    data = lines(tmp_path / "d.jsonl", [{"prompt": "a", "answer": "b"}])
    with pytest.raises(UserError, match=match):
        task_from_data(data, options=options)
