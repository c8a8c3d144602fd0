"""Sandbox for untrusted Python programs: a separate process without network, files or environment, and with limits.

Isolation, strongest first; the strongest that the kernel offers is found once by running it:

- "namespaces": its own process tree, root file system, network and users. The files of the machine are not there,
  only the standard library, read-only. Processes die with their tree, however detached.
- "landlock": the kernel's Landlock (6.2 and later) and a system-call filter. The program reads the standard library, writes
  in its folder, cannot start processes, open sockets or signal others. It can find out that a path exists.
- "rlimits": limits on CPU, memory and files only. No protection from a malicious program; never chosen
  automatically.

Each also has limits on CPU time, wall time, memory, processes, files and output, a clean folder, and an empty environment.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

from vantage.core import between, component
from vantage.core.errors import UserError, nearest
from vantage.rewards.removal import remove

ISOLATION = ("namespaces", "landlock", "rlimits")
_HERE = str(Path(__file__).parent)
_START = (
    "import sys; sys.path.insert(0, {here!r}); from isolation.launcher import main; del sys.path[0]; "
    "main({status}, {job}, {pid})"
)
_GRACE = 1.0
"""Seconds that the launcher has to end the program after the wall limit before the launcher is killed."""


class SandboxError(RuntimeError):
    """Failure of the sandbox itself, independent of the program."""


@component(label="limits")
class Limits:
    """Resource limits of a program. Every limit is a hard one; exceeding it ends the program or fails the call.

    Attributes:
        cpu_seconds: CPU time of each process, rounded up to whole seconds.
        wall_seconds: real time of the whole program.
        memory_bytes: address space of each process, Python's own 30 MB included.
        processes: processes and threads at one time (always 1 process under "landlock").
        file_bytes: bytes of the largest file, and of the whole folder.
        output_bytes: bytes of standard output and standard error, each.
    """

    cpu_seconds: Annotated[float, between(0.01, 86400)] = 2.0
    wall_seconds: Annotated[float, between(0.01, 86400)] = 4.0
    memory_bytes: Annotated[int, between(64 << 20, 1 << 50)] = 512 << 20
    processes: Annotated[int, between(1, 1 << 16)] = 8
    file_bytes: Annotated[int, between(4096, 1 << 50)] = 16 << 20
    output_bytes: Annotated[int, between(1, 1 << 40)] = 1 << 20


@dataclass(frozen=True)
class SandboxResult:
    """Result of a program's run.

    Attributes:
        ok: it ran to its end with exit code 0, within its limits.
        stdout, stderr: its output, cut at the limit; bytes that are not UTF-8 are replaced.
        reason: reason of not `ok`: "exit CODE", "signal NUMBER", "cpu time", "wall time", "memory", "output", "files", "killed"
            (by something else); "" when ok.
        seconds: real time from start to end.
        cpu_seconds: CPU time of the program and of the children it waited for; 0 when it was stopped.
    """

    ok: bool
    stdout: str
    stderr: str
    reason: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0


_LIMITS = Limits()


def run_python(
    code: str,
    stdin: str = "",
    limits: Limits = _LIMITS,
    *,
    isolation: str = "auto",
    readable: Sequence[str | os.PathLike[str]] = (),
) -> SandboxResult:
    """Run Python code as a main module in a process of its own and wait for its end.

    Only the standard library can be imported, and what is in `readable`. Safe to call from several threads at once.

    Args:
        code: the program's text.
        stdin: its standard input.
        limits: resource limits.
        isolation: "auto" (the strongest that the machine offers, never "rlimits"), or one of `ISOLATION`.
        readable: further folders that the program may read and import from.

    Raises:
        UserError: the machine has no isolation, or not the requested one.
        SandboxError: the sandbox could not be set up.
    """
    isolation = _checked(isolation)
    return _run(code, stdin, limits, isolation, tuple(os.path.abspath(path) for path in readable))


def _checked(isolation: str) -> str:
    if isolation == "auto":
        return strongest_isolation()
    if isolation not in ISOLATION:
        raise UserError(
            f"unknown isolation {isolation!r}{nearest(isolation, ISOLATION)} (known: auto, {', '.join(ISOLATION)})"
        )
    if isolation != "rlimits" and (why := _missing(isolation)):
        raise UserError(f"isolation {isolation!r} does not work on this machine: {why}")
    return isolation


def strongest_isolation() -> str:
    """Return "namespaces" or "landlock", whichever is the strongest that works here.

    Raises:
        UserError: neither works; the message says why and how to run without.
    """
    reasons = []
    for isolation in ("namespaces", "landlock"):
        if not (why := _missing(isolation)):
            return isolation
        reasons.append(f"{isolation}: {why}")
    raise UserError(
        f"this machine offers no isolation for untrusted code ({'; '.join(reasons)}). Allow user namespaces, or use Linux "
        "6.2 or later; isolation='rlimits' runs without protection against code that means harm"
    )


_PROBE = """
import os, socket, sys
outside, shared, packages = {outside!r}, {shared!r}, os.path.dirname(os.__file__) + "/site-packages"
acts = dict(
    listing=lambda: os.listdir(os.path.dirname(outside)),
    reading=lambda: open(outside).read(),
    writing=lambda: open(outside, "a"),
    truncating=lambda: os.truncate(outside, 0),
    removing=lambda: os.unlink(outside),
    sockets=lambda: socket.socket(),
    signals=lambda: os.kill(os.getppid(), 0),
    priority=lambda: os.setpriority(os.PRIO_PROCESS, 0, 1),
    packages=lambda: open(next(os.path.join(a, c) for a, _, cs in os.walk(packages) for c in cs)),
)
if shared:
    acts.update(
        pairs=lambda: socket.socketpair(),
        processes=lambda: os.fork() or os._exit(0),
        nameless=lambda: os.open(".", os.O_TMPFILE | os.O_RDWR),
        modes=lambda: os.chmod(outside, 0o666),
    )
