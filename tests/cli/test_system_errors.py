"""What the operating system refuses is the user's to change: one line that names the file, and exit code 2."""

from __future__ import annotations

import errno
import os

import pytest

from tests.cli.command import Command, Place, tree

FIXES = {
    "EIO": "check the disk",
    "ENOTDIR": "check the name",
    "EISDIR": "check the name",
    "ELOOP": "check the name",
    "ENOENT": "check the name",
    "EMFILE": "ulimit -n",
    "ESTALE": "run again",
    "EBUSY": "run again",
    "EROFS": "choose another --out",
    "ENOTTY": "run again",
    "EINVAL": "run again",
}


@pytest.mark.parametrize("name", FIXES)
def test_a_file_that_cannot_be_used_is_named(
    name: str, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(errno, name)

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "some/zorbik\x1b.json")

    monkeypatch.setattr("antidote_llm.workflows.repair.plan_repair", refused)
    before = tree(place.root)
    result = antidote(*place.repair())
    assert (result.code, len(result.errors)) == (2, 1)
    assert f"some/zorbik[U+001B].json: {os.strerror(number)}: " in result.errors[0]
    assert FIXES[name] in result.errors[0]
    assert tree(place.root) == before


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, None])
def test_a_call_that_no_file_has_part_in_is_a_defect(
    number: int | None, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("zorbik") if number is None else OSError(number, os.strerror(number))

    monkeypatch.setattr("antidote_llm.workflows.repair.plan_repair", refused)
    assert antidote(*place.repair()).code == 3
