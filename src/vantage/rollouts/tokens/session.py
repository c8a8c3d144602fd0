"""Session: a batch of rows in generation, which can be stepped, forked, extended and closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.rollouts.tokens.backend import Cache, Host
from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.graph import replayed
from vantage.rollouts.tokens.sampling import Draw, Sampling, draw, row_seeds, uniforms


class Session:
    """Rows in generation, with their cache. Made by `TokenEngine.open`; row indices are those of the result.

    Rows 0 .. N-1 are those requested at the start; `fork` appends rows. The model's weights must not change during a
    session: its cache was computed with them.
    """

    def __init__(self, engine: Host, sampling: Sampling, *, seed: int, keep: bool) -> None:
        self.engine, self.sampling, self.seed, self.keep = engine, sampling, seed, keep
        self.device = engine.device
        self.weights = engine.backend.weights()
        self.stop = torch.tensor(sorted({*engine.eos_token_ids, *sampling.stop_tokens}), device=self.device)
        self.prefixes: Sequence[Sequence[int]] = []
        self.length = torch.zeros(0, dtype=torch.int64)
        self.limit, self.prefix, self.base = self.length.clone(), self.length.clone(), self.length.clone()
        self.since = self.length.clone()  # start of the text in which a stop string may occur
        self.finished = torch.zeros(0, dtype=torch.bool)
        self.closed = torch.zeros(0, dtype=torch.bool)
        self.seeds = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.tokens = torch.zeros(0, 0, dtype=torch.int64, device=self.device)
        self.forced = torch.zeros(0, 0, dtype=torch.bool, device=self.device)
        names = ["logp", "entropy"]
        names += ["logp_sampling"] if sampling.truncates or sampling.greedy else []
        names += ["logp_raw"] if sampling.temperature != 1 else []
        self.scores = {name: torch.zeros(0, 0, device=self.device) for name in names}
        self.cache: Any = None
        self.live = torch.zeros(0, dtype=torch.int64)  # rows that the cache holds, in its order
        self.pending = torch.zeros(0, dtype=torch.int64, device=self.device)  # [live] known, not in the cache yet
        self.parked: list[tuple[Cache, Tensor]] = []  # caches of rows that ended, with their rows

    # ------------------------------------------------------------------------------------------------ rows

    def add_rows(self, prefix: Tensor, base: Tensor, limit: Tensor, seeds: Tensor | None) -> Tensor:
        """Allocate new rows that continue these prefixes, and return their indices. Nothing is computed."""
        old, new = len(self.length), len(prefix)
        rows = torch.arange(old, old + new)
        if seeds is None:
            seeds = row_seeds(self.seed, rows.to(self.device))
        self.seeds = torch.cat((self.seeds, seeds.to(self.device)))
        self.prefix, self.base = torch.cat((self.prefix, prefix)), torch.cat((self.base, base))
        self.limit = torch.cat((self.limit, limit))
        self.length = torch.cat((self.length, torch.zeros(new, dtype=torch.int64)))
        self.since = torch.cat((self.since, torch.zeros(new, dtype=torch.int64)))
        self.finished = torch.cat((self.finished, torch.zeros(new, dtype=torch.bool)))
        self.closed = torch.cat((self.closed, torch.zeros(new, dtype=torch.bool)))
        self._room(old + new, self.tokens.shape[1])
        return rows

    def _room(self, rows: int, width: int) -> None:
        """Enlarge the columns to this many rows and tokens."""
        have_rows, have = self.tokens.shape
        if rows <= have_rows and width <= have:
            return
        if width > have:
            width = max(width, min(2 * have, int(self.limit.max()) if len(self.limit) else 0))
        grow = (0, max(width, have) - have, 0, max(rows, have_rows) - have_rows)
        self.tokens = torch.nn.functional.pad(self.tokens, grow, value=self.engine.pad_token_id)
        self.forced = torch.nn.functional.pad(self.forced, grow)
        self.scores = {name: torch.nn.functional.pad(x, grow) for name, x in self.scores.items()}

    def admit(self, groups: Sequence[Sequence[int]]) -> None:
        """Prefill groups of rows, each group's rows on the same prefix, which is computed once."""
        if not groups:
            return
        rows = torch.tensor([row for group in groups for row in group], dtype=torch.int64)
        counts = torch.tensor([len(group) for group in groups])
        texts = [self.prefixes[int(self.prefix[group[0]])] for group in groups]
        cache = self.engine.backend.open(self.weights, texts, counts.tolist(), int(self.limit[rows].max()))
        last = torch.tensor([text[-1] for text in texts]).repeat_interleave(counts)
        self._enter(cache, rows, last.to(self.device))

    def _enter(self, cache: Cache, rows: Tensor, pending: Tensor) -> None:
        if self.cache is None or not len(self.live):
            self.cache, self.live, self.pending = cache, rows, pending
        else:
            self.cache.join(cache)
            self.live, self.pending = torch.cat((self.live, rows)), torch.cat((self.pending, pending))

    # ------------------------------------------------------------------------------------------------ decoding

    def run(self, steps: int | None, until: Callable[[], bool] = lambda: False) -> None:
        """Decode until every row of the batch has ended, has `steps` more tokens, or `until` holds after a compaction."""
        while len(self.live) and steps != 0:
            ended = self._ended()
            most = self._most(ended, steps)
            drawn = self._decode(most, ended)
            steps = None if steps is None else steps - drawn.token.shape[1]
            if self._compact(self._record(drawn, ended)) and until():
                return

    def _ended(self) -> Tensor:
        return self.finished[self.live] | (self.length[self.live] >= self.limit[self.live])

    def _enough(self) -> int:
        """Return the number of ended rows at which the batch is compacted."""
        return 1 if self.keep else max(1, len(self.live) // self.engine.patience)

    def _most(self, ended: Tensor, steps: int | None) -> int:
        """Return the number of tokens to decode before the next test: until enough rows have reached their limits, or fewer."""
        left = (self.limit - self.length)[self.live[~ended]].sort().values
        enough = min(self._enough() - int(ended.sum()), len(left))
        most = min(int(left[max(enough, 1) - 1]), 8 if self.sampling.stop_strings else self.engine.segment)
        return most if steps is None else min(most, steps)

    def _decode(self, most: int, ended: Tensor) -> Draw:
        """Decode up to `most` tokens per row of the batch [n, k], fewer when enough rows have sampled a stop token."""
        live, device, greedy = self.live, self.device, self.sampling.greedy
        start = (self.base + self.length)[live].to(device)
        stream = None
        if not greedy:
            stream = uniforms(self.seeds[live.to(device)], start + torch.arange(most, device=device)[:, None])
        if self.engine.graphs and self.cache.capturable:
            found = replayed(self.cache, self.pending, stream, most, self.sampling)
            self.pending = found.token[:, -1]
            return found
        enough, check = self._enough(), device.type == "cpu" and len(self.stop) > 0
        if getattr(self.weights, "native", None) is not None and not self.sampling.truncates:
            found = self.weights.native.decode(
                self.cache, self.pending, stream, most, self.sampling, self.stop, ended, enough
            )
            self.pending = found.token[:, -1]
            return found
        ended = ended.to(device)
        draws: list[Draw] = []
        for step in range(most):
            found = draw(self.cache.decode(self.pending), None if stream is None else stream[step], self.sampling)
            self.pending = found.token
            draws.append(found)
            if check:
                ended = ended | self._is_stop(found.token)
                if int(ended.sum()) >= enough:
                    break
        stacked: dict[int, Tensor] = {}
        for columns in zip(*draws):
            stacked.setdefault(id(columns[0]), torch.stack(columns, 1))
        return Draw(*(stacked[id(column)] for column in draws[0]))

    def _is_stop(self, tokens: Tensor) -> Tensor:
        return tokens == self.stop if len(self.stop) == 1 else torch.isin(tokens, self.stop)

    def _record(self, drawn: Draw, ended: Tensor) -> Tensor:
        """Store the tokens [n, k] of rows that had not `ended`, up to their stops; return the number sampled beyond them [live]."""
        got, alive = drawn.token.shape[1], ~ended
        rows, pick = self.live[alive], alive.to(self.device)
        tokens = drawn.token[pick]
        stops = self._is_stop(tokens).cpu() if len(self.stop) else torch.zeros(len(rows), got, dtype=torch.bool)
        offset = self.length[rows]
        if self.sampling.stop_strings:
            tails = [self.tokens[r, s:n] for r, s, n in zip(rows.tolist(), self.since[rows].tolist(), offset.tolist())]
            stops |= self.engine.strings.ends(self.sampling.stop_strings, tails, tokens)
        hit = stops.any(1)
        kept = torch.where(hit, stops.int().argmax(1) + 1, got)
        left = self.limit[rows] - offset
        hit &= kept <= left
        kept = torch.minimum(kept, left)
        self._room(len(self.length), int((offset + kept).max()))
        inside = torch.arange(got) < kept[:, None]
        row = rows[:, None].expand(-1, got)[inside].to(self.device)
        column = (offset[:, None] + torch.arange(got))[inside].to(self.device)
        inside = inside.to(self.device)
        self.tokens[row, column] = tokens[inside]
        for name, score in self.scores.items():
            score[row, column] = getattr(drawn, name)[pick][inside]
        self.length[rows] += kept
        self.finished[rows] = hit
        overshoot = torch.full((len(ended),), got)
        overshoot[alive] -= kept
        return overshoot

    def _compact(self, overshoot: Tensor) -> bool:
        """Remove rows that have ended from the batch when that is faster; return whether any were removed."""
        ended = self._ended()
        count = int(ended.sum())
        if self.keep:
            if count:
                index = ended.nonzero().squeeze(1)
                cache = self.cache.take(index)
                if bool(
                    (overshoot[index] > 0).any()
                ):  # decoded past its end; removed, so that it can continue from there
                    cache.forget(overshoot[index])
                self.parked.append((cache, self.live[index]))
        elif count < len(ended) and count < self._enough():
            return False
        self._retain(~ended)
        return count > 0

    def _retain(self, keep: Tensor) -> None:
        """Keep these of the live rows [live] bool."""
        if bool(keep.all()):
            return
        index = keep.nonzero().squeeze(1)
        if len(index):
            index = self.cache.retain(index)
        else:
            self.cache = None
        self.live, self.pending = self.live[index], self.pending[index.to(self.device)]

    # ------------------------------------------------------------------------------------------------ for users

    @property
    def active(self) -> Tensor:
        """[R] bool: rows that `step` will continue."""
        return ~self.finished & ~self.closed & (self.length < self.limit)

    def step(self, max_new_tokens: int | None = None) -> Tensor:
        """Decode up to this many more tokens in every active row (None: to the end); return `active`, [R] bool."""
        with self.engine.running():
            self.run(max_new_tokens)
        return self.active

    def fork(
        self, rows: Sequence[int], lengths: Sequence[int] | None = None, *, seeds: Tensor | None = None
    ) -> list[int]:
        """Copy rows with their cache and return the indices of the copies; a row may occur more than once.

        Args:
            rows: rows of this session that are not closed.
            lengths: tokens of each completion that the copy keeps (default: all); the copy samples the rest again.
            seeds: [F] random streams of the copies; by default the session's seed and the new index determine them.
        """
        index = self._known(rows)
        keep = self.length[index] if lengths is None else torch.tensor(list(lengths))
        if keep.shape != index.shape or bool(((keep < 0) | (keep > self.length[index])).any()):
            raise UserError(
                f"fork: lengths={keep.tolist()} for rows of {self.length[index].tolist()} tokens: "
                "one of 0 .. the row's length is needed for each row"
            )
        with self.engine.running():
            new = self.add_rows(self.prefix[index], self.base[index], self.limit[index], seeds)
            width = torch.arange(self.tokens.shape[1], device=self.device) < keep.to(self.device)[:, None]
            for column in (self.tokens, self.forced, *self.scores.values()):
                blank = self.engine.pad_token_id if column is self.tokens else 0
                column[new.to(self.device)] = column[index.to(self.device)].masked_fill(~width, blank)
            back = self.length[index] - keep
            self.length[new] = keep
            self.since[new] = torch.minimum(self.since[index], keep)
            self.finished[new] = self.finished[index] & (back == 0)
            for cache, held in [(self.cache, self.live), *self.parked]:
                where = (index[:, None] == held).nonzero()
                if not len(where):
                    continue
                which, place = where.unbind(1)
                taken = cache.take(place)
                if bool((back[which] > 0).any()):
                    taken.forget(back[which])
                self.parked.append((taken, new[which]))
            self._wake(new[self.active[new]])
        return new.tolist()

    def append(
        self, rows: Sequence[int], tokens: Sequence[Sequence[int]], *, max_new_tokens: int | None = None
    ) -> None:
        """Append tokens to rows (a tool's answer, a hint) and let the rows continue after them.

        The tokens are marked `forced` and carry no log-probability. A row that ended becomes active again unless its
        limit is reached.

        Args:
            rows: rows of this session that are not closed, each at most once.
            tokens: the tokens of each row; none resumes a row that its limit or a stop had ended.
            max_new_tokens: tokens that the rows may still sample; by default their limit, which counts forced
                tokens too, is unchanged.
        """
        index = self._known(rows)
        if len(set(rows)) != len(rows) or len(tokens) != len(rows):
            raise UserError(f"append: {len(tokens)} token lists for rows {list(rows)}: one list a row, no row twice")
        for number, given in zip(rows, tokens):
            self.engine.check(given, f"append: row {number}")
        with self.engine.running():
            self.finished[index] = False
            counts = torch.tensor([len(row) for row in tokens], dtype=torch.int64)
            total = self.length[index] + counts
            if max_new_tokens is not None:
                self.limit[index] = total + max_new_tokens
            self._wake(index)
            texts = dict(zip(index.tolist(), tokens))
            feed = [[last, *texts.get(row, ())] for row, last in zip(self.live.tolist(), self.pending.tolist())]
            self.cache.extend([row[:-1] for row in feed])
            self.pending = torch.tensor([row[-1] for row in feed], device=self.device)
            self._room(len(self.length), int(total.max()))
            row = index.repeat_interleave(counts)
            within = torch.arange(len(row)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
            column = self.length[index].repeat_interleave(counts) + within
            row, column = row.to(self.device), column.to(self.device)
            self.tokens[row, column] = torch.tensor([t for part in tokens for t in part], dtype=torch.int64).to(
                self.device
            )
            self.forced[row, column] = True
            self.length[index] = total
            self.since[index] = total
            self._compact(torch.zeros(len(self.live), dtype=torch.int64))

    def close(self, rows: Sequence[int]) -> None:
        """Free these rows' cache; their tokens remain in the result."""
        index = self._known(rows)
        with self.engine.running():
            self.closed[index] = True
            if len(self.live):
                self._retain(~torch.isin(self.live, index))
            self._unpark(index)

    def result(self, rows: Sequence[int] | None = None) -> Completions:
        """Return the rows' completions (default: all, forks after the first)."""
        index = torch.arange(len(self.length)) if rows is None else torch.tensor(list(rows), dtype=torch.int64)
        width = int(self.length[index].max()) if len(index) else 0
        place = index.to(self.device)
        scores = {name: x[place, :width] for name, x in self.scores.items()}
        logp = scores["logp"]
        return Completions(
            tokens=self.tokens[place, :width],
            length=self.length[index].to(self.device),
            logp=logp,
            logp_sampling=scores.get("logp_sampling", logp),
            logp_raw=scores.get("logp_raw", logp),
            entropy=scores["entropy"],
            forced=self.forced[place, :width],
            finished=self.finished[index].to(self.device),
            prefix=self.prefix[index].to(self.device),
            seed=self.seeds[place],
        )

    def _known(self, rows: Sequence[int]) -> Tensor:
        index = torch.tensor(list(rows), dtype=torch.int64)
        count = len(self.length)
        if not len(index) or bool(((index < 0) | (index >= count)).any()):
            raise UserError(f"rows={list(rows)}: the session has rows 0 .. {count - 1}, and one at least must be named")
        if bool(self.closed[index].any()):
            raise UserError(f"rows {index[self.closed[index]].tolist()} are closed: their cache is gone")
        return index

    def _unpark(self, rows: Tensor) -> list[tuple[Cache, Tensor]]:
        """Remove rows from the parked caches and return them."""
        found, left = [], []
        for cache, held in self.parked:
            out = torch.isin(held, rows)
            if bool(out.all()):
                found.append((cache, held))
            elif bool(out.any()):
                found.append((cache.take(out.nonzero().squeeze(1)), held[out]))
                left.append((cache, held[cache.retain((~out).nonzero().squeeze(1))]))
            else:
                left.append((cache, held))
        self.parked = left
        return found

    def _wake(self, rows: Tensor) -> None:
        """Return parked rows to the batch."""
        for cache, held in self._unpark(rows):
            length = self.length[held].to(self.device)
            drawn = self.tokens[held.to(self.device), (length - 1).clamp(min=0)] if self.tokens.shape[1] else length
            last = torch.tensor([self.prefixes[p][-1] for p in self.prefix[held].tolist()], device=self.device)
            self._enter(cache, held, torch.where(length > 0, drawn, last))
