"""The interpreter of a rehearsed board, confined: it runs code of a dump, perhaps a stranger's.

Linux has all that it takes, without root and without other programs:

network    `enter` moves the process that rehearses into a network namespace of its own, in a user
           namespace (unshare(2)). There is a loopback in it and nothing else: sockets of the board
           reach what the rehearsal started, no other program of the desk, no other machine.
files      the interpreter's root directory (chroot(2), in a mount namespace) has the interpreter,
           the system's libraries, the stand-ins, and the modules of `Board.frozen`, all of it
           read-only, and nothing else: no files of the desk, no sockets of its services, no shell
           that ``os.system`` could start. The flash comes as an open file, for reading only.
processes  a seccomp filter (seccomp(2)): it starts no process, sends no signal to another one,
           traces none, mounts nothing and joins no namespace; its capabilities are dropped.

What is left open: the clock, random numbers, CPU time and memory (both bounded), and, where
the interpreter is an i386 build, whose calls hide it from the filter, sockets of other families
than IP, such as those to a hypervisor (vsock).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from mpota.errors import MpotaError

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 38, 22, 24
_SECCOMP_MODE_FILTER = 2
_LAST_CAPABILITY = 63

_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MOUNT_SETATTR = 442  # the number on all architectures
_MOUNT_ATTR_RDONLY, _AT_RECURSIVE, _AT_FDCWD = 1, 0x8000, -100

_RECEIVE_BUFFERS = "4096 11680 11680"  # tcp(7): tcp_rmem; a half is the window, 5840 as lwIP's
_MEMORY_SIZE = 1 << 30  # bytes of address space
_SYSTEM = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache",
           "/dev/urandom", "/dev/random")  # fmt: skip


class NotConfinedError(MpotaError):
    """This machine cannot confine the interpreter; the text says what is missing."""


class Cage:
    """The confinement of an interpreter that is started with `close` as its ``preexec_fn``.

    ``root`` is an empty directory, ``program`` how the interpreter is started; ``readable`` are
    the directories that it may read, the first is the current one.
    """

    def __init__(self, root: Path, program: Iterable[str], readable: Iterable[Path]) -> None:
        """Moves this process, which must have a single thread, into namespaces of its own.

        Raises NotConfinedError where the kernel does not allow it.
        """
        reason = _missing()
        if reason is not None:
            raise NotConfinedError(reason)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._root = root
        folders = tuple(readable)
        self._directory = folders[0]
        uid, gid = os.getuid(), os.getgid()
        self._call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS)
        try:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
            _set_buffers()
            self._build(program, folders)
        except OSError as error:
            raise NotConfinedError(f"this machine cannot confine the board: {error}") from None

    def close(self) -> None:
        """Called between fork and exec: nothing here waits for what another thread may hold."""
        libc = self._libc
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.chroot(self._root)
        os.chdir(self._directory)
        for capability in range(_LAST_CAPABILITY + 1):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        program = _filter(os.getpid())
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_SIZE, _MEMORY_SIZE))
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
            _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
        ):
            raise OSError("seccomp")

    def _build(self, program: Iterable[str], folders: tuple[Path, ...]) -> None:
        self._call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        root = os.fsencode(self._root)
        self._call("mount", b"none", root, b"tmpfs", _MS_NOSUID | _MS_NODEV, b"size=1m,mode=755")
        seen: list[Path] = []
        for path in (*map(Path, _SYSTEM), *_parts(program), *folders):
            if path.is_symlink() and not any(path.is_relative_to(other) for other in seen):
                inside = self._inside(path)
                inside.parent.mkdir(parents=True, exist_ok=True)
                if not inside.is_symlink():
                    inside.symlink_to(os.readlink(path))
                path = path.resolve()
            if path.exists() and not any(path.is_relative_to(other) for other in seen):
                self._bind(path)
                seen.append(path)
        self._set_read_only(root)

    def _inside(self, path: Path) -> Path:
        return self._root / str(path).lstrip("/")

    def _bind(self, path: Path) -> None:
        place = self._inside(path)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        self._call("mount", os.fsencode(path), os.fsencode(place), None, _MS_BIND | _MS_REC, None)

    def _set_read_only(self, path: bytes) -> None:
        """mount_setattr(2), Linux 5.12: a remount would have to repeat all flags that are set."""
        attributes = struct.pack("<QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
        self._call(
            "syscall", _MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, attributes, len(attributes)
        )

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._libc, name)(*arguments):
            text = os.strerror(ctypes.get_errno())
            raise NotConfinedError(
                f"this machine cannot confine the board: {name}: {text}",
                "some systems keep namespaces from users, Docker from its containers; on Ubuntu "
                "24.04: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
            )


def _set_buffers() -> None:
    """Make sockets buffer as little as a board's, if the kernel lets us: breaks lose little."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv4/tcp_rmem").write_text(_RECEIVE_BUFFERS)


def _parts(program: Iterable[str]) -> Iterable[Path]:
    """The files of the interpreter: a program, perhaps with its own loader and libraries."""
    for argument in program:
        for text in argument.split(":"):
            if text.startswith("/"):
                yield Path(text)


