"""Rollouts of a language model: completions of prompts as rows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import ENVIRONMENT, Trajectories
from vantage.rollouts.continuation import (
    continued_turns,
    inserted_before,
    joined_rows,
    origins,
    padded,
    replace_rows,
    turn_numbers,
    with_origin,
)
from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.conversation import converse
from vantage.rollouts.tokens.engine import TokenEngine
from vantage.rollouts.tokens.sampling import Sampling

Answer = Callable[[list[int], list[str]], Sequence[str | Sequence[int] | None]]
"""Function `(rows, texts) -> answers` from the rows whose turn ended and the texts of these turns to the inserted answers (text
or token ids), None to end a conversation."""


class LanguageEngine:
    """Engine that samples completions from a `LanguagePolicy`.

    A row is a completion. Its columns: `observation` (tokens [N, P] int64, the prompt padded on the right; length [N]),
    `action` [N, T] the completion's tokens padded on the right, `length` [N], `mask` [N, T] (the policy's own
    tokens, not inserted ones), `logp_old` and `entropy_old` [N, T] of the distribution at the sampling temperature,
    `group` and `prompt` [N], `terminated` and `truncated` [N, T] (at the last token: ended by itself, or by the limit). Where
    top-k, top-p, min-p or greedy decoding sampled from another distribution, `logp_sampling` [N, T] is of that one. A
    conversation also has `turn` and `origin` [N, T].

    The policy's temperature is that of the sampling, unless a call has its own settings. Each call draws one 64-bit
    seed from the run's generator, and each row's random stream depends on it and the row's index alone.

    Args:
        policy: policy to sample from.
        sampling: settings of sampling and of the ends of completions; its temperature is ignored, the policy's is used.
        max_batch_tokens: tokens that the cache may hold at once; further rows wait. None measures the free memory.
        backend: of the token engine: "auto", "lean" or "transformers".
    """

    def __init__(
        self,
        policy: Any,
        *,
        sampling: Sampling | None = None,
        max_batch_tokens: int | None = None,
        backend: Any = "auto",
    ) -> None:
        self.policy = policy
        self.sampling = sampling or Sampling()
        self.tokens = TokenEngine(
            policy.model,
            policy.tokenizer,
            eos_token_ids=policy.stop_tokens,
            pad_token_id=policy.tokenizer.pad_token_id,
            max_batch_tokens=max_batch_tokens,
            backend=backend,
        )
        self._counts = {"rows": 0}

    @property
    def max_length(self) -> int:
        """Longest completion, in tokens."""
        return self.sampling.max_new_tokens

    @property
    def max_decisions(self) -> int:
        """Largest number of tokens of a completion that the policy itself produces, without those that the environment inserts."""
        return self.sampling.max_new_tokens

    def settings(self, given: Sampling | None = None, *, greedy: bool = False, limit: int | None = None) -> Sampling:
        """Return the settings of a call: those given, else the engine's own at the policy's temperature.

        `greedy` and `limit` (tokens of a completion at most) apply on top of either.
        """
        found = given if given is not None else replace(self.sampling, temperature=float(self.policy.temperature))
        most = found.max_new_tokens if limit is None else min(limit, found.max_new_tokens)
        return replace(found, greedy=found.greedy or greedy, max_new_tokens=most)

    # sampling ------------------------------------------------------------------------------------------------------

    def sample(
        self,
        prompts: Prompts,
        count: int,
        context: Context,
        *,
        greedy: bool = False,
        limit: int | None = None,
        sampling: Sampling | None = None,
    ) -> Trajectories:
        """Sample `count` completions of each prompt; rows of a prompt are adjacent and share `group`.

        Args:
            prompts: items are token ids, text, or chat messages (through the tokenizer's chat template).
            count: completions of each, at least 1.
            context: the run; its generator gives the seed.
            greedy: take the most likely token at each step; the log-probabilities remain those at the temperature.
            limit: tokens of each completion at most, where that is less than the settings allow.
            sampling: settings of this call alone, the temperature included.

        Raises:
            UserError: a prompt has no tokens, or is messages and the tokenizer has no chat template.
        """
        encoded = self.encode(prompts.items)
        settings = self.settings(sampling, greedy=greedy, limit=limit)
        found = self.tokens.generate(encoded, count, settings, seed=_seed(context))
        return self._rows(found, encoded, prompts.ids, _plain(found))

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Sample one completion of each of the next `rows` prompts, of at most `steps` and at most `max_new_tokens` tokens.

        A row ends with its completion: a completion that reaches the limit is truncated, and the next call takes new prompts.
        """
        return self.sample(context.next_prompts(rows), 1, context, limit=steps)

    def resume(
        self,
        batch: Trajectories,
        rows: Tensor,
        positions: Tensor,
        count: int,
        context: Context,
        *,
        limit: int | None = None,
        sampling: Sampling | None = None,
        learn_prefix: bool = False,
    ) -> Trajectories:
        """Sample `count` times from the middle of completions: row `rows[i]` of the batch is kept up to `positions[i]` tokens.

        Args:
            batch: rows of this engine.
            rows: [K] their indices.
            positions: [K] tokens of each completion to keep, 0 to its length.
            count: new rows for each, at least 1.
            context: the run.
            limit: new tokens of each row at most.
            sampling: settings of this call; `max_new_tokens` bounds the whole completion, kept tokens included.
            learn_prefix: whether the kept tokens remain in the mask; otherwise only new tokens are in it.

        Returns:
            K * count rows with whole completions and the column `parent` [K * count]; they share `group` where they share
            their start (0 .. K - 1).
        """
        if bool(((positions < 0) | (positions > batch.length[rows])).any()):
            raise UserError("resume: each position must be between 0 and the length of its row")
        settings = self.settings(sampling)
        ended = (positions == batch.length[rows]) & batch.terminated[rows].any(-1)
        if bool((ended | (positions >= settings.max_new_tokens)).any()):
            raise UserError(
                f"resume: a row that has ended, or holds max_new_tokens={settings.max_new_tokens}, cannot be continued"
            )
        origin = batch.select(rows)
        kept = [ids[:size] for ids, size in zip(_lists(origin), positions.tolist(), strict=True)]
        prompts = _prompts(origin)
        most = settings.max_new_tokens if limit is None else limit
        room = [min(most, settings.max_new_tokens - len(ids)) for ids in kept for _ in range(count)]
        found = self.tokens.generate(
            [prompt + ids for prompt, ids in zip(prompts, kept, strict=True)],
            count,
            settings,
            seed=_seed(context),
            max_new_tokens=room,
        )
        parent = rows.repeat_interleave(count)
        fresh = self._rows(found, prompts, origin.prompt, _plain(found))
        place = positions.repeat_interleave(count)
        if "turn" in batch:
            batch = with_origin(batch)
            fresh = fresh.replace(**continued_turns(batch, parent, place, fresh.action))
        return joined_rows(batch, parent, place, fresh, learn_prefix).replace(parent=parent)

    def respond(
        self,
        batch: Trajectories,
        texts: Sequence[str | Sequence[int] | None],
        context: Context,
        *,
        sampling: Sampling | None = None,
        origin: int = ENVIRONMENT,
    ) -> Trajectories:
        """Append a text to each completion (a tool's answer, a hint) and let the policy continue after it.

        The inserted tokens count in `length`, are not in the mask, are marked in `origin`, and the policy's next turn has the
        next number in `turn`. A row whose text is None is unchanged. The whole row is recomputed; `converse` keeps its cache.

        Args:
            batch: N rows of this engine.
            texts: N texts or token ids.
            context: the run.
            sampling: settings of this call; `max_new_tokens` bounds the new turn.
            origin: origin of the texts: ENVIRONMENT or GUIDE of `core.trajectories`.
        """
        if len(texts) != len(batch):
            raise UserError(f"respond: {len(texts)} texts for {len(batch)} rows: one for each is needed")
        if "turn" not in batch:
            batch = batch.replace(turn=torch.zeros_like(batch.action))
        batch = with_origin(batch)
        rows = torch.tensor([i for i, text in enumerate(texts) if text is not None], dtype=torch.int64)
        if not len(rows):
            return batch
        rows = rows.to(batch.device)
        before = batch.select(rows)
        inserted = [self.token_ids(text) for text in texts if text is not None]
        prompts = _prompts(before)
        histories = [p + c + ids for p, c, ids in zip(prompts, _lists(before), inserted, strict=True)]
        found = self.tokens.generate(histories, 1, self.settings(sampling), seed=_seed(context))
        fresh = self._rows(found, prompts, before.prompt, _plain(found))
        last = before.turn.gather(1, (before.length - 1).clamp(min=0).unsqueeze(-1))
        fresh = fresh.replace(
            turn=(last + 1).expand(fresh.action.shape).clone(), origin=origins(torch.zeros_like(fresh.mask))
        )
        fresh = inserted_before(fresh, inserted, last, origin)
        joined = joined_rows(batch, rows, before.length, fresh, True)
        return replace_rows(batch, rows, joined)

    def converse(
        self,
        prompts: Prompts,
        count: int,
        context: Context,
        answer: Answer,
        *,
        turns: int = 4,
        sampling: Sampling | None = None,
    ) -> Trajectories:
        """Sample conversations: after each turn of the policy that ended by itself, `answer` gives the environment's reply.

        Args:
            prompts: as in `sample`.
            count: conversations of each prompt.
            context: the run.
            answer: `(rows, texts) -> answers`: indices of the rows whose turn ended, and the text of that turn; an answer is
                text or token ids, or None to end the conversation.
            turns: largest number of the policy's turns; the last one is not answered.
            sampling: settings; `max_new_tokens` bounds each turn.

        Returns:
            Rows as of `sample`, inserted tokens outside of the mask, with `turn` [N, T], the number of the policy's turn
            (inserted tokens belong to the turn that they follow), and `origin` [N, T], ENVIRONMENT for inserted tokens.
        """
        encoded = self.encode(prompts.items)
        found = self._conversations(encoded, count, self.settings(sampling), _seed(context), answer, turns)
        rows = self._rows(found, encoded, prompts.ids, found.mask.clone())
        return rows.replace(turn=turn_numbers(found.forced), origin=origins(found.forced))

    def complete(
        self,
        items: Sequence[Any],
        count: int,
        *,
        seed: int,
        sampling: Sampling | None = None,
        answer: Answer | None = None,
        turns: int = 4,
    ) -> Completions:
        """Complete prompts outside of a run, for evaluations: `count` completions of each item, adjacent.

        With `answer` they are conversations of at most `turns` turns, as of `converse`; inserted tokens are `forced`.
        """
        encoded, settings = self.encode(items), self.settings(sampling)
        if answer is None:
            return self.tokens.generate(encoded, count, settings, seed=seed)
        return self._conversations(encoded, count, settings, seed, answer, turns)

    # text ----------------------------------------------------------------------------------------------------------

    def encode(self, items: Sequence[Any]) -> list[list[int]]:
        """Return the token ids of prompts given as ids, text, or chat messages."""
        return [self.policy.encode(item) for item in items]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of token ids, without special tokens."""
        return list(self.policy.tokenizer.batch_decode(rows, skip_special_tokens=True))

    def texts(self, batch: Trajectories) -> list[str]:
        """Return the completions of rows as text, without special tokens."""
        return self.decode(_lists(batch))

    def token_ids(self, text: str | Sequence[int]) -> list[int]:
        """Return the token ids of a text that is inserted, without a start token; token ids are returned as they are."""
        if isinstance(text, str):
            return list(self.policy.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(text)

    # inside --------------------------------------------------------------------------------------------------------

    def _conversations(
        self,
        encoded: Sequence[Sequence[int]],
        count: int,
        settings: Sampling,
        seed: int,
        answer: Answer,
        turns: int,
    ) -> Completions:
        def answers(rows: list[int], spoken: list[list[int]]) -> list[list[int] | None]:
            return [None if said is None else self.token_ids(said) for said in answer(rows, self.decode(spoken))]

        session = self.tokens.open(encoded, count, settings, seed=seed)
        limit = settings.max_new_tokens
        return converse(session, len(encoded) * count, answers, turns=turns, max_new_tokens=limit)

    def _rows(self, found: Completions, prompts: Sequence[Sequence[int]], ids: Tensor, mask: Tensor) -> Trajectories:
        """Return generated completions as rows; `prompts[i]` is the prompt of prefix i."""
        device = found.tokens.device
        tokens, length = padded(prompts, self.tokens.pad_token_id, device)
        origin = found.prefix
        sizes = found.length.clone()
        last = torch.arange(found.tokens.shape[1], device=device) == (sizes - 1).unsqueeze(-1)
        stopped = found.finished.unsqueeze(-1)
        self._counts["rows"] += len(sizes)
        columns = {
            "observation": {"tokens": tokens[origin], "length": length[origin]},
            # Tensors of inference mode cannot be saved for a backward pass, so they are copied.
            "action": found.tokens.clone(),
            "length": sizes,
            "mask": mask,
            "logp_old": found.logp.clone(),
            "entropy_old": found.entropy.clone(),
            "group": origin.clone(),
            "prompt": ids.to(device)[origin],
            "terminated": last & stopped,
            "truncated": last & ~stopped,
        }
        if found.logp_sampling is not found.logp:
            columns["logp_sampling"] = found.logp_sampling.clone()
        return Trajectories(columns)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rows sampled so far."""
        return dict(self._counts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._counts.update({name: int(value) for name, value in state.items()})


def _seed(context: Context) -> int:
    return int(torch.randint(2**62, (), generator=context.generator))


def _plain(found: Completions) -> Tensor:
    return torch.arange(found.tokens.shape[1], device=found.tokens.device) < found.length.clone().unsqueeze(-1)


def _prompts(batch: Trajectories) -> list[list[int]]:
    sizes = batch.observation["length"].tolist()
    return [row[:size] for row, size in zip(batch.observation["tokens"].tolist(), sizes, strict=True)]


def _lists(batch: Trajectories) -> list[list[int]]:
    return [row[:size] for row, size in zip(batch.action.tolist(), batch.length.tolist(), strict=True)]
