"""Process of one run: reads its job from the standard input, reports its progress, writes its record, and ends.

    python -m vantage.study.worker CHANNEL

CHANNEL is the file descriptor for messages, one JSON object per line: {"spent": ..., "score": ...}, at the end {"done": true}
or {"error": "..."}. This process writes the record, atomically, so that a finished run is kept even if the parent ends. The
standard input remains open as long as the parent lives; when it closes, this process ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    """Run one job; return the exit code."""
    channel = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    order = json.loads(_line())
    # Modules are found on the parent's search path, a user's own function among them.
    sys.path[:] = order["path"]
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")

    try:
        _obey(order, send)
    except BaseException as error:
        traceback.print_exc()
        send({"error": f"{type(error).__name__}: {error}"})
        return 1
    send({"done": True})
    return 0


def _obey(order: dict[str, Any], send: Any) -> None:
    from vantage.study.jobs import Job, carry_out
    from vantage.study.schema import decode, encode, write_atomically

    result = Path(order["result"])
    if order["kind"] == "model":
        from vantage.study.arenas import Arena
        from vantage.study.models import make

        make(decode(Arena, order["arena"], "arena"), result, send)
        return
    record = carry_out(decode(Job, order["job"], "job"), order["arm"], send)
    write_atomically(result, json.dumps(encode(record)))


def _line() -> str:
    """Read the first line of the standard input without a buffer, which would wait for more input."""
    found = bytearray()
    while not found.endswith(b"\n"):
        part = os.read(0, 65_536)
        if not part:
            raise SystemExit("no job was given on the standard input")
        found += part
    return found.decode()


def _end_with_parent() -> None:
    """End at once when the standard input closes, which it does when the parent has ended or was killed."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
