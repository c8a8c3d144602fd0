"""sb3-contrib's solver of TRPO (sb3_contrib.common.utils)."""

from sb3_contrib.common.utils import conjugate_gradient_solver
from serve import serve
from torch import Tensor


def solve(matrix: Tensor, target: Tensor, iterations: int) -> dict[str, Tensor]:
    """Solution of matrix x = target by conjugate gradients."""
    return {"x": conjugate_gradient_solver(lambda x: matrix @ x, target, max_iter=iterations)}


serve({"solve": solve})
