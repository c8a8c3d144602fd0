"""Poppy: the identities of its card, and the population that specialises."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vantage
from tests.harness import context, loss_of
from tests.methods.operations.test_pomo import SMALL, tours
from tests.reference import Case, cases
from vantage.core import Schedule, Trainer, Trajectories, UserError
from vantage.methods import registry
from vantage.methods.operations.poppy import WinnerTakesAll, winners
from vantage.policies.routing import RoutingPolicy
from vantage.rollouts.routing import construct
from vantage.rollouts.tour_search import search


def made(score: Tensor, steps: int = 2) -> Trajectories:
    """Rows of returns [instances, agents, starts]."""
    count, agents, starts = score.shape
    rows = score.numel()
    cells = torch.arange(count * agents)
    return Trajectories(
        {
            "score": score.flatten(),
            "mask": torch.ones(rows, steps, dtype=torch.bool),
            "prompt": torch.arange(count).repeat_interleave(agents * starts) * 5,
            "agent": (cells % agents).repeat_interleave(starts),
            "start": torch.arange(starts).repeat(count * agents),
            "group": cells.repeat_interleave(starts),
        }
    )


RETURNS = torch.tensor([[[-3.0, -5.0], [-4.0, -5.0], [-7.0, -9.0]], [[-6.0, -2.0], [-5.0, -4.0], [-5.5, -1.0]]])


def test_the_winner_is_weighed_by_its_margin_over_the_runner_up() -> None:
    batch = WinnerTakesAll()(made(RETURNS), context())
    weight = batch.advantage[:, 0].view(2, 3, 2)
    # First instance: agent 0 by 1, and a tie. Second: agent 1 by 0.5, agent 2 by 1.
    expected = torch.zeros(2, 3, 2)
    expected[0, 0, 0], expected[1, 1, 0], expected[1, 2, 1] = 1.0, 0.5, 1.0
    assert torch.equal(weight, expected)
    assert batch.winner.view(2, 3, 2).sum(1).tolist() == [[1, 1], [1, 1]]
    kept = winners(batch, context())
    assert kept.agent.tolist() == [0, 0, 1, 2]
    # The loss of what is kept is the mean over instances and starts of margin times the row's likelihood.
    logp = -torch.rand(4, 2, requires_grad=True)
    method = vantage.method("poppy")
    assert float(loss_of(method, kept, logp=logp).detach()) == pytest.approx(
        -float((torch.tensor([1.0, 0.0, 0.5, 1.0]) * logp.detach().sum(1)).mean()), rel=1e-6
    )


@cases("poppy")
def test_the_loss_is_the_authors(case: Case) -> None:
    returns, logp = case.tensor("returns"), case.tensor("logp").flatten(0, 2)
    batch = made(returns).replace(length=torch.full((len(logp),), 2))
    method = registry.page("poppy").make({"credit": case.settings["credit"]})
    credit = method.advantage(batch, context())
    batch = credit if isinstance(credit, Trajectories) else batch.replace(advantage=credit)
    # A column of positions: what is selected knows where it was.
    batch = batch.replace(place=torch.arange(len(logp)))
    for part in method.selection:
        batch = part(batch, context())
    logp.requires_grad_()
    loss = loss_of(method, batch, logp=logp[batch["place"]])
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0].view_as(case.tensor("logp")))


def test_the_rows_order_means_nothing() -> None:
    batch = made(RETURNS)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    whole, mixed = WinnerTakesAll()(batch, context()), WinnerTakesAll()(batch.select(order), context())
    assert torch.equal(whole.advantage[order], mixed.advantage)


def test_the_variant_of_the_code_takes_the_winners_own_mean() -> None:
    batch = WinnerTakesAll("baseline")(made(RETURNS), context())
    expected = torch.zeros(2, 3, 2)
    expected[0, 0] = torch.tensor([1.0, -1.0])
    expected[1, 1, 0], expected[1, 2, 1] = -5.0 + 4.5, -1.0 + 3.25
    assert torch.allclose(batch.advantage[:, 0].view(2, 3, 2), expected)


def test_one_agent_is_pomo() -> None:
    alone = vantage.method("poppy", agents=1, prompts=3)
    policy, batch, where = tours(alone)
    logp = policy.evaluate(batch, frozenset({"logp"})).logp.detach()
    pomo = vantage.method("pomo", prompts=3)
    other = batch.replace(advantage=pomo.advantage(batch, where))
    assert batch.winner.all()
    assert torch.allclose(batch.advantage, other.advantage, atol=1e-6)
    assert float(loss_of(alone, winners(batch, where), logp=logp)) == pytest.approx(
        float(loss_of(pomo, other, logp=logp))
    )


def bandit(p: list[float], rewards: Tensor) -> Tensor:
    """Expected gradient of the estimator in agent 1's probability of arm 1, by trying every outcome; rewards [contexts, arms]."""
    total = torch.zeros(())
    for payoff in rewards:
        for arms in itertools.product((0, 1), repeat=len(p)):
            chance = torch.tensor(1.0 / len(rewards))
            for arm, each in zip(arms, p, strict=True):
                chance = chance * (each if arm else 1 - each)
            batch = WinnerTakesAll()(made(payoff[list(arms)].view(1, len(p), 1), 1), context())
            slope = 1 / p[0] if arms[0] else -1 / (1 - p[0])
            total = total + chance * batch.advantage[0, 0] * slope
    return total


