"""A result is a folder with a manifest: written aside, renamed into place when it is whole."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from antidote_llm.artifacts.files import fsync_tree, write_json
from antidote_llm.artifacts.hashing import canonical_json, sha256_json
from antidote_llm.artifacts.json_reading import parse_json
from antidote_llm.artifacts.locking import lock
from antidote_llm.errors import UserError

MANIFEST_NAME = "manifest.json"
_ATTEMPTS = 3


class ResultFolder:
    """One output folder, addressed by what it was made from.

    Used as a context manager, it yields a staging folder beside ``path``. When the block ends well the manifest is
    written, everything is flushed, and the staging folder takes the name ``path``; on an error it is removed. What a
    killed process left there is removed by the next one that writes to ``path``. What can be gone on from is kept in
    ``work``, another neighbour, until a result lies at ``path`` or the user has something to mend.

    Args:
        path: Where the finished result goes.
        manifest: A JSON object: what, from what, with which settings and versions.
        manifest_at: The manifest's place inside the folder.
        inputs: Folders that it is made from, and that must stay as they are.

    Raises:
        UserError: ``path`` exists and is not this result, lies inside an input, or another process is writing it.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], manifest_at: str = MANIFEST_NAME, *, inputs: Iterable[Path] = ()
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._manifest_at = manifest_at
        # A link to an empty folder on another disk is filled there.
        self._place = Path(os.path.realpath(path))
        for folder in inputs:
            if self._place.is_relative_to(os.path.realpath(folder)):
                raise UserError(f"{path}: nothing is written into {folder}, which is an input: choose another --out")
        aside = f".{self._place.name}.{sha256_json(manifest)[:16]}"
        self.staging = self._place.parent / f"{aside}.partial"
        self.work = self._place.parent / f"{aside}.work"
        self._made: list[Path] = []
        self._lock: int | None = None

    @property
    def finished(self) -> bool:
        """Whether ``path`` already holds this very result; nothing is left to go on from then."""
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
            raise UserError(f"{self.path} already exists and is not a result of this command: choose another --out")
        try:
            found = canonical_json(parse_json(manifest_path.read_bytes()))
        except ValueError:
            found = None
        if found != canonical_json(self.manifest):
            raise UserError(f"{self.path} holds the result of other inputs or settings: choose another --out")
        # A kill right behind the renaming leaves it.
        self._remove_work()
        return True

    def __enter__(self) -> Path:
        if self.finished:
            raise UserError(f"{self.path} is already finished")
        try:
            for attempt in range(_ATTEMPTS):
                try:
                    self._stage()
                    break
                except FileNotFoundError:
                    # Another process may have removed a folder in between, as it may what lies at this name now.
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
            shutil.rmtree(remains)
            os.close(handle)

    def _remove_work(self) -> None:
        """Remove what could be gone on from, of other settings too: nothing of theirs can be written to ``path``."""
        for work in self._beside("work"):
            shutil.rmtree(work, ignore_errors=True)

    def _beside(self, kind: str) -> Iterator[Path]:
        """Return the neighbours of one kind, of any manifest."""
        return self._place.parent.glob(f".{glob.escape(self._place.name)}.{'[0-9a-f]' * 16}.{kind}")

    def _busy(self) -> UserError:
        return UserError(f"{self.path} is being written by another process: wait for it, or choose another --out")

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
            if isinstance(error, UserError):
                shutil.rmtree(self.work, ignore_errors=True)
            self._clean()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._unwritable(error) from error
            return
        try:
            write_json(self.staging / self._manifest_at, self.manifest)
            fsync_tree(self.staging)
            if self._place.is_dir():
                self._place.rmdir()
            self.staging.rename(self._place)
            self._remove_work()
            _fsync_folder(self._place.parent)
        except OSError as problem:
            self._clean()
            raise self._unwritable(problem) from problem
        except BaseException:
            self._clean()
            raise

    def _require_replaceable(self) -> None:
        """Refuse an empty folder that no other can take the place of by renaming."""
        if self._place.is_mount():
            raise UserError(f"{self.path} is a mount point: name a new folder inside it as --out")
        if Path.cwd().is_relative_to(self._place):
            raise UserError(f"{self.path} is the current folder: name a new folder inside it as --out")

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
        return UserError(f"cannot write to {self.path}: {error.strerror}: choose another --out")


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
