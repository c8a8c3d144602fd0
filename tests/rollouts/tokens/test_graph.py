"""The captured decode step: its operations anywhere, its capture and replay on CUDA."""

import pytest
import torch

from tests.rollouts.tokens.tiny import agrees, make, same
from vantage.rollouts.tokens import Sampling, TokenEngine, lean, weights
from vantage.rollouts.tokens.graph import WINDOW, replayed
from vantage.rollouts.tokens.lean import weights_of
from vantage.rollouts.tokens.sampling import draw, row_seeds, uniforms

PREFIXES = [[3, 4, 5], [7], list(range(8, 40)), list(range(50, 61))]
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
SETTINGS = [
    Sampling(max_new_tokens=90),
    Sampling(max_new_tokens=90, temperature=0.7, top_k=30, top_p=0.9, greedy=False),
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sampling", [*SETTINGS, Sampling(greedy=True)])
def test_the_steps_are_those_of_plain_decoding(shared, sampling, monkeypatch):
    monkeypatch.setattr(lean, "sharing_pays", lambda *_: shared)
    weights = weights_of(make("Qwen3"))
    counts, rows = [3, 1, 4, 2], 10
    pending = torch.tensor([5, 7, 39, 60]).repeat_interleave(torch.tensor(counts))
    stream = None if sampling.greedy else uniforms(row_seeds(0, torch.arange(rows)), torch.arange(WINDOW)[:, None])
    with torch.inference_mode():
        plain, other = (lean.LeanCache.open(weights, [p[:-1] for p in PREFIXES], counts, 90) for _ in range(2))
        left = right = pending
        for _ in range(2):  # the second window begins where the first ended
            found = replayed(other, right, stream, WINDOW, sampling)
            right = found.token[:, -1]
            for step in range(WINDOW):
                expected = draw(plain.decode(left), None if stream is None else stream[step], sampling)
                left = expected.token
                for name in expected._fields:
                    torch.testing.assert_close(
                        getattr(found, name)[:, step], getattr(expected, name), atol=1e-4, rtol=0
                    )
        assert torch.equal(plain.position, other.position)
        assert plain.farthest == other.farthest


def test_columns_that_are_the_same_stay_one_object():
    weights = weights_of(make())
    with torch.inference_mode():
        rows = lean.LeanCache.open(weights, [[3]], [2], 8)
        found = replayed(rows, torch.tensor([4, 5]), torch.rand(3, 2, dtype=torch.float64), 3, Sampling())
    assert found.logp is found.logp_sampling is found.logp_raw
    assert found.token.shape == (2, 3)


def test_a_graph_holds_until_the_cache_changes():
    weights = weights_of(make())
    with torch.inference_mode():
        rows = lean.LeanCache.open(weights, [[3]], [4], 200)
        pending, stream = torch.tensor([4, 5, 6, 7]), torch.rand(WINDOW, 4, dtype=torch.float64)
        replayed(rows, pending, stream, 4, Sampling())
        first = rows.graph
        replayed(rows, pending, stream, 4, Sampling())
        assert rows.graph is first
        replayed(rows, pending, stream, 4, Sampling(top_k=3))
        assert rows.graph is not first
        second = rows.graph
        rows.retain(torch.tensor([0, 3]))
        replayed(rows, pending[:2], stream[:, :2], 4, Sampling(top_k=3))
        assert rows.graph is not second


@ON_CUDA
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layer", ["_Direct", "_Joined", "_Folded"])
@pytest.mark.parametrize("sampling", SETTINGS)
def test_replay_equals_the_modules_forward(kind, shared, layer, sampling, monkeypatch):
    monkeypatch.setattr(lean, "sharing_pays", lambda *_: shared)
    monkeypatch.setattr(weights, "suited", lambda _: getattr(weights, layer))
    model = make(kind)
    on_cpu = TokenEngine(model, backend="transformers").generate(PREFIXES, 6, sampling, seed=1)
    engine = TokenEngine(model.cuda(), backend="lean")
    assert engine.graphs
    found = engine.generate(PREFIXES, 6, sampling, seed=1)
    found = type(found)(**{name: value.cpu() for name, value in vars(found).items()})
    agrees(model.cpu(), found, PREFIXES, sampling.temperature, tolerance=1e-3)
    assert (found.tokens == on_cpu.tokens).float().mean() > 0.9  # a draw at an edge may fall on its other side


@ON_CUDA
def test_replay_after_an_update_and_with_refills():
    model = make("Qwen3").cuda()
    engine = TokenEngine(model, backend="lean", max_batch_tokens=400)
    sampling = Sampling(max_new_tokens=40, stop_tokens=tuple(range(3, 9)))
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)
        replays = engine.generate(PREFIXES, 8, sampling, seed=2)
        engine.graphs = False
        same(replays, engine.generate(PREFIXES, 8, sampling, seed=2))
        engine.graphs = True


@ON_CUDA
def test_half_precision():
    model = make("Qwen3", scale=0.1, hidden_size=128, head_dim=32).cuda().bfloat16()
    found = TokenEngine(model, backend="lean").generate(PREFIXES, 6, Sampling(max_new_tokens=50))
    found = type(found)(**{name: value.cpu() for name, value in vars(found).items()})
    agrees(model.cpu().float(), found, PREFIXES, tolerance=0.15)


@ON_CUDA
def test_sessions():
    model = make("Qwen2").cuda()
    engine = TokenEngine(model, eos_token_ids=range(4), backend="lean")
    session = engine.open(PREFIXES, 3, Sampling(max_new_tokens=40), seed=3)
    session.step(9)
    session.fork([0, 4, 4], [3, 0, 2])
    session.append([1, 7], [[20, 21], [22] * 9])
    session.close([2])
    session.step()
    found = session.result()
    found = type(found)(**{name: value.cpu() for name, value in vars(found).items()})
    agrees(model.cpu(), found, PREFIXES, tolerance=1e-3)
