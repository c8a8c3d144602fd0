"""Launcher of the sandbox: restricts the process, runs the program, reports its end, and removes all that it leaves.

    caller ──▶ launcher ──▶ init (process 1 of a new process namespace) ──▶ program          isolation "namespaces"
    caller ──▶ launcher ──▶ program                                                          isolation "landlock", "rlimits"

The launcher measures the wall time and dies with the caller. The end of init ends every process of its namespace, detached
ones included. Without a namespace the program cannot start processes ("landlock"), or the launcher adopts and kills the
processes that it left ("rlimits").
"""

from __future__ import annotations

# The C module of `signal`, whose enumerations take longer to import than everything else here.
import _signal as signal
import marshal
import os
import resource
import sys
import time

from . import kernel, seccomp

TYPE_CHECKING = False  # importing typing takes as long as starting the program
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/nix/store", "/gnu/store")
_DEVICES = ("/dev/zero", "/dev/urandom", "/dev/random")
_PACKAGES = ("site-packages", "dist-packages")
_WATCHED = (signal.SIGCHLD, signal.SIGTERM)
_LOOK = 0.01
"""Seconds between two checks of the program's files."""
_DEEPEST, _MOST = 40, 4096
"""Largest depth of folders, and largest number of names, that a program may create."""


def main(status: int, source: int, caller: int) -> None:
    """Run the job that is read from `source`. Returns (or raises SystemExit) in the program's process alone."""
    kernel.die_with_parent(caller)
    os.umask(0o022)
    with os.fdopen(source, "rb") as file:
        job = marshal.loads(file.read())
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        prepare = _namespaces(job, status) if job["isolation"] == "namespaces" else _same_world(job, status)
    except OSError as error:
        _report(status, "error", 0.0, str(error))
        os._exit(0)
    try:
        prepare()
    except Exception as error:
        _report(status, "error", 0.0, f"{type(error).__name__}: {error}")
        os._exit(0)
    os.closerange(3, 1 << 20)
    _program(job)


def _report(status: int, kind: str, seconds: float, detail: str | int = "") -> None:
    os.write(status, f"{kind}\t{seconds:.6f}\t{detail}\n".encode("utf-8", "replace"))


def _ending(status: int, wait_status: int, usage: resource.struct_rusage) -> None:
    code = os.waitstatus_to_exitcode(wait_status)
    _report(status, "exit" if code >= 0 else "signal", usage.ru_utime + usage.ru_stime, abs(code))


def _readable(job: dict[str, Any]) -> list[str]:
    """Return the paths that Python needs to read and those that the caller adds; none is within another."""
    prefix = sys.base_prefix
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    wanted = [*_SYSTEM, *libraries, f"{prefix}/lib", f"{prefix}/bin", *sys.path, *job["readable"]]
    found: list[str] = []
    for path in sorted({os.path.realpath(path) for path in wanted if path and os.path.exists(path)}):
        if not any(path == above or path.startswith(above.rstrip("/") + "/") for above in found):
            found.append(path)
    return found


def _packages(readable: list[str], shown: Sequence[str]) -> list[str]:
    """Return the folders of installed packages below `readable` that contain none of the caller's paths."""
    shown = [os.path.realpath(path) for path in shown]
    found = []
    for root in readable:
        folders = [root, *(f"{root}/{name}" for name in _names(root) if name.startswith("python"))]
        for path in (f"{folder}/{name}" for folder in folders for name in _PACKAGES):
            if os.path.isdir(path) and not any(f"{one}/".startswith(f"{path}/") for one in shown):
                found.append(path)
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _around(readable: list[str], hidden: list[str]) -> tuple[list[str], list[str]]:
    """Return the paths that together are `readable` without `hidden`, and the folders above them, which can be listed."""
    found, way = [], []
    left = list(readable)
    for path in left:
        inside = [one for one in hidden if one.startswith(f"{path}/")]
        if path in hidden:
            continue
        if inside:
            way.append(path)
            left += [f"{path}/{name}" for name in _names(path)]
        else:
            found.append(path)
    return found, way


def _namespaces(job: dict[str, Any], status: int) -> Any:
    """Make the namespaces; return, in the program's process, the function that completes the restrictions there."""
    readable, root = _readable(job), os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    fresh = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS
    if root:
        kernel.unshare(fresh)
    else:
        kernel.unshare(fresh | kernel.NEWUSER)
        kernel.map_user(uid, gid)
    launcher = os.getpid()
    ready, go = os.pipe()
    init = os.fork()
    if init:
        os.close(ready)
        os.write(go, b"1")
        _watch(job, status, init)
    os.close(go)
    kernel.prctl(1, 9)
    # A launcher that died before the line above has closed its end without writing.
    if os.read(ready, 1) != b"1":
        os._exit(1)
    os.close(ready)
    kernel.new_root(readable, _packages(readable, job["readable"]), job["file_bytes"])
    program = os.fork()
    if program:
        kernel.prctl(4, 0)  # not dumpable: processes of the same user may not inspect it
        _reap(status, program)
    os.setsid()

    def prepare() -> None:
        os.umask(0o077)
        os.chdir("/tmp")
        # The launcher and init count as processes of the same user where a user namespace is what separates them.
        _limits(job, job["processes"] if root else job["processes"] + 2)
        if root:
            _become_nobody(launcher)
        kernel.drop_privileges()
        if kernel.landlock_version():
            kernel.landlock(["/"], ["/tmp", "/dev/null"])
        seccomp.install(kernel.libc, shared=False)

    return prepare


