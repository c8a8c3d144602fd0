"""Token engine: completions of token prefixes by a causal language model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.generic import GenericBackend
from vantage.rollouts.tokens.lean import LeanBackend, unsupported
from vantage.rollouts.tokens.sampling import Sampling
from vantage.rollouts.tokens.session import Session
from vantage.rollouts.tokens.strings import StopStrings


class TokenEngine:
    """Engine that generates from a Hugging Face causal language model, with prompts shared by groups and rows of any length.

    The weights are read at each call, so training the model between calls needs no call of the engine.

    Args:
        model: the module; LoRA wrappers of peft are allowed.
        tokenizer: needed for stop strings only.
        eos_token_ids: tokens that end a completion (default: the model's generation configuration).
        pad_token_id: fills rows on the right (default: the model's, else the first end token, else 0).
        max_batch_tokens: tokens that the cache may hold at once; further rows wait until others finish. By
            default a third of the memory that is free.
        backend: "lean" (Llama, Qwen2, Qwen3), "transformers" (any), or "auto": lean where it can.

    Raises:
        UserError: the lean backend was asked for and cannot run the model; the message says why.
    """

    segment = 32
    """Number of tokens decoded between two tests for rows that have ended."""

    patience: int
    """Fraction 1 / this of the rows may have ended before the batch is compacted, which costs more than decoding one row."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        eos_token_ids: Sequence[int] | int | None = None,
        pad_token_id: int | None = None,
        max_batch_tokens: int | None = None,
        backend: Literal["auto", "lean", "transformers"] = "auto",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        settings = getattr(model, "generation_config", None) or model.config
        if eos_token_ids is None:
            eos_token_ids = getattr(settings, "eos_token_id", None)
        ends = [] if eos_token_ids is None else [eos_token_ids] if isinstance(eos_token_ids, int) else eos_token_ids
        self.eos_token_ids = tuple(int(token) for token in ends)
        if pad_token_id is None:
            pad_token_id = getattr(settings, "pad_token_id", None)
        self.pad_token_id = pad_token_id if pad_token_id is not None else next(iter(self.eos_token_ids), 0)
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise UserError(
                f"max_batch_tokens={max_batch_tokens}: must be 1 or more, or None to measure the free memory"
            )
        self.max_batch_tokens = max_batch_tokens
        if backend not in ("auto", "lean", "transformers"):
            raise UserError(f"backend={backend!r}: must be 'auto', 'lean' or 'transformers'")
        self._wanted = backend
        self.backend: Any = self._choose()
        self._strings: StopStrings | None = None
        on_cuda = self.device.type == "cuda"
        self.graphs = on_cuda  # decode steps are captured and replayed
        self.patience = 4 if on_cuda else 16

    def _choose(self) -> Any:
        reason = unsupported(self.model)
        if self._wanted == "lean" and reason is not None:
            raise UserError(f"backend='lean' cannot run this model: {reason}; use backend='auto'")
        if self._wanted == "transformers" or reason is not None:
            return GenericBackend(self.model, self.pad_token_id)
        return LeanBackend(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.backend.device

    @property
    def strings(self) -> StopStrings:
        """Detector of stop strings.

        Raises:
            UserError: the engine has no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError("stop_strings need a tokenizer: TokenEngine(model, tokenizer)")
        if self._strings is None:
            self._strings = StopStrings(self.tokenizer)
        return self._strings

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inference mode, with the model in evaluation mode; the mode is restored on exit."""
        training = [module for module in self.model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True

    def generate(
        self,
        prefixes: Sequence[Sequence[int]],
        n: int | Sequence[int] = 1,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        seeds: Tensor | None = None,
        generator: torch.Generator | None = None,
        max_new_tokens: Sequence[int] | None = None,
    ) -> Completions:
        """Complete each prefix `n` times.

        Args:
            prefixes: token ids of each prefix, 1 or more; a prompt, or a prompt with the beginning of a completion.
                A prefix that occurs twice is computed once.
            n: completions of each prefix, one number for all or one for each.
            sampling: settings of sampling (default: `Sampling()`).
            seed: 64-bit seed; the random stream of row i of the result depends on it and i alone.
            seeds: [N] int64, the rows' streams instead. The stream is indexed by the token's position in prefix and
                completion, so that a truncated row that is resumed from its tokens, with its seed, continues identically.
            generator: draw `seed` from this CPU generator.
            max_new_tokens: limit of each row, N of them, instead of the sampling's.

        Raises:
            UserError: a prefix is empty or holds a token outside the vocabulary, or counts do not fit.
        """
        session, rows = self._start(prefixes, n, sampling, seed, seeds, generator, max_new_tokens, keep=False)
        with self.running():
            self._schedule(session, rows)
        return session.result()  # outside inference mode: ordinary tensors, which a loss may use

    def open(
        self,
        prefixes: Sequence[Sequence[int]],
        n: int | Sequence[int] = 1,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        seeds: Tensor | None = None,
        generator: torch.Generator | None = None,
        max_new_tokens: Sequence[int] | None = None,
    ) -> Session:
        """Prefill like `generate` and return a session, for stepping, forking and inserting tokens.

        All rows are in the cache at once, whatever `max_batch_tokens`, and rows that have ended keep their cache until closed.
        """
        session, rows = self._start(prefixes, n, sampling, seed, seeds, generator, max_new_tokens, keep=True)
        with self.running():
            session.admit(self._groups(session, rows))
        return session

    def check(self, tokens: Sequence[int], what: str) -> None:
        """Refuse tokens outside the vocabulary, before they are looked up."""
        size = self.model.config.get_text_config().vocab_size
        if len(tokens) and (min(tokens) < 0 or max(tokens) >= size):
            raise UserError(f"{what} holds tokens outside the vocabulary of {size}: {min(tokens)} .. {max(tokens)}")

    # ------------------------------------------------------------------------------------------------ inside

    def _start(
        self,
        prefixes: Sequence[Sequence[int]],
        n: int | Sequence[int],
        sampling: Sampling | None,
        seed: int,
        seeds: Tensor | None,
        generator: torch.Generator | None,
        max_new_tokens: Sequence[int] | None,
        keep: bool,
    ) -> tuple[Session, Tensor]:
        sampling = Sampling() if sampling is None else sampling
        counts = [n] * len(prefixes) if isinstance(n, int) else [int(count) for count in n]
        if len(counts) != len(prefixes) or any(count < 0 for count in counts):
            raise UserError(f"n={n!r} for {len(prefixes)} prefixes: one count of 0 or more for each, or one for all")
        prefixes = [tuple(map(int, prefix)) for prefix in prefixes]
        for index, prefix in enumerate(prefixes):
            if not prefix:
                raise UserError(f"prefix {index} is empty: generation needs one token at least (the start token)")
            self.check(prefix, f"prefix {index}")
        total = sum(counts)
        if seeds is not None and seeds.shape != (total,):
            raise UserError(f"seeds has shape {tuple(seeds.shape)}: one for each of the {total} rows is needed")
        if max_new_tokens is not None and (len(max_new_tokens) != total or min(max_new_tokens, default=1) < 1):
            raise UserError(f"max_new_tokens: one number of 1 or more for each of the {total} rows is needed")
        if sampling.stop_strings:
            self.strings  # noqa: B018 - raises when there is no tokenizer
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
        with self.running():
            if self._wanted == "auto":
                self.backend = self._choose()  # hooks and adapters may be added or removed
            session = Session(self, sampling, seed=seed, keep=keep)
            session.prefixes = prefixes
            owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
            base = torch.tensor([len(prefix) for prefix in prefixes], dtype=torch.int64)[owner]
            limit = torch.tensor([sampling.max_new_tokens] * total if max_new_tokens is None else list(max_new_tokens))
            rows = session.add_rows(owner, base, limit.to(torch.int64), seeds)
        return session, rows

    def _groups(self, session: Session, rows: Tensor) -> list[list[int]]:
        """Return the rows that continue the same tokens, group by group."""
        groups: dict[Sequence[int], list[int]] = {}
        for row, prefix in zip(rows.tolist(), session.prefix[rows].tolist()):
            groups.setdefault(session.prefixes[prefix], []).append(row)
        return list(groups.values())

    def _schedule(self, session: Session, rows: Tensor) -> None:
        """Run all rows, as many at a time as the budget allows, in the order of their groups.

        A group is admitted whole, so that its prompt is computed once, unless it fills an eighth of the budget. Groups wait
        until a quarter of the budget is free: admitting rows costs more than unused capacity.
        """
        budget = self.max_batch_tokens if self.max_batch_tokens is not None else self._budget()
        base, limit = session.base, session.limit

        def cost(rows: Tensor) -> int:
            """Return the largest number of tokens that these rows can hold; a prompt counts once where a group shares it."""
            prompts = session.prefix[rows].unique() if self.backend.name == "lean" else session.prefix[rows]
            return int(limit[rows].sum()) + sum(len(session.prefixes[index]) for index in prompts.tolist())

        waiting: list[list[int]] = []
        for group in self._groups(session, rows):
            most = max(1, (budget // 8 - int(base[group[0]])) // int(limit[group].max()))
            whole = cost(torch.tensor(group)) <= budget // 8
            waiting += [group] if whole else [group[i : i + most] for i in range(0, len(group), most)]
        waiting.reverse()
        costs = [cost(torch.tensor(group)) for group in waiting]

        def free() -> int:
            return budget - cost(session.live)

        while waiting or len(session.live):
            room, coming = free(), list[list[int]]()
            while waiting and (costs[-1] <= room or not (coming or len(session.live))):
                room -= costs.pop()
                coming.append(waiting.pop())
            if coming:
                session.admit(coming)
            session.run(None, until=lambda: bool(waiting) and free() >= max(budget // 4, costs[-1]))

    def _budget(self) -> int:
        """Return the number of tokens whose keys, values and logits fill a third of the memory that is free."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        size = next(self.model.parameters()).element_size()
        a_token = 2 * config.num_hidden_layers * heads * dim * size
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return max(1, free // 3 // a_token)