open_doors = []
for name, act in acts.items():
    try:
        act()
    except (OSError, StopIteration):
        continue
    open_doors.append(name)
if open_doors:
    sys.exit("it does not refuse " + ", ".join(open_doors))
open("inside", "w").write("x")
print(open("inside").read())
"""


@functools.cache
def _missing(isolation: str) -> str:
    """Return "" where the isolation works on this machine, else the reason, by an attempt to break out of it."""
    if sys.platform != "linux":
        return "it needs Linux"
    with tempfile.TemporaryDirectory() as folder:
        outside = os.path.join(folder, "file")
        Path(outside).write_text("outside")
        code = _PROBE.format(outside=outside, shared=isolation == "landlock")
        try:
            result = _run(code, "", Limits(cpu_seconds=10, wall_seconds=30), isolation, ())
        except (SandboxError, OSError) as error:
            return str(error)
        if Path(outside).read_text() != "outside":
            return "it does not keep a file outside from being changed"
    return (
        ""
        if result.ok and result.stdout == "x\n"
        else f"a trial failed ({result.reason}): {result.stderr[-200:].strip()}"
    )


def run_pair(
    one: str, other: str, limits: tuple[Limits, Limits], *, isolation: str = "auto"
) -> tuple[SandboxResult, SandboxResult]:
    """Run two programs in sandboxes of their own, each of which reads from standard input what the other writes.

    Neither can reach the other by anything but these two pipes. Their standard errors are returned, their outputs are not.

    Raises:
        UserError, SandboxError: as of `run_python`.
    """
    isolation = _checked(isolation)
    to_one, to_other = os.pipe(), os.pipe()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_run, one, "", limits[0], isolation, (), (to_one[0], to_other[1]))
        second = _run(other, "", limits[1], isolation, (), (to_other[0], to_one[1]))
        return first.result(), second


def _run(
    code: str,
    stdin: str,
    limits: Limits,
    isolation: str,
    readable: tuple[str, ...],
    ends: tuple[int, int] | None = None,
) -> SandboxResult:
    """Run a program; `ends` are descriptors for its standard input and output, closed here once it has them."""
    if sys.platform != "linux":
        raise UserError("the sandbox needs Linux")
    started = time.monotonic()
    folder = tempfile.mkdtemp(prefix="sandbox-") if isolation != "namespaces" else ""
    job = marshal.dumps(
        {
            "code": code.encode("utf-8", "replace"),
            "isolation": isolation,
            "folder": folder,
            "readable": readable,
            "cpu_seconds": -int(-limits.cpu_seconds // 1),
            "wall_seconds": limits.wall_seconds,
            "memory_bytes": limits.memory_bytes,
            "processes": limits.processes,
            "file_bytes": limits.file_bytes,
        }
    )
    inside, status = os.pipe()
    source, writing = os.pipe()
    feed = os.fdopen(writing, "wb", buffering=0)
    theirs = [status, source, *(ends or ())]
    try:
        # -s -S -P and an environment of our own: no site packages, no user's folder, nothing of the caller's settings.
        launcher = subprocess.Popen(
            [
                os.path.realpath(sys.executable),
                *("-s", "-S", "-P", "-X", "utf8", "-c"),
                _START.format(here=_HERE, status=status, job=source, pid=os.getpid()),
            ],
            stdin=ends[0] if ends else subprocess.PIPE,
            stdout=ends[1] if ends else subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(status, source),
            env={"PYTHONHASHSEED": "0"}
            | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            cwd="/",
            start_new_session=True,
        )
        while theirs:
            os.close(theirs.pop())
        try:
            sent = [(feed, job), (launcher.stdin, stdin.encode("utf-8", "replace"))]
            output, stopped = _talk(launcher, inside, sent, limits, started)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(_GRACE)
        finally:
            if launcher.poll() is None:
                launcher.kill()
                launcher.wait()
            for stream in (launcher.stdin, launcher.stdout, launcher.stderr):
                _close(stream)
    finally:
        _close(feed)
        for handle in (inside, *theirs):
            os.close(handle)
        if folder:
            remove(folder)
    stdout, stderr, told = (bytes(part) for part in output)
    if not told and not stopped and launcher.returncode > 0:
        raise SandboxError(f"the sandbox's Python did not start: {stderr.decode('utf-8', 'replace')[-500:].strip()}")
    return _result(stdout, stderr, told, stopped, limits, time.monotonic() - started)


def _talk(
    launcher: subprocess.Popen[bytes],
    status: int,
    sent: Sequence[tuple[IO[bytes] | None, bytes]],
    limits: Limits,
    started: float,
) -> tuple[list[bytearray], str]:
    """Write the program's input and read its output, up to its limits, until its end; return stdout, stderr, status, reason."""
    output = [bytearray(), bytearray(), bytearray()]
    stopped, last = "", started + limits.wall_seconds + _GRACE
    left: dict[int, memoryview] = {}
    with selectors.DefaultSelector() as selector:
        for stream, data in sent:
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                left[stream.fileno()] = memoryview(data)
                selector.register(stream, selectors.EVENT_WRITE)
        reading = 0
        for number, source in enumerate((launcher.stdout, launcher.stderr, status)):
            if source is not None:
                selector.register(source, selectors.EVENT_READ, number)
                reading += 1
        while reading:
            wait = last - time.monotonic()
            if wait <= 0:
                launcher.kill()
                return output, stopped or "wall time"
            for key, _ in selector.select(wait):
                if key.fd in left:
                    try:
                        left[key.fd] = left[key.fd][os.write(key.fd, left[key.fd][: 1 << 16]) :]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        left[key.fd] = left[key.fd][:0]
                    if not left[key.fd]:
                        selector.unregister(key.fileobj)
                        _close(key.fileobj)  # type: ignore[arg-type]
                    continue
                part = os.read(key.fd, 1 << 16)
                if not part:
                    selector.unregister(key.fileobj)
                    reading -= 1
                    continue
                output[key.data] += part
                if len(output[key.data]) > limits.output_bytes and key.data < 2:
                    del output[key.data][limits.output_bytes :]
                    if not stopped:
                        stopped = "output"
                        launcher.terminate()
    return output, stopped


def _result(stdout: bytes, stderr: bytes, status: bytes, stopped: str, limits: Limits, seconds: float) -> SandboxResult:
    kind, cpu, detail = (*status.decode("utf-8", "replace").partition("\n")[0].split("\t"), "", "", "")[:3]
    if kind == "error":
        raise SandboxError(f"the sandbox could not be set up: {detail}")
    text, errors = stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
    cpu_seconds = float(cpu or 0)
    if stopped:
        reason = stopped
    elif kind == "wall":
        reason = "wall time"
    elif kind == "files":
        reason = "files"
    elif kind == "exit":
        last = errors.rstrip().rpartition("\n")[2]
        reason = "" if detail == "0" else "memory" if last.startswith("MemoryError") else f"exit {detail}"
    elif kind == "signal":
        # SIGXCPU, or the SIGKILL that follows when it is ignored.
        spent = detail == "24" or (detail == "9" and cpu_seconds >= limits.cpu_seconds)
        reason = "cpu time" if spent else f"signal {detail}"
    else:
        reason = "killed"
    return SandboxResult(not reason, text, errors, reason, seconds, cpu_seconds)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()