def _same_world(job: dict[str, Any], status: int) -> Any:
    """Start the program without namespaces; return, in its process, the function that completes the restrictions there."""
    locked = job["isolation"] == "landlock"
    readable = _readable(job)
    readable, way = _around(readable, _packages(readable, job["readable"]))
    kernel.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    launcher = os.getpid()
    program = os.fork()
    if program:
        _watch(job, status, program)
    kernel.die_with_parent(launcher)
    os.setsid()

    def prepare() -> None:
        os.umask(0o077)
        os.chdir(job["folder"])
        _limits(job, job["processes"])
        needed = (os.__file__, job["folder"], *job["readable"])
        if os.geteuid() == 0 and all(os.stat(above).st_mode & 1 for path in needed for above in _above(path)):
            os.chown(job["folder"], *[_BASE + launcher] * 2)
            _become_nobody(launcher)
        if locked:
            kernel.drop_privileges()
            kernel.landlock([*readable, *_DEVICES], [job["folder"], "/dev/null"], way)
            seccomp.install(kernel.libc, shared=True)

    return prepare


_BASE = 1_879_048_192


def _become_nobody(salt: int) -> None:
    """Change from root to an unused user id, so that the limit on processes counts this program's alone."""
    os.setgroups([])
    for number in (_BASE + salt, 65534):
        try:
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
        except OSError:
            continue
    raise OSError("cannot leave the root user")


def _above(path: str) -> list[str]:
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found


def _limits(job: dict[str, Any], processes: int) -> None:
    cpu = job["cpu_seconds"]
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, job["memory_bytes"], job["memory_bytes"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"], job["file_bytes"]),
        (resource.RLIMIT_NPROC, processes, processes),
        (resource.RLIMIT_NOFILE, 128, 128),
        # 1, not 0: handlers to which core dumps are piped respect this value alone.
        (resource.RLIMIT_CORE, 1, 1),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def _reap(status: int, program: int) -> NoReturn:
    """Act as process 1: reap orphans until the program has ended, then exit, upon which the kernel kills all other processes."""
    while True:
        pid, wait_status, usage = os.wait4(-1, 0)
        if pid == program:
            _ending(status, wait_status, usage)
            os._exit(0)


def _watch(job: dict[str, Any], status: int, child: int) -> NoReturn:
    """Wait for the child until the time limit or the caller's stop; kill it and all processes that it left."""
    deadline = time.monotonic() + job["wall_seconds"]
    ended, folder = False, job["folder"]
    while not ended:
        left = deadline - time.monotonic()
        caught = signal.sigtimedwait(_WATCHED, min(left, _LOOK) if folder else left) if left > 0 else None
        if caught is None and left > 0 and folder:
            if _written(folder, child) <= job["file_bytes"]:
                continue
            _report(status, "files", 0.0)
            break
        if caught is None or caught.si_signo == signal.SIGTERM:
            _report(status, "wall" if caught is None else "stopped", 0.0)
            break
        ended = _collect(status, child, job["isolation"] != "namespaces")
    _bury(child if not ended else 0, job["isolation"] == "rlimits")
    os._exit(0)


def _written(folder: str, child: int) -> float:
    """Return the bytes on the disk below the folder and in open files of the child that were unlinked.

    Infinite when there are too many names, or too deep folders, to check each time. Folders are opened by descriptors, so that
    no path is too long.
    """
    total, names = 0, 0

    def below(handle: int, depth: int) -> bool:
        nonlocal total, names
        try:
            with os.scandir(handle) as entries:
                for entry in entries:
                    names += 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if names > _MOST or depth > _DEEPEST:
                        return False
                    if entry.is_dir(follow_symlinks=False):
                        inner = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
                        try:
                            if not below(inner, depth + 1):
                                return False
                        finally:
                            os.close(inner)
        except OSError:  # it was renamed or removed meanwhile
            pass
        return True

    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        top = -1
    if top >= 0:
        try:
            if not below(top, 0):
                return float("inf")
        finally:
            os.close(top)
    for name in _names(f"/proc/{child}/fd"):
        try:
            held = os.stat(f"/proc/{child}/fd/{name}")
        except OSError:
            continue
        if held.st_nlink == 0:
            total += held.st_blocks * 512
    return total


def _collect(status: int, child: int, report: bool) -> bool:
    """Reap all processes that have ended; return whether the child has."""
    while True:
        try:
            pid, wait_status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == child:
            if report:
                _ending(status, wait_status, usage)
            return True
        if not pid:
            return False


def _bury(child: int, adopted: bool) -> None:
    """Kill the child, and every descendant that this process has adopted, until there is none."""
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while adopted:
        for pid in _descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.001)
        except ChildProcessError:
            return


def _descendants(ancestor: int) -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
    found = [ancestor]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _program(job: dict[str, Any]) -> None:
    """Run the code as the main module, without access to objects of the launcher."""
    import __main__

    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    folder = os.getcwd()
    os.environ.clear()
    os.environ.update(HOME=folder, TMPDIR=folder, PYTHONHASHSEED="0")
    sys.path[:] = [folder, *map(os.path.realpath, sys.path), *job["readable"]]
    sys.argv[:] = sys.orig_argv[:] = ["main.py"]
    sys.executable = os.path.realpath(sys.executable)
    space = __main__.__dict__
    for name in [name for name in space if not name.startswith("__")]:
        del space[name]
    space["__file__"] = "main.py"
    try:
        exec(compile(job["code"], "main.py", "exec", dont_inherit=True), space)
    except SystemExit:
        raise
    except BaseException as error:
        below = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error.with_traceback(below), below)
        sys.exit(1)
