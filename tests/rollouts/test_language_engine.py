"""The engine's rows: what they hold, that the policy agrees with them, and that they can be gone on with."""

from types import SimpleNamespace

import pytest
import torch

from tests.policies.language_tools import make
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import ENVIRONMENT, GUIDE, POLICY, concatenate, exists, own
from vantage.rollouts.language import LanguageEngine
from vantage.rollouts.tokens.sampling import Sampling

TEXTS = ["12+34=", "7", "what is it that you want"]


@pytest.fixture(scope="module")
def policy():
    return make(dtype=torch.float32)


@pytest.fixture
def engine(policy):
    policy.temperature = 1.0
    return LanguageEngine(policy, sampling=Sampling(max_new_tokens=12))


def run(seed=0, **fields):
    return SimpleNamespace(generator=torch.Generator().manual_seed(seed), **fields)


def prompts(texts=TEXTS):
    return Prompts(torch.arange(len(texts)) + 10, texts)


def agrees(policy, batch):
    """The policy's own judgement of the rows is what the engine recorded."""
    judged = policy.evaluate(batch, frozenset({"logp", "entropy"}))
    for name, recorded in (("logp", batch.logp_old), ("entropy", batch.entropy_old)):
        difference = (getattr(judged, name) - recorded)[batch.mask].abs()
        assert float(difference.detach().max()) < 1e-4, name


