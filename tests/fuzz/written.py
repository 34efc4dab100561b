"""One bad input of a generator: the files that a folder holds, and the command that is run there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    """What is written, and what is run.

    Attributes:
        name: What is bad about it.
        files: Content by path, relative to the folder.
        arguments: The command line, without ``antidote``; run in the folder.
    """

    name: str
    files: Mapping[str, bytes]
    arguments: tuple[str, ...]
