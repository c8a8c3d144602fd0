"""A tiny world for tests of the road: prompts are numbers, a decision is a symbol, the policy is a small network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vantage.advantages.groups import GroupStandardized
from vantage.core import Evaluation, Method, Prompts, Trajectories
from vantage.objectives.surrogates import Clip
from vantage.rewards.mixing import Total
from vantage.rollouts.plans import Groups, Shuffled
from vantage.updates.gradient import GradientUpdate
from vantage.updates.optimizers import Adam

SYMBOLS = 5
STEPS = 4


class ToyPolicy(nn.Module):
    """Logits over symbols from prompt and place, by a two-layer network, with a value beside them."""

    memoryless = False

    def __init__(self, prompts: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(prompts, STEPS, 8, generator=generator, dtype=dtype) * 0.5)
        self.head = nn.Parameter(torch.randn(8, SYMBOLS, generator=generator, dtype=dtype) * 0.5)
        self.critic = nn.Parameter(torch.randn(8, generator=generator, dtype=dtype) * 0.5)
        self.heads = nn.ParameterDict()
        self.temperature = 1.0

    def add_head(self, name: str) -> None:
        if name not in self.heads:
            self.heads[name] = nn.Parameter(torch.zeros_like(self.critic))

    def logits(self, prompt: Tensor, steps: int, said: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A symbol that the prompt says [N] (-1 for none) is three nats likelier at every place."""
        hidden = torch.tanh(self.embed[prompt, :steps])
        logits = hidden @ self.head
        if said is not None:
            logits = logits + 3.0 * (torch.arange(SYMBOLS) == said.unsqueeze(-1)).unsqueeze(1).to(logits.dtype)
        return logits / self.temperature, hidden

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        logits, hidden = self.logits(batch.prompt, batch.mask.shape[1], batch.get("observation"))
        logs = logits.log_softmax(-1)
        evaluation = Evaluation()
        if "logp" in want:
            evaluation.logp = logs.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        if "entropy" in want:
            evaluation.entropy = -(logs.exp() * logs).sum(-1)
        if "value" in want:
            evaluation.value = hidden @ self.critic
        if "hidden" in want:
            evaluation.hidden = hidden
        if "distribution" in want:
            evaluation.distribution = logits
        for name in set(self.heads) & want:
            evaluation.extras[name] = hidden @ self.heads[name]
        return evaluation

    def critic_parameters(self) -> list[nn.Parameter]:
        return [self.critic]

    def values(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        value = self.evaluate(batch, frozenset({"value"})).value.detach()
        following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        return value, torch.where(batch.terminated, 0.0, following)

    def frozen(self) -> ToyPolicy:
        return copy.deepcopy(self).requires_grad_(False)

    def save(self, folder: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)


class ToyEngine:
    max_length = STEPS

    def __init__(self, policy: ToyPolicy) -> None:
        self.policy = policy
        self.calls = 0

    def sample(
        self, prompts: Prompts, count: int, context: Any, *, greedy: bool = False, limit: int | None = None
    ) -> Trajectories:
        """An item is a prompt's number, or (number, symbol) for a prompt that also says a symbol."""
        said = torch.tensor([item[1] if isinstance(item, tuple) else -1 for item in prompts.items])
        rows = Trajectories({"prompt": prompts.ids, "observation": said}).select(
            torch.arange(len(prompts)).repeat_interleave(count)
        )
        zeros = torch.zeros(len(rows), dtype=torch.int64)
        rows = rows.replace(action=zeros.unsqueeze(1).expand(-1, STEPS), logp_old=torch.zeros(len(rows), STEPS))
        return self._go_on(rows, zeros, count, context, greedy, limit)

    def resume(
        self,
        batch: Trajectories,
        rows: Tensor,
        positions: Tensor,
        count: int,
        context: Any,
        *,
        limit: int | None = None,
    ) -> Trajectories:
        parent = rows.repeat_interleave(count)
        found = self._go_on(batch.select(parent), positions.repeat_interleave(count), count, context, False, limit)
        return found.replace(parent=parent)

    def texts(self, batch: Trajectories) -> list[Any]:
        return [row[:size] for row, size in zip(batch.action.tolist(), batch.length.tolist(), strict=True)]

    def _go_on(
        self, rows: Trajectories, kept: Tensor, count: int, context: Any, greedy: bool, limit: int | None
    ) -> Trajectories:
        self.calls += 1
        with torch.no_grad():
            logs = self.policy.logits(rows.prompt, STEPS, rows.observation)[0].log_softmax(-1)
        flat = logs.exp().reshape(-1, SYMBOLS)
        if greedy:
            drawn = logs.argmax(-1)
        else:
            drawn = torch.multinomial(flat, 1, generator=context.generator).reshape(len(rows), STEPS)
        place = torch.arange(STEPS)
        new = place >= kept.unsqueeze(1)
        action = torch.where(new, drawn, rows.action)
        # Symbol 0 ends the row.
        ends = (new & (action == 0)).int()
        inside = ends.cumsum(1) - ends == 0
        if limit is not None:
            inside &= place < (kept + limit).unsqueeze(1)
        length = inside.sum(1)
        last = place == (length - 1).unsqueeze(1)
        stopped = last & (action == 0) & new
        fresh = logs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return Trajectories(
            {
                "action": action,
                "mask": inside & new,
                "length": length,
                "logp_old": torch.where(new, fresh, rows.logp_old),
                "observation": rows.observation,
                "group": torch.arange(len(rows)) // count,
                "prompt": rows.prompt,
                "terminated": stopped,
                "truncated": last & ~stopped,
            }
        )

    def advance(self, rows: int, steps: int, context: Any) -> Trajectories:
        return self.sample(context.next_prompts(rows), 1, context)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Any) -> None:
        self.calls = state["calls"]


