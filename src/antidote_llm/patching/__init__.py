"""The reversible patch: write, apply, revert, diff."""

from antidote_llm.patching.applying import require_fits, require_reverts, require_unchanged_files, transform
from antidote_llm.patching.diff import TensorDiff, diff
from antidote_llm.patching.encodings import entries_bytes
from antidote_llm.patching.patch import PATCH_FILE, Patch, read_patch
from antidote_llm.patching.shipping import (
    copy_checkpoint,
    require_unchanged,
    shipped_files,
    shipped_sha256,
    shipped_stamps,
    shipping,
)
from antidote_llm.patching.writing import PatchedCopies

__all__ = [
    "PATCH_FILE",
    "Patch",
    "PatchedCopies",
    "TensorDiff",
    "copy_checkpoint",
    "diff",
    "entries_bytes",
    "read_patch",
    "require_fits",
    "require_reverts",
    "require_unchanged",
    "require_unchanged_files",
    "shipped_files",
    "shipped_sha256",
    "shipped_stamps",
    "shipping",
    "transform",
]
