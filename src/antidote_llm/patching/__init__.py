"""The reversible patch: write, apply, revert, diff."""

from antidote_llm.patching.applying import require_matches, transform, write_patched
from antidote_llm.patching.diff import TensorDiff, diff
from antidote_llm.patching.encodings import predicted_bytes
from antidote_llm.patching.patch import Patch, read_patch
from antidote_llm.patching.shipping import copy_checkpoint, shipped_files

__all__ = [
    "Patch",
    "TensorDiff",
    "copy_checkpoint",
    "diff",
    "predicted_bytes",
    "read_patch",
    "require_matches",
    "shipped_files",
    "transform",
    "write_patched",
]
