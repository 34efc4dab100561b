"""What two patches share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from antidote_llm.errors import UserError
from antidote_llm.patching.encodings import Bytes
from antidote_llm.patching.patch import Patch


@dataclass(frozen=True)
class TensorDiff:
    """How many entries of one tensor two patches change: the first alone, both, the second alone."""

    file: str
    key: str
    first_only: int
    both: int
    second_only: int

    @property
    def jaccard(self) -> float:
        """The share of what either changes that both change; 1 where neither changes anything."""
        either = self.first_only + self.both + self.second_only
        return self.both / either if either else 1.0


def diff(first: Patch, second: Patch) -> list[TensorDiff]:
    """Compare two patches of the same files, tensor by tensor.

    Raises:
        UserError: They apply to different files.
    """
    origins = [{file.path: file.sha256_before for file in patch.description.files} for patch in (first, second)]
    for path in origins[0].keys() & origins[1].keys():
        if origins[0][path] != origins[1][path]:
            raise UserError(f"the patches are for different models: their {path} has another sha256")
    found = []
    for file, key in sorted({*first.changes, *second.changes}):
        masks = [_changed(patch, file, key) for patch in (first, second)]
        both = int(np.sum(masks[0] & masks[1]))
        found.append(TensorDiff(file, key, int(masks[0].sum()) - both, both, int(masks[1].sum()) - both))
    return found


def _changed(patch: Patch, file: str, key: str) -> Bytes:
    change = patch.changes.get((file, key))
    return np.zeros(1, dtype=np.uint8) if change is None else change.changed()
