"""Every way out that the tests could think of ends as a failed result, with the caller unharmed and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rewards.attacks import ATTACKS, QUICK, held, runs
from vantage.core.errors import UserError
from vantage.rewards import sandbox
from vantage.rewards.isolation import kernel, seccomp
from vantage.rewards.removal import remove
from vantage.rewards.sandbox import Limits, SandboxError, SandboxResult, run_python, strongest_isolation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
PATIENT = Limits(cpu_seconds=5, wall_seconds=20)
"""For programs that should end by themselves, however busy the machine is."""


@pytest.fixture(params=["namespaces", "landlock"])
def isolation(request: pytest.FixtureRequest) -> str:
    why = sandbox._missing(request.param)
    if why:
        pytest.skip(f"{request.param} does not work here: {why}")
    return str(request.param)


def descendants() -> set[int]:
    """Processes that this one has started, and what a launcher of this one's has forked, wherever it now hangs."""
    found = set()
    mark = f", {os.getpid()})".encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if b"isolation.launcher" in command and mark in command:
                found.add(int(name))
    return found


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folders = tmp_path_factory.mktemp("folders")
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(folders))
    yield
    assert not descendants()
    assert list(folders.iterdir()) == []


def run(code: str, isolation: str, limits: Limits = QUICK, **settings: object) -> SandboxResult:
    started = time.monotonic()
    result = run_python(textwrap.dedent(code), limits=limits, isolation=isolation, **settings)  # type: ignore[arg-type]
    assert time.monotonic() - started < limits.wall_seconds + 2.0
    return result


def test_a_good_program(isolation: str) -> None:
    code = """
        import json, sys
        from dataclasses import dataclass
        @dataclass
        class Point:
            x: int
        print(json.dumps([int(line) * 2 for line in sys.stdin]), Point(3))
        print("aside", file=sys.stderr)
    """
    result = run(code, isolation, PATIENT, stdin="1\n2\n21\n")
    assert (result.ok, result.reason) == (True, "")
    assert result.stdout == "[2, 4, 42] Point(x=3)\n"
    assert result.stderr == "aside\n"
    assert 0 < result.cpu_seconds < result.seconds


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        ("1 / 0", "exit 1", "ZeroDivisionError: division by zero"),
        ("def f(:", "exit 1", "SyntaxError"),
        ("raise SystemExit(7)", "exit 7", ""),
        ("import os; os._exit(3)", "exit 3", ""),
        ("import os; os.abort()", "signal 6", ""),
        ("import ctypes; ctypes.string_at(0)", "signal 11", ""),
        ("import numpy", "exit 1", "No module named 'numpy'"),
        ("def f(): f()\nf()", "exit 1", "RecursionError"),
    ],
)
def test_failures_are_named(isolation: str, code: str, reason: str, message: str) -> None:
    result = run_python(code, limits=PATIENT, isolation=isolation)
    assert not result.ok
    assert result.reason == reason
    assert message in result.stderr
    assert "launcher" not in result.stderr


def test_attacks_fail(isolation: str) -> None:
    results = runs(isolation)
    assert {name: result for name, result in results.items() if not held(isolation, name, result)} == {}
    for result in results.values():
        assert max(len(result.stdout), len(result.stderr)) <= QUICK.output_bytes
    assert not descendants()


def test_the_disk_is_bounded_by_files_without_a_name_too() -> None:
    """With time and processor enough, what ends the program is what it wrote."""
    if sandbox._missing("landlock"):
        pytest.skip("needs Landlock")
    limits = Limits(cpu_seconds=20, wall_seconds=20, file_bytes=16 << 20)
    for name in ("fill the disk with files that were removed", "fill the disk below a path that is too long to name"):
        result = run(ATTACKS[name], "landlock", limits)
        assert result.reason == "files", (name, result)
    result = run(ATTACKS["fill the disk with a file that never had a name"], "landlock", limits)
    assert "Operation not permitted" in result.stderr


def test_nothing_tells_where_the_caller_is(isolation: str) -> None:
    result = run("import sys; print(sys.orig_argv, sys.argv)", isolation, PATIENT)
    assert result.stdout == "['main.py'] ['main.py']\n"