def test_rows_of_a_prompt_stand_side_by_side_and_the_policy_agrees(policy, engine):
    batch = engine.sample(prompts(), 4, run())
    assert len(batch) == 12
    assert batch.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch.prompt.tolist() == [10] * 4 + [11] * 4 + [12] * 4
    for row in range(12):
        size = int(batch.observation["length"][row])
        ids = batch.observation["tokens"][row, :size].tolist()
        assert policy.tokenizer.decode(ids) == TEXTS[row // 4]
    agrees(policy, batch)


def test_ends_are_marked(engine, policy):
    batch = engine.sample(prompts(), 40, run())
    last = torch.arange(batch.steps) == (batch.length - 1)[:, None]
    assert torch.equal(batch.terminated | batch.truncated, last)
    assert torch.equal(batch.mask, torch.arange(batch.steps) < batch.length[:, None])
    final = batch.action.gather(1, batch.length[:, None] - 1).squeeze(1)
    stopped = batch.terminated.any(1)
    assert stopped.any()
    assert not stopped.all()
    assert torch.equal(stopped, final == policy.tokenizer.eos_token_id)
    assert bool((batch.length[~stopped] == 12).all())
    for name in ("logp_old", "entropy_old", "action"):
        assert not batch[name][~batch.mask].any()


def test_the_temperature_is_the_policys(policy, engine):
    policy.temperature = 0.6
    batch = engine.sample(prompts(), 4, run())
    agrees(policy, batch)
    greedy = engine.sample(prompts(), 2, run(), sampling=Sampling(max_new_tokens=5, greedy=True, temperature=0.6))
    assert torch.equal(greedy.action[0], greedy.action[1])
    assert not greedy.logp_sampling.any()
    agrees(policy, greedy)
    again = engine.sample(prompts(), 1, run(9), greedy=True)
    assert torch.equal(again.action[:, : greedy.steps], greedy.action[::2])


def test_draws_follow_from_the_runs_generator_and_nothing_else(engine):
    one, two = engine.sample(prompts(), 3, run(5)), engine.sample(prompts(), 3, run(5))
    assert torch.equal(one.action, two.action)
    context = run(5)
    first, second = (engine.sample(prompts(), 3, context) for _ in range(2))
    assert torch.equal(first.action, one.action)
    assert not torch.equal(second.action[:, :2], first.action[:, :2])
    # A row does not depend on its neighbours: the first prompt alone gets the rows it got beside others.
    alone = engine.sample(prompts(TEXTS[:1]), 3, run(5))
    width = alone.steps
    assert torch.equal(alone.action, one.action[:3, :width])


def test_batches_of_different_prompts_can_be_joined(policy, engine):
    context = run()
    joined = concatenate([engine.sample(prompts(["1"]), 2, context), engine.sample(prompts(TEXTS), 2, context)])
    agrees(policy, joined)


def test_columns_can_be_saved_for_a_backward_pass(policy, engine):
    batch = engine.sample(prompts(), 2, run())
    logp = policy.evaluate(batch, frozenset({"logp"})).logp
    (logp * batch.logp_old * batch.entropy_old).sum().backward()
    policy.zero_grad()


def test_token_ids_and_messages_are_prompts(policy, engine):
    ids = policy.tokenizer("2+2=")["input_ids"]
    said = [{"role": "user", "content": "2+2="}]
    batch = engine.sample(prompts([ids, "2+2=", said]), 1, run())
    tokens, length = batch.observation["tokens"], batch.observation["length"]
    assert torch.equal(tokens[0], tokens[1])
    assert policy.tokenizer.decode(tokens[2, : int(length[2])]) == "<user>2+2=<eos><assistant>"


@pytest.mark.parametrize("item", ["", []])
def test_an_empty_prompt_is_refused(engine, item):
    with pytest.raises(UserError, match="no tokens"):
        engine.sample(prompts([item]), 1, run())


def test_messages_need_a_template(policy, engine):
    template, policy.tokenizer.chat_template = policy.tokenizer.chat_template, None
    try:
        with pytest.raises(UserError, match="chat template"):
            engine.sample(prompts([[{"role": "user", "content": "hi"}]]), 1, run())
    finally:
        policy.tokenizer.chat_template = template


def test_streams_draw_new_prompts_and_stop_at_their_steps(policy, engine):
    asked = []

    def next_prompts(count):
        asked.append(count)
        return prompts(TEXTS[:count])

    batch = engine.advance(2, 3, run(next_prompts=next_prompts))
    assert asked == [2]
    assert len(batch) == 2
    assert batch.steps <= 3
    agrees(policy, batch)
    # Streams of 2048 steps, PPO's default, do not outgrow the task's own limit.
    limited = LanguageEngine(policy, sampling=Sampling(max_new_tokens=5))
    assert limited.advance(2, 2048, run(next_prompts=next_prompts)).steps <= 5


def test_completions_are_resumed_from_the_middle(policy, engine):
    batch = engine.sample(prompts(), 2, run())
    rows, positions = torch.tensor([0, 3, 5]), torch.tensor([4, 0, 2])
    assert bool((batch.length[rows] > positions).all())
    again = engine.resume(batch, rows, positions, 3, run(1))
    assert again.parent.tolist() == [0] * 3 + [3] * 3 + [5] * 3
    assert again.group.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert again.prompt.tolist() == batch.prompt[again.parent].tolist()
    assert int(again.length.max()) <= 12
    for row, (parent, kept) in enumerate(zip(again.parent.tolist(), positions.repeat_interleave(3).tolist())):
        assert torch.equal(again.action[row, :kept], batch.action[parent, :kept])
        assert torch.equal(again.logp_old[row, :kept], batch.logp_old[parent, :kept])
        assert not again.mask[row, :kept].any()
        assert again.mask[row, kept : int(again.length[row])].all()
        assert int((again.terminated | again.truncated)[row].sum()) == 1
    agrees(policy, again)
    whole = engine.resume(batch, rows, positions, 3, run(1), learn_prefix=True)
    assert torch.equal(whole.action, again.action)
    assert torch.equal(whole.mask, torch.arange(whole.steps) < whole.length[:, None])
    agrees(policy, whole)


def test_a_limit_cuts_a_call_short_and_the_row_can_go_on(policy, engine):
    batch = engine.sample(prompts(), 6, run(), limit=3)
    assert int(batch.length.max()) == 3
    assert bool((batch.length[batch.truncated.any(1)] == 3).all())
    rows = batch.truncated.any(1).nonzero().squeeze(1)
    longer = engine.resume(batch, rows, batch.length[rows], 1, run(1), limit=4, learn_prefix=True)
    assert int(longer.length.max()) == 7
    assert torch.equal(longer.action[:, :3], batch.action[rows])
    agrees(policy, longer)
    expected = [
        policy.tokenizer.decode(row[:n], skip_special_tokens=True) for row, n in zip(longer.action, longer.length)
    ]
    assert engine.texts(longer) == expected


def test_a_place_outside_of_the_row_is_refused(engine):
    batch = engine.sample(prompts(), 1, run())
    with pytest.raises(UserError, match="between 0 and"):
        engine.resume(batch, torch.tensor([0]), batch.length[:1] + 1, 1, run())
    with pytest.raises(UserError, match="cannot be continued"):
        engine.resume(batch, torch.tensor([0]), batch.length[:1], 1, run())


def test_an_answer_is_put_in_and_not_learnt_from(policy, engine):
    batch = engine.sample(prompts(), 2, run())
    texts = ["tool says 5", None, "ok", None, None, "no"]
    longer = engine.respond(batch, texts, run(1))
    for row, text in enumerate(texts):
        size = int(batch.length[row])
        assert torch.equal(longer.action[row, :size], batch.action[row, :size])
        if text is None:
            assert int(longer.length[row]) == size
            assert torch.equal(longer.mask[row, : batch.steps], batch.mask[row])
            continue
        end = size + len(text)
        assert policy.tokenizer.decode(longer.action[row, size:end]) == text
        assert not longer.mask[row, size:end].any()
        assert longer.mask[row, end : int(longer.length[row])].all()
        assert longer.turn[row, :end].unique().tolist() == [0]
        assert longer.turn[row, end : int(longer.length[row])].unique().tolist() == [1]
        assert int((longer.terminated | longer.truncated)[row].sum()) == 1
    agrees(policy, longer)
    third = engine.respond(longer, ["x"] * 6, run(2))
    assert int(third.turn.max()) == 2
    agrees(policy, third)
    assert engine.respond(batch, [None] * 6, run()).length.tolist() == batch.length.tolist()
    with pytest.raises(UserError, match="2 texts for 6 rows"):
        engine.respond(batch, ["a", "b"], run())


def test_a_conversation_goes_on_while_it_is_answered(policy, engine):
    heard = []

    def answer(rows, texts):
        heard.append((list(rows), list(texts)))
        return [f"<{row}>" if row % 2 == 0 else None for row in rows]

    batch = engine.converse(prompts(), 30, run(3), answer, turns=3)
    assert len(batch) == 90
    agrees(policy, batch)
    decoded = [policy.tokenizer.decode(row[:n]) for row, n in zip(batch.action.tolist(), batch.length.tolist())]
    rows, texts = heard[0]
    assert rows
    for row, text in zip(rows, texts):
        own = batch.action[row][batch.mask[row] & (batch.turn[row] == 0)]
        assert policy.tokenizer.decode(own, skip_special_tokens=True) == text
        assert (f"<{row}>" in decoded[row]) == (row % 2 == 0)
    assert int(batch.turn.max()) in (1, 2)
    inserted = (torch.arange(batch.steps) < batch.length[:, None]) & ~batch.mask
    for row in range(90):
        steps = batch.turn[row, : int(batch.length[row])]
        assert bool((steps.diff() >= 0).all())
        if inserted[row].any():
            first = int(inserted[row].nonzero()[0])
            assert int(steps[first]) == int(steps[first - 1])  # what is put in counts to the turn that it follows


def test_who_wrote_a_token_is_kept(policy, engine):
    batch = engine.converse(prompts(), 30, run(3), lambda rows, texts: ["<5>" for _ in rows], turns=2)
    there = exists(batch)
    assert torch.equal(batch.origin != POLICY, there & ~batch.mask)
    assert batch.origin[there & ~batch.mask].unique().tolist() == [ENVIRONMENT]
    assert torch.equal(own(batch), batch.mask)
    told = (batch.turn.amax(1) > 0).nonzero().squeeze(1)[:2]
    first = batch.origin[told].ne(POLICY).long().argmax(1)  # the first inserted token
    # Kept tokens are not learnt from, and stay the policy's; behind what was inserted the next turn begins.
    again = engine.resume(batch, told, first + 3, 1, run(4), sampling=Sampling(max_new_tokens=40))
    for row, (parent, at) in enumerate(zip(told.tolist(), first.tolist(), strict=True)):
        size = int(again.length[row])
        assert torch.equal(again.origin[row, : at + 3], batch.origin[parent, : at + 3])
        assert own(again)[row, :at].all()
        assert not own(again)[row, at : at + 3].any()
        assert own(again)[row, at + 3 : size].all()
        assert not again.mask[row, : at + 3].any()
        assert again.turn[row, :size].tolist() == [0] * (at + 3) + [1] * (size - at - 3)
    hinted = engine.respond(engine.sample(prompts(), 1, run()), ["hint"] * 3, run(1), origin=GUIDE)
    assert hinted.origin[exists(hinted) & ~hinted.mask].tolist() == [GUIDE] * 12
    assert torch.equal(own(hinted), hinted.mask)


def test_the_count_of_rows_is_part_of_the_state(policy, engine):
    engine.sample(prompts(), 2, run())
    other = LanguageEngine(policy)
    other.load_state_dict(engine.state_dict())
    assert other.state_dict() == engine.state_dict() == {"rows": 6}
    assert engine.max_length == 12


def test_weights_that_change_are_sampled_from(policy, engine):
    before = engine.sample(prompts(), 2, run())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.05)
    after = engine.sample(prompts(), 2, run())
    agrees(policy, after)
    assert not torch.equal(before.logp_old, after.logp_old)
