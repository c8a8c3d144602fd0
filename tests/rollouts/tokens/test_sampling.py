"""Truncation against transformers' processors, draws against their exact distribution, streams of their own."""

import math
import re

import pytest
import torch

from vantage.core.errors import UserError
from vantage.rollouts.tokens.sampling import Sampling, draw, invert, mix, row_seeds, truncate, uniforms


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"temperature": 0.0},
            "temperature=0.0 is out of range: above 0, below inf; set greedy=True for the most probable token",
        ),
        ({"temperature": math.inf}, "temperature=inf is out of range"),
        ({"top_p": 0.0}, "top_p=0.0 is out of range: above 0, at most 1; 1 keeps every token"),
        ({"top_p": 1.2}, "top_p=1.2 is out of range"),
        ({"top_k": -1}, "top_k=-1 is out of range: at least 0; 0 keeps every token"),
        ({"min_p": 1.5}, "min_p=1.5 is out of range: 0 to 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is out of range: at least 1"),
        ({"stop_tokens": (3, -1)}, "stop_tokens[1]=-1 is out of range: at least 0"),
        ({"stop_strings": ("",)}, "stop_strings[0] is empty"),
        ({"stop_strings": "ab"}, "stop_strings='ab' is not a list"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings, told):
    with pytest.raises(UserError, match=re.escape(f"Sampling.{told}")):
        Sampling(**settings)


def test_mix_is_splitmix64():
    """The first outputs of SplitMix64 from state 0, as published with the generator."""
    state = torch.tensor([1, 2, 3], dtype=torch.int64) * -0x61C8864680B583EB
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in mix(state).tolist()] == expected


def test_seeds_and_uniforms_depend_on_their_own_row_and_place_alone():
    rows = torch.arange(50)
    seeds = row_seeds(7, rows)
    assert torch.equal(row_seeds(7, rows[10:20]), seeds[10:20])
    assert not torch.isin(row_seeds(8, rows), seeds).any()
    assert torch.equal(row_seeds(-1, rows), row_seeds(2**64 - 1, rows))
    drawn = uniforms(seeds[:, None], torch.arange(400))
    assert torch.equal(uniforms(seeds[3], torch.arange(400)), drawn[3])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / drawn.numel()) ** 0.5)
    neighbours = torch.stack((drawn[:, :-1].flatten(), drawn[:, 1:].flatten()))
    assert abs(torch.corrcoef(neighbours)[0, 1]) < 4 / drawn.numel() ** 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_k": 200},
        {"top_p": 0.7},
        {"top_p": 0.999},
        {"top_p": 1e-6},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 0.7},
        {"top_p": 0.9, "min_p": 0.02, "temperature": 1.6},
    ],
)
@pytest.mark.parametrize("vocabulary", [97, 6000])
def test_truncation_equals_that_of_transformers(settings, vocabulary):
    from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    sampling = Sampling(**settings)
    torch.manual_seed(0)
    logits = torch.randn(64, vocabulary) * torch.logspace(-1, 1, 64)[:, None] / sampling.temperature
    peers = LogitsProcessorList()
    if sampling.top_k:
        peers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        peers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        peers.append(MinPLogitsWarper(sampling.min_p))
    found, expected = truncate(logits, sampling), peers(None, logits)
    # The peer adds up in float32, so a token at the edge of the nucleus may fall on its other side.
    edge = (found.isinf() ^ expected.isinf()) * logits.softmax(-1)
    assert edge.sum(-1).max() < (2e-5 if sampling.top_p < 1 else 1e-30)
    assert torch.equal(found[found.isfinite() & expected.isfinite()], logits[found.isfinite() & expected.isfinite()])


@pytest.mark.parametrize("vocabulary", [1, 5, 1024, 1025, 5000])
def test_inversion_finds_the_place_in_the_exact_cumulative_distribution(vocabulary):
    torch.manual_seed(0)
    probs = (torch.randn(300, vocabulary) * 3).softmax(-1)
    probs[:, ::3] = 0.0
    if vocabulary == 1:
        probs[:] = 1.0
    uniform = torch.rand(300, dtype=torch.float64)
    uniform[0], uniform[1] = 0.0, 1 - 2.0**-50
    token = invert(probs, uniform).squeeze(1)
    assert (probs.gather(1, token[:, None]) > 0).all()
    mass = probs.double().cumsum(1)
    at = mass.gather(1, token[:, None]).squeeze(1)
    before = at - probs.double().gather(1, token[:, None]).squeeze(1)
    goal = uniform * mass[:, -1]
    assert (before <= goal + 1e-6).all()
    assert (goal <= at + 1e-6).all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.05},
    ],
)
@pytest.mark.parametrize("vocabulary", [8, 1500])
def test_frequencies_are_those_of_the_exact_distribution(settings, vocabulary):
    scipy_stats = pytest.importorskip("scipy.stats")
    sampling, count = Sampling(**settings), 40_000 if vocabulary < 100 else 8_000
    torch.manual_seed(1)
    logits = torch.full((vocabulary,), -20.0)
    logits[torch.randperm(vocabulary)[:8]] = torch.randn(8) * 1.5
    found = draw(logits.expand(count, -1), uniforms(row_seeds(3, torch.arange(count)), torch.tensor(5)), sampling)
    exact = truncate(logits[None] / sampling.temperature, sampling).double().softmax(-1)[0]
    frequency = found.token.bincount(minlength=vocabulary)
    assert (frequency[exact == 0] == 0).all()
    tested = exact * count > 5
    assert (
        scipy_stats.chisquare(frequency[tested], exact[tested] / exact[tested].sum() * frequency[tested].sum()).pvalue
        > 1e-3
    )
    kept = exact.float().log()[found.token]
    torch.testing.assert_close(found.logp_sampling, kept, atol=1e-4, rtol=0)


def test_the_scores_are_of_the_distributions_they_say():
    torch.manual_seed(0)
    logits = torch.randn(200, 50) * 3
    uniform = torch.rand(200, dtype=torch.float64)
    plain = draw(logits, uniform, Sampling())
    assert plain.logp_sampling is plain.logp
    assert plain.logp_raw is plain.logp
    found = draw(logits, uniform, Sampling(temperature=0.6, top_k=7))
    tempered, token = (logits / 0.6).log_softmax(-1), found.token[:, None]
    torch.testing.assert_close(found.logp, tempered.gather(1, token).squeeze(1))
    torch.testing.assert_close(found.logp_raw, logits.log_softmax(-1).gather(1, token).squeeze(1))
    torch.testing.assert_close(found.entropy, torch.distributions.Categorical(logits=logits / 0.6).entropy())
    assert (found.logp_sampling >= found.logp).all()
    assert (found.logp_sampling > found.logp + 1e-4).any()


def test_greedy_takes_the_most_probable_and_is_certain_of_it():
    logits = torch.randn(20, 50)
    found = draw(logits, None, Sampling(greedy=True, temperature=0.5))
    assert torch.equal(found.token, logits.argmax(-1))
    assert (found.logp_sampling == 0).all()
    torch.testing.assert_close(found.logp, (logits / 0.5).log_softmax(-1).amax(-1))


def test_half_precision_logits_are_scored_in_single_precision():
    logits = torch.randn(20, 3000).bfloat16()
    uniform = torch.rand(20, dtype=torch.float64)
    half, full = draw(logits, uniform, Sampling()), draw(logits.float(), uniform, Sampling())
    assert half.logp.dtype == torch.float32
    assert torch.equal(half.token, full.token)
    assert torch.equal(half.logp, full.logp)
