"""Rollouts of masked diffusion models: all positions masked at first, the most probable ones filled in step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import above, at_least, component
from vantage.core.context import Context
from vantage.core.costs import Cost, episodes
from vantage.core.errors import UserError, out_of_range
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.masked_diffusion import MASK, MaskedDiffusionPolicy
from vantage.rollouts.plans import set_temperature


@torch.no_grad()
def unmask(
    policy: MaskedDiffusionPolicy,
    prompt: Tensor,
    generator: torch.Generator | None,
    per_step: int = 1,
) -> Tensor:
    """Return answers [N, T] to prompts [N, P].

    In each pass a token is sampled for every masked position (the most likely without `generator`), and the `per_step` positions
    with the most probable tokens keep them; the others remain masked (low-confidence remasking, LLaDA, arXiv 2502.09992).
    """
    answer = torch.full((len(prompt), policy.length), MASK, device=prompt.device)
    for start in range(0, policy.length, per_step):
        log_probs = policy.logits(prompt, answer).log_softmax(-1)
        scores = log_probs
        if generator is not None:
            scores = log_probs - torch.empty_like(log_probs).exponential_(generator=generator).log_()
        token = scores.argmax(-1)
        sure = log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1).masked_fill(answer != MASK, -torch.inf)
        chosen = sure.topk(min(per_step, policy.length - start), dim=-1).indices
        answer = answer.scatter(1, chosen, token.gather(1, chosen))
    return answer


@component
class Unmask:
    """Rollout: `size` answers to each of `prompts` prompts, without the one-pass `logp_old` that other rollouts have.

    Attributes:
        prompts: prompts a step, at least 1.
        size: answers a prompt (G), at least 1.
        temperature: divides the logits, above 0.
    """

    prompts: Annotated[int, at_least(1)] = 16
    size: Annotated[int, at_least(1)] = 8
    temperature: Annotated[float, above(0)] = 1.0
    needs = frozenset({"masked"})

    def prepare(self, context: Context) -> None:
        """Set the temperature of the policy."""
        set_temperature(context, self.temperature)

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return episodes(self.prompts * self.size, episode)

    def __call__(self, context: Context) -> Trajectories:
        """Sample answers to the next prompts."""
        engine: Any = context.engine
        if not hasattr(engine, "per_step"):
            raise UserError(
                f"Unmask fills in masked answers, which {type(engine).__name__} does not: give a task of a masked diffusion"
                " model (masked:addition:digits=2)"
            )
        found: Trajectories = engine.sample(context.next_prompts(self.prompts), self.size, context, logp=False)
        return found


class UnmaskingEngine:
    """Engine that samples answers of a masked diffusion policy. A prompt's item is its text.

    Args:
        policy: masked diffusion policy.
        per_step: tokens filled in per pass, at least 1.
    """

    def __init__(self, policy: MaskedDiffusionPolicy, per_step: int = 1) -> None:
        if per_step < 1:
            raise out_of_range("per_step", per_step, "at least 1")
        self.policy = policy
        self.per_step = per_step

    @property
    def max_length(self) -> int:
        """Number of tokens of an answer."""
        return self.policy.length

    @torch.no_grad()
    def sample(
        self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False, logp: bool = True
    ) -> Trajectories:
        """Sample `count` answers to each prompt; `logp` adds `logp_old`, the policy's one-pass estimate."""
        device = context.device
        seed = int(torch.randint(2**62, (), generator=context.generator))
        generator = None if greedy else torch.Generator(device).manual_seed(seed)
        tokens = self.policy.encode(prompts.items).to(device).repeat_interleave(count, 0)
        action = unmask(self.policy, tokens, generator, self.per_step)
        rows, length = action.shape
        last = (torch.arange(length, device=device) == length - 1).expand(rows, -1)
        batch = Trajectories(
            {
                "observation": {"tokens": tokens},
                "action": action,
                "mask": torch.ones_like(last),
                "length": torch.full((rows,), length, device=device),
                "group": torch.arange(len(prompts), device=device).repeat_interleave(count),
                "prompt": prompts.ids.to(device).repeat_interleave(count),
                "terminated": last,
                "truncated": torch.zeros_like(last),
            }
        )
        return batch.replace(logp_old=context.evaluate(batch)) if logp else batch

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Raise a UserError: an answer is filled in as a whole, so there are no streams."""
        raise UserError(
            "a masked diffusion model has no streams: the method needs whole answers, with rollout=Groups(...)"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return {}: all randomness is the run's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing: there is no state."""


@component
class WorkedAnswers:
    """Rollout that reads the worked answers of the next `batch` training problems; nothing is sampled."""

    batch: Annotated[int, at_least(1)] = 64
    needs = frozenset({"masked"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return Cost(self.batch, self.batch)

    def __call__(self, context: Context) -> Trajectories:
        """Return the next batch."""
        task: Any = context.task
        policy: Any = context.policy
        if not hasattr(task, "solutions"):
            raise UserError(
                f"masked diffusion needs a task with worked answers; {task.name} has none (masked:addition:digits=2)"
            )
        prompts = context.next_prompts(self.batch)
        action = policy.encode(task.solutions(prompts.ids), answers=True)
        rows = torch.arange(len(action))
        return Trajectories(
            {
                "observation": {"tokens": policy.encode(prompts.items)},
                "action": action,
                "mask": torch.ones_like(action, dtype=torch.bool),
                "length": torch.full((len(action),), action.shape[1]),
                "group": rows,
                "prompt": prompts.ids,
                # No verification.
                "rewards": {},
            }
        ).to(context.device)
