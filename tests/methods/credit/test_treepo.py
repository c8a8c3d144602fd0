"""TreePO: the numbers of its card, and the trees."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vantage
from tests.core.toy import STEPS
from tests.harness import context, loss_of, random_batch
from tests.methods.toys import assert_resumes, gain, trainer
from tests.reference import Case, cases
from vantage.core import Trajectories, UserError
from vantage.functions.groups import group_mean
from vantage.methods import registry
from vantage.methods.credit.treepo import TreeAdvantage
from vantage.rollouts.trees import Trees, block_chances, block_means, branches_kept, largest_remainder, path_keys
from vantage.tasks.language.loading import task_from_spec

TWO = torch.tensor([[1, 5], [1, 6], [2, 7], [2, 8]])


def compared(score: list[float], path: torch.Tensor, group: list[int] | None = None, **settings: Any) -> list[float]:
    part = TreeAdvantage(whiten=False, **settings)
    keys = torch.tensor(group or [0] * len(score))
    return part.compare(torch.tensor(score).float(), keys, path, context()).tolist()


def test_worked_trees() -> None:
    assert compared([1, 0, 0, 0], TWO) == pytest.approx([0.625, -0.375, -0.125, -0.125])
    assert compared([1, 0, 0, 0], TWO, weights="group_size") == pytest.approx([2 / 3, -1 / 3, -1 / 6, -1 / 6])
    # The groups below the prompt count only where their scores differ.
    assert compared([1, 0, 0, 0], TWO, differing=True) == pytest.approx([0.625, -0.375, -0.25, -0.25])
    uneven = torch.tensor([[1, 4], [1, 5], [1, 6], [2, 7], [2, 8]])
    found = compared([1, 0, 0, 1, 0], uneven, weights="group_size")
    assert sum(found) == pytest.approx(0.017857, abs=1e-6)
    assert sum(compared([1, 0, 0, 1, 0], uneven)) == pytest.approx(0.0, abs=1e-6)


def test_without_shared_branches_it_is_the_groups_mean() -> None:
    score = torch.rand(8)
    path = torch.arange(1, 9).unsqueeze(1).repeat(1, 3)
    group = [0, 0, 0, 0, 1, 1, 1, 1]
    found = torch.tensor(compared(score.tolist(), path, group))
    torch.testing.assert_close(found, score - group_mean(score, torch.tensor(group)))


def test_shifts_and_lone_rows() -> None:
    score = [0.3, -0.2, 1.0, 0.4]
    shifted = [value + 5.0 for value in score]
    assert compared(score, TWO) == pytest.approx(compared(shifted, TWO), abs=1e-5)
    assert compared([0.7], torch.tensor([[1, 2]])) == pytest.approx([0.7])
    assert compared([5.7], torch.tensor([[1, 2]])) == pytest.approx([5.7])


def test_a_row_with_fewer_branches_is_not_counted_where_it_has_none() -> None:
    # The first answer ended in its first segment; its path is the beginning of nobody's.
    path = torch.tensor([[3, 0, 0], [4, 5, 6], [4, 5, 7]])
    keys = path_keys(torch.zeros(3, dtype=torch.int64), path)
    assert len(keys) == 3
    assert [there.tolist() for _, there in keys] == [[True] * 3, [True] * 3, [False, True, True]]
    assert keys[2][0][1] == keys[2][0][2] != keys[2][0][0]
    assert compared([1, 0, 1], path) == pytest.approx([1 / 3, (-2 / 3 - 0.5 - 0.5) / 3, (1 / 3 + 0.5 + 0.5) / 3])
    # Rows of two prompts never meet, whatever their numbers.
    alike = path_keys(torch.tensor([0, 1]), torch.tensor([[1, 1], [1, 1]]))
    assert all(key[0] != key[1] for key, _ in alike)
    # What a cut back leaf continues as is compared with the leaf.
    leaf = torch.tensor([[2, 0, 0], [2, 9, 0], [1, 0, 0]])
    assert path_keys(torch.zeros(3, dtype=torch.int64), leaf)[1][0].tolist()[:2] in ([0, 0], [1, 1])


def test_whitening_is_over_all_tokens() -> None:
    rows = random_batch(4, 5, dtype=torch.float32).replace(path=TWO, score=torch.tensor([1.0, 0.0, 0.0, 1.0]))
    plain = TreeAdvantage(whiten=False)(rows, context())
    found = TreeAdvantage()(rows, context())
    values = plain[rows.mask]
    torch.testing.assert_close(found[rows.mask], (values - values.mean()) * torch.rsqrt(values.var() + 1e-8))
    assert not found[~rows.mask].any()
    for row in range(4):
        assert len(found[row][rows.mask[row]].unique()) == 1
    same = TreeAdvantage()(rows.replace(score=torch.ones(4)), context())
    assert same.abs().max() == 0


def grown(seed: int = 0, **settings: Any) -> tuple[Any, Trajectories]:
    usual = {"prompts": 6, "group_size": 8, "segment": 1, "first_most": 3, "rounds": 1, "overlong_buffer": 0}
    run = trainer(vantage.method("treepo", **{**usual, **settings}), 1, seed=seed)
    return run.context, run.context.method.rollout(run.context)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"branching": 3},
        {"first_least": 1, "first_most": 1, "cut_path": False},
        {"segment": 2},
        {"share": "logp", "branching": 3},
        {"share": "mean_logp", "share_temperature": -0.5, "branching": 3, "segment": 2},
        {"cut": "least_likely", "segment": 2},
        {"cut": "block", "block": 2, "segment": 3, "first_most": 2},
        {"cut": "inverse_block", "block": 2, "segment": 3, "first_most": 2},
    ],
)
def test_trees_are_full_and_share_what_their_paths_share(seed: int, settings: dict[str, Any]) -> None:
    where, rows = grown(seed, **settings)
    assert torch.bincount(rows.group).tolist() == [8] * 6
    assert (rows.prompt.view(6, 8) == rows.prompt.view(6, 8)[:, :1]).all()
    inside = torch.arange(STEPS) < rows.length.unsqueeze(1)
    assert torch.equal(rows.mask, inside)
    ends = (rows.terminated | rows.truncated).sum(1)
    assert ends.tolist() == [1] * 48
    torch.testing.assert_close(where.evaluate(rows)[inside], rows.logp_old[inside])
    assert (rows.terminated.any(1) | (rows.length == STEPS)).all()
    # No two rows have the same path; no number is used twice for different branches.
    paths = [tuple(number for number in path if number) for path in rows["path"].tolist()]
    assert len(set(paths)) == len(paths)
    parents = {path[: place + 1] for path in paths for place in range(len(path))}
    assert len({path[-1] for path in parents}) == len(parents)
    metrics = where.metrics.collect()
    assert metrics["tree/decoded"] * 48 < int(rows.length.sum())
    assert metrics["tree/share"] == pytest.approx(metrics["tree/decoded"] * 48 / int(rows.length.sum()))


@pytest.mark.parametrize("segment", [1, 2])
def test_shared_branches_are_shared_text_where_nothing_was_cut(segment: int) -> None:
    _, rows = grown(segment=segment)
    paths = rows["path"]
    for one in range(len(rows)):
        for other in range(len(rows)):
            if rows.group[one] == rows.group[other]:
                same = (paths[one] == paths[other]) & (paths[one] > 0)
                shared = int(same.long().cumprod(0).sum()) * segment
                shared = min(shared, int(rows.length[one]), int(rows.length[other]))
                assert rows.action[one, :shared].tolist() == rows.action[other, :shared].tolist()


@pytest.mark.parametrize("cut", ["least_likely", "block"])
@pytest.mark.parametrize("seed", range(3))
def test_cut_paths_are_shared_text_wherever_the_cut_is(cut: str, seed: int) -> None:
    # Cuts are no multiples of the segment here, so that a branch may be as short as one token.
    _, rows = grown(seed, segment=2, cut=cut, block=3, first_most=2)
    paths, met = rows["path"], 0
    for one in range(len(rows)):
        for other in range(one):
            if rows.group[one] == rows.group[other]:
                shared = int(((paths[one] == paths[other]) & (paths[one] > 0)).long().cumprod(0).sum())
                met += shared > 0
                assert rows.action[one, :shared].tolist() == rows.action[other, :shared].tolist()
    assert met


def test_branching_at_the_root_alone_is_independent_sampling() -> None:
    where, rows = grown(first_least=8, first_most=8)
    assert where.metrics.collect()["tree/share"] == 1.0
    assert (rows["path"][:, 0].unique(return_counts=True)[1] == 1).all()
    where, rows = grown(first_least=20, first_most=30)
    assert torch.bincount(rows.group).tolist() == [8] * 6


def state(lengths: list[int], ended: list[bool], group: list[int]) -> tuple[Trajectories, torch.Tensor]:
    length, over = torch.tensor(lengths), torch.tensor(ended)
    last = torch.arange(8) == (length - 1).unsqueeze(1)
    made = {"length": length, "group": torch.tensor(group), "terminated": last & over.unsqueeze(1)}
    return Trajectories({**made, "mask": torch.arange(8) < length.unsqueeze(1)}), over


def test_room_is_shared_equally_and_the_rest_is_the_lasts() -> None:
    plan = Trees(prompts=2, size=8, segment=2, depth=4, branching=2)
    rows, over = state([2, 2, 2, 1, 2], [False, False, False, True, False], [0, 0, 0, 0, 1])
    # Three live and one just ended: min(8 - 1, 2 * 4) = 7 continue; of the one row of prompt 1, two.
    copies, place = plan._next(rows, over, 0, 2, context())
    assert copies.tolist() == [2, 2, 3, 0, 2]
    assert place[~over].tolist() == [2, 2, 2, 2]
    # It had ended before: min(7, 2 * 3).
    late, gone = state([1, 2, 2, 2, 2], [True, False, False, False, False], [0, 0, 0, 0, 1])
    assert plan._next(late, gone, 1, 2, context())[0].tolist() == [0, 2, 2, 2, 2]


def test_whole_things_are_shared_by_largest_remainder() -> None:
    score = torch.tensor([0.5, 0.3, 0.2, 0.25, 0.75], dtype=torch.float64).log()
    group = torch.tensor([0, 0, 0, 1, 1])
    # 3.5, 2.1, 1.4 of seven; 0.5, 1.5 of two, where the first of equal remainders gets the rest.
    assert largest_remainder(score, group, torch.tensor([7, 2])).tolist() == [4, 2, 1, 1, 1]
    assert largest_remainder(score, group, torch.tensor([0, 4])).tolist() == [0, 0, 0, 1, 3]
    # Far apart: no overflow, and all goes to one.
    far = torch.tensor([-2000.0, 0.0, 3.0, 3.0, 3.0], dtype=torch.float64)
    assert largest_remainder(far, group, torch.tensor([5, 3])).tolist() == [0, 0, 5, 2, 1]


def test_room_is_shared_by_log_probability() -> None:
    # Log-probabilities of whole branches -1, -2, -3; means -0.25, -1, -3. What is behind a row's end counts nothing.
    rows, over = state([4, 2, 1, 1], [False, False, False, True], [0, 0, 0, 0])
    logp = torch.full((4, 8), -9.0)
    logp[0, :4], logp[1, :2], logp[2, :1] = -0.25, -1.0, -3.0
    rows = rows.replace(logp_old=logp)

    def copies(**settings: Any) -> list[int]:
        plan = Trees(prompts=1, size=8, segment=2, depth=4, branching=2, **settings)
        found, place = plan._next(rows, over, 0, 1, context())
        assert place[~over].tolist() == [4, 2, 1]
        return found.tolist()

    # Seven for three: one each, and four by softmax(1, 2, 3) = (0.09, 0.24, 0.67): 0.36, 0.98, 2.66.
    assert copies(share="logp") == [1, 2, 4, 0]
    assert copies(share="logp", share_temperature=-1.0) == [4, 2, 1, 0]
    # softmax(0.25, 1, 3) = (0.05, 0.11, 0.84): 0.21, 0.45, 3.34.
    assert copies(share="mean_logp") == [1, 2, 4, 0]
    assert copies(share="mean_logp", share_temperature=0.2) == [1, 1, 5, 0]
    # So hot that they weigh almost alike, 4 / 3 each: the unlikeliest has the rest; so hot the other way, the likeliest.
    assert copies(share="logp", share_temperature=1e6) == [2, 2, 3, 0]
    assert copies(share="logp", share_temperature=-1e6) == [3, 2, 2, 0]
    assert copies() == [2, 2, 3, 0]


def test_cuts_by_log_probability() -> None:
    rows, _ = state([5, 4, 1], [True] * 3, [0, 1, 2])
    logp = torch.tensor([[-1, -1, -2, -4, -1, -9, 0, 0], [-3, -1, -1, -1, -9, 0, 0, 0], [-2, -9, 0, 0, 0, 0, 0, 0]])
    rows = rows.replace(logp_old=logp.float())
    over = torch.ones(3, dtype=torch.bool)
    plan = Trees(prompts=3, size=2, segment=2, depth=4, cut="least_likely")
    copies, place = plan._next(rows, over, 3, 3, context())
    assert copies.tolist() == [1, 1, 1]
    assert place.tolist() == [3, 0, 0]
    means = block_means(logp.float(), rows.length, 2)
    inf = float("inf")
    assert means.tolist() == [[-1, -3, -1, -inf], [-2, -1, -inf, -inf], [-2, -inf, -inf, -inf]]
    # Softmax of (1, 3, 1): 0.107, 0.787, 0.107; the other way of (-1, -3, -1): 0.468, 0.063, 0.468.
    plan = Trees(prompts=1, size=2, segment=4, depth=2, cut="block", block=2)
    lots = torch.linspace(0, 1, 1001)[:-1]
    many = rows.select(torch.zeros(1000, dtype=torch.int64))
    counts = torch.bincount(plan._cut(many, lots), minlength=5)
    assert counts.tolist() == pytest.approx([106.5, 0, 787.0, 0, 106.5], abs=1)
    counts = torch.bincount(replace(plan, cut="inverse_block")._cut(many, lots), minlength=5)
    assert counts.tolist() == pytest.approx([468.3, 0, 63.4, 0, 468.3], abs=1)
    assert bool((plan._cut(rows, torch.full((3,), 1 - 1e-7)) < rows.length).all())


def test_leaves_are_cut_back_where_none_lives() -> None:
    plan = Trees(prompts=2, size=4, segment=2, depth=4, branching=2)
    # Each prompt lacks two leaves and has two, of which one ended by itself: that one is cut back, in two copies.
    rows, _ = state([8, 5, 8, 3], [False, True, False, True], [0, 0, 1, 1])
    over = torch.ones(4, dtype=torch.bool)
    seen = set()
    for seed in range(40):
        where = context()
        where.generator.manual_seed(seed)
        copies, place = plan._next(rows, over, 4, 2, where)
        assert copies.tolist() == [0, 2, 0, 2]
        assert (place % 2 == 0).all()
        assert (place < rows.length).all()
        seen.add(int(place[1]))
    assert seen == {0, 2, 4}
    # Six are missing and one ended: two now, the others after the next round. None ended: two from the prompt.
    wide = Trees(prompts=2, size=8, segment=2, depth=4, branching=2)
    none, _ = state([8, 5, 8, 8], [False, True, False, False], [0, 0, 1, 1])
    copies, place = wide._next(none, over, 4, 2, context())
    assert copies[:2].tolist() == [0, 2]
    assert sorted(copies[2:].tolist()) == [0, 2]
    assert place[2:].tolist() == [0, 0]
    full, _ = state([3, 3, 3, 3], [True] * 4, [0] * 4)
    assert plan._next(full, over, 4, 2, context())[0].tolist() == [0] * 4


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"segment": 0}, r"Trees\.segment=0"),
        ({"branching": 0}, r"Trees\.branching=0"),
        ({"first_least": 3, "first_most": 2}, r"Trees\.first=\(3, 2\)"),
        ({"weights": "median"}, "weights='median'"),
        ({"block": 0}, r"Trees\.block=0"),
        ({"share": "fair"}, "share='fair'"),
        ({"cut": "blocks"}, "did you mean block"),
        ({"share_temperature": 0.0}, r"Trees\.share_temperature=0"),
    ):
        with pytest.raises(UserError, match=message):
            vantage.method("treepo", **settings)


def test_prompts_that_teach_nothing_are_sampled_again() -> None:
    where, rows = grown(rounds=3)
    assert "rollout/informative" in where.metrics.collect()
    assert "path" in rows
    # Once, and with all prompts.
    where, rows = grown(rounds=1)
    assert "rollout/informative" not in where.metrics.collect()
    assert len(rows) == 48


def test_it_learns_and_resumes(tmp_path: Any) -> None:
    made = vantage.method("treepo", prompts=6, group_size=8, lr=3e-2, segment=1, first_most=3, rounds=2, minibatches=2)
    assert gain(made, 40) > 0.3
    assert_resumes(tmp_path, made)


@pytest.mark.parametrize("settings", [{}, {"share": "logp", "cut": "least_likely"}, {"cut": "block", "block": 3}])
def test_trees_of_a_language_model(settings: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    task = task_from_spec("modular:length=1,modulus=2", options={"max_new_tokens": 9, "evaluated": 4})
    policy: Any = task.make_policy(seed=0)
    made = vantage.method("treepo", prompts=3, group_size=6, segment=4, rounds=1, minibatches=1, **settings)
    run = vantage.core.Trainer(made, task, policy, task.make_engine(policy), vantage.core.Schedule(1), seed=1)
    rows = made.rollout(run.context)
    assert torch.bincount(rows.group).tolist() == [6] * 3
    inside = torch.arange(rows.steps) < rows.length.unsqueeze(1)
    torch.testing.assert_close(run.context.evaluate(rows)[inside], rows.logp_old[inside], rtol=1e-3, atol=1e-3)
    assert int(rows.length.max()) <= 9
    score = run.context.verify(rows)
    assert "rewards" in score


@pytest.mark.parametrize("cut_path", [False, True])
def test_a_prompt_whose_leaves_all_reached_the_limit_is_continued_itself(cut_path: bool) -> None:
    """Nothing ends by itself: every leaf has the path of branches from the prompt, whatever leaf it took the place of."""
    run = trainer(
        vantage.method(
            "treepo",
            prompts=2,
            group_size=8,
            segment=STEPS,
            first_most=2,
            rounds=1,
            overlong_buffer=0,
            cut_path=cut_path,
        ),
        1,
    )
    with torch.no_grad():
        policy: Any = run.context.policy
        policy.embed.fill_(5.0)
        policy.head[:, 0] = -100.0  # symbol 0 ends a row
    rows = run.context.method.rollout(run.context)
    assert not rows.terminated.any()
    assert torch.bincount(rows.group).tolist() == [8, 8]
    assert (rows["path"] > 0).sum(1).tolist() == [1] * 16
    assert len(rows["path"][:, 0].unique()) == 16


def test_prompts_are_dropped_by_the_score_before_the_penalty_of_length() -> None:
    made = registry.page("treepo").make({"prompts": 6, "group_size": 8, "segment": 1, "first_most": 3})
    run = trainer(made, 1)
    rows = run.context.method.rollout(run.context)
    right = rows.rewards["right"].view(-1, 8)
    assert (right.std(1) > 0).all()
    assert made.rollout.metric == "total"


@cases("treepo", "advantage")
def test_advantage_is_the_authors(case: Case) -> None:
    keys = [uid.split("#") for uid in case.inputs["uid"]]
    numbers = {name: place for place, name in enumerate(sorted({part for key in keys for part in key}), 1)}
    longest = max(map(len, keys)) - 1
    path = torch.tensor([[numbers[part] for part in key[1:]] + [0] * (longest - len(key) + 1) for key in keys])
    length = torch.tensor(case.inputs["lengths"])
    batch = Trajectories(
        {
            "group": torch.tensor([numbers[key[0]] for key in keys]),
            "path": path,
            "score": case.tensor("scores"),
            "mask": torch.arange(4) < length.unsqueeze(1),
        }
    )
    settings = {"weights": case.settings["adv_weight_strategy"], "differing": case.settings["remove_no_std_subgroup"]}
    case.check("advantages", registry.page("treepo").make(settings).advantage(batch, context()))


@cases("treepo", "loss")
def test_loss_is_the_authors(case: Case) -> None:
    """One micro-batch of theirs is the minibatch."""
    mask = case.tensor("mask")
    batch = Trajectories(
        {
            "mask": mask,
            "length": mask.sum(1),
            "logp_old": case.tensor("logp_old"),
            "advantage": case.tensor("advantages"),
        }
    )
    logp = case.tensor("logp").requires_grad_()
    loss = loss_of(registry.page("treepo").make(), batch, logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0])


@cases("treepo", "cut random")
def test_random_cuts_are_the_authors(case: Case) -> None:
    size = case.settings["max_token_per_step"]
    plan = registry.page("treepo").make({"segment": size, "rounds": 1}).rollout
    length, block = torch.tensor(case.inputs["length_and_block"]).unbind(1)
    blocks = (length + size - 1) // size
    rows = Trajectories({"length": length, "mask": torch.arange(9) < length.unsqueeze(1)})
    place = plan._cut(rows, (block + 0.5) / blocks)
    case.check("tokens", place)
    ends = (torch.arange(3) + 1).unsqueeze(0) * size
    reach = torch.where(ends < length.unsqueeze(1) + size, torch.minimum(ends, length.unsqueeze(1)), 99)
    case.check("components", branches_kept(reach, place).sum(1))


@cases("treepo", "cut block")
def test_cuts_before_unlikely_blocks_are_the_authors(case: Case) -> None:
    check_blocks(case, -1.0)


@cases("treepo", "cut inverse_block")
def test_cuts_before_likely_blocks_are_the_authors(case: Case) -> None:
    check_blocks(case, 1.0)


def check_blocks(case: Case, sign: float) -> None:
    rows = case.inputs["logp"]
    logp = torch.tensor([[*row, *[-9.0] * (6 - len(row))] for row in rows])
    found = block_chances(logp, torch.tensor([len(row) for row in rows]), case.settings["cal_prob_block_size"], sign)
    for row, expected in enumerate(case.outputs["weights"]):
        assert found[row].tolist() == pytest.approx([*expected, *[0.0] * (3 - len(expected))], abs=1e-5)


@cases("treepo", "rewards")
def test_rewards_are_the_authors(case: Case) -> None:
    length = torch.tensor(case.inputs["lengths"])
    where = context(engine=SimpleNamespace(max_length=case.settings["max_resp_len"]))
    batch = Trajectories(
        {
            "rewards": {"correct": case.tensor("correct")},
            "length": length,
            "mask": torch.arange(7168) < length.unsqueeze(1),
        }
    )
    for reward in registry.page("treepo").make().rewards:
        batch = reward(batch, where)
    case.check("reward", batch.score)
    case.check("reward", batch.reward.sum(1))


@cases("treepo", "share")
def test_shares_are_the_authors(case: Case) -> None:
    score, group = case.tensor("weights").log(), torch.zeros(3, dtype=torch.int64)
    found = [1 + largest_remainder(score, group, torch.tensor([total - 3])) for total in case.inputs["totals"]]
    case.check("copies", torch.stack(found))