@pytest.mark.parametrize("version", [0, 1, 2])
def test_landlock_that_cannot_refuse_truncation_is_refused(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 5.13 to 6.1: the program could empty any file of the user."""
    monkeypatch.setattr(kernel, "landlock_version", lambda: version)
    with pytest.raises(OSError, match=f"has version {version}, too old: 3 .Linux 6.2. is needed"):
        kernel.landlock([], [])


def test_reasons_of_limits(isolation: str) -> None:
    patient = Limits(cpu_seconds=1, wall_seconds=20, memory_bytes=128 << 20)
    assert run("while True: pass", isolation, patient).reason == "cpu time"
    assert run(ATTACKS["infinite loop, signals ignored"], isolation, patient).reason == "cpu time"
    assert run("import time; time.sleep(99)", isolation).reason == "wall time"
    assert run(ATTACKS["memory bomb"], isolation, patient).reason == "memory"
    flood = run(ATTACKS["a flood of output"], isolation, patient)
    assert flood.reason == "output"
    assert flood.stdout == "x" * patient.output_bytes


def test_no_writing_outside(isolation: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    tmp_path.chmod(0o777)
    target.chmod(0o666)
    before = target.stat()
    for act in (
        f"open({str(target)!r}, 'w').write('theirs')",
        f"open({str(target)!r}, 'a').write('theirs')",
        f"open({str(tmp_path / 'new')!r}, 'w').write('theirs')",
        f"os.truncate({str(target)!r}, 0)",
        f"os.unlink({str(target)!r})",
        f"os.rename({str(target)!r}, 'stolen')",
        f"os.link({str(target)!r}, 'stolen'); open('stolen', 'w')",
        f"os.symlink({str(target)!r}, 'way'); open('way', 'w')",
        f"os.chmod({str(target)!r}, 0o777)",
        f"os.chown({str(target)!r}, 1, 1)",
        f"os.utime({str(target)!r}, (0, 0))",
        f"os.setxattr({str(target)!r}, 'user.x', b'1')",
        f"os.mkdir({str(tmp_path / 'new')!r})",
        f"os.mkfifo({str(tmp_path / 'new')!r})",
        "open(os.__file__, 'a').write('#')",
        "os.chmod(os.__file__, 0o777)",
        "os.makedirs('/usr/lib/x')",
    ):
        result = run_python(f"import os; {act}", limits=PATIENT, isolation=isolation)
        assert not result.ok, act
        assert result.reason == "exit 1", (act, result)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    after = target.stat()
    assert target.read_text() == "mine"
    assert (before.st_mode, before.st_uid, before.st_mtime_ns) == (after.st_mode, after.st_uid, after.st_mtime_ns)


def test_no_secrets(isolation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    monkeypatch.setenv("VERY_SECRET", "hunter2")
    handle = os.open(secret, os.O_RDONLY)
    os.set_inheritable(handle, True)
    try:
        code = f"""
            import os, glob
            found = [repr(dict(os.environ))]
            for path in [{str(secret)!r}, *[f"/proc/{{p}}/environ" for p in ("self", os.getppid(), {os.getpid()})], "/etc/passwd"]:
                try:
                    found.append(open(path).read())
                except OSError as error:
                    found.append(type(error).__name__)
            for number in range(3, 100):
                try:
                    found.append(os.read(number, 10).decode())
                except OSError:
                    pass
            print(found)
        """
        result = run(code, isolation, PATIENT)
    finally:
        os.close(handle)
    assert result.ok
    assert "hunter2" not in result.stdout
    assert "VERY_SECRET" not in result.stdout
    assert result.stdout.count("Error") == 5  # the file, three environments, the users: none can be read
    assert set(eval(eval(result.stdout)[0])) == {"HOME", "TMPDIR", "PYTHONHASHSEED"}


def test_detached_children_die_with_the_program() -> None:
    """A child that ignores signals, forked twice in a session of its own, holding the output open, does not outlive."""
    if sandbox._missing("namespaces"):
        pytest.skip("needs namespaces")
    code = """
        import os, signal, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                    signal.signal(number, signal.SIG_IGN)
                print("child", flush=True)
                time.sleep(1000)
            os._exit(0)
        os.wait()
        time.sleep(0.3)
        %s
    """
    left = run(code % "print('done')", "namespaces", PATIENT)
    assert left.ok
    assert sorted(left.stdout.split()) == ["child", "done"]
    assert left.seconds < PATIENT.wall_seconds
    assert not descendants()
    waited = run(code % "time.sleep(1000)", "namespaces")
    assert (waited.ok, waited.reason) == (False, "wall time")


def test_the_launcher_dies_with_its_caller(isolation: str, tmp_path: Path) -> None:
    script = (
        "from vantage.rewards.deferred import defer; defer('vantage.core'); from vantage.rewards.sandbox import *; "
        f"run_python('import time; time.sleep(60)', limits=Limits(wall_seconds=60), isolation={isolation!r})"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    mark = f", {caller.pid})".encode()

    def running() -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
            except OSError:
                continue
        return found

    expected = 3 if isolation == "namespaces" else 2
    deadline = time.monotonic() + 100
    while len(running()) < expected and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(running()) == expected
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 20
    while running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running() == []


def test_many_at_once_do_not_disturb_each_other(isolation: str) -> None:
    codes = ["import os\nwhile True: os.fork()", *[f"print({i})" for i in range(6)], "while True: pass"]
    with ThreadPoolExecutor(4) as pool:
        limits = [QUICK, *[PATIENT] * 6, QUICK]
        each = pool.map(lambda code, limit: run_python(code, limits=limit, isolation=isolation), codes, limits)
        results = list(each)
    assert [result.stdout for result in results[1:-1]] == [f"{i}\n" for i in range(6)]
    assert [result.ok for result in results] == [False, *[True] * 6, False]


def test_large_input_and_output_do_not_deadlock(isolation: str) -> None:
    limits = Limits(wall_seconds=20, output_bytes=4 << 20)
    text = "x" * (3 << 20)
    result = run_python("import sys; sys.stdout.write(sys.stdin.read())", text, limits, isolation=isolation)
    assert result.ok
    assert result.stdout == text
    unread = run_python("print('ready')", text, limits, isolation=isolation)
    assert (unread.ok, unread.stdout) == (True, "ready\n")


def test_processes_work_within_their_limit() -> None:
    if sandbox._missing("namespaces"):
        pytest.skip("needs namespaces")
    code = """
        import subprocess, sys
        print(subprocess.run([sys.executable, "-S", "-c", "print(6 * 7)"], capture_output=True, text=True).stdout)
    """
    result = run(code, "namespaces", PATIENT)
    assert result.stdout == "42\n\n", result


def test_readable_folders_can_be_imported_and_not_written(isolation: str, tmp_path: Path) -> None:
    folder = Path(os.path.realpath("/var/tmp")) / f"readable-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "helper.py").write_text("value = 42\n")
        folder.chmod(0o755)
        code = f"import helper; print(helper.value); open({str(folder / 'x')!r}, 'w')"
        result = run(code, isolation, PATIENT, readable=[folder])
        assert result.stdout == "42\n"
        assert result.reason == "exit 1"
        assert not (folder / "x").exists()
    finally:
        remove(str(folder))


def test_rlimits_bury_what_the_program_leaves() -> None:
    """The mode without isolation: limits hold, and detached children are adopted and killed."""
    code = """
        import os, signal, time
        for _ in range(2):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    time.sleep(1000)
                os._exit(0)
        %s
    """
    assert run(code % "time.sleep(1000)", "rlimits").reason == "wall time"
    assert not descendants()
    assert run(code % "time.sleep(0.1)", "rlimits", PATIENT).ok
    assert not descendants()
    assert run(ATTACKS["memory bomb"], "rlimits", Limits(wall_seconds=20, memory_bytes=128 << 20)).reason == "memory"


def test_the_strongest_isolation_is_chosen_and_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    works = [name for name in ("namespaces", "landlock") if not sandbox._missing(name)]
    if works:
        assert strongest_isolation() == works[0]
        assert run_python("print(1)").stdout == "1\n"
    monkeypatch.setattr(sandbox, "_missing", lambda name: "no such thing")
    with pytest.raises(UserError, match=r"no isolation .*namespaces: no such thing.*rlimits"):
        run_python("print(1)")
    with pytest.raises(UserError, match="'landlock' does not work on this machine: no such thing"):
        run_python("print(1)", isolation="landlock")
    with pytest.raises(UserError, match="did you mean landlock"):
        run_python("print(1)", isolation="landlok")


@pytest.mark.parametrize(("name", "value"), [("cpu_seconds", 0), ("memory_bytes", 1000), ("processes", 0)])
def test_limits_are_checked(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name}={value} is out of range"):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_a_sandbox_that_cannot_be_set_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "mkdtemp", lambda prefix: "/nowhere/at/all")
    with pytest.raises(SandboxError, match=r"could not be set up: .*No such file.*'/nowhere/at/all'"):
        run_python("print(1)", isolation="rlimits")


def test_no_threads_left() -> None:
    before = threading.active_count()
    run_python("print(1)", limits=QUICK, isolation="rlimits")
    assert threading.active_count() == before


def test_the_filter_is_well_formed() -> None:
    """Every jump lands inside of the program, which ends in a return; both machines have one."""
    for machine in ("x86_64", "aarch64"):
        for shared in (True, False):
            code = seccomp.program(machine, shared, 1234)
            assert len(code) < 4096
            assert code[-1][0] == 0x06
            for place, (operation, true, false, _) in enumerate(code):
                if operation in (0x15, 0x25, 0x45):
                    assert place + 1 + max(true, false) < len(code)
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("riscv64", True, 1)


def test_the_table_of_the_docs_names_every_attack() -> None:
    rows = (Path(__file__).parents[2] / "docs" / "security.md").read_text().split("| attack |")[1].splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(ATTACKS)
    assert "SUCCEEDED" not in "".join(rows)
