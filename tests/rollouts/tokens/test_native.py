"""The compiled decode steps: equal to those in torch to the last draw, whatever the threads, and never needed."""

import hashlib
import subprocess

import pytest
import torch

from tests.rollouts.tokens.tiny import agrees, make, same
from vantage.core.errors import TrainingError
from vantage.rollouts.tokens import Sampling, TokenEngine, lean
from vantage.rollouts.tokens import native as compiled
from vantage.rollouts.tokens.sampling import draw
from vantage.rollouts.tokens.weights import _Direct

PREFIXES = [[3, 4, 5], [7], list(range(8, 40)), [3, 4, 5], list(range(50, 61)), [9, 8]]

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="there is no C compiler")


@pytest.fixture
def in_torch(monkeypatch):
    """Run a call without the compiled path."""

    def run(call):
        with monkeypatch.context() as patch:
            patch.setattr(lean, "native", lambda _: None)
            return call()

    return run


def test_the_digest_is_that_of_the_source():
    assert hashlib.sha256(compiled.SOURCE.read_bytes()).hexdigest() == compiled.DIGEST


def test_it_is_used_for_small_models_in_single_precision_and_for_no_others():
    model = make()
    assert lean.weights_of(model).native is not None
    assert lean.weights_of(model, _Direct).native is None
    assert lean.weights_of(model.bfloat16()).native is None


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=40),
        Sampling(max_new_tokens=40, temperature=0.6, stop_tokens=(5, 6)),
        Sampling(max_new_tokens=12, greedy=True, temperature=2.0),
        Sampling(max_new_tokens=12, top_p=0.8, min_p=0.01),
    ],
    ids=["plain", "tempered", "greedy", "truncated"],
)
@pytest.mark.parametrize("width", [{}, {"hidden_size": 128, "intermediate_size": 100, "vocab_size": 300}])
def test_it_draws_what_the_steps_in_torch_draw(sampling, width, in_torch):
    model = make("Qwen3", scale=0.1, **width)
    engine = TokenEngine(model, backend="lean")
    found = engine.generate(PREFIXES, 3, sampling, seed=7)
    expected = in_torch(lambda: engine.generate(PREFIXES, 3, sampling, seed=7))
    same(found, expected)
    for name in ("entropy", "logp_sampling", "logp_raw"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=0)
    agrees(model, found, PREFIXES, sampling.temperature)


def test_the_bits_of_a_row_do_not_depend_on_threads_or_on_the_rows_beside_it():
    model = make("Llama", hidden_size=96, num_attention_heads=6, scale=0.1)
    engine = TokenEngine(model, backend="lean", eos_token_ids=())
    sampling = Sampling(max_new_tokens=30)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(engine.generate(PREFIXES, 9, sampling, seed=3))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.tokens, found[0].tokens)
        assert torch.equal(other.logp, found[0].logp)
    # Alone, decoded behind the same prompt.
    for row in (0, 20, 53):
        prefix = PREFIXES[int(found[0].prefix[row])]
        alone = engine.generate([prefix], 1, sampling, seeds=found[0].seed[row : row + 1])
        assert torch.equal(alone.tokens[0], found[0].tokens[row])
        torch.testing.assert_close(alone.logp[0], found[0].logp[row], atol=1e-5, rtol=0)


def test_forks_insertions_and_returns_to_an_earlier_place(in_torch):
    model = make("Qwen2", hidden_size=64)

    def run():
        session = TokenEngine(model, backend="lean").open(PREFIXES, 3, Sampling(max_new_tokens=40), seed=2)
        session.step(9)
        session.fork([0, 4, 4, 16], [2, 0, 9, 5])
        session.append([1, 3, 19], [[20, 21, 22], [23], []])
        session.step(4)
        session.close([2])
        session.step()
        return session.result()

    found = run()
    same(found, in_torch(run))
    agrees(model, found, PREFIXES)