@pytest.mark.parametrize(("p1", "p2"), [(0.3, 0.6), (0.5, 0.5), (0.9, 0.2), (0.1, 0.95)])
def test_the_estimator_is_unbiased_for_the_expected_maximum(p1: float, p2: float) -> None:
    # Arms worth 0 and 1: E max = p1 + p2 - p1 p2, whose derivative in p1 is 1 - p2.
    assert float(bandit([p1, p2], torch.tensor([[0.0, 1.0]]))) == pytest.approx(1 - p2, abs=1e-6)
    # Two hidden contexts, each with another arm that pays: E max = (1 + p1 + p2 - 2 p1 p2) / 2.
    assert float(bandit([p1, p2], torch.eye(2))) == pytest.approx((1 - 2 * p2) / 2, abs=1e-6)
    # Three agents: 1 - (1 - p1)(1 - p2)(1 - p3).
    assert float(bandit([p1, p2, 0.4], torch.tensor([[0.0, 1.0]]))) == pytest.approx((1 - p2) * 0.6, abs=1e-6)


def test_two_hidden_contexts_end_with_one_agent_an_arm() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        hidden = torch.randint(2, (64, 1), generator=generator)
        arms = torch.stack(
            [torch.multinomial(row.softmax(-1), 64, True, generator=generator) for row in logits.detach()], 1
        )
        batch = WinnerTakesAll()(made((arms == hidden).float().unsqueeze(-1), 1), context())
        logp = logits.log_softmax(-1)[batch.agent, arms.flatten()].unsqueeze(1)
        loss = loss_of(vantage.method("poppy"), batch, logp=logp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = logits.detach().softmax(-1)
    assert chosen.amax(1).tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    assert chosen[0].argmax() != chosen[1].argmax()


def decoder_gradients(method: vantage.Method, batch: Trajectories, policy: RoutingPolicy) -> Tensor:
    policy.zero_grad()
    loss_of(method, batch, logp=policy.evaluate(batch, frozenset({"logp"})).logp).backward()
    return policy.decoder["read"].grad.flatten(1)


def test_an_agent_that_never_wins_has_no_gradient_and_dropping_losers_changes_none() -> None:
    method = vantage.method("poppy", agents=3, prompts=4)
    policy, batch, where = tours(method)
    lost = batch.replace(score=torch.where(batch.agent == 1, batch.score - 100, batch.score))
    credited = method.advantage(lost, where)
    kept = winners(credited, where)
    assert len(kept) == len(batch) // 3
    gradient = decoder_gradients(method, kept, policy).clone()
    assert gradient[1].abs().max() == 0
    assert (gradient[[0, 2]].abs().sum(1) > 0).all()
    # All rows, the losers with advantage 0, whose mean is over three times as many.
    assert torch.allclose(3 * decoder_gradients(method, credited, policy), gradient, atol=1e-5)


def test_identical_decoders_with_the_same_tours_tie_and_learn_nothing() -> None:
    method = vantage.method("poppy", agents=2, prompts=3)
    policy, _, where = tours(method)
    prompts = where.next_prompts(3)
    batch = where.engine.sample(prompts, 12, where, greedy=True, forced=True)
    batch = method.advantage(method.rewards[0](batch, where), where)
    assert batch.advantage.abs().max() == 0
    assert decoder_gradients(method, winners(batch, where), policy).abs().max() == 0


def test_an_independent_population_is_as_many_pomos() -> None:
    own = vantage.method("poppy", agents=2, prompts=3, credit="own")
    policy, batch, where = tours(own)
    gradient = decoder_gradients(own, batch, policy).clone()
    for agent in (0, 1):
        mine = batch.select(batch.agent == agent)
        pomo = vantage.method("pomo")
        mine = mine.replace(advantage=pomo.advantage(mine, where))
        assert torch.allclose(decoder_gradients(pomo, mine, policy)[agent], 2 * gradient[agent], atol=1e-5)


def trainer(steps: int, model: str = "", **settings: float | str) -> Trainer:
    task = vantage.task("tsp:nodes=6", options=SMALL)
    policy = task.make_policy(model=model, seed=0)
    method = vantage.method("poppy", agents=3, prompts=4, lr=1e-2, **settings)
    return Trainer(method, task, policy, task.make_engine(policy), Schedule(steps), seed=0)


def test_the_first_phase_trains_one_agent_and_the_second_begins_with_its_clones() -> None:
    run = trainer(6, warm=0.5)
    policy = run.context.policy
    before = [p.detach().clone() for p in policy.decoder["read"]]
    for _ in range(3):
        run.step()
        assert run._batch is not None
        assert run._batch.agent.unique().tolist() == [0]
    read = policy.decoder["read"]
    assert not torch.equal(read[0], before[0])
    begun = read[0].detach().clone()
    update = run.context.method.update
    acted = []
    update_step = type(update).step

    def watch(self: object, part: Trajectories, where: object) -> None:
        acted.append([torch.equal(each, begun) for each in policy.decoder["read"]])
        update_step(self, part, where)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(update), "step", watch)
        run.step()
    assert acted == [[True, True, True]]
    assert not torch.equal(read[1], read[2])
    # The optimiser began anew.
    state = update._memory["optimizer"].state[read]
    assert float(state["step"]) == 1


