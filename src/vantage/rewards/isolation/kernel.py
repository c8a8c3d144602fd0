"""Namespaces, a separate root, Landlock and capabilities through the C library. Linux only."""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446

_READ = 0b1101  # execute, read a file, list a folder
_LIST = 0b1000
LANDLOCK = 3
"""Version of Landlock that is needed (Linux 6.2): older ones cannot refuse to truncate a file."""
_FILE_RIGHTS = 1 | 2 | 4 | 1 << 14 | 1 << 15  # execute, write, read, truncate, ioctl
_OLD = "/.old"


def check(result: int, what: str) -> int:
    """Return the result of a C call.

    Raises:
        OSError: the call failed; the message names it.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name."""
    check(libc.unshare(flags), "unshare")


def prctl(option: int, first: int = 0) -> None:
    """Set an attribute of this process that takes at most one number."""
    check(libc.prctl(option, ctypes.c_ulong(first), 0, 0, 0), f"prctl {option}")


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent ends; exit at once where that has happened already."""
    prctl(1, 9)
    if os.getppid() != parent:
        os._exit(1)


def map_user(uid: int, gid: int) -> None:
    """Map `uid` and `gid` to user 1000 in the new user namespace."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None)
    check(result, f"mount {target}")


def _bind(path: str, flags: int) -> None:
    """Bind a file or folder of the old root to the same path, read-only with all that is mounted below it."""
    source = _OLD + path
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, path, "", _BIND | _REC)
    attributes = b"".join(n.to_bytes(8, "little") for n in (flags, 0, 0, 0))
    if libc.syscall(_MOUNT_SETATTR, -100, path.encode(), 0x8000, attributes, len(attributes)):
        _mount("", path, "", _REMOUNT | _BIND | flags | (os.statvfs(path).f_flag & 0xFFF))


def new_root(readable: Sequence[str], hidden: Sequence[str], size: int) -> None:
    """Replace the root by an empty one with `readable`, read-only, and /tmp, in memory, of `size` bytes.

    The folders `hidden`, which are inside of those, are empty in it.

    No other file of the machine has a path in it. Needs a new mount namespace.
    """
    _mount("", "/", "", _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
    os.mkdir("/tmp" + _OLD)
    check(libc.syscall(_PIVOT_ROOT[os.uname().machine], b"/tmp", ("/tmp" + _OLD).encode()), "pivot_root")
    os.chdir("/")
    for path in ("/lib", "/lib64"):
        if os.path.islink(_OLD + path):
            os.symlink(os.readlink(_OLD + path), path)
    for path in readable:
        if os.path.exists(_OLD + path) and not os.path.exists(path):
            _bind(path, _RDONLY | _NOSUID | _NODEV)
    for path in hidden:
        if os.path.isdir(path):
            _mount("tmpfs", path, "tmpfs", _RDONLY | _NOSUID | _NODEV | _NOEXEC, "mode=755,size=4k")
    for path in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
        _bind(path, _RDONLY | _NOSUID)
    os.makedirs("/tmp", exist_ok=True)
    pages = -(-size // 4096)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV | _NOEXEC, f"mode=777,size={pages * 4096},nr_inodes=1024")
    check(libc.umount2(_OLD.encode(), 2), "umount")
    os.rmdir(_OLD)
    _mount("", "/", "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def landlock_version() -> int:
    """Return the kernel's version of Landlock, 0 where there is none."""
    return max(int(libc.syscall(_LANDLOCK_CREATE, None, 0, 1)), 0)


def landlock(readable: Sequence[str], writable: Sequence[str], listed: Sequence[str] = ()) -> None:
    """Allow this process to read below `readable` and to write below `writable`, and to access no other files.

    Names below `listed` can be listed, which reads no file. Also refused where the kernel can: TCP, abstract sockets of others,
    signals to others. `no_new_privs` must be set.

    Raises:
        OSError: the kernel has no Landlock, or one that is too old.
    """
    version = landlock_version()
    if version < LANDLOCK:
        raise OSError(
            errno.ENOSYS, f"Landlock of this kernel has version {version}, too old: {LANDLOCK} (Linux 6.2) is needed"
        )
    rights = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        rights |= (version >= since) << bit
    words = (rights, 3, 3)[: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = b"".join(word.to_bytes(8, "little") for word in words)
    rules = check(libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0), "landlock")
    allow = [*((p, _READ) for p in readable), *((p, _LIST) for p in listed), *((p, rights) for p in writable)]
    for path, allowed in allow:
        if not os.path.exists(path):
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed &= rights if os.path.isdir(path) else rights & _FILE_RIGHTS
        rule = allowed.to_bytes(8, "little") + handle.to_bytes(4, "little")
        check(libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0), f"landlock {path}")
        os.close(handle)
    check(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)


def drop_privileges() -> None:
    """Give up every capability, now and through any program that is started later."""
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    for capability in range(64):
        if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP: fails past the last one, or without the right to
            break
    header = (0x20080522).to_bytes(4, "little") + bytes(4)
    check(libc.syscall(_CAPSET[os.uname().machine], header, bytes(24)), "capset")
