"""Demonstrations as rows: every problem once an epoch, resumable, with the end token learnt."""

from types import SimpleNamespace

import pytest
import torch

from vantage.core.errors import UserError
from vantage.core.walk import Stateful
from vantage.policies.language import LanguagePolicy
from vantage.tasks.language.problem import Problem
from vantage.tasks.language.sft import Demonstrations, encoded, encoded_answer
from vantage.tasks.language.task import LanguageTask


class Words:
    """Problems whose solutions have very different lengths."""

    name = "words"
    description = "words"

    def __init__(self, count=24):
        self.count = count

    def size(self, split):
        return self.count

    def problem(self, split, index):
        return Problem(f"say {index}:", str(index), "x" * (1 + (index * 7) % 23) + str(index))

    def score(self, problem, completion):
        raise AssertionError("demonstrations are not judged")


@pytest.fixture(scope="module")
def policy():
    return LanguagePolicy.new()


@pytest.fixture
def context(policy):
    return SimpleNamespace(
        policy=policy,
        task=LanguageTask(Words()),
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )


def started(context, **settings):
    part = Demonstrations(**settings)
    part.prepare(context)
    return part


def test_rows_are_prompt_solution_and_end(policy, context):
    batch = started(context, batch=6, bucket=2)(context)
    for row in range(6):
        problem = context.task.problems.problem("train", int(batch.prompt[row]))
        prompt = batch.observation["tokens"][row, : int(batch.observation["length"][row])]
        completion = batch.action[row, : int(batch.length[row])]
        assert policy.tokenizer.decode(prompt) == problem.prompt
        assert policy.tokenizer.decode(completion[:-1]) == problem.solution
        assert int(completion[-1]) == policy.tokenizer.eos_token_id
        assert bool(batch.terminated[row, int(batch.length[row]) - 1])
    assert torch.equal(batch.mask, torch.arange(batch.steps) < batch.length[:, None])
    assert not batch.truncated.any()
    logp = policy.evaluate(batch, frozenset({"logp"})).logp
    assert bool((logp[batch.mask] < 0).all())


def test_nothing_is_verified(context):
    batch = started(context, batch=4, bucket=1)(context)
    assert "rewards" in batch  # so that the road does not ask the task, which would fail here
    assert "rewards" in batch.select(torch.tensor([0, 2]))


@pytest.mark.parametrize("bucket", [1, 3, 4])
def test_every_problem_comes_once_an_epoch(context, bucket):
    part = started(context, batch=4, bucket=bucket)
    seen = [number for _ in range(12) for number in part(context).prompt.tolist()]
    for epoch in range(2):
        assert sorted(seen[epoch * 24 : (epoch + 1) * 24]) == list(range(24)) or bucket == 4
    assert sorted(seen) == sorted(list(range(24)) * 2)
    assert seen[:24] != seen[24:]


def test_buckets_hold_similar_lengths(context):
    def spread(bucket):
        part = started(context, batch=4, bucket=bucket)
        return sum(int(b.length.max() - b.length.min()) for b in (part(context) for _ in range(6)))

    assert spread(6) < 0.5 * spread(1)


def test_a_resumed_part_goes_on_where_it_was(context):
    part = started(context, batch=4, bucket=3)
    assert isinstance(part, Stateful)
    for _ in range(4):
        part(context)
    other = Demonstrations(batch=4, bucket=3)
    other.prepare(context)
    other.load_state_dict(part.state_dict())
    for _ in range(5):
        one, two = part(context), other(context)
        assert torch.equal(one.action, two.action)
        assert one.prompt.tolist() == two.prompt.tolist()


def test_long_solutions_are_cut_and_marked(context):
    batch = started(context, batch=24, bucket=1, max_tokens=5)(context)
    assert int(batch.length.max()) == 5
    cut = batch.truncated.any(1)
    assert cut.any()
    assert bool((batch.length[cut] == 5).all())
    assert torch.equal(cut, ~batch.terminated.any(1))


def test_chat_messages_are_answered_as_the_template_does(policy):
    problem = Problem([{"role": "user", "content": "hi"}], "", "ho")
    prompt, completion = encoded(policy, problem)
    assert policy.tokenizer.decode(prompt + completion) == "<user>hi<eos><assistant>ho<eos>"
    assert policy.tokenizer.decode(completion) == "ho<eos>"


def test_a_completion_ends_at_its_first_end_token(policy, monkeypatch):
    asked = [{"role": "user", "content": "hi"}]
    template = policy.tokenizer.chat_template
    for tail in ("", "{{ eos_token }}", "{{ eos_token }}{{ eos_token }}\n"):
        monkeypatch.setattr(
            policy.tokenizer, "chat_template", template + "{% if not add_generation_prompt %}" + tail + "{% endif %}"
        )
        prompt, completion = encoded_answer(policy, asked, "ho")
        assert policy.tokenizer.decode(prompt) == "<user>hi<eos><assistant>"
        assert policy.tokenizer.decode(completion) == "ho<eos>"
    assert policy.tokenizer.decode(encoded_answer(policy, "hi", "ho<eos>ho")[1]) == "ho<eos>"
    assert policy.tokenizer.decode(encoded_answer(policy, "hi", "ho")[1]) == "ho<eos>"
    assert policy.tokenizer.decode(encoded_answer(policy, "hi", "")[1]) == "<eos>"


def test_bad_settings_are_named(policy):
    for name in ("batch", "bucket"):
        with pytest.raises(UserError, match=f"{name}=0"):
            Demonstrations(**{name: 0})
    with pytest.raises(UserError, match="max_tokens=-1"):
        Demonstrations(max_tokens=-1)
    with pytest.raises(UserError, match="nothing to imitate"):
        encoded(policy, Problem("say it", "", ""))