def test_it_stops_when_enough_rows_have_drawn_a_stop_token():
    model = make(scale=0.2)
    engine = TokenEngine(model, backend="lean", eos_token_ids=tuple(range(30, 97)))
    with engine.running():
        session = engine.open([[5]], 32, Sampling(max_new_tokens=32), seed=0)
    # Most of the vocabulary ends a row: one step ends more than a sixteenth of them, and rows that ended draw no more.
    found = engine.generate([[5]], 32, Sampling(max_new_tokens=32), seed=0)
    ends = (found.tokens >= 30).float().cumsum(1) - (found.tokens >= 30).float()
    inside = torch.arange(found.tokens.shape[1]) < found.length[:, None]
    assert (ends[inside] == 0).all()
    assert found.finished.all()
    weights, ended = session.weights, torch.zeros(32, dtype=torch.bool)
    cache = session.cache
    stream = torch.rand(16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = weights.native.decode(cache, session.pending, stream, 16, session.sampling, session.stop, ended, 2)
    count = (drawn.token >= 30).any(1).sum()
    assert drawn.token.shape[1] < 16
    assert count >= 2
    assert not (drawn.token[:, :-1] >= 30).any(1).sum() >= 2
    assert cache.ahead == drawn.token.shape[1]


def test_frequencies_equal_the_distribution():
    stats = pytest.importorskip("scipy.stats")
    model = make(scale=0.2, vocab_size=40)
    count = 20_000
    found = TokenEngine(model, backend="lean", eos_token_ids=()).generate(
        [[3, 4]], count, Sampling(max_new_tokens=1), seed=1
    )
    with torch.no_grad():
        exact = model(torch.tensor([[3, 4]])).logits[0, -1].double().softmax(-1)
    frequency = found.tokens[:, 0].bincount(minlength=40)
    tested = exact * count > 5
    expected = exact[tested] / exact[tested].sum() * frequency[tested].sum()
    assert stats.chisquare(frequency[tested], expected).pvalue > 1e-3


def test_the_ends_of_the_interval_draw_the_first_and_the_last_token_that_can_be():
    model = make(scale=0.2)
    engine = TokenEngine(model, backend="lean", eos_token_ids=())
    with engine.running():
        session = engine.open([[5]], 3, Sampling(max_new_tokens=2), seed=0)
        stream = torch.tensor([[0.0, 0.5, 1 - 2.0**-50]], dtype=torch.float64)
        held = session.cache.take(torch.arange(3))
        with torch.inference_mode():
            expected = draw(held.decode(session.pending), stream[0], session.sampling)
        none = torch.zeros(0, dtype=torch.int64)
        drawn = session.weights.native.decode(
            session.cache, session.pending, stream, 1, session.sampling, none, torch.zeros(3, dtype=torch.bool), 3
        )
    assert torch.equal(drawn.token[:, 0], expected.token)
    assert drawn.token[0] == 0
    assert drawn.token[2] == 96
    torch.testing.assert_close(drawn.entropy[:, 0], expected.entropy, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_have_diverged_are_said_to(bad):
    model = make()
    with torch.no_grad():
        model.lm_head.weight[7, 3] = bad
    with pytest.raises(TrainingError, match="not finite"):
        TokenEngine(model, backend="lean").generate([[5, 6]], 2, Sampling(max_new_tokens=3))


def test_without_a_compiler_the_engine_runs_in_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "library", compiled.library.__wrapped__)
    for name, value in (("CC", str(tmp_path / "none")), ("CC", "false"), ("VANTAGE_NATIVE", "0")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert compiled.library() is None
            model = make()
            agrees(model, TokenEngine(model).generate([[5, 6]], 2, Sampling(max_new_tokens=4)), [[5, 6]])


def test_it_is_compiled_once_into_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = compiled.compiled()
    assert first.parent == tmp_path / "vantage" / "native"
    when = first.stat().st_mtime_ns
    assert compiled.compiled() == first
    assert first.stat().st_mtime_ns == when
    assert {path.suffix for path in first.parent.iterdir()} == {".so", ".sha256"}
    for damage in (b"", first.read_bytes()[:1000], b"text"):
        first.write_bytes(damage)
        assert compiled.compiled() == first
        assert len(first.read_bytes()) > 10_000
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "FLAGS", ("--no-such-flag",))
        with pytest.raises(subprocess.SubprocessError):
            compiled.compiled()
    assert {path.suffix for path in first.parent.iterdir()} == {".so", ".sha256"}
    for damage in (b"", first.read_bytes()[:1000], b"text"):
        first.write_bytes(damage)
        assert compiled.compiled() == first
        assert len(first.read_bytes()) > 10_000
