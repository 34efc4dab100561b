"""What is found inside a folder stays inside it: links that lead elsewhere and special files are refused.

The one exception is the Hub's cache, whose snapshots hold links to the blobs of their own repository.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path, PurePosixPath

from antidote_llm.errors import UserError

_REPOSITORY = re.compile(r"(models|datasets|spaces)--.+")
# Files of several repositories that the Hub's library stores once, next to the repositories, by hash.
_SHARED_BLOB = re.compile(r"(?P<start>[0-9a-f]{2})/(?P=start)[0-9a-f]{62}")
_MOST_NAME_BYTES = 255
_FIX = "put the file itself in its place if it belongs to the model, or remove the link"


def require_enclosed(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it, or with anything that is neither a file nor a folder.

    The folder itself may be a link. Hidden folders inside it, which nothing reads, are not looked into.

    Raises:
        UserError: Names the link and where it leads; or the folder cannot be read.
    """
    root = Path(os.path.realpath(folder))
    pending = [folder]
    while pending:
        for path in _entries(pending.pop()):
            _require_stays(path, root)
            if not path.is_symlink() and path.is_dir() and not path.name.startswith("."):
                pending.append(path)


def require_inside(folder: Path, name: str) -> Path:
    """Return the place of a file inside a folder, through folders that are not links out of it either.

    Raises:
        UserError: A part of the way is a link that leads out of the folder, or no file and no folder.
    """
    root, path = Path(os.path.realpath(folder)), folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if os.path.lexists(path):
            _require_stays(path, root)
    return path


def is_link_out(path: Path, folder: Path) -> bool:
    """Whether something in a folder is a link to something outside of it that is no blob of the Hub's cache."""
    if not path.is_symlink():
        return False
    return not _may_lead_to(Path(os.path.realpath(path)), Path(os.path.realpath(folder)))


def is_plain_name(name: str) -> bool:
    """Whether a text is the name of a file in a folder: no path, not hidden, no control characters."""
    return (
        not name.startswith(".")
        and not any(character in "/\\" or not character.isprintable() for character in name)
        and 0 < len(name.encode(errors="replace")) <= _MOST_NAME_BYTES
    )


def is_plain_path(name: str) -> bool:
    """Whether a text is the name of a file in a folder or in folders inside it."""
    return all(map(is_plain_name, name.split("/")))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}: make it readable, or remove it") from error


def _require_stays(path: Path, root: Path) -> None:
    if path.is_symlink():
        _require_leads_inside(path, root)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}: make it readable, or remove it") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: a {_kind(mode)}, not a file or a folder: remove it")


def _require_leads_inside(link: Path, root: Path) -> None:
    leads_to = link.readlink()
    try:
        place = Path(os.path.realpath(link, strict=True))
    except OSError as error:
        problem = f"which cannot be followed ({error.strerror})"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            problem = "where there is nothing"
        raise UserError(f"{link}: a link to {leads_to}, {problem}: fetch the file again, or remove the link") from error
    if Path(os.path.realpath(link.parent)).is_relative_to(place):
        raise UserError(f"{link}: a link to {leads_to}, a folder that it is in itself: remove the link")
    if not _may_lead_to(place, root):
        raise UserError(f"{link}: a link that leads out of the folder, to {place}: {_FIX}")


def _may_lead_to(place: Path, root: Path) -> bool:
    return place.is_relative_to(root) or _is_blob_of(place, root)


def _is_blob_of(place: Path, root: Path) -> bool:
    """Whether a file is a blob of the very repository in the Hub's cache that a folder is a snapshot of."""
    for snapshot in (root, *root.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and _REPOSITORY.fullmatch(repository.name):
            shared = repository.parent / "blobs"
            return place.is_file() and (
                place.parent == repository / "blobs"
                or (place.is_relative_to(shared) and bool(_SHARED_BLOB.fullmatch(str(place.relative_to(shared)))))
            )
    return False


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
    return kinds.get(stat.S_IFMT(mode), "special file")
