"""Estimators of a policy's success per problem (pass@k, maj@n) from n scored samples of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vantage.core.errors import UserError


def pass_at_k(correct: Tensor, samples: int, k: int) -> Tensor:
    """Return the unbiased estimate [P] of the probability that one of k samples is correct, 1 - C(n - c, k) / C(n, k).

    Chen et al., Evaluating Large Language Models Trained on Code (arXiv 2107.03374, eq. 1).

    Args:
        correct: [P] number of correct samples c of each problem, 0 to n.
        samples: n, at least k.
        k: at least 1.
    """
    if not 1 <= k <= samples:
        raise UserError(f"pass@{k} needs k from 1 to the number of samples, which is {samples}")
    wrong = (samples - correct).double()
    # C(n - c, k) / C(n, k) is the product over i < k of (n - c - i) / (n - i); with a factor of 0 or below it is 0.
    place = torch.arange(k, dtype=torch.float64, device=wrong.device)
    factors = (wrong.unsqueeze(-1) - place).clamp(min=0) / (samples - place)
    return 1 - factors.prod(-1)


_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_MARKERS = ("####", "</think>", ";")


def voted(completion: str) -> str:
    """Return the answer for which a completion votes: its last \\boxed{...}, else the text after its last marker, else all of it.

    Markers are tried in the order `####`, `</think>`, `;`. White space and case are ignored.
    """
    boxed = _BOXED.findall(completion)
    if boxed:
        answer = boxed[-1]
    else:
        marker = next((marker for marker in _MARKERS if marker in completion), "")
        answer = completion.rpartition(marker)[2] if marker else completion
    return " ".join(answer.split()).casefold()


def majority(completions: Sequence[str], correct: Sequence[float], key: Callable[[str], str] = voted) -> float:
    """Return the correctness of the most frequent answer (maj@n); answers that tie for most frequent are averaged.

    Wang et al., Self-Consistency (arXiv 2203.11171). Empty answers are ignored; where all are empty, the result is 0.
    """
    keys = [key(text) for text in completions]
    votes = Counter(found for found in keys if found)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    shares = [
        sum(right for right, found in zip(correct, keys, strict=True) if found == answer) / most for answer in winners
    ]
    return sum(shares) / len(shares)
