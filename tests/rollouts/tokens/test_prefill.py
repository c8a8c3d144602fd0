"""Prompts without padding: how they are put together, and what is kept of each."""

import pytest
import torch

from tests.rollouts.tokens.tiny import make
from vantage.rollouts.tokens.lean import weights_of
from vantage.rollouts.tokens.prefill import buckets, common_start, prefill


def test_buckets_cover_all_and_pad_little():
    lengths = sorted(torch.randint(1, 2000, (300,), generator=torch.Generator().manual_seed(0)).tolist(), reverse=True)
    runs = buckets(lengths)
    assert [first for first, _ in runs] == [0, *(end for _, end in runs[:-1])]
    assert runs[-1][1] == len(lengths)
    for first, end in runs:
        padded, real = lengths[first] * (end - first), sum(lengths[first:end])
        assert padded - real <= max(64, 0.15 * real)
    assert buckets([7] * 10) == [(0, 10)]
    assert buckets([]) == []


def test_what_all_prompts_begin_with():
    assert common_start([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == 2
    assert common_start([[1, 2, 3], [2]]) == 0
    assert common_start([[1, 2, 3]]) == 3
    assert common_start([]) == 0


@pytest.mark.parametrize("limit", [1, 40, 10_000])
@pytest.mark.parametrize("shared", [0, 100])
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_what_is_kept_is_what_transformers_caches(kind, shared, limit):
    model = make(kind)
    weights = weights_of(model)
    folded = weights.folded
    assert folded
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(3, 97, (shared,), generator=generator).tolist()
    sizes = (5, 200, 0, 5, 90, 1, 197, 0)
    prompts = [start + torch.randint(3, 97, (size,), generator=generator).tolist() for size in sizes]
    with torch.inference_mode():
        parts = prefill(weights, prompts, limit)
    assert sorted(index for members, _ in parts for index in members) == list(range(8))
    for members, kv in parts:
        assert len(kv) == 2
        for place, index in enumerate(members):
            size = len(prompts[index])
            for layer, held in enumerate(kv):
                assert held[:, place, :, : held.shape[3] - size].abs().sum() == 0
                if not size:
                    continue
                with torch.no_grad():
                    expected = model(torch.tensor([prompts[index]]), use_cache=True).past_key_values.layers[layer]
                keys, values = held[:, place, :, held.shape[3] - size :]
                # The folded layers interleave the halves of a key.
                halves = torch.cat((keys[..., ::2], keys[..., 1::2]), -1)
                torch.testing.assert_close(halves, expected.keys[0], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(values, expected.values[0], atol=1e-4, rtol=1e-4)
