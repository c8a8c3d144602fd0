"""Sparse least squares: minimisation of a quadratic model of the loss over vectors with at most k nonzero entries.

    Q(w) = 1/2 ||y - X w||^2 + ridge ||w - center||^2 + linear . w          X [n, p], far more columns than rows

The Hessian X^T X + 2 ridge I has rank n plus a ridge and is never formed; every product with it costs n p. Solvers: hard
thresholding with an exact line search (`descend`), the same with an active set (`active_set`), and the exact minimum on a
given support (`refit`). Fast as CHITA: Neural Network Pruning with Combinatorial Optimization (arXiv 2302.14623, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.fields.compression.masks import keep_largest


@dataclass(frozen=True)
class Quadratic:
    """Quadratic model Q of the module's docstring.

    Attributes:
        rows: X [n, p].
        target: y [n].
        center: centre of the ridge penalty, [p].
        ridge: at least 0.
        linear: [p].
    """

    rows: Tensor
    target: Tensor
    center: Tensor
    ridge: float
    linear: Tensor

    @classmethod
    def of_gradients(cls, gradients: Tensor, weights: Tensor, ridge: float, first_order: float = 0.0) -> Quadratic:
        """Return n times the local model of the loss around `weights` [p] by the empirical Fisher information.

        Args:
            gradients: of n mini-batches, [n, p].
            weights: where they were taken, [p].
            ridge: lambda of the loss model; Q's is lambda n / 2.
            first_order: factor on the sum of the gradients: 1 / B for mini-batches of B rows, whose squared means
                understate the Fisher information by B; 0 leaves the term out.
        """
        if ridge < 0:
            raise UserError(f"ridge={ridge} is out of range: at least 0")
        linear = first_order * gradients.sum(0) if first_order else torch.zeros_like(weights)
        return cls(gradients, gradients @ weights, weights, ridge * len(gradients) / 2, linear)

    def restrict(self, index: Tensor) -> Quadratic:
        """Return the problem in these entries alone, all others 0 (without a constant of the ridge)."""
        return Quadratic(self.rows[:, index], self.target, self.center[index], self.ridge, self.linear[index])

    def residual(self, w: Tensor) -> Tensor:
        """Return y - X w, [n]."""
        index = w.nonzero().squeeze(-1)
        # With few entries a gather of columns is cheaper than the whole product.
        if 5 * len(index) < len(w):
            return self.target - self.rows[:, index] @ w[index]
        return self.target - self.rows @ w

    def value(self, w: Tensor, residual: Tensor | None = None) -> float:
        """Return Q(w)."""
        r = self.residual(w) if residual is None else residual
        return float(0.5 * (r @ r) + self.ridge * (w - self.center).square().sum() + self.linear @ w)

    def gradient(self, w: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the gradient of Q at w, [p]."""
        r = self.residual(w) if residual is None else residual
        return self.linear - self.rows.T @ r - 2 * self.ridge * (self.center - w)

    def smoothness(self) -> float:
        """Return L = 1.05 (largest singular value of X, squared, + 2 ridge): with it a thresholded step never raises Q."""
        small = self.rows @ self.rows.T if self.rows.shape[0] <= self.rows.shape[1] else self.rows.T @ self.rows
        top = float(torch.linalg.eigvalsh(small)[-1]) if len(small) else 0.0
        return max(1.05 * (top + 2 * self.ridge), 1e-12)


def largest(w: Tensor, k: int) -> Tensor:
    """Return w with all but its k largest magnitudes set to 0; of equal ones the first are kept."""
    return torch.where(keep_largest(w.abs(), min(k, len(w))), w, 0.0)


def threshold_step(problem: Quadratic, w: Tensor, k: int, smoothness: float, residual: Tensor | None = None) -> Tensor:
    """Return the k largest entries of w - gradient / L."""
    return largest(w - problem.gradient(w, residual) / smoothness, k)


def line_search_step(
    problem: Quadratic, w: Tensor, k: int, residual: Tensor, doublings: int = 5
) -> tuple[Tensor, Tensor]:
    """Return (w, y - X w) after one step along the gradient g, thresholded to k entries; Q never rises.

    Inside the support the best step is |g_S|^2 / (|X g_S|^2 + 2 ridge |g_S|^2). Where it is short enough to leave the k largest
    entries where they are, it is taken; else steps from that limit on, each twice the last, are tried while Q falls.
    """
    g = problem.gradient(w, residual)
    support = w != 0
    inside = torch.where(support, g, 0.0)
    index = support.nonzero().squeeze(-1)
    pushed = problem.rows[:, index] @ g[index]
    square = inside.square().sum()
    best = square / (pushed.square().sum() + 2 * problem.ridge * square).clamp(min=1e-300)
    limit = _support_limit(w, g, support)
    if bool(best < limit):
        moved = largest(w - best * g, k)
        return moved, problem.residual(moved)
    value, step = problem.value(w, residual), limit / 1.0001
    for _ in range(doublings):
        moved = largest(w - step * g, k)
        left = problem.residual(moved)
        found = problem.value(moved, left)
        if not found < value:
            break
        w, residual, value, step = moved, left, found, step * 2
    return w, residual