def _missing() -> str | None:
    """Why this machine cannot confine, None if nothing is missing that shows beforehand."""
    if platform.system() != "Linux":
        return f"the board cannot be confined: {platform.system()} has no namespaces"
    if platform.machine() not in ("x86_64", "i386", "i686", "aarch64"):
        return f"the board cannot be confined: there is no filter for {platform.machine()}"
    return None


# --- processes: seccomp ------------------------------------------------------------------------

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_CLONE_THREAD = 0x10000
_X32_BIT = 0x40000000
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

# Those since Linux 5.1 have one number everywhere: pidfd_send_signal, io_uring_*, open_tree,
# move_mount, fsopen, fsconfig, fsmount, fspick, pidfd_open, pidfd_getfd, process_madvise,
# mount_setattr.
_SINCE_5_1 = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 440, 442)
# By the number that the kernel has for the architecture (linux/audit.h). "forbidden": fork, vfork,
# ptrace, process_vm_*, unshare, setns, mount, umount, pivot_root, chroot, reboot, kexec_load,
# init_module, finit_module, delete_module, bpf, perf_event_open, userfaultfd, keyctl, add_key,
# request_key, open_by_handle_at, rt_sigqueueinfo, rt_tgsigqueueinfo, setpriority,
# sched_setaffinity, ioprio_set, prlimit64, shmget, shmat, msgget, semget, mq_open; on i386 ipc().
_CALLS: dict[int, dict[str, tuple[int, ...]]] = {
    0xC000003E: {  # x86_64
        "forbidden": (
            *_SINCE_5_1,
            57, 58, 101, 310, 311, 272, 308, 165, 166, 155, 161, 169, 246, 175, 313, 176, 321, 298,
            323, 250, 248, 249, 304, 129, 297, 141, 203, 251,
            302, 29, 30, 68, 64, 240,
        ),
        "clone": (56,),
        "clone3": (435,),
        "signals": (62, 200, 234),
        "socket": (41,),
    },
    0x40000003: {  # i386
        "forbidden": (
            *_SINCE_5_1,
            2, 190, 26, 347, 348, 310, 346, 21, 22, 52, 217, 61, 88, 283, 128, 350, 129, 357, 336,
            374, 288, 286, 287, 342, 178, 335, 97, 241, 289, 340,
            117, 277, 395, 397, 399, 393,
        ),
        "clone": (120,),
        "clone3": (435,),
        "signals": (37, 238, 270),
        "socket": (359,),
    },
    0xC00000B7: {  # aarch64
        "forbidden": (
            *_SINCE_5_1,
            117, 270, 271, 97, 268, 40, 39, 41, 51, 142, 104, 105, 273, 106, 280, 241, 282, 219,
            217, 218, 265, 138, 240, 140, 122, 30, 261, 194, 196,
            186, 190, 180,
        ),
        "clone": (220,),
        "clone3": (435,),
        "signals": (129, 130, 131),
        "socket": (198,),
    },
}  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _filter(pid: int) -> _Program:
    """The filter for the process ``pid``."""
    code = b"".join(_instructions(pid))
    return _Program(len(code) // 8, code)


def _instructions(pid: int) -> Iterable[bytes]:
    yield _op(_LOAD, _ARCH_AT)
    blocks = [(arch, list(_rules(calls, pid))) for arch, calls in _CALLS.items()]
    for arch, rules in blocks:
        # A block is longer than a conditional jump reaches: an unconditional one leads past it.
        yield _op(_JUMP_EQUAL, arch, 1, 0)
        yield _op(0x05, len(rules))
        yield from rules
    yield _op(_RETURN, _KILL)


def _rules(calls: dict[str, tuple[int, ...]], pid: int) -> Iterable[bytes]:
    denied = _op(_RETURN, _ERRNO | errno.EPERM)
    yield _op(_LOAD, _NUMBER_AT)
    yield _op(_JUMP_SET, _X32_BIT, 0, 1)
    yield denied
    for number in calls["forbidden"]:
        yield _op(_JUMP_EQUAL, number, 0, 1)
        yield denied
    for number in calls["clone3"]:  # its flags are in memory: the C library takes clone() then
        yield _op(_JUMP_EQUAL, number, 0, 1)
        yield _op(_RETURN, _ERRNO | errno.ENOSYS)
    for number in calls["clone"]:
        yield from _if_call(number, [_op(_JUMP_SET, _CLONE_THREAD, 1, 0), denied])
    for number in calls["signals"]:
        yield from _if_call(number, [_op(_JUMP_EQUAL, pid, 1, 0), denied])
    for number in calls["socket"]:
        tests = [
            _op(_JUMP_EQUAL, family, len(_FAMILIES) - at, 0) for at, family in enumerate(_FAMILIES)
        ]
        yield from _if_call(number, [*tests, denied])
    yield _op(_RETURN, _ALLOW)


def _if_call(number: int, tests: list[bytes]) -> Iterable[bytes]:
    """``tests`` of the first argument, where the call is ``number``; then that again."""
    yield _op(_JUMP_EQUAL, number, 0, len(tests) + 2)
    yield _op(_LOAD, _ARGUMENTS_AT)
    yield from tests
    yield _op(_LOAD, _NUMBER_AT)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
