"""Programs that try to do harm, and the table of how they end: `python -m tests.rewards.attacks` prints it for docs/security.md."""

from __future__ import annotations

import textwrap
from concurrent.futures import ThreadPoolExecutor

from vantage.rewards import sandbox
from vantage.rewards.sandbox import Limits, SandboxResult, run_python

QUICK = Limits(cpu_seconds=1, wall_seconds=0.8, memory_bytes=128 << 20, processes=8, file_bytes=1 << 20)
ISOLATIONS = ("namespaces", "landlock")

ATTACKS = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that detaches": """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
            except BlockingIOError:
                pass
    """,
    "thread bomb": """
        import threading, time
        threads = [threading.Thread(target=time.sleep, args=(9,)) for _ in range(100000)]
        [thread.start() for thread in threads]
    """,
    "memory bomb": "x = [0]\nwhile True: x += x",
    "memory in files without a name": """
        import os
        for _ in range(100):
            f = os.memfd_create('x'); os.write(f, bytes(1 << 26))
    """,
    "infinite loop": "while True: pass",
    "infinite loop, signals ignored": """
        import signal
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(number, signal.SIG_IGN)
        while True: pass
    """,
    "sleep": "import time; time.sleep(1000)",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "a flood of output": "import sys\nfor _ in range(100): sys.stdout.write('x' * (1 << 20))",
    "a flood of errors": "import sys\nfor _ in range(100): sys.stderr.write('x' * (1 << 20))",
    "an endless flood": "import sys\nwhile True: sys.stdout.write('x' * (1 << 16))",
    "internet": "import socket; socket.create_connection(('1.1.1.1', 53), 1)",
    "this machine": "import socket; socket.create_server(('127.0.0.1', 0))",
    "datagram": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))",
    "local socket": "import socket; socket.socket(socket.AF_UNIX).bind('/tmp/socket')",
    "packet socket": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "kill the parent": "import os; os.kill(os.getppid(), 9); import time; time.sleep(9)",
    "kill everything": "import os; os.kill(-1, 9); import time; time.sleep(9)",
    "kill the group": "import os; os.killpg(os.getpgid(os.getppid()), 9); import time; time.sleep(9)",
    "remove its folder": "import os; os.rmdir(os.getcwd())",
    "remove it all": "import os, shutil; shutil.rmtree(os.getcwd())",
    "remove everything": "import os, shutil; [shutil.rmtree('/' + name) for name in ('usr', 'etc', 'home', 'lib', 'tmp')]",
    "fill the disk with one file": "f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 16))",
    "fill the disk with many": """
        import itertools
        for i in itertools.count():
            with open(f'x{i}', 'wb') as f: f.write(bytes(1 << 15))
    """,
    "fill the disk with names": "import itertools, os, time\nfor i in itertools.count(): os.mkdir(f'x{i}')",
    "parent's processes": "import os; assert any(n.isdigit() for n in os.listdir('/proc'))",
    "kernel log": "open('/dev/kmsg').read(1)",
    "terminal": "open('/dev/tty', 'w')",
    "memory of the machine": "open('/dev/mem', 'rb')",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory; SharedMemory(create=True, size=100)",
    "new namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "trace the parent": "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "look into the parent": """
        import ctypes, os
        assert ctypes.CDLL(None).syscall(310, os.getppid(), 0, 0, 0, 0, 0) == 0
    """,
    "limits of the parent": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))",
    "priority of the parent": "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "be root": "import os; os.setuid(0) if os.getuid() else open('/etc/shadow')",
    "its own root": "import os; os.mkdir('r'); os.chroot('r')",
    "device": "import os, stat; os.mknod('disk', stat.S_IFBLK | 0o666, os.makedev(8, 0)); open('disk', 'rb')",
    "more memory": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    """,
    "a pair of sockets": "import socket; socket.socketpair()",
    "a socket of others by a pair": """
        import socket
        one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.sendto(b'x', '/dev/log')
    """,
    "an abstract name": """
        import socket
        one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one.bind(b'\\0vantage')
    """,
    "packages of the machine": """
        import os, sys
        sys.path += [f'{os.path.dirname(os.__file__)}/site-packages', '/usr/lib/python3/dist-packages']
        import pip
    """,
    "fill the disk with files that were removed": """
        import os
        held = []
        for i in range(60):
            f = open(f'x{i}', 'wb', buffering=0); os.unlink(f'x{i}'); held.append(f)
            for _ in range(16): f.write(bytes(1 << 20) if os.fstat(f.fileno()).st_size < 1 << 24 else b'')
    """,
    "fill the disk with a file that never had a name": """
        import os
        held = [os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600) for _ in range(60)]
        for h in held:
            for _ in range(16): os.write(h, bytes(1 << 20))
    """,
    "fill the disk below a path that is too long to name": """
        import os
        for _ in range(25):
            os.mkdir('d' * 250); os.chdir('d' * 250)
        while True:
            for i in range(60):
                with open(f'x{i}', 'ab') as f: f.write(bytes(1 << 15))
    """,
    "folders in folders": """
        import os
        for _ in range(3000):
            os.mkdir('d'); os.chdir('d')
    """,
    "folders without rights": """
        import os
        os.makedirs('a/b/c'); open('a/b/c/f', 'w'); os.chmod('a/b/c', 0); os.chmod('a/b', 0); os.chmod('a', 0); 1 / 0
    """,
}
"""Each must end with a failed result."""

ALLOWED = {"namespaces": ("a pair of sockets", "an abstract name")}
"""What does no harm where the program has a world of its own: no other program is in it, and it ends with the program."""


def runs(isolation: str) -> dict[str, SandboxResult]:
    """Run all attacks under an isolation; return their results by name."""
    codes = [textwrap.dedent(code) for code in ATTACKS.values()]
    with ThreadPoolExecutor(6) as pool:
        ended = pool.map(lambda code: run_python(code, limits=QUICK, isolation=isolation), codes)
        return dict(zip(ATTACKS, ended, strict=True))


def held(isolation: str, name: str, result: SandboxResult) -> bool:
    """Whether an attack failed, or is one that may succeed under this isolation."""
    return not result.ok or name in ALLOWED.get(isolation, ())


def table() -> str:
    """Return the results as a Markdown table; "-" where this machine does not offer the isolation."""
    found = {one: {} if sandbox._missing(one) else runs(one) for one in ISOLATIONS}
    rows = ["| attack | " + " | ".join(ISOLATIONS) + " |", "|---" * (1 + len(ISOLATIONS)) + "|"]
    for name in ATTACKS:
        ends = []
        for one in ISOLATIONS:
            result = found[one].get(name)
            end = "-" if result is None else "allowed" if result.ok and held(one, name, result) else result.reason
            ends.append(end or "SUCCEEDED")
        rows.append(f"| {name} | " + " | ".join(ends) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
