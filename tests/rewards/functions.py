"""Verifiers with bad manners, imported by worker processes in the tests of the pool."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def length(problem: Any, completion: str) -> float:
    print("noise on the channel")
    return float(len(completion))


def misbehave(problem: Any, completion: str) -> Any:
    """Do what the completion says."""
    match completion:
        case "hang":
            time.sleep(1000)
        case "spin":
            while True:
                pass
        case "spin in C":
            return 9 ** (9**10) > 0
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leave":
            os._exit(0)
        case "exit":
            sys.exit(3)
        case "raise":
            raise KeyError("no")
        case "text":
            return "good"
        case "infinite":
            return float("inf")
        case "missing":
            return None
        case "named":
            return {"a": 1, "b": float("nan")}
    return 1


def modules(problem: Any, completion: str) -> dict[str, float]:
    """Whether torch is loaded, before and after asking for something that needs it."""
    before = "torch" in sys.modules
    from vantage.core import Trajectories

    return {
        "before": before,
        "after": "torch" in sys.modules,
        "whole": Trajectories.__module__ == "vantage.core.trajectories",
    }


def who(problem: Any, completion: str) -> float:
    return float(os.getpid())


def children(problem: Any, completion: str) -> float:
    """Start a child that would stay, write its number, and hang."""
    pid = os.fork()
    if not pid:
        time.sleep(1000)
        os._exit(0)
    Path(completion).write_text(str(pid))
    time.sleep(1000)
    return 1.0


class Unloadable:
    """Can be sent to a worker, and cannot be loaded there."""

    def __call__(self, problem: Any, completion: str) -> float:
        return 1.0

    def __reduce__(self) -> Any:
        return (int, ("not a number",))


def hoard(problem: Any, completion: str) -> float:
    """Ask for so many bytes."""
    return float(len(bytearray(int(completion))) > 0)


def noted(problem: Any, completion: str) -> float:
    """A score of 1 that notes the length."""
    from vantage.rewards.grading import Noted

    return Noted(1.0, {"letters": len(completion)})
