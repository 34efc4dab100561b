"""A result is a folder with a manifest: written to a staging folder, renamed into place when it is complete."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any

from antidote_llm.errors import KeptError, UserError, setting
from antidote_llm.io.files import (
    canonical_json,
    fsync_folder,
    fsync_tree,
    lock,
    remove,
    sha256_file,
    sha256_json,
    write_failure,
    write_json,
)
from antidote_llm.io.strict_json import parse_json

MANIFEST_NAME = "manifest.json"
_ATTEMPTS = 3
# The manifest's entry for the hashes of the files, and those that the owner may write anew.
_HASHES, _DOCUMENT, _WEIGHTS = "sha256", ".md", ".safetensors"
_ELSEWHERE = f"choose another {setting('out')}"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_as_finished(path: Path, manifest_at: str = MANIFEST_NAME, way: str = _ELSEWHERE) -> None:
    """Refuse a finished result whose files are no longer those that its manifest names.

    Args:
        path: The result.
        manifest_at: The manifest's place inside.
        way: What else can be done than to remove it.

    Raises:
        UserError: Names the first file that is missing, another, or weights in addition to those that were written.
    """
    try:
        sha256: Mapping[str, str] = dict(parse_json((path / manifest_at).read_bytes()).get(_HASHES, {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise changed_since(path, manifest_at, way) from error
    weights = {Path(name).parent for name in sha256 if name.endswith(_WEIGHTS)}
    more = (found.relative_to(path).as_posix() for place in weights for found in (path / place).glob(f"*{_WEIGHTS}"))
    for name in (*sha256, *more):
        if name not in sha256 or not (path / name).is_file() or sha256_file(path / name) != sha256[name]:
            raise changed_since(path, name, way)


def changed_since(path: Path, name: str, way: str = _ELSEWHERE) -> UserError:
    """Return the error of a finished result that is no longer what was written."""
    return UserError(f"{path} has been changed since it was finished ({name}): remove it or {way}")


class ResultFolder:
    """One output folder, addressed by what it was made from.

    Used as a context manager, it yields a staging folder beside ``path``. When the block ends well the manifest is
    written, everything is flushed, and the staging folder takes the name ``path``; on an error it is removed. What a
    killed process left there is removed by the next one that writes to ``path``. What a run can resume from is kept in
    ``work``, another neighbour, until a result is at ``path`` or the user has an error to fix.

    Args:
        path: Where the finished result goes.
        manifest: A JSON object: what, from what, with which settings and versions.
        manifest_at: The manifest's place inside the folder.
        inputs: Folders that it is made from, and that must stay as they are.
        sealed: Patterns of the files whose sha256 the manifest names, documents left out: a finished result in which
            one of them is another is refused.
        resumable: Whether a run can resume from what is in ``work``; by default from anything.
        way: What a user can do where nothing can be written.

    Raises:
        UserError: ``path`` exists and is not this result, is inside an input, or another process is writing it.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        manifest_at: str = MANIFEST_NAME,
        *,
        inputs: Iterable[Path] = (),
        sealed: Sequence[str] = (),
        resumable: Callable[[Path], bool] | None = None,
        way: str = _ELSEWHERE,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._manifest_at = manifest_at
        self._sealed, self._way = sealed, way
        # Hashes of large files that are known already, by name: they are not read again for the manifest.
        self.known_sha256: Mapping[str, str] = {}
        self._resumable = resumable or _holds_something
        # A link to an empty folder on another disk is filled there.
        self._place = Path(os.path.realpath(path))
        for folder in inputs:
            if self._place.is_relative_to(os.path.realpath(folder)):
                raise UserError(f"{path}: nothing is written into {folder}, which is an input: {_ELSEWHERE}")
        hidden = f".{self._place.name}.{sha256_json(manifest)[:16]}"
        self.staging = self._place.parent / f"{hidden}.partial"
        self.work = self._place.parent / f"{hidden}.work"
        self._made: list[Path] = []
        self._lock: int | None = None

    @property
    def finished(self) -> bool:
        """Whether ``path`` already holds this very result; nothing is left to resume from then."""
        try:
            if not self._place.exists():
                return False
            if self._place.is_dir() and not any(self._place.iterdir()):
                self._require_replaceable()
                return False
        except OSError as error:
            raise self._unwritable(error) from error
        manifest_path = self._place / self._manifest_at
        if not manifest_path.is_file():
            raise UserError(f"{self.path} already exists and is not a result of this command: {self._way}")
        try:
            kept = parse_json(manifest_path.read_bytes())
            if self._sealed and isinstance(kept, dict):
                kept.pop(_HASHES, None)
            found = canonical_json(kept)
        except ValueError:
            found = None
        if found != canonical_json(self.manifest):
            raise UserError(f"{self.path} holds the result of other inputs or settings: {self._way}")
        if self._sealed:
            require_as_finished(self.path, self._manifest_at, self._way)
        # A kill right after the renaming leaves it.
        self._remove_work()
        return True

    def __enter__(self) -> Path:
        if self.finished:
            raise UserError(f"{self.path} is already finished")
        self._require_own_work()
        try:
            for attempt in range(_ATTEMPTS):
                try:
                    self._stage()
                    break
                except FileNotFoundError:
                    # Another process may have removed a folder in between, as it may what has this name now.
                    if attempt == _ATTEMPTS - 1:
                        raise
        except FileExistsError as error:
            raise self._busy() from error
        except BaseException as error:
            self._remove_made()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        if self._lock is None:
            raise self._busy()
        return self.staging

    def _stage(self) -> None:
        self._remove_remains()
        self._made = [folder for folder in (self.staging, *self.staging.parents) if not folder.exists()]
        self.staging.mkdir(parents=True)
        self._lock = lock(self.staging)

    def _remove_remains(self) -> None:
        """Remove what killed processes left beside ``path``."""
        for remains in self._beside("partial"):
            handle = lock(remains)
            if handle is None:
                raise self._busy()
            try:
                remove(remains)
            finally:
                os.close(handle)

    def _remove_work(self) -> None:
        """Remove what could be resumed from, of other settings too: nothing of theirs can be written to ``path``."""
        for work in self._beside("work"):
            _remove_if_possible(work)

    def _require_own_work(self) -> None:
        """Refuse to resume from what is elsewhere, or to write there."""
        if self.work.is_symlink() or (self.work.exists() and not self.work.is_dir()):
            kind = "a link" if self.work.is_symlink() else "no folder"
            raise UserError(f"{self.work} is {kind}, which no interrupted run leaves: remove it to start again")

    def _beside(self, kind: str) -> Iterator[Path]:
        """Return the neighbours of one kind, of any manifest."""
        return self._place.parent.glob(f".{glob.escape(self._place.name)}.{'[0-9a-f]' * 16}.{kind}")

    def _busy(self) -> UserError:
        return UserError(f"{self.path} is being written by another process: wait for it, or {_ELSEWHERE}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._finish(error)
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _finish(self, error: BaseException | None) -> None:
        if error is not None:
            self._give_up(error)
            return
        try:
            write_json(self.staging / self._manifest_at, {**self.manifest, **self._hashes()})
            fsync_tree(self.staging)
            self._put_in_place()
            self._remove_work()
        except OSError as problem:
            self._clean()
            raise self._unwritable(problem) from problem
        except BaseException:
            self._clean()
            raise

    def _give_up(self, error: BaseException) -> None:
        """Remove what was written, and what no run can resume from."""
        problem = write_failure(error, self._place.parent)
        self._clean()
        is_of_input = isinstance(error, UserError) and not isinstance(error, KeptError)
        if self.work.is_dir() and (is_of_input or not self._resumable(self.work)):
            _remove_if_possible(self.work)
            self._remove_made()
        if problem is not None and (problem is not error or problem.errno in _FULL):
            raise self._unwritable(problem) from error
        if problem is not None and problem.errno == errno.EIO and self.work.is_dir():
            # Of a read or of a write: the system does not say which.
            where = problem.filename or self.path
            raise UserError(f"{where}: {problem.strerror}: check the disk, and {self._ways_on()}") from error

    def _hashes(self) -> dict[str, Any]:
        """Return the manifest's entry for the files that are sealed."""
        if not self._sealed:
            return {}
        names = (path.relative_to(self.staging).as_posix() for path in self.staging.rglob("*") if path.is_file())
        sealed = sorted(
            name
            for name in names
            if not name.lower().endswith(_DOCUMENT) and any(fnmatch(name, pattern) for pattern in self._sealed)
        )
        return {_HASHES: {name: self.known_sha256.get(name) or sha256_file(self.staging / name) for name in sealed}}

    def _put_in_place(self) -> None:
        """Rename the result to its final name, or leave everything as it was."""
        was_there = self._place.is_dir()
        self.staging.rename(self._place)
        try:
            fsync_folder(self._place.parent)
        except OSError:
            self._place.rename(self.staging)
            if was_there:
                self._place.mkdir()
            raise

    def _require_replaceable(self) -> None:
        """Refuse an empty folder that cannot be replaced by renaming."""
        if self._place.is_mount():
            raise UserError(f"{self.path} is a mount point: name a new folder inside it as {setting('out')}")
        if Path.cwd().is_relative_to(self._place):
            raise UserError(f"{self.path} is the current folder: name a new folder inside it as {setting('out')}")

    def _clean(self) -> None:
        """Remove the staging folder, and the parents that were made for it."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self._remove_made()

    def _remove_made(self) -> None:
        """Remove the folders that were made, where they are empty."""
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def _unwritable(self, error: OSError) -> UserError:
        problem = f"cannot write to {self.path}: {error.strerror or error}"
        if not self.work.is_dir():
            return UserError(f"{problem}: {self._way}")
        return UserError(f"{problem}: make room, and {self._ways_on()}")

    def _ways_on(self) -> str:
        return f"give the same command again, which goes on from {self.work}, or remove that folder and {self._way}"


def _holds_something(folder: Path) -> bool:
    return any(not path.name.startswith(".") for path in folder.iterdir())


def _remove_if_possible(folder: Path) -> None:
    """Remove what is of no more use; the next run removes what cannot be removed now."""
    with suppress(OSError):
        remove(folder)
