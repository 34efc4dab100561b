"""Files: their sha256, atomic writes, copies that share blocks, and locks."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from antidote_llm.io.strict_json import json_text

_CHUNK_BYTES = 1 << 22


def sha256_bytes(data: bytes) -> str:
    """Return the sha256 of a byte string."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return the one text that stands for a JSON value: sorted keys, no spaces, no NaN."""
    return json_text(value, sort_keys=True, separators=(",", ":"))


def sha256_json(value: Any) -> str:
    """Return the sha256 of a JSON value's canonical text."""
    return sha256_bytes(canonical_json(value).encode())


# Linux: let one file share another's blocks until either is written to.
_FICLONE = 0x40049409
# Messages of torch about a write, a flush or a close that failed.
_TORCH_WRITES = re.compile(r"inline_container|StreamWriter|basic_ios")
# More than a nearly full disk has left for a file, and quick to write.
_PROBE_BYTES = 1 << 20
_NOT_FOR_THESE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM)


@contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of ``path`` for writing; it takes the name only when the block ends well.

    The name is on the disk too when this returns. Neighbours that killed processes left are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for remains in path.parent.glob(f".{glob.escape(path.name)}.????????.partial"):
        with held(remains) as is_mine:
            if is_mine:
                remains.unlink()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream, held(temporary):
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
            fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_writer(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: indented, in the order given, ending in a newline."""
    write_text(path, json_text(value, indent=2) + "\n")


def clone_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, sharing its blocks where the file system can (a symbolic link is followed)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        clone_content(reader, writer)


def clone_content(source: IO[bytes], target: IO[bytes]) -> None:
    """Fill a new file with another's bytes, sharing its blocks where the file system can.

    Where it cannot, the kernel copies them, where it can.
    """
    if _shares_blocks(source, target) or _copied_by_kernel(source.fileno(), target.fileno()):
        return
    source.seek(0)
    shutil.copyfileobj(source, target, 1 << 22)
    target.flush()


def _copied_by_kernel(source: int, target: int) -> bool:
    """Copy without taking the bytes through this process; return whether the system does that for these files."""
    if not hasattr(os, "copy_file_range"):
        return False
    position, size = 0, os.fstat(source).st_size
    while position < size:
        try:
            copied = os.copy_file_range(source, target, size - position, position, position)
        except OSError as error:
            if position or error.errno not in (*_NOT_FOR_THESE, errno.ENOSYS):
                raise
            return False
        if copied == 0:
            # The source was cut, or its file system only claims to copy: it is safe to try again.
            return position > 0
        position += copied
    return True


def read_at(handle: int, offset: int, size: int) -> bytes:
    """Return the bytes at a place of an open file.

    Raises:
        EOFError: It ends before.
    """
    data = os.pread(handle, size, offset)
    while len(data) < size:
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            raise EOFError("ended while it was read")
        data += more
    return data


def write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all bytes to a place of an open file."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _shares_blocks(source: IO[bytes], target: IO[bytes]) -> bool:
    """Let the target share the source's blocks, where the system and the file system can."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError as error:
        if error.errno not in _NOT_FOR_THESE:
            raise
        return False
    return True


def link_file(source: Path, target: Path) -> None:
    """Make a hard link to a file if both are on the same disk; copy it otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        clone_file(source, target)


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def fsync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a folder with everything in it, or a link, but not what it points to.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_failure(error: BaseException, folder: Path) -> OSError | None:
    """Return the system's error behind a failed write; None where the error is of another kind.

    torch and safetensors raise errors of their own for it, torch's without the system's message: a short write to the
    same folder finds it.

    Args:
        error: What was raised.
        folder: Where it was written to.
    """
    if isinstance(error, OSError):
        return error
    message = str(error)
    if type(error).__name__ == "SafetensorError" and (number := re.search(r"\(os error (\d+)\)", message)):
        code = int(number[1])
    elif isinstance(error, RuntimeError) and re.search(_TORCH_WRITES, message):
        code = _errno_of_a_write(folder)
    else:
        return None
    return OSError(code, os.strerror(code), str(folder))


def _errno_of_a_write(folder: Path) -> int:
    """Return the number of the error with which a short write to a folder fails; EIO where it does not."""
    while not folder.is_dir():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(_PROBE_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error.errno or errno.EIO
    return errno.EIO


if sys.platform != "win32":
    import fcntl


def lock(path: Path) -> int | None:
    """Lock a file or folder, and return the handle that holds the lock; None where another process holds it.

    Raises:
        OSError: There is no such path, or it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(handle).st_ino:  # noqa: PTH116 - next to fstat
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold the lock of a path for the length of the block; yields whether it could be had."""
    try:
        handle = lock(path)
    except FileNotFoundError:
        handle = None
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)
