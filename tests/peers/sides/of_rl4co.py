"""rl4co's lengths, symmetries and POMO's loss."""

from rl4co.data.transforms import dihedral_8_augmentation
from rl4co.models.rl.reinforce.baselines import SharedBaseline
from rl4co.utils.ops import get_tour_length, unbatchify
from serve import serve
from torch import Tensor


def length(places: Tensor, order: Tensor) -> dict[str, Tensor]:
    """Length of each closed tour: places [N, P, 2], order [N, P]."""
    return {"length": get_tour_length(places.gather(1, order.unsqueeze(-1).expand(-1, -1, 2)))}


def symmetries(places: Tensor) -> dict[str, Tensor]:
    """The eight copies of each instance, [8, N, P, 2]."""
    return {"places": dihedral_8_augmentation(places).view(8, *places.shape)}


def pomo(reward: Tensor, logp: Tensor, starts: int) -> dict[str, Tensor]:
    """POMO's loss and its gradient; rows are start by start, as rl4co lays them out."""
    logp.requires_grad_()
    rewards, logs = unbatchify(reward, starts), unbatchify(logp, starts)
    baseline, _ = SharedBaseline().eval(None, rewards)
    loss = -((rewards - baseline) * logs).mean()
    loss.backward()
    return {"loss": loss, "grad": logp.grad}


serve({"length": length, "symmetries": symmetries, "pomo": pomo})
