"""The chunked output layer against the plain one."""

import pytest
import torch

from vantage.policies.logprob import chunk_size, logits, token_logp


def _inputs(count=23, width=7, vocabulary=11, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    hidden = torch.randn(count, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    offset = torch.randn(vocabulary, dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(vocabulary, (count,))


def _plain(hidden, weight, bias, target, temperature, softcap):
    scores = torch.log_softmax(logits(hidden, weight, bias, temperature=temperature, softcap=softcap), -1)
    return scores.gather(-1, target[:, None]).squeeze(-1), -(scores.exp() * scores).sum(-1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [4, 23, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_log_softmax(chunk, softcap, bias):
    hidden, weight, offset, target = _inputs(bias=bias)
    leaves = [leaf for leaf in (hidden, weight, offset) if leaf is not None]
    ours = token_logp(hidden, weight, offset, target, temperature=0.7, softcap=softcap, chunk=chunk)
    plain = _plain(hidden, weight, offset, target, 0.7, softcap)
    for one, two in zip(ours, plain):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)
    ways = [torch.randn(23, dtype=torch.float64) for _ in range(2)]
    found = torch.autograd.grad(ours, leaves, ways)
    expected = torch.autograd.grad(plain, leaves, ways)
    for one, two in zip(found, expected):
        torch.testing.assert_close(one, two, atol=1e-11, rtol=1e-11)


def test_gradcheck():
    hidden, weight, bias, target = _inputs(5, 3, 4)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logp(h, w, b, target, temperature=1.3, chunk=2), (hidden, weight, bias)
    )


def test_float32_to_1e_6():
    hidden, weight, bias, target = _inputs(64, 8, 50, torch.float32)
    ours = token_logp(hidden, weight, bias, target, chunk=16)
    plain = _plain(hidden.double(), weight.double(), bias.double(), target, 1.0, None)
    for one, two in zip(ours, plain):
        assert float((one - two).detach().abs().max()) < 5e-6
        assert one.dtype == torch.float32


def test_the_gradient_of_logp_alone_and_of_entropy_alone():
    hidden, weight, bias, target = _inputs()
    logp, nothing = token_logp(hidden, weight, bias, target, entropy=False, chunk=5)
    assert nothing is None
    plain, spread = _plain(hidden, weight, bias, target, 1.0, None)
    torch.testing.assert_close(
        torch.autograd.grad(logp.sum(), hidden)[0], torch.autograd.grad(plain.sum(), hidden, retain_graph=True)[0]
    )
    entropy = token_logp(hidden, weight, bias, target, chunk=5)[1]
    torch.testing.assert_close(
        torch.autograd.grad(entropy.sum(), hidden)[0], torch.autograd.grad(spread.sum(), hidden)[0]
    )


def test_a_frozen_output_layer_gets_no_gradient():
    hidden, weight, _, target = _inputs(bias=False)
    logp, _ = token_logp(hidden, weight.detach(), None, target, chunk=5)
    logp.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_bf16_sums_chunks_in_float32():
    hidden, weight, _, target = _inputs(4096, 16, 64, torch.float32, bias=False)
    narrow = [leaf.detach().bfloat16().requires_grad_() for leaf in (hidden, weight)]
    logp, _ = token_logp(narrow[0], narrow[1], None, target, chunk=16)
    logp.sum().backward()
    wide = [leaf.detach().double().requires_grad_() for leaf in narrow]
    _plain(wide[0], wide[1], None, target, 1.0, None)[0].sum().backward()
    error = (narrow[1].grad.double() - wide[1].grad).norm() / wide[1].grad.norm()
    assert logp.dtype == torch.float32
    assert float(error) < 0.01


def test_no_position_at_all():
    hidden, weight, bias, _ = _inputs()
    logp, entropy = token_logp(hidden[:0], weight, bias, torch.zeros(0, dtype=torch.int64))
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_chunks_follow_the_budget():
    assert chunk_size(1000, torch.device("cpu"), budget=4_000_000) == 1000
    assert chunk_size(10**9, torch.device("cpu"), budget=1) == 16


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("entropy", [True, False])
def test_fused_kernels_are_the_same(softcap, entropy):
    hidden, weight, bias, target = _inputs()
    results = []
    for fused in (False, True):
        outputs = token_logp(
            hidden, weight, bias, target, temperature=0.7, softcap=softcap, entropy=entropy, chunk=5, fused=fused
        )
        total = sum(
            ((i + 1) * (out * torch.linspace(-1, 1, 23)).sum() for i, out in enumerate(outputs) if out is not None)
        )
        results.append(
            (*(out for out in outputs if out is not None), *torch.autograd.grad(total, (hidden, weight, bias)))
        )
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10)