class ToyTask:
    """Score: the share of the row's symbols that equal the prompt's number (mod the symbols)."""

    name = "toy"
    size = 6

    def prompts(self, ids: Tensor) -> Prompts:
        return Prompts(ids, ids.tolist())

    def score(self, batch: Trajectories, context: Any) -> dict[str, Tensor]:
        inside = torch.arange(STEPS) < batch.length.unsqueeze(-1)
        right = (batch.action == (batch.prompt % SYMBOLS).unsqueeze(-1)) & inside
        return {"right": right.float().sum(-1) / STEPS}

    def evaluate(self, policy: ToyPolicy, *, samples: int, seed: int) -> dict[str, float]:
        torch.rand(3)  # draws from the global state, as evaluations may
        probs = policy.logits(torch.arange(6), STEPS)[0].softmax(-1)
        return {"right": float(probs[torch.arange(6), :, torch.arange(6) % SYMBOLS].mean())}


def toy_method(**parts: Any) -> Method:
    made = Method(
        prompts=Shuffled(),
        rollout=Groups(3, 8),
        rewards=(Total(),),
        values=None,
        advantage=GroupStandardized(),
        objective=Clip(0.2),
        averaging="token-mean",
        update=GradientUpdate(Adam(3e-2), epochs=2, minibatches=2),
    )
    return made.replace(**parts) if parts else made


def toy_batch(rows: int = 12, groups: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Trajectories:
    """A random batch with ragged rows, for gradients."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, STEPS + 1, (rows,), generator=generator)
    mask = torch.arange(STEPS) < length.unsqueeze(1)
    return Trajectories(
        {
            "action": torch.randint(SYMBOLS, (rows, STEPS), generator=generator),
            "mask": mask,
            "length": length,
            "logp_old": -torch.rand(rows, STEPS, generator=generator, dtype=dtype) * 2 - 0.5,
            "logp_ref": -torch.rand(rows, STEPS, generator=generator, dtype=dtype) * 2 - 0.5,
            "advantage": torch.randn(rows, STEPS, generator=generator, dtype=dtype),
            "returns": torch.randn(rows, STEPS, generator=generator, dtype=dtype),
            "value": torch.randn(rows, STEPS, generator=generator, dtype=dtype),
            "score": torch.rand(rows, generator=generator, dtype=dtype),
            "group": torch.arange(rows) % groups,
            "prompt": torch.randint(6, (rows,), generator=generator),
        }
    )
