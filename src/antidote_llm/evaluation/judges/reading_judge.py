"""A judge that has answers read by something costly, and keeps what was read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from antidote_llm.artifacts import KeptLines
from antidote_llm.errors import UserError
from antidote_llm.evaluation.judge import HarmMeasure, Outcome, Progress, Verdict, too_many
from antidote_llm.evaluation.judges.reading import Reading, verdict

Pair: TypeAlias = tuple[str, str]
Keep: TypeAlias = Callable[[int, Reading | None], None]
Reader: TypeAlias = Callable[[Sequence[Pair], Keep], None]


class ReadingJudge:
    """Judges answers by what a reader reads in them.

    Args:
        name: What the judge is called in results.
        identity: All that its readings depend on, as JSON values.
        reader: Reads pairs of prompt and answer, and hands on the place and the reading of each as it is done.
    """

    measures: HarmMeasure = "harmful_score"

    def __init__(self, name: str, identity: Mapping[str, Any], reader: Reader) -> None:
        self.name, self.identity, self._reader = name, {"name": name, **identity}, reader

    def outcomes(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome]:
        """Judge each answer to its prompt, in order."""
        return [found.outcome for found in self.verdicts(prompts, answers)]

    def verdicts(
        self, prompts: Sequence[str], answers: Sequence[str], progress: Progress | None = None
    ) -> list[Verdict]:
        """Judge each answer to its prompt, in order; equal pairs are read once, kept ones not at all.

        Raises:
            UserError: The reader cannot go on, or too many of its words cannot be read. What could be read is kept.
        """
        pairs = list(zip(prompts, answers, strict=True))
        kept = KeptLines("readings", self.identity)
        unique = list(dict.fromkeys(pairs))
        known = {pair: reading for pair in unique if (reading := Reading.of(kept.get(pair))) is not None}
        read: dict[Pair, Reading | None] = {**known}
        pending = [pair for pair in unique if pair not in known]

        def tell() -> None:
            if progress is not None and pending:
                progress(len(read) * len(pairs) // len(unique), len(pairs))

        def keep(place: int, reading: Reading | None) -> None:
            # Words that cannot be read are asked for again next time: the reader may have been mended by then.
            if reading is not None:
                kept.add(pending[place], asdict(reading))
            read[pending[place]] = reading
            tell()

        try:
            tell()
            if pending:
                self._reader(pending, keep)
        finally:
            kept.close()
        if len(read) < len(unique):
            raise UserError(f"judge '{self.name}' left an answer unread: use another judge")
        found = [verdict(read[pair], pair[1]) for pair in pairs]
        self._require_readable(found)
        return found

    def _require_readable(self, found: Sequence[Verdict]) -> None:
        unreadable = [place for place, each in enumerate(found) if each.unreadable]
        if too_many(len(unreadable), len(found)):
            places = ", ".join(map(str, unreadable[:5])) + (" ..." if len(unreadable) > 5 else "")
            raise UserError(
                f"judge '{self.name}': {len(unreadable)} of {len(found)} verdicts cannot be read (answers {places}): "
                "is it the model that this judge is made for?"
            )
