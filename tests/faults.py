"""Lets one system call of a command fail, in C libraries too: a process that watches another through seccomp.

Linux hands every call of the kinds below to the watcher, which lets it pass or answers with an error in its place.
Nothing is compiled, and no right is needed. A watched process is a fork, so that it finds every library imported.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

# The numbers of the calls that write, name, remove or flush, by processor.
_X86_64 = {
    "write": 1,
    "pwrite64": 18,
    "writev": 20,
    "sendfile": 40,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "chmod": 90,
    "fchmod": 91,
    "close": 3,
    "openat": 257,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "fchmodat": 268,
    "fallocate": 285,
    "pwritev": 296,
    "renameat2": 316,
    "copy_file_range": 326,
}
_AARCH64 = {
    "write": 64,
    "pwrite64": 68,
    "writev": 66,
    "sendfile": 71,
    "close": 57,
    "fsync": 82,
    "fdatasync": 83,
    "truncate": 45,
    "ftruncate": 46,
    "fchmod": 52,
    "fchmodat": 53,
    "openat": 56,
    "mkdirat": 34,
    "unlinkat": 35,
    "renameat": 38,
    "linkat": 37,
    "symlinkat": 36,
    "fallocate": 47,
    "pwritev": 70,
    "renameat2": 276,
    "copy_file_range": 285,
}
_NUMBERS = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(platform.machine(), {})
_NAMES = {number: name for name, number in _NUMBERS.items()}
# Which argument is a path, or a descriptor; of copies, the one that is written to.
_PATHS = {
    "rename": 1,
    "mkdir": 0,
    "rmdir": 0,
    "link": 1,
    "unlink": 0,
    "symlink": 1,
    "chmod": 0,
    "truncate": 0,
    "openat": 1,
    "mkdirat": 1,
    "unlinkat": 1,
    "renameat": 3,
    "renameat2": 3,
    "linkat": 3,
    "symlinkat": 2,
    "fchmodat": 1,
}
_DIRECTORIES = {"mkdirat": 0, "unlinkat": 0, "renameat": 2, "renameat2": 2, "linkat": 2, "symlinkat": 1, "fchmodat": 0}
_DESCRIPTORS = {"copy_file_range": 2}
_SECCOMP = {"x86_64": 317, "aarch64": 277}.get(platform.machine(), 0)
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_NO_NEW_PRIVILEGES, _NEW_LISTENER = 38, 8
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Rule(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("rules", ctypes.POINTER(_Rule)))


@dataclass(frozen=True)
class Call:
    """A system call that was watched: what, and on which file."""

    name: str
    path: str


@dataclass(frozen=True)
class Fault:
    """Which of the watched calls fails.

    Attributes:
        at: The place of the call among all that are watched, from 0.
        error: The number of the error.
        lasting: Whether all later writes fail too, as on a full disk; what removes is let pass.
    """

    at: int
    error: int
    lasting: bool = False


@dataclass(frozen=True)
class Ended:
    """How a watched process ended.

    Attributes:
        code: Its exit code.
        said: What it wrote to its standard error.
        calls: The calls that were watched, in order.
    """

    code: int
    said: str
    calls: tuple[Call, ...]


def require_watching() -> None:
    """Skip a test where a process cannot be watched."""
    if sys.platform != "linux" or not _NUMBERS:
        pytest.skip("system calls are watched on Linux alone, on x86-64 and arm64")
    try:
        ended = watched(_open_and_close, [Path(os.devnull)])
    except OSError as error:
        pytest.skip(f"this system lets no process watch another's calls: {error}")
    assert [call.name for call in ended.calls] == ["openat", "close"]


def _open_and_close() -> int:
    os.close(os.open(os.devnull, os.O_WRONLY))
    return 0


def watched(work: Callable[[], int], roots: Sequence[Path], fault: Fault | None = None) -> Ended:
    """Run some work in a fork, and let a call of it fail.

    Args:
        work: What to do; what it returns is the exit code.
        roots: Only calls on files below these folders are watched.
        fault: Which call fails; none where not given.

    Raises:
        OSError: The system lets no process watch another.
    """
    ours, theirs = socket.socketpair()
    # What is said is read at the end: not from a pipe, which may be full before.
    said = os.memfd_create("said")
    process = os.fork()
    if process == 0:
        ours.close()
        _be_watched(work, theirs, said)
    theirs.close()
    try:
        with ours:
            calls = _watch(process, ours, [os.path.realpath(root) for root in roots], fault)
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    text = os.pread(said, os.fstat(said).st_size, 0).decode(errors="replace")
    os.close(said)
    return Ended(code, text, tuple(calls))


def _be_watched(work: Callable[[], int], channel: socket.socket, said: int) -> None:
    code = 70
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(said, 2)
        try:
            listener = _install()
        except OSError as error:
            channel.sendall(struct.pack("i", error.errno or 1))
            os._exit(code)
        socket.send_fds(channel, [struct.pack("i", 0)], [listener])
        os.close(listener)
        channel.close()
        code = work()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _install() -> int:
    """Let this process's calls of the kinds above be handed over, and return the descriptor that takes them."""
    libc = ctypes.CDLL(None, use_errno=True)
    rules = [_Rule(0x20, 0, 0, 0)]
    rules += [_Rule(0x15, len(_NUMBERS) - place, 0, number) for place, number in enumerate(_NUMBERS.values())]
    rules += [_Rule(0x06, 0, 0, _ALLOW), _Rule(0x06, 0, 0, _NOTIFY)]
    program = _Program(len(rules), (_Rule * len(rules))(*rules))
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    listener: int = libc.syscall(_SECCOMP, 1, _NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener


def _watch(process: int, channel: socket.socket, roots: Sequence[str], fault: Fault | None) -> list[Call]:
    import fcntl

    said, descriptors, _, _ = socket.recv_fds(channel, 4, 1)
    if not descriptors:
        number = struct.unpack("i", said)[0] if said else errno.ECHILD
        raise OSError(number, os.strerror(number))
    (listener,) = descriptors
    calls: list[Call] = []
    ready = select.poll()
    ready.register(listener, select.POLLIN)
    try:
        while not any(event & (select.POLLHUP | select.POLLERR) for _, event in ready.poll()):
            message = bytearray(80)
            try:
                fcntl.ioctl(listener, _RECEIVE, message)
            except FileNotFoundError:
                continue
            identity, thread, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", message)
            call = _call(thread, _NAMES[number], arguments)
            error = 0
            if call is not None and any(call.path == root or call.path.startswith(f"{root}/") for root in roots):
                error = _error(call, len(calls), fault)
                calls.append(call)
            answer = struct.pack("QqiI", identity, 0, -error, 0 if error else _CONTINUE)
            with suppress(FileNotFoundError):
                fcntl.ioctl(listener, _SEND, answer)
    finally:
        os.close(listener)
    return calls


def _error(call: Call, place: int, fault: Fault | None) -> int:
    if fault is None or place < fault.at or (place > fault.at and not fault.lasting):
        return 0
    removes = call.name in ("unlink", "unlinkat", "rmdir")
    return 0 if removes and fault.lasting else fault.error


def _call(thread: int, name: str, arguments: Sequence[int]) -> Call | None:
    """Return a call with its file; None where it opens only to read, or its file is none."""
    if name == "openat" and not arguments[2] & _WRITES:
        return None
    if name not in _PATHS:
        descriptor = ctypes.c_int(arguments[_DESCRIPTORS.get(name, 0)]).value
        is_read = name == "close" and not _flags(thread, descriptor) & _WRITES
        return None if is_read else Call(name, _link(f"/proc/{thread}/fd/{descriptor}"))
    path = _text(thread, arguments[_PATHS[name]])
    if not path.startswith("/"):
        folder = ctypes.c_int(arguments[_DIRECTORIES[name]]).value if name in _DIRECTORIES else -100
        place = "cwd" if folder < 0 else f"fd/{folder}"
        path = str(Path(_link(f"/proc/{thread}/{place}"), path))
    return Call(name, str(Path(os.path.realpath(Path(path).parent), Path(path).name)))


def _flags(thread: int, descriptor: int) -> int:
    """Return how a descriptor of another process was opened."""
    try:
        lines = Path(f"/proc/{thread}/fdinfo/{descriptor}").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith("flags:")).split()[1], 8)


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _text(thread: int, address: int) -> str:
    """Return the text at an address of another process."""
    found = b""
    with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        while b"\0" not in found:
            place = address + len(found)
            memory.seek(place)
            # Not past the end of a page: the next one may not be there.
            found += memory.read(4096 - place % 4096)
    return os.fsdecode(found.split(b"\0", 1)[0])