def _support_limit(w: Tensor, g: Tensor, support: Tensor) -> Tensor:
    """Return the largest step along -g that keeps the support the largest entries; infinite if any step does."""
    if bool(support.all()) or not bool(support.any()):
        return w.new_tensor(torch.inf)
    outside = g[~support].abs().max()
    inner, slope = w[support].abs(), g[support].abs()
    falling = w[support] * g[support] > 0
    closing = torch.where(falling, slope + outside, outside - slope)
    steps = torch.where(closing > 0, inner / closing.clamp(min=1e-300), torch.inf)
    return steps.min()


def descend(problem: Quadratic, w: Tensor, k: int, *, limit: int = 100, tolerance: float = 1e-7) -> Tensor:
    """Return a vector of k entries: a thresholded step from w, then at least two line searches until Q changes by `tolerance`."""
    w = threshold_step(problem, w, k, problem.smoothness())
    residual = problem.residual(w)
    value = problem.value(w, residual)
    for done in range(limit):
        w, residual = line_search_step(problem, w, k, residual)
        found = problem.value(w, residual)
        if done and abs(value - found) <= max(abs(value), abs(found), 1.0) * tolerance:
            break
        value = found
    return w


def active_set(
    problem: Quadratic, w: Tensor, k: int, *, widening: float = 1.5, limit: int = 100, tolerance: float = 1e-7
) -> Tensor:
    """Return a vector of k entries from `descend` on the most promising columns, to which better ones are added until none is.

    Columns of X that are 0 stay out, and so do entries of w that are 0 already.
    """
    possible = ((problem.rows != 0).any(0) & (problem.center != 0)).nonzero().squeeze(-1)
    full, solution = problem.restrict(possible), w[possible]
    k = min(k, len(possible))
    active = threshold_step(full, solution, min(max(int(widening * k), k), len(possible)), full.smoothness()) != 0
    for _ in range(limit):
        index = active.nonzero().squeeze(-1)
        inner = full.restrict(index)
        found = torch.zeros_like(solution)
        found[index] = descend(inner, solution[index], k, limit=limit, tolerance=tolerance)
        solution = found
        better = _beyond(full, solution, active, k, 2 * inner.smoothness())
        if better is None:
            break
        solution, active = better, active | (better != 0)
    result = torch.zeros_like(w)
    result[possible] = solution
    return result


def _beyond(problem: Quadratic, w: Tensor, active: Tensor, k: int, smoothness: float) -> Tensor | None:
    """Return the best thresholded step from w with an entry outside the active set, its length doubled up to ten times."""
    residual = problem.residual(w)
    value = problem.value(w, residual)
    best: Tensor | None = None
    lowest = value
    for _ in range(10):
        moved = threshold_step(problem, w, k, smoothness, residual)
        found = problem.value(moved)
        if found >= value:
            break
        if bool(((moved != 0) & ~active).any()) and found < lowest:
            best, lowest = moved, found
        smoothness /= 2
    return best


def refit(problem: Quadratic, support: Tensor) -> Tensor:
    """Return the minimum of Q among vectors whose entries outside the mask `support` [p] are 0.

    Solves (2 ridge I + X_S^T X_S) w_S = X_S^T y + 2 ridge center_S - linear_S; with fewer rows than entries by the Woodbury
    identity, in n rows. Without ridge the solution of least norm is taken.
    """
    index = support.nonzero().squeeze(-1)
    inner = problem.restrict(index)
    x, double = inner.rows, 2 * inner.ridge
    right = x.T @ inner.target + double * inner.center - inner.linear
    if not double:
        solved = torch.linalg.pinv(x.T @ x, hermitian=True) @ right
    elif len(x) < len(index):
        eye = torch.eye(len(x), dtype=x.dtype, device=x.device)
        solved = right / double - x.T @ torch.linalg.solve(eye + x @ x.T / double, x @ right) / double**2
    else:
        eye = torch.eye(len(index), dtype=x.dtype, device=x.device)
        solved = torch.linalg.solve(x.T @ x + double * eye, right)
    result = torch.zeros_like(problem.center)
    result[index] = solved
    return result


def shifted(problem: Quadratic, w: Tensor, k: int) -> Tensor:
    """Return what the support of `refit` is chosen by: w, moved against the linear term where there is one.

    The step is the exact one at w inside its k largest entries, halved until the largest entry of these is not below the largest
    outside; if no halving was needed the moved vector is thresholded, else longer steps are tried while Q falls.
    """
    if not bool(problem.linear.any()):
        return w
    kept = keep_largest(w.abs(), min(k, len(w)))
    residual = problem.residual(w)
    g = problem.gradient(w, residual)
    index = kept.nonzero().squeeze(-1)
    inside = torch.where(kept, g, 0.0)
    pushed = problem.rows[:, index] @ g[index]
    curvature = pushed.square().sum() + 2 * problem.ridge * inside.square().sum()
    step = inside.square().sum() / curvature.clamp(min=1e-300)

    def holds(length: Tensor) -> bool:
        moved = (w - length * g).abs()
        return not bool((~kept).any()) or bool(moved[kept].max() >= moved[~kept].max() - 1e-10)

    if holds(step):
        return torch.where(kept, w - step * g, 0.0)
    for _ in range(100):
        step = step / 2
        if holds(step):
            break
    best = torch.where(kept, w, 0.0)
    value = problem.value(best)
    for _ in range(10):
        moved = largest(w - step * g, k)
        found = problem.value(moved)
        if not found < value:
            break
        best, value, step = moved, found, step * 2
    return best
