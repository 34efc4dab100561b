"""A result is a folder with a manifest: written aside, renamed into place when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from antidote_llm.artifacts.files import fsync_tree, write_json
from antidote_llm.artifacts.hashing import canonical_json, sha256_json
from antidote_llm.errors import UserError

MANIFEST_NAME = "manifest.json"


class ResultFolder:
    """One output folder, addressed by what it was made from.

    Used as a context manager, it yields a staging folder beside ``path``. When the block ends well the manifest is
    written, everything is flushed, and the staging folder takes the name ``path``; on an error it is removed. After
    a kill it stays under a name that holds the manifest's hash, so that the same work finds it again.

    Args:
        path: Where the finished result goes.
        manifest: A JSON object: what, from what, with which settings and versions.
        manifest_at: The manifest's place inside the folder.

    Raises:
        UserError: ``path`` exists and is not this result.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], manifest_at: str = MANIFEST_NAME) -> None:
        self.path = path
        self.manifest = manifest
        self._manifest_at = manifest_at
        self.staging = path.parent / f".{path.name}.{sha256_json(manifest)[:16]}.partial"

    @property
    def finished(self) -> bool:
        """Whether ``path`` already holds this very result."""
        if not self.path.exists() and not self.path.is_symlink():
            return False
        if self.path.is_dir() and not any(self.path.iterdir()):
            return False
        manifest_path = self.path / self._manifest_at
        if not manifest_path.is_file():
            raise UserError(f"{self.path} already exists and is not a result of this command: choose another --out")
        try:
            found = json.loads(manifest_path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found is None or canonical_json(found) != canonical_json(self.manifest):
            raise UserError(f"{self.path} holds the result of other inputs or settings: choose another --out")
        return True

    def __enter__(self) -> Path:
        if self.finished:
            raise UserError(f"{self.path} is already finished")
        try:
            if self.staging.exists():
                shutil.rmtree(self.staging)
            self.staging.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path.parent}: {error.strerror}; choose another --out") from error
        return self.staging

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            write_json(self.staging / self._manifest_at, self.manifest)
            fsync_tree(self.staging)
            if self.path.is_dir():
                self.path.rmdir()
            self.staging.rename(self.path)
            _fsync_folder(self.path.parent)
        else:
            shutil.rmtree(self.staging, ignore_errors=True)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
