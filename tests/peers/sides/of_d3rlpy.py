"""d3rlpy's losses of TD3+BC."""

from types import SimpleNamespace

from d3rlpy.algos.qlearning.torch.td3_plus_bc_impl import TD3PlusBCImpl
from serve import serve
from torch import Tensor


def td3_bc_actor(action: Tensor, data: Tensor, weight: Tensor, alpha: float) -> dict[str, Tensor]:
    """Loss of the actor and its gradient by the action [N, A]; Q is linear in the action, weights [A]."""
    action.requires_grad_()
    critics = SimpleNamespace(compute_expected_q=lambda state, taken, reduction: (taken @ weight).view(1, -1, 1))
    own = SimpleNamespace(_q_func_forwarder=critics, _alpha=alpha)
    loss = TD3PlusBCImpl.compute_actor_loss(
        own, SimpleNamespace(observations=None, actions=data), SimpleNamespace(squashed_mu=action)
    ).actor_loss
    loss.backward()
    return {"loss": loss, "grad": action.grad}


serve({"td3_bc_actor": td3_bc_actor})
