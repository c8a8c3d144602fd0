"""Trust-region update: natural-gradient direction by conjugate gradients, and a line search that may refuse the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import above, at_least, below, component
from vantage.core.context import Context
from vantage.core.loss import reduce, weighted
from vantage.core.trajectories import Trajectories
from vantage.functions.whitening import masked_mean, whiten


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """Solve F x = target [P] for a symmetric positive definite F given by its product with a vector.

    Ends early when the squared residual is below `tolerance`. Exact after P iterations up to rounding.
    """
    x = torch.zeros_like(target)
    residual = target.clone()
    direction = residual.clone()
    squared = residual.dot(residual)
    for _ in range(iterations):
        image = product(direction)
        step = squared / direction.dot(image)
        x += step * direction
        residual -= step * image
        new = residual.dot(residual)
        if new < tolerance:
            break
        direction = residual + (new / squared) * direction
        squared = new
    return x


@component
class TrustRegion:
    """TRPO's step (arXiv 1502.05477, appendix C): maximise the surrogate subject to a bound on the mean KL to the old policy.

    The direction solves (F + damping) x = g by conjugate gradients, with F the Hessian of the mean KL at the old policy; its
    length makes the quadratic estimate of the KL equal to `max_kl`. The line search takes the first of the shrinking
    steps whose KL is at most `kl_slack * max_kl` and whose loss is finite and no larger; if none is, nothing changes.

    The loss is the method's objective and regularizers. Parameters that it does not depend on (a critic's) do not move. The
    policy must give its `distribution`, with `kl(other)` per decision.

    Attributes:
        max_kl: the bound, in nats, above 0.
        cg_iterations, damping: of the solver.
        fisher_stride: every how many decisions enter the Fisher products.
        shrink, tries: of the line search.
        kl_slack: how far the accepted KL may exceed the bound.
        standardize: standardise the advantages over the batch (population variance, `whiten`).
    """

    max_kl: Annotated[float, above(0)] = 0.01
    cg_iterations: Annotated[int, at_least(1)] = 10
    damping: Annotated[float, at_least(0)] = 0.1
    fisher_stride: Annotated[int, at_least(1)] = 5
    shrink: Annotated[float, above(0), below(1)] = 0.5
    tries: Annotated[int, at_least(1)] = 10
    kl_slack: Annotated[float, at_least(0)] = 1.5
    standardize: bool = True
    wants = frozenset({"distribution"})
    needs = frozenset({"divergence"})

    def __call__(self, batch: Trajectories, context: Context) -> None:
        """Update the policy, or leave it unchanged when no step is accepted."""
        policy: Any = context.policy
        if policy.memoryless:
            batch = batch.flatten()
            batch = batch.select(batch.mask.any(-1))
        if self.standardize:
            batch = batch.replace(advantage=whiten(batch.advantage, batch.mask, ddof=0))
        batch = weighted(batch.detach(), context.method.averaging)
        loss, wants = self._loss(batch, context), context.method.wants - {"value"}
        before = loss(policy.evaluate(batch, wants))
        everything = [p for p in policy.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(before, everything, allow_unused=True)
        parameters = [p for p, g in zip(everything, gradients, strict=True) if g is not None]
        gradient = _flat([g for g in gradients if g is not None])
        context.record("loss/policy", before)
        context.record("grad_norm", gradient.norm())
        if not bool(torch.isfinite(gradient).all()) or float(gradient.abs().max()) < 1e-12:
            context.record("trust_region/accepted", 0.0)
            return
        sampled = batch[:: self.fisher_stride] if len(batch) > self.fisher_stride else batch
        direction = conjugate_gradient(self._fisher(sampled, parameters, policy), -gradient, self.cg_iterations)
        with torch.enable_grad():
            curvature = direction.dot(self._fisher(sampled, parameters, policy)(direction))
        full = direction * (2 * self.max_kl / curvature.clamp(min=1e-30)).sqrt()
        self._search(batch, context, loss, parameters, full, before.detach(), wants)

    def _loss(self, batch: Trajectories, context: Context) -> Callable[[Any], Tensor]:
        method = context.method

        def loss(evaluation: Any) -> Tensor:
            terms = (method.objective, *method.regularizers)
            return torch.stack(
                [reduce(term(evaluation, batch, context), batch, batch, term)[0] for term in terms]
            ).sum()

        return loss

    def _fisher(
        self, batch: Trajectories, parameters: list[torch.nn.Parameter], policy: Any
    ) -> Callable[[Tensor], Tensor]:
        """Products with the damped Hessian of the mean KL, by differentiating twice; the first derivative is kept."""
        with torch.no_grad():
            old = policy.evaluate(batch, frozenset({"distribution"})).distribution
        new = policy.evaluate(batch, frozenset({"distribution"})).distribution
        divergence = masked_mean(old.kl(new), batch.mask)
        slope = _flat(torch.autograd.grad(divergence, parameters, create_graph=True))

        def product(vector: Tensor) -> Tensor:
            image = torch.autograd.grad(slope.dot(vector), parameters, retain_graph=True)
            return _flat(image) + self.damping * vector

        return product

    def _search(
        self,
        batch: Trajectories,
        context: Context,
        loss: Callable[[Any], Tensor],
        parameters: list[torch.nn.Parameter],
        full: Tensor,
        before: Tensor,
        wants: frozenset[str],
    ) -> None:
        policy: Any = context.policy
        with torch.no_grad():
            old = policy.evaluate(batch, frozenset({"distribution"})).distribution
            start = [p.clone() for p in parameters]
            moves = _split(full, parameters)
            step = 1.0
            for _ in range(self.tries):
                for p, origin, move in zip(parameters, start, moves, strict=True):
                    p.copy_(origin + step * move)
                evaluation = policy.evaluate(batch, wants | {"distribution"})
                after = loss(evaluation)
                kl = masked_mean(old.kl(evaluation.distribution), batch.mask)
                fine = (
                    torch.isfinite(after) & torch.isfinite(kl) & (kl <= self.kl_slack * self.max_kl) & (after <= before)
                )
                if bool(fine):
                    context.record("kl/old", kl)
                    context.record("trust_region/step", step)
                    context.record("trust_region/accepted", 1.0)
                    return
                step *= self.shrink
            for p, origin in zip(parameters, start, strict=True):
                p.copy_(origin)
            context.record("kl/old", 0.0)
            context.record("trust_region/accepted", 0.0)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _split(vector: Tensor, like: list[torch.nn.Parameter]) -> list[Tensor]:
    pieces = vector.split([p.numel() for p in like])
    return [piece.view_as(p) for piece, p in zip(pieces, like, strict=True)]
