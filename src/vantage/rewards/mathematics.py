"""Verifier `math`: whether two mathematical expressions are equal."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

from vantage.core.errors import require
from vantage.rewards.specs import within
from vantage.rewards.textual import Graded


@dataclass(frozen=True)
class Math:
    """Whether the completion's expression equals the reference's, judged by the library math-verify.

    Attributes:
        seconds: time allowed for reading and for comparing, each; in a thread that is not the main one it is the
            caller's business to end it.

    Raises (when called):
        ImportError: math-verify is not installed.
        ValueError: the reference answer cannot be read as mathematics.
    """

    seconds: int = 5
    isolated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within("verifier math", "seconds", self.seconds, 1, 3600)

    def prepare(self) -> None:
        """Import the library ahead of the first call."""
        _math_verify()

    def __call__(self, problem: Graded, completion: str) -> float:
        """Return 1.0 when the expressions are equal, else 0.0 (also when the time was not enough)."""
        library = _math_verify()
        # The library's clock is SIGALRM, which Python allows in the main thread alone.
        seconds = self.seconds if threading.current_thread() is threading.main_thread() else 0
        latex, plain = library.LatexExtractionConfig(boxed_match_priority=0), library.ExprExtractionConfig()
        marked = "$" in problem.answer or "\\boxed" in problem.answer
        reference = library.parse(
            problem.answer if marked else f"${problem.answer}$", extraction_config=[latex], parsing_timeout=seconds
        )
        if not reference:
            raise ValueError(f"the reference answer {problem.answer[:80]!r} cannot be read as mathematics")
        found = library.parse(completion, extraction_config=[latex, plain], parsing_timeout=seconds)
        return float(library.verify(reference, found, timeout_seconds=seconds))


@functools.cache
def _math_verify() -> Any:
    import logging

    library = require("math_verify", "language")
    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return library