def test_the_second_phase_can_begin_from_a_saved_folder(tmp_path: Path) -> None:
    task = vantage.task("tsp:nodes=6", options=SMALL)
    vantage.train("pomo", task, steps=1, settings={"prompts": 2}, out=tmp_path / "first", evaluate_samples=0)
    first = task.make_policy(model=str(tmp_path / "first" / "model"))
    run = trainer(2, model=str(tmp_path / "first" / "model"))
    policy = run.context.policy
    assert all(torch.equal(each, first.decoder["read"][0]) for each in policy.decoder["read"])
    run.step()
    assert not torch.equal(policy.decoder["read"][0], policy.decoder["read"][1])


def test_weight_decay_is_the_encoders_alone_and_that_of_adamw() -> None:
    plain, decayed = trainer(1, weight_decay=0.0), trainer(1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in plain.context.policy.named_parameters()}
    plain.step()
    decayed.step()
    other = dict(decayed.context.policy.named_parameters())
    for name, p in plain.context.policy.named_parameters():
        shrunk = 0.0 if name.startswith("decoder.") else 1e-2 * 0.5
        torch.testing.assert_close(other[name], p - shrunk * before[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("warm", [0.0, 0.5])
def test_a_frozen_encoder_learns_in_the_first_phase_alone(warm: float) -> None:
    run = trainer(4, warm=warm, freeze_encoder=True, weight_decay=0.5)
    encoder = run.context.policy.embed.weight
    held = [encoder.detach().clone()]
    decoders = []
    for _ in range(4):
        run.step()
        held.append(encoder.detach().clone())
        decoders.append(run.context.policy.decoder["read"].detach().clone())
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(held)]
    assert moved == ([True, True, False, False] if warm else [False] * 4)
    assert not torch.equal(decoders[2], decoders[3])


def test_a_frozen_encoder_resumes(tmp_path: Path) -> None:
    task = vantage.task("tsp:nodes=6", options=SMALL)
    method = vantage.method("poppy", agents=2, prompts=2, warm=0.5, freeze_encoder=True)
    runs = []
    for folder, stops in (("a", (6,)), ("b", (4, 6))):
        for stop in stops:
            policy = task.make_policy(seed=0)
            run = Trainer(method, task, policy, task.make_engine(policy), Schedule(6), seed=0, folder=tmp_path / folder)
            if stop != stops[0]:
                run.restore(lambda text: None)
            while run.context.step < stop:
                run.step()
            run.save()
        runs.append(run.context.policy.state_dict())
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name


@pytest.mark.parametrize("spec", ["tsp:nodes=6", "cvrp:nodes=6,capacity=12"])
def test_the_search_starts_from_the_best_pairs_and_never_loses_to_them(spec: str) -> None:
    policy, batch, _ = tours(vantage.method("poppy", agents=2, prompts=4), spec)
    torch.manual_seed(1)
    for parameter in policy.decoder.values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    nodes = batch.observation[:: len(batch) // 4]
    greedy, none = search(policy, nodes, rollouts=0)
    built = construct(policy, nodes, 6, forced=True).costs(policy.problem).view(4, 12)
    assert torch.equal(greedy, none)
    assert torch.equal(greedy, built.amin(1))
    found = [
        search(policy, nodes, rollouts=size, pairs=pairs, generator=torch.Generator().manual_seed(0))[1]
        for size, pairs in ((20, 0), (20, 0), (400, 12))
    ]
    assert torch.equal(found[0], found[1])
    assert (found[0] <= greedy + 1e-6).all()
    assert found[2].sum() < greedy.sum()
    if "tsp" in spec:
        # With so many draws nothing shorter is left: all 120 round trips of 6 nodes.
        orders = torch.tensor([(0, *rest) for rest in itertools.permutations(range(1, 6))])
        stops = nodes[..., :2][:, orders]
        shortest = (stops - stops.roll(-1, 2)).norm(dim=-1).sum(-1).amin(1)
        torch.testing.assert_close(found[2], shortest, rtol=1e-5, atol=1e-5)


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="margin, baseline"):
        vantage.method("poppy", credit="best")
    with pytest.raises(UserError, match=r"warm=1\.0"):
        vantage.method("poppy", warm=1.0)
    with pytest.raises(UserError, match="agents=0"):
        vantage.method("poppy", agents=0)
    with pytest.raises(UserError, match=r"EncoderDecay\.rate=-1"):
        vantage.method("poppy", weight_decay=-1.0)
    with pytest.raises(UserError, match="pairs=13"):
        search(vantage.task("tsp:nodes=6", options=SMALL).make_policy(agents=2), torch.rand(1, 6, 2), pairs=13)
