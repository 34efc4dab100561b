"""Lines of the cache are written at once, also by two commands together, and damaged ones are ignored."""

from __future__ import annotations

import io
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.errors import UserError
from antidote_llm.io import cache as kept_lines
from antidote_llm.io.cache import KeptLines

MANY = 200


def test_a_value_is_stored_as_soon_as_it_is_added() -> None:
    kept = KeptLines("answers", {"model": "a"})
    kept.add(["zob", 3], {"said": "kad\n\u2028run"})
    again = KeptLines("answers", {"model": "a"})
    assert again.get(["zob", 3]) == {"said": "kad\n\u2028run"} and len(again) == 1
    assert again.get(["zob", 4]) is None
    assert b"zob" not in again.path.read_bytes()
    assert len(KeptLines("answers", {"model": "b"})) == 0 == len(KeptLines("readings", {"model": "a"}))
    kept.close(remove=True)
    assert len(KeptLines("answers", {"model": "a"})) == 0


def test_a_cut_line_is_ignored_and_spoils_no_other() -> None:
    kept = KeptLines("answers", {})
    kept.add("zob", "kad")
    kept.add("run", "kad")
    kept.close()
    kept.path.write_bytes(kept.path.read_bytes()[:-8])
    cut = KeptLines("answers", {})
    assert cut.get("zob") == "kad" and cut.get("run") is None
    cut.add("run", "zob")
    cut.close()
    assert KeptLines("answers", {}).get("run") == "zob"


def _add(first: int) -> None:
    kept = KeptLines("answers", {})
    for number in range(first, first + MANY):
        kept.add(number, "zob" * (number % 50))
    kept.close()


def test_two_commands_share_a_file() -> None:
    commands = [multiprocessing.get_context("fork").Process(target=_add, args=(first,)) for first in (0, MANY)]
    for command in commands:
        command.start()
    for command in commands:
        command.join()
    kept = KeptLines("answers", {})
    assert [kept.get(number) for number in range(2 * MANY)] == ["zob" * (number % 50) for number in range(2 * MANY)]


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANTIDOTE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"answers cannot be kept there.*ANTIDOTE_CACHE"):
        KeptLines("answers", {}).add("zob", "kad")


@pytest.mark.parametrize("old", [b"kad", b'"sha256"', b'"key"', b'"value"', b"}"])
def test_a_damaged_line_is_asked_again_with_a_warning(old: bytes, caplog: pytest.LogCaptureFixture) -> None:
    kept = KeptLines("answers", {})
    kept.add("zob", "kad")
    kept.add("run", "mid")
    kept.close()
    data = kept.path.read_bytes()
    place = data.index(old) + 1
    kept.path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    again = KeptLines("answers", {})
    # A name of a field that is another leaves a line without a hash, as earlier versions wrote them.
    assert again.get("zob") in (None, "kad") and again.get("run") == "mid"
    assert (again.get("zob") is None) == ("asked anew (1 of them)" in caplog.text)
    assert again.get("zob") is None or old == b'"sha256"'


def test_lines_without_a_hash_are_those_of_earlier_versions() -> None:
    kept = KeptLines("answers", {})
    kept.add("zob", "kad")
    kept.close()
    line = json.loads(kept.path.read_bytes())
    del line["sha256"]
    kept.path.write_text(json.dumps(line))
    assert KeptLines("answers", {}).get("zob") == "kad"


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    kept = KeptLines("answers", {})
    kept.add("zob", "kad")
    kept.close()
    kept.path.rename(tmp_path / "elsewhere")
    kept.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is a link.*remove it"):
        KeptLines("answers", {})


def test_a_partial_write_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(data[:3])

    stream = Slow()
    kept_lines._write_whole(stream, b"abcdefgh")
    assert stream.getvalue() == b"abcdefgh"
