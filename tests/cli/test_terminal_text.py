"""Nothing that a file, a model or a user says steers the terminal, and every name and every terminal will do."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table

from antidote_llm.cli.library_messages import visible_messages
from antidote_llm.cli.terminal import Terminal
from antidote_llm.io.visible_text import visible
from antidote_llm.patching.patch import read_patch
from tests.cli.bad_options import repaired
from tests.cli.command import Command, Place, tree
from tests.patching.making import Parts, with_description, with_parts

COMMAND = Path(sys.executable).with_name("antidote")
TITLE, CLIPBOARD, LINK = "\x1b]0;zorbik\x07", "\x1b]52;c;eg==\x1b\\", "\x1b]8;;http://zorbik\x1b\\"
HOSTILE = f"[red]zor{TITLE}{CLIPBOARD}{LINK}\x9b31m\r\u202e\nbik[/]:smile:"
# What rich itself writes to move the cursor and to colour.
OWN = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def assert_safe(text: str) -> None:
    assert visible(OWN.sub("", text).replace("\r", "")) == OWN.sub("", text).replace("\r", "")


def hostile_patch(place: Place) -> object:
    """Return a repair whose patch says hostile things wherever it can."""
    out = Path(str(repaired(place)))
    path = out / "record" / "patch.safetensors"
    key = read_patch(path).description.tensors[0].key

    def hostile(description: Parts) -> Parts:
        description["recipe"] |= {"method": HOSTILE, "target": HOSTILE}
        description["tensors"][0]["key"] = HOSTILE
        return description

    with_description(path, hostile)
    with_parts(path, lambda parts: {name.replace(f"/{key}/", f"/{HOSTILE}/"): part for name, part in parts.items()})
    return out


def test_a_hostile_patch_is_shown_as_it_is(place: Place, antidote: Command) -> None:
    patch = hostile_patch(place)
    shown = antidote("patch", "show", patch)
    assert_safe(shown.out)
    assert "[red]zor[U+001B]]0;zorbik[U+0007]" in shown.out.replace("\n", "")
    as_json = antidote.done("patch", "show", patch, "--json")
    assert_safe(as_json.out)
    assert as_json.json["recipe"]["method"] == HOSTILE
    refused = antidote("patch", "revert", patch, "--onto", place.root / "finished" / "model", "--out", place.out)
    assert refused.code == 2 and len(refused.errors) == 1 and len(refused.errors[0]) < 500
    assert_safe(refused.err)


def test_every_part_of_a_table_and_every_message_is_text_alone(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE, footer=HOSTILE, overflow="fold")
    table.add_row(HOSTILE, HOSTILE)
    terminal = Terminal()
    terminal.result({}, table, HOSTILE)
    said = [capsys.readouterr().out]
    terminal.say(HOSTILE)
    said.append(capsys.readouterr().err)
    terminal.warn(HOSTILE)
    said.append(capsys.readouterr().err)
    with terminal.progress(HOSTILE, 2, "rows") as advance:
        advance(2)
    said.append(capsys.readouterr().err)
    with terminal.stages("steps") as moved:
        moved(HOSTILE, 2, 2)
    said.append(capsys.readouterr().err)
    for text in said:
        assert_safe(text)
        assert "[red]zor[U+001B]]0;" in text
    assert all(":smile:" in text.replace("\n", "") for text in said[:3])


def test_json_on_a_terminal_is_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: [HOSTILE, "грибы", "\U000e0041", "h\udcff"]}
    Terminal(as_json=True).result(value)
    said = capsys.readouterr().out
    assert_safe(said)
    assert "грибы" in said
    assert json.loads(said) == {HOSTILE: [HOSTILE, "грибы", "\U000e0041", "h\\xff"]}


def test_errors_and_tracebacks_spell_out_what_a_user_wrote(
    place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["repair", HOSTILE], ["run", HOSTILE, "--out", "x"], [HOSTILE], ["repair", f"--{HOSTILE}", "x"]):
        result = antidote(*arguments)
        assert (result.code, len(result.errors), result.err.count("\n")) == (2, 1, 1)
        assert_safe(result.err)

    def broken(*_: object) -> None:
        raise AssertionError(HOSTILE)

    monkeypatch.setenv("ANTIDOTE_TRACEBACK", "1")
    monkeypatch.setattr("antidote_llm.cli.patch.read_patch", broken)
    result = antidote("patch", "show", "x")
    assert result.code == 3 and "Traceback" in result.err
    assert_safe(result.err)


def test_warnings_and_log_lines_of_libraries_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    log = logging.getLogger("zorbik")
    log.addHandler(handler)
    with visible_messages():
        shown = warnings.formatwarning(HOSTILE, UserWarning, "zorbik.py", 1)
        log.warning("%s", HOSTILE)
    log.removeHandler(handler)
    said = shown + capsys.readouterr().err
    assert said.count("[U+001B]]0;zorbik[U+0007]") == 2
    assert_safe(said)


def test_what_compiled_libraries_print_is_no_part_of_the_result(place: Place) -> None:
    path = place.base / "tokenizer.json"
    # An unknown field of an added token is printed by the tokenizers library, past Python.
    path.write_text(path.read_text().replace('"normalized":', '"zor\\u001b]0;bik\\u0007": 1, "normalized":', 1))
    done = subprocess.run(
        [COMMAND, *map(str, place.repair("--json"))], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["out"] == str(place.out)
    assert_safe(done.stderr)
    assert "[U+001B]]0;bik" in done.stderr


def test_a_terminal_without_unicode_will_do(place: Place) -> None:
    patch = hostile_patch(place)
    for more in ([], ["--json"]):
        done = subprocess.run(
            [COMMAND, "patch", "show", str(patch), *more],
            capture_output=True,
            timeout=300,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode("ascii")
        assert_safe(text)
        assert not more or json.loads(text)["recipe"]["method"] == HOSTILE


@pytest.mark.parametrize(("shell", "code"), [(">&-", 0), (">/dev/full", 2)])
def test_a_closed_or_full_standard_output_is_no_defect(shell: str, code: int, place: Place) -> None:
    patch = repaired(place)
    script = f"{COMMAND} patch show '{patch}' --json {shell}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (code != 0)


def not_utf_8(path: Path) -> Path:
    """Return a neighbour whose name is not UTF-8."""
    return path.with_name(os.fsdecode(b"h\xff-" + os.fsencode(path.name)))


def test_results_may_have_names_that_are_not_utf_8(place: Place, antidote: Command) -> None:
    out = not_utf_8(place.root / "out")
    arguments = [*place.repair("--json", "--evaluate", "none"), "--out", out]
    done = antidote.done(*arguments)
    assert done.json["out"].endswith("h\\xff-out")
    assert antidote.done(*arguments).json["finished_before"]
    back = not_utf_8(place.root / "back")
    antidote.done("patch", "revert", out, "--onto", out / "model", "--out", back)
    weights = "adapter_model.safetensors"
    assert (back / weights).read_bytes() == (place.adapter / weights).read_bytes()


def test_a_file_of_such_a_name_is_no_part_of_a_checkpoint(place: Place, antidote: Command) -> None:
    not_utf_8(place.adapter / "notes.txt").write_text("zorbik")
    result = antidote(*place.repair())
    assert result.code == 2 and "h\\udcff-notes.txt': rename it" in result.errors[-1]
    assert not place.out.exists()


@pytest.mark.parametrize("which", ["model", "adapter", "out", "current folder", "task"])
def test_such_a_name_that_libraries_cannot_open_is_refused_at_once(
    which: str, place: Place, antidote: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ["repair", place.base, "--adapter", place.adapter, "--harmful", place.harmful]
    arguments: dict[str, list[object]] = {
        "model": ["repair", not_utf_8(place.base), *plain[2:], "--out", place.out],
        "adapter": [*plain, "--adapter", not_utf_8(place.adapter), "--out", place.out],
        "out": [*plain, "--out", not_utf_8(place.root / "out")],
        "current folder": [*plain, "--out", "new"],
        "task": [*plain, "--task", f"x\udcff={place.harmful}", "--out", place.out],
    }
    for folder in (place.base, place.adapter):
        shutil.copytree(folder, not_utf_8(folder))
    if which == "current folder":
        not_utf_8(place.root / "here").mkdir()
        monkeypatch.chdir(not_utf_8(place.root / "here"))
    monkeypatch.setattr("antidote_llm.workflows.repair._Repair.perform", lambda *_: pytest.fail("work was done"))
    before = tree(place.root)
    result = antidote(*arguments[which])
    assert result.code == 2, result.err
    assert len(result.errors) == 1 and "not UTF-8" in result.errors[0]
    assert tree(place.root) == before
