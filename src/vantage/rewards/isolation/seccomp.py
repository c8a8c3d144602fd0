"""Seccomp filter of the system calls that a program in the sandbox may not make. Linux on x86-64 and aarch64."""

from __future__ import annotations

import ctypes
import errno
import os

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Numbers of (x86-64, aarch64); None where the machine has no such call.
_Numbers = dict[str, tuple[int | None, int | None]]

# Always refused: access to the network, to other processes, to kernel interfaces with many past vulnerabilities, and to memory
# that the limit on the address space does not count.
_ALWAYS: _Numbers = {
    "socket": (41, 198),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}

# Refused as well where the program shares the process and file trees of the machine: starting processes, signals, the
# changes to a file that Landlock does not watch, and every use of a socket: a pair that is connected to itself can still send to
# the sockets of others by their paths, and its buffers count towards no limit.
_SHARED: _Numbers = {
    "socketpair": (53, 199),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "connect": (42, 203),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "fork": (57, None),
    "vfork": (58, None),
    "kill": (62, 129),
    "tkill": (200, 130),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "mknod": (133, None),
    "mknodat": (259, 33),
}

_CLONE, _CLONE3, _KILL, _TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
_PRLIMIT, _PRCTL, _FCNTL, _IOCTL = (302, 261), (157, 167), (72, 25), (16, 29)
_NEWEST = 450
"""Number from which calls (newer than this table, and the x32 table of x86-64) do not exist for the program."""

_OPEN, _OPENAT, _OPENAT2 = (2, None), (257, 56), (437, 437)
_TMPFILE = 0x400000
"""Bit of O_TMPFILE that no other flag has, on both architectures."""
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020000
_PR_SET_PDEATHSIG, _F_SETOWN, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 1, 8, 15, 0x8901, 0x8902

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL_PROCESS = 0x7FFF0000, 0x80000000


def _refuse(code: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, 0x00050000 | code)


def _where(number: int, argument: int, test: int, value: int, wanted: bool) -> list[tuple[int, int, int, int]]:
    """Return instructions that refuse the call when `test` of the lower half of its argument against `value` is `wanted`."""
    jump = (0, 1) if wanted else (1, 0)
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, 16 + 8 * argument),
        (test, *jump, value),
        _refuse(errno.EPERM),
        (_LOAD, 0, 0, 0),
    ]


def program(machine: str, shared: bool, pid: int) -> list[tuple[int, int, int, int]]:
    """Return the filter's instructions (code, jump if true, jump if false, value).

    Args:
        machine: architecture as of `uname -m`.
        shared: whether processes and files of the machine are accessible, so that the filter must also refuse to
            start processes and to signal others.
        pid: the process that may signal itself.

    Raises:
        OSError: there is no table of the machine's system calls.
    """
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    column, architecture = _MACHINES[machine]
    code = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),
        (_GREATER, 0, 1, _NEWEST),
        _refuse(errno.ENOSYS),
        # clone3 has its flags in memory, which the filter cannot read; the C library falls back to clone.
        (_EQUAL, 0, 1, _CLONE3[column]),
        _refuse(errno.ENOSYS),
    ]
    for numbers in (_ALWAYS | _SHARED if shared else _ALWAYS).values():
        number = numbers[column]
        if number is not None:
            code += [(_EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    code += _where(_PRLIMIT[column], 0, _EQUAL, 0, False)
    if shared:
        code += _where(_CLONE[column], 0, _ANY_BIT, _CLONE_THREAD, False)
        code += _where(_TGKILL[column], 0, _EQUAL, pid, False)
        code += _where(_PRCTL[column], 0, _EQUAL, _PR_SET_PDEATHSIG, True)
        for command in (_F_SETOWN, _F_SETOWN_EX):
            code += _where(_FCNTL[column], 1, _EQUAL, command, True)
        for command in (_FIOSETOWN, _SIOCSPGRP):
            code += _where(_IOCTL[column], 1, _EQUAL, command, True)
        # A file without a name is in no folder whose size is checked. openat2 has its flags in memory.
        for numbers, argument in ((_OPEN, 1), (_OPENAT, 2)):
            number = numbers[column]
            if number is not None:
                code += _where(number, argument, _ANY_BIT, _TMPFILE, True)
        code += [(_EQUAL, 0, 1, _OPENAT2[column]), _refuse(errno.ENOSYS)]
    else:
        code += _where(_CLONE[column], 0, _ANY_BIT, _CLONE_NEW, True)
        code += _where(_KILL[column], 0, _EQUAL, 1, True)
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def install(libc: ctypes.CDLL, shared: bool) -> None:
    """Install the filter, irrevocably, for this process and its children. `no_new_privs` must be set.

    Raises:
        OSError: the kernel has no seccomp filters, or there is no table of the machine's calls.
    """
    code = program(os.uname().machine, shared, os.getpid())
    packed = b"".join(
        op.to_bytes(2, "little") + bytes((true, false)) + value.to_bytes(4, "little") for op, true, false, value in code
    )
    buffer = ctypes.create_string_buffer(packed, len(packed))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    whole = Program(len(code), ctypes.addressof(buffer))
    if libc.prctl(22, 2, ctypes.byref(whole), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
