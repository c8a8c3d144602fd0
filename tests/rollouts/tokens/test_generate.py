"""`TokenEngine.generate`: every backend and layout against the module's own forward and against each other."""

import pytest
import torch

from tests.rollouts.tokens.tiny import EOS, agrees, judged, make, same
from vantage.core.errors import UserError
from vantage.rollouts.tokens import Sampling, TokenEngine, lean, weights
from vantage.rollouts.tokens.native import library

PREFIXES = [[3, 4, 5], [7], list(range(8, 40)), [3, 4, 5], list(range(50, 61)), [9, 8]]
COUNTS = [3, 2, 4, 1, 0, 5]
MODELS = {
    "llama": ("Llama", {}),
    "llama-multi-head-tied": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-one-head-biased": ("Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama-scaled": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama-yarn": ("Llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {}),
    "qwen3-wide-heads": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1}),
}


@pytest.fixture(params=["own", "shared"])
def layout(request, monkeypatch):
    """Prompts copied to each row, or shared by their group."""
    monkeypatch.setattr(lean, "sharing_pays", lambda *_: request.param == "shared")
    return request.param


@pytest.fixture(params=["_Direct", "_Joined", "_Folded", "native"])
def layer(request, monkeypatch):
    """Each way the lean path reads a layer's parameters."""
    compiled = request.param == "native"
    if compiled and library() is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(weights, "suited", lambda _: getattr(weights, "_Folded" if compiled else request.param))
    if not compiled:
        monkeypatch.setattr(lean, "native", lambda _: None)
    return request.param


@pytest.mark.parametrize("name", sorted(MODELS))
def test_lean_equals_the_modules_forward_and_draws_what_the_generic_backend_draws(name, layer, layout):
    kind, settings = MODELS[name]
    model = make(kind, **settings)
    sampling = Sampling(max_new_tokens=20, temperature=0.9, stop_tokens=(5, 6))
    found = TokenEngine(model, backend="lean").generate(PREFIXES, COUNTS, sampling, seed=5)
    agrees(model, found, PREFIXES, 0.9)
    assert found.prefix.tolist() == [0] * 3 + [1] * 2 + [2] * 4 + [3] + [5] * 5
    ends = torch.tensor([EOS, 5, 6])
    for row in range(len(found)):
        tokens = found.tokens[row, : found.length[row]]
        assert torch.isin(tokens, ends).nonzero().flatten().tolist() in ([], [len(tokens) - 1])
        assert bool(torch.isin(tokens[-1], ends)) == bool(found.finished[row])
        assert found.finished[row] or len(tokens) == 20
    same(found, TokenEngine(model, backend="transformers").generate(PREFIXES, COUNTS, sampling, seed=5))


@pytest.mark.parametrize("backend", ["lean", "transformers"])
def test_rows_draw_the_same_whatever_stands_beside_them(backend, layout):
    model = make()
    sampling = Sampling(max_new_tokens=24, stop_tokens=tuple(range(3, 9)))
    whole = TokenEngine(model, backend=backend).generate(PREFIXES, COUNTS, sampling, seed=3)
    assert whole.length.min() < whole.length.max()
    for budget in (1, 70, 200):
        same(
            TokenEngine(model, backend=backend, max_batch_tokens=budget).generate(PREFIXES, COUNTS, sampling, seed=3),
            whole,
        )
    engine = TokenEngine(model, backend=backend)
    for row in (0, 4, 8, 14):
        alone = engine.generate([PREFIXES[int(whole.prefix[row])]], 1, sampling, seeds=whole.seed[row : row + 1])
        size = int(whole.length[row])
        assert alone.tokens[0].tolist() == whole.tokens[row, :size].tolist()
        torch.testing.assert_close(alone.logp[0], whole.logp[row, :size], atol=1e-4, rtol=0)


def test_prompts_of_many_lengths_with_refills(layout):
    model = make("Qwen3")
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 90, (30,), generator=generator).tolist()
    prefixes = [torch.randint(3, 97, (size,), generator=generator).tolist() for size in sizes]
    limits = torch.randint(1, 30, (90,), generator=generator).tolist()
    engine = TokenEngine(model, eos_token_ids=(), max_batch_tokens=900, backend="lean")
    found = engine.generate(prefixes, 3, Sampling(), max_new_tokens=limits)
    assert found.length.tolist() == limits
    assert not found.finished.any()
    agrees(model, found, prefixes)


