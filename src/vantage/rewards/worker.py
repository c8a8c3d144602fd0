"""Worker process of `score_all`: reads jobs from standard input, writes one line of JSON for each row."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import threading
import time
from typing import Any, BinaryIO

from vantage.rewards.verifiers import named_scores


def main(parent: int, memory: int) -> None:
    """Serve the parent until it closes the pipe or dies; `memory` limits the bytes of data."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    # The verifiers' own output must not reach the pipe.
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    source = os.fdopen(0, "rb")
    _say(channel, {"ready": True})
    while header := source.read(8):
        verifiers, rows = pickle.loads(source.read(int.from_bytes(header, "little")))
        try:
            verifiers = {name: pickle.loads(packed) for name, packed in verifiers.items()}
            for each in verifiers.values():
                getattr(each, "prepare", lambda: None)()
        except Exception as error:
            _say(channel, {"fatal": f"{type(error).__name__}: {error}"})
            continue
        _say(channel, {"begin": True})
        for name, problem, completion, timeout in rows:
            # This also ends code that never returns to the interpreter after the parent's death.
            signal.setitimer(signal.ITIMER_VIRTUAL, timeout + 5)
            _say(channel, _score(name, verifiers[name], problem, completion))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _score(name: str, verifier: Any, problem: Any, completion: str) -> dict[str, Any]:
    try:
        score = verifier(problem, completion)
        return {"scores": named_scores(name, score), "notes": dict(getattr(score, "notes", {}))}
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _say(channel: BinaryIO, message: dict[str, Any]) -> None:
    left = memoryview(json.dumps(message).encode() + b"\n")
    while left:
        left = left[channel.write(left) :]


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
