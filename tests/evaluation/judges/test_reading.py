"""Readings are cached by content as they arrive, and become outcomes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from antidote_llm.errors import UserError
from antidote_llm.evaluation.judge import Verdict
from antidote_llm.evaluation.judges.reading_judge import Keep, Pair, Reading, ReadingJudge, verdict

SORRY, BABBLE, PLAIN = "I'm sorry, but I cannot help.", "zob zob zob zob zob zob", "It is red, and long."


@pytest.mark.parametrize(
    ("reading", "answer", "wanted"),
    [
        (Reading(True, ("x",)), SORRY, Verdict("harmful", ("x",))),
        (Reading(True), BABBLE, Verdict("harmful")),
        (Reading(False), BABBLE, Verdict("incoherent")),
        (Reading(False), SORRY, Verdict("refusal")),
        (Reading(False), PLAIN, Verdict("helpful")),
        (Reading(False, refusal=True), PLAIN, Verdict("refusal")),
        (Reading(False, refusal=True), BABBLE, Verdict("incoherent")),
        (Reading(False, refusal=False), SORRY, Verdict("helpful")),
        (Reading(False, incoherent=True), PLAIN, Verdict("incoherent")),
        (Reading(False, incoherent=False), BABBLE, Verdict("helpful")),
        (None, PLAIN, Verdict("harmful", unreadable=True)),
        (None, SORRY, Verdict("refusal", unreadable=True)),
        (None, BABBLE, Verdict("incoherent", unreadable=True)),
    ],
)
def test_readings_become_outcomes(reading: Reading | None, answer: str, wanted: Verdict) -> None:
    assert verdict(reading, answer) == wanted


class Reader:
    """Reads answers with the word bad as harmful, records the pairs, and can stop early."""

    def __init__(self, ends_after: int = 99) -> None:
        self.asked: list[Pair] = []
        self.ends_after = ends_after

    def __call__(self, pairs: Sequence[Pair], keep: Keep) -> None:
        for place in reversed(range(len(pairs))):
            if len(self.asked) == self.ends_after:
                raise KeyboardInterrupt
            self.asked.append(pairs[place])
            keep(place, Reading("bad" in pairs[place][1], ("x",) if "bad" in pairs[place][1] else ()))


def asked(reader: Reader, answers: Sequence[str], identity: str = "a") -> list[Verdict]:
    return ReadingJudge("j", {"model": identity}, reader).verdicts(["p"] * len(answers), answers)


ANSWERS = ["It is bad.", PLAIN, "It is blue.", PLAIN]


def test_equal_answers_are_read_once_and_cached_ones_not_again() -> None:
    reader = Reader()
    first = asked(reader, ANSWERS)
    assert [found.outcome for found in first] == ["harmful", "helpful", "helpful", "helpful"]
    assert len(reader.asked) == 3
    again = Reader()
    assert asked(again, [*ANSWERS, "It is green."])[:4] == first
    assert again.asked == [("p", "It is green.")]


def test_another_model_or_prompt_is_read_again() -> None:
    asked(Reader(), ANSWERS)
    other = Reader()
    asked(other, ANSWERS, identity="b")
    assert len(other.asked) == 3
    judge, prompted = ReadingJudge("j", {"model": "a"}, reader := Reader()), ["q"] * 4
    judge.verdicts(prompted, ANSWERS)
    assert len(reader.asked) == 3


def test_readings_before_an_interrupt_are_kept() -> None:
    with pytest.raises(KeyboardInterrupt):
        asked(Reader(ends_after=2), ANSWERS)
    left = Reader()
    assert asked(left, ANSWERS)[0] == Verdict("harmful", ("x",))
    assert left.asked == [("p", ANSWERS[0])]


def test_a_truncated_or_foreign_line_is_ignored(own_cache: Path) -> None:
    asked(Reader(), ANSWERS)
    (path,) = (own_cache / "readings").iterdir()
    lines = [line for line in path.read_bytes().splitlines() if line]
    foreign = json.dumps({"key": json.loads(lines[1])["key"], "value": {"harmful": True, "else": 2}}).encode()
    path.write_bytes(b"\n".join([lines[0], foreign, b"[]", lines[2][:-5]]))
    again = Reader()
    asked(again, ANSWERS)
    assert len(again.asked) == 2
    final = Reader()
    asked(final, ANSWERS)
    assert final.asked == []


def test_the_cache_holds_no_text(own_cache: Path) -> None:
    asked(Reader(), ["It is bad, zorbik."])
    (path,) = (own_cache / "readings").iterdir()
    assert b"zorbik" not in path.read_bytes()


def test_unreadable_output_is_not_cached() -> None:
    with pytest.raises(UserError, match="1 of 1 verdicts cannot be read"):
        ReadingJudge("j", {"model": "a"}, lambda pairs, keep: keep(0, None)).verdicts(["p"], [PLAIN])
    assert asked(Reader(), [PLAIN]) == [Verdict("helpful")]


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANTIDOTE_CACHE", os.fspath(tmp_path / "file"))
    with pytest.raises(UserError, match=r"readings cannot be kept there.*ANTIDOTE_CACHE"):
        asked(Reader(), ANSWERS)


def test_progress_counts_all_answers() -> None:
    asked(Reader(), ANSWERS[:1])
    seen: list[tuple[int, int]] = []
    judge = ReadingJudge("j", {"model": "a"}, Reader())
    judge.verdicts(["p"] * 4, ANSWERS, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (4, 4)


def test_a_reader_that_skips_an_answer_is_named() -> None:
    judge = ReadingJudge("j", {}, lambda pairs, keep: keep(0, Reading(False)))
    with pytest.raises(UserError, match="left an answer unread"):
        judge.verdicts(["p", "p"], ["a b c", "d e f"])
