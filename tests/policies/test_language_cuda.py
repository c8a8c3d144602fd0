"""On CUDA other kernels do the attention: their values and gradients against float64 on the same weights."""

import pytest
import torch

from tests.policies.language_tools import batch_of, make

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

WANT = frozenset({"logp", "entropy"})
CASES = {
    "ragged": ([5, 3, 7, 1, 5, 4], [6, 2, 1, 8, 0, 3]),
    "grouped": ([6, 6, 6, 4, 4, 2], [5, 1, 7, 3, 3, 4], [0, 0, 0, 1, 1, 2]),
    "long": ([100] * 8, [40, 100, 7, 64, 33, 1, 90, 50], [0] * 4 + [1] * 4),
}


def judged(policy, batch, weight):
    found = policy.evaluate(batch, WANT)
    policy.zero_grad()
    (found.logp * weight + 0.1 * found.entropy * weight).sum().backward()
    gradient = torch.cat([p.grad.double().flatten() for p in policy.parameters()])
    return found.logp.detach().double(), gradient


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize(
    ("dtype", "fused"),
    [
        ("float64", False),
        ("float32", False),
        ("float32", True),
        ("bfloat16", False),
        ("bfloat16", True),
        ("autocast", True),
    ],
)
def test_values_and_gradients(case, sharing, dtype, fused):
    kind = torch.float32 if dtype == "autocast" else getattr(torch, dtype)
    policy = make("qwen3", kind, prefix_sharing=sharing, fused=fused)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.4 if parameter.dim() > 1 else 1.0)
    exact = make("qwen3", torch.float64, prefix_sharing=False)
    exact.load_state_dict({name: tensor.double() for name, tensor in policy.state_dict().items()})
    policy = policy.cuda()
    if dtype == "autocast":
        policy.autocast = torch.bfloat16
    batch = batch_of(*CASES[case])
    weight = torch.randn(batch.action.shape) * batch.mask
    logp, gradient = judged(policy, batch.to("cuda"), weight.cuda())
    expected, slope = judged(exact, batch, weight)
    # Angles of rotation are float32 whatever the type, and the two devices round them differently.
    tolerance = {"float64": 1e-5, "float32": 1e-3}.get(dtype, 0.3)
    assert float((logp.cpu() - expected).abs().max()) < tolerance
    assert float((gradient.cpu() - slope).norm() / slope.norm()) < tolerance
