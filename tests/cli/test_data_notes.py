"""What the readers of data have to say reaches the terminal, and leaves the result alone."""

from __future__ import annotations

import json
import logging

import pytest

from antidote_llm.cli.warnings_shown import warnings_shown
from tests.cli.command import Command, Place


def test_the_command_says_what_is_not_read(place: Place, antidote: Command) -> None:
    rows = [json.loads(line) for line in place.harmful.read_text().splitlines()]
    place.harmful.write_text("".join(json.dumps({**row, "context": "a tale of another thing"}) + "\n" for row in rows))
    result = antidote.done(*place.repair("--dry-run", "--json"))
    (said,) = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert f"{len(rows)} of {len(rows)} rows have 'context'" in said
    assert isinstance(result.json, dict)


@pytest.mark.parametrize("name", ["target", "Response", "Target", "completions"])
def test_the_command_names_a_column_that_may_hold_the_answers(place: Place, antidote: Command, name: str) -> None:
    rows = [json.loads(line) for line in place.harmful.read_text().splitlines()]
    place.harmful.write_text(
        "".join(json.dumps({"prompt": row["prompt"], name: row["response"]}) + "\n" for row in rows)
    )
    result = antidote.done(*place.repair("--dry-run"))
    assert f"the model answers them itself (if '{name}' is one, map it, as in response={name})" in result.err


def test_a_warning_is_one_line_that_steers_no_terminal(place: Place, antidote: Command) -> None:
    log = logging.getLogger("antidote_llm.data.reading")
    antidote.capsys.readouterr()
    with warnings_shown():
        log.warning("a column '%s'", "zob\x1b[2J\nmid\u202e" + "z" * 9000)
        log.info("nothing")
    log.warning("after the command")
    (said,) = antidote.capsys.readouterr().err.splitlines()
    assert said.startswith("warning: a column 'zob[U+001B][2J mid[U+202E]zz")
    assert len(said) < 700
