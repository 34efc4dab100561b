"""Which template prompts go through is said, and whose it is where several folders have one."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.models.tokenizers import stored_template
from tests import tiny
from tests.cli.command import Command, Place
from tests.cli.test_stage_commands import QUICK

ALPACA = "prompts go through the Alpaca prompt, as the tokenizer has no chat template: --template changes that"
CHAT = "prompts go through the tokenizer's chat template"


def record(place: Place, name: str = "repair") -> Any:
    return json.loads((place.out / "record" / f"{name}.json").read_text())


def reported(place: Place) -> str:
    return html.unescape((place.out / "record" / "report.html").read_text())


def said(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("prompts go")]


def without_template(place: Place) -> Place:
    (place.base / "chat_template.jinja").unlink()
    return place


@pytest.mark.parametrize("method", ["antidote", "magnitude"])
@pytest.mark.parametrize("judged", [False, True])
def test_a_repair_says_that_it_took_the_alpaca_prompt(
    place: Place, antidote: Command, method: str, judged: bool
) -> None:
    asked = ["--evaluate", tiny.write_rows(place.root / "asked.jsonl", 3, seed=5)] if judged else []
    result = antidote(*without_template(place).repair("--method", method, *asked))
    wanted = "" if method == "magnitude" and not judged else ALPACA
    assert (result.code, said(result.err)) == (0, [wanted] if wanted else [])
    assert record(place)["prompts"] == wanted
    assert (f"P{ALPACA[1:]}." in reported(place)) is bool(wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], CHAT),
        (["--template", "chat"], CHAT),
        (["--template", "alpaca"], "prompts go through the Alpaca prompt: --template alpaca"),
        (["--template", "plain"], "prompts go in as they are: --template plain"),
    ],
)
def test_a_repair_says_which_template_it_took(place: Place, antidote: Command, options: list[str], words: str) -> None:
    result = antidote(*place.repair(*options))
    assert (said(result.err), record(place)["prompts"]) == ([words], words)
    assert f"P{words[1:]}." in reported(place)


def test_where_there_is_no_prompt_nothing_is_said(place: Place, antidote: Command) -> None:
    rows = place.write("rows.jsonl", "".join(f'{{"text": "zob mid {word}"}}\n' for word in tiny.WORDS[:4]))
    arguments = ["repair", place.base, "--adapter", place.adapter, "--harmful", rows, "--evaluate", "none"]
    result = antidote(*arguments, "--out", place.out)
    assert (result.code, said(result.err), record(place)["prompts"]) == (0, [], "")


def test_a_dry_run_says_it_too(place: Place, antidote: Command) -> None:
    assert said(antidote(*without_template(place).repair("--dry-run")).err) == [ALPACA]


def test_an_evaluation_says_it_and_keeps_it(place: Place, antidote: Command) -> None:
    arguments = ["evaluate", place.base, "--harmful", place.harmful, "--max-new-tokens", 4]
    assert said(antidote(*arguments).err) == [CHAT]
    without_template(place)
    result = antidote(*arguments, "--out", place.out)
    assert (result.code, said(result.err)) == (0, [ALPACA])
    assert Evaluation.read(place.out).prompts == ALPACA


@pytest.mark.parametrize("command", ["align", "finetune"])
def test_a_training_says_it_and_keeps_it(command: str, place: Place, antidote: Command) -> None:
    def train(out: Path) -> list[object]:
        return [command, place.base, "--data", place.harmful, *QUICK, "--out", out]

    assert said(antidote(*train(place.root / "chat")).err) == [CHAT]
    without_template(place)
    result = antidote(*train(place.out))
    assert said(antidote(*train(place.root / "plan"), "--plan").err) == [ALPACA]
    assert (result.code, said(result.err), record(place, "training")["prompts"]) == (0, [ALPACA], ALPACA)


@pytest.mark.parametrize("stored", ["file", "settings"])
def test_of_two_chat_templates_it_says_which_one_is_taken(place: Place, antidote: Command, stored: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(place.adapter)
    same = antidote(*place.repair("--out", place.root / "same"))
    assert said(same.err) == [CHAT]
    other = tiny.CHAT_TEMPLATE.replace("<|assistant|> ", "<|assistant|> {{ '' }}")
    (place.adapter / "chat_template.jinja").unlink()
    if stored == "file":
        (place.adapter / "chat_template.jinja").write_text(other)
    else:
        settings = place.adapter / "tokenizer_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": other}))
    wanted = f"{CHAT}; the tokenizer is that of {place.adapter}, and {place.base} has a chat template of its own"
    (line,) = said(antidote(*place.repair()).err)
    assert line.startswith(wanted)
    taken = antidote(*place.repair("--tokenizer", place.base, "--out", place.root / "base"))
    assert said(taken.err)[0].startswith(
        f"{CHAT}; the tokenizer is that of {place.base}, and {place.adapter} has a chat"
    )


def test_a_tokenizer_that_hides_the_base_s_chat_template_is_named(place: Place, antidote: Command) -> None:
    tiny.tokenizer().save_pretrained(place.adapter)
    (place.adapter / "chat_template.jinja").unlink()
    (line,) = said(antidote(*place.repair()).err)
    assert line == (
        f"{ALPACA}; the tokenizer is that of {place.adapter}, and {place.base} has a chat template of its own: "
        "--tokenizer takes it"
    )


@pytest.mark.parametrize("template", [["zorbik"], [1], [{"name": "other", "template": "a"}]])
def test_of_chat_templates_that_are_none_nothing_is_taken(template: list[object], tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert stored_template(tmp_path) == ""