def test_prompts_with_the_same_long_beginning(layout):
    model = make("Qwen2")
    start = torch.randint(3, 97, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    prefixes = [start + prefix for prefix in PREFIXES] + [start, [*start, 4]]
    found = TokenEngine(model, backend="lean").generate(prefixes, 2, Sampling(max_new_tokens=6), seed=1)
    agrees(model, found, prefixes)


@pytest.mark.parametrize("backend", ["lean", "transformers"])
def test_a_row_cut_short_goes_on_as_it_would_have(backend):
    model = make("Qwen2")
    engine = TokenEngine(model, backend=backend, eos_token_ids=())
    prefixes = PREFIXES[:3]
    whole = engine.generate(prefixes, 2, Sampling(max_new_tokens=20), seed=11)
    cut = engine.generate(prefixes, 2, Sampling(max_new_tokens=8), seed=11)
    assert torch.equal(cut.tokens, whole.tokens[:, :8])
    held = [prefixes[int(p)] + row.tolist() for p, row in zip(cut.prefix, cut.tokens)]
    rest = engine.generate(held, 1, Sampling(max_new_tokens=12), seeds=cut.seed)
    assert torch.equal(rest.tokens, whole.tokens[:, 8:])
    torch.testing.assert_close(rest.logp, whole.logp[:, 8:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["lean", "transformers"])
def test_frequencies_of_the_first_two_tokens(backend):
    scipy_stats = pytest.importorskip("scipy.stats")
    model = make(scale=0.2, vocab_size=6)
    prefix, count = [3, 4], 6000
    sampling = Sampling(max_new_tokens=2, temperature=0.8, top_k=4)
    found = TokenEngine(model, backend=backend, eos_token_ids=()).generate([prefix], count, sampling, seed=1)

    def truncated(completion):
        logps = judged(model, prefix, [*completion, 0], 0.8)[-1]
        return torch.where(logps >= logps.topk(4).values[-1], logps, -torch.inf).softmax(-1)

    exact = torch.stack([truncated([])[a] * truncated([a]) for a in range(6)]).flatten().double()
    frequency = (found.tokens[:, 0] * 6 + found.tokens[:, 1]).bincount(minlength=36)
    assert (frequency[exact == 0] == 0).all()
    tested = exact * count > 5
    expected = exact[tested] / exact[tested].sum() * frequency[tested].sum()
    assert scipy_stats.chisquare(frequency[tested], expected).pvalue > 1e-3
    assert (found.logp_sampling >= found.logp - 1e-6).all()


@pytest.mark.parametrize("backend", ["lean", "transformers"])
def test_greedy_is_the_plain_argmax(backend):
    model = make("Qwen3", seed=4)
    prefixes = PREFIXES[:3]
    sampling = Sampling(max_new_tokens=12, greedy=True)
    found = TokenEngine(model, backend=backend, eos_token_ids=()).generate(prefixes, 1, sampling)
    for row, prefix in enumerate(prefixes):
        tokens = found.tokens[row].tolist()
        assert judged(model, prefix, tokens).argmax(-1).tolist() == tokens
    assert (found.logp_sampling == 0).all()
    agrees(model, found, prefixes)


def test_smallest_cases():
    model = make()
    engine = TokenEngine(model)
    found = engine.generate([[5]], 1, Sampling(max_new_tokens=1))
    assert found.tokens.shape == (1, 1)
    agrees(model, found, [[5]])
    nothing = engine.generate([], 3)
    assert nothing.tokens.shape == (0, 0)
    assert len(nothing) == 0
    assert engine.generate([[5], [6]], 0).logp.shape == (0, 0)
    one = engine.generate([[5], [6]], [0, 1], Sampling(max_new_tokens=3))
    assert one.prefix.tolist() == [1]


def test_columns_that_are_the_same_are_one_object():
    engine = TokenEngine(make())
    plain = engine.generate([[5]], 2, Sampling(max_new_tokens=3))
    assert plain.logp is plain.logp_sampling is plain.logp_raw
    other = engine.generate([[5]], 2, Sampling(max_new_tokens=3, temperature=0.5, top_p=0.5))
    assert other.logp is not other.logp_sampling
    assert other.logp is not other.logp_raw


def test_nothing_is_stale_after_an_update_and_the_mode_stays_as_it_was():
    model = make("Qwen2").train()
    model.model.norm.eval()
    engine = TokenEngine(model)
    before = engine.generate([[3, 4]], 4, Sampling(max_new_tokens=6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    optimizer.step()
    after = engine.generate([[3, 4]], 4, Sampling(max_new_tokens=6))
    assert not torch.allclose(before.logp[:, 0], after.logp[:, 0])
    assert model.training
    assert not model.model.norm.training
    agrees(model, after, [[3, 4]])
    # What is returned may take part in a loss.
    (model.lm_head.weight.sum() * after.logp).sum().backward()


def test_no_weights_are_held_between_calls():
    model = make(hidden_size=64)
    engine = TokenEngine(model, backend="lean")
    engine.generate([[3, 4]], 2, Sampling(max_new_tokens=2))
    held = {id(value) for value in vars(engine.backend).values() if isinstance(value, torch.Tensor)}
    assert held == set()
    for parameter in model.parameters():  # replaced, not only changed in place
        parameter.data = parameter.data * 1.5
    agrees(model, engine.generate([[3, 4]], 2, Sampling(max_new_tokens=2)), [[3, 4]])


def test_what_the_lean_path_cannot_run_takes_the_generic_one():
    windowed = make("Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    hooked = make()
    hooked.model.layers[0].register_forward_hook(lambda *_: None)
    dynamic = make(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    for model, reason in ((windowed, "sliding window"), (hooked, "hook"), (dynamic, "rotary")):
        engine = TokenEngine(model)
        assert engine.backend.name == "transformers"
        with pytest.raises(UserError, match=reason):
            TokenEngine(model, backend="lean")
    found = TokenEngine(dynamic).generate(PREFIXES[:2], 2, Sampling(max_new_tokens=5))
    agrees(dynamic, found, PREFIXES[:2])


def test_a_hook_put_on_later_is_noticed():
    model = make()
    engine = TokenEngine(model)
    assert engine.backend.name == "lean"
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output * 0)
    found = engine.generate([[3]], 8, Sampling(max_new_tokens=4))
    torch.testing.assert_close(found.entropy[:, 0], torch.full((8,), 97.0).log())
    handle.remove()


@pytest.mark.parametrize("kind", ["GPT2", "Mistral", "Gemma2", "OPT", "Bloom"])
def test_other_architectures_run_through_transformers(kind):
    own = {
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "Mistral": {"sliding_window": 8, "head_dim": 8},
        "Gemma2": {"sliding_window": 8, "head_dim": 8},
        "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "Bloom": {"n_layer": 2, "n_head": 4},
    }[kind]
    model = make(kind, scale=0.2, **own)
    engine = TokenEngine(model)
    assert engine.backend.name == "transformers"
    prefixes = [*PREFIXES[:2], list(range(8, 20))]
    found = engine.generate(prefixes, [2, 1, 2], Sampling(max_new_tokens=14, stop_tokens=(5, 6, 7, 8)), seed=2)
    agrees(model, found, prefixes)
    session = engine.open(prefixes, 2, Sampling(max_new_tokens=20), seed=2)
    session.step(6)
    session.fork([0, 3], [2, 1])
    session.append([1, 3], [[20, 21, 22], [23]])
    session.step(6)
    agrees(model, session.result(), prefixes)


def test_half_precision_models_score_in_single_precision():
    model = make("Qwen3", scale=0.1).bfloat16()
    prefixes = PREFIXES[:3]
    found = TokenEngine(model, backend="lean").generate(prefixes, 3, Sampling(max_new_tokens=10))
    assert found.logp.dtype == torch.float32
    agrees(model.float(), found, prefixes, tolerance=0.15)


def test_what_does_not_fit_is_refused():
    engine = TokenEngine(make())
    for call, message in (
        (lambda: engine.generate([[]]), "prefix 0 is empty"),
        (lambda: engine.generate([[3], [97]]), "prefix 1 holds tokens outside"),
        (lambda: engine.generate([[3]], [1, 2]), "n="),
        (lambda: engine.generate([[3]], -1), "n="),
        (lambda: engine.generate([[3]], 2, seeds=torch.zeros(3, dtype=torch.int64)), "seeds"),
        (lambda: engine.generate([[3]], 2, max_new_tokens=[1]), "max_new_tokens"),
        (lambda: engine.generate([[3]], 2, max_new_tokens=[1, 0]), "max_new_tokens"),
        (lambda: engine.generate([[3]], 2, Sampling(stop_strings=("a",))), "tokenizer"),
        (lambda: TokenEngine(make(), backend="fast"), "backend"),
        (lambda: TokenEngine(make(), max_batch_tokens=0), "max_batch_tokens"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_seeds_come_from_a_generator():
    engine = TokenEngine(make())

    def run(seed):
        return engine.generate(
            [[3]], 8, Sampling(max_new_tokens=6), generator=torch.Generator().manual_seed(seed)
        ).tokens

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
