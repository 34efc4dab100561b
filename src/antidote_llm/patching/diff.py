"""What two patches share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from antidote_llm.errors import UserError
from antidote_llm.patching.patch import Patch


@dataclass(frozen=True)
class TensorDiff:
    """How many entries of one tensor two patches change.

    Attributes:
        file: The file that holds the tensor.
        key: Its name in that file.
        first_only: Entries that the first patch alone changes.
        both: Entries that both change.
        equal: Those of them that both change to the same value.
        second_only: Entries that the second patch alone changes.
    """

    file: str
    key: str
    first_only: int
    both: int
    equal: int
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
    shared = origins[0].keys() & origins[1].keys()
    for path in sorted(shared):
        if origins[0][path] != origins[1][path]:
            raise UserError(
                f"the patches are for different models: their {path} has another sha256: name two patches of one model"
            )
    if not shared and all(origins):
        raise UserError("the patches change no file of the same name: whether they are for the same model is not known")
    records = [{(record.file, record.key): record for record in p.description.tensors} for p in (first, second)]
    found = []
    for file, key in sorted({*records[0], *records[1]}):
        one, other = records[0].get((file, key)), records[1].get((file, key))
        both = equal = 0
        if one is not None and other is not None:
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                raise UserError(
                    f"the patches do not agree on what '{key}' of {file} is: one of them is damaged: fetch it again"
                )
            for ours, theirs in zip(first.differences(one), second.differences(other), strict=True):
                shared_entries = (ours != 0) & (theirs != 0)
                both += int(np.count_nonzero(shared_entries))
                equal += int(np.count_nonzero(shared_entries & (ours == theirs)))
        counts = [record.changed - both if record is not None else 0 for record in (one, other)]
        found.append(TensorDiff(file, key, counts[0], both, equal, counts[1]))
    return found
