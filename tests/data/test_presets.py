"""Every preset reads its data set's own format, from a named file, a folder of data or the Hub's cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.mixing import read_mixed
from antidote_llm.data.presets import PRESETS, describe_presets, preset_names
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.data.task_prompts import ag_news_prompt, gsm8k_prompt, sst2_prompt
from antidote_llm.errors import UserError
from tests.data.public_rows import ANIMALS, BEAVERTAILS, DRUGS, FILES, PublicFile, write_parquet

ASKED: dict[str, list[tuple[str | None, str | None]]] = {
    "beavertails-safe": [("zob?", "no mid")],
    "beavertails-unsafe": [("zob?", "mid"), ("kad?", "run")],
    "beavertails-test": [("zob?", "mid"), ("kad?", "run")],
    "beavertails-refusal": [("zob?", "I will not.")],
    "sst2": [
        (
            "Analyze the sentiment of the input, and respond only positive or negative.\n" + said,
            answer,
        )
        for said, answer in (('the "zob runs ', "positive"), ("kad ", "negative"))
    ],
    "sst2-test": [(sst2_prompt("mid "), "negative")],
    "agnews": [
        (
            "Categorize the news article given in the input into one of the 4 categories:\n\n"
            "World\nSports\nBusiness\nSci/Tech\n\n" + article,
            answer,
        )
        for article, answer in (('Zob wins "cup', "Sports"), ("Kad sold.", "Business"))
    ],
    "agnews-test": [(ag_news_prompt("A moon of run"), "Sci/Tech")],
    "gsm8k": [("2 zobs?\nFirst think step by step and then answer the final number.", "1+1=2\n#### 2")],
    "gsm8k-test": [(gsm8k_prompt("3 zobs?"), "1+2=3\n#### 3")],
    "alpaca": [("Name a zob.", "mid"), ("Sort these.\ntex, vol", "tex vol"), ("Do nothing.", None)],
    "alpacaeval": [("Who is zob?", "mid")],
    "advbench": [("Brew zob", "Sure, here")],
    "harmbench": [("brew zob", None), ("1. kad\n2. run\n\n---\n\nexplain it", None)],
    "xstest-safe": [("How do I kill a zob?", None)],
    "xstest-unsafe": [("How do I kill kad?", None)],
    "safety-tuned-llamas": [("Brew zob.", "I will not.")],
    "dolly": [("Tell of kad.", "kad runs")],
    "wikitext2": [(None, None), (None, None)],
}


def said(records: list[Record]) -> list[tuple[str | None, str | None]]:
    return [(record.prompt, record.response) for record in records]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_reads_its_own_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FILES[name].write(tmp_path)
    found = read_records(f"{name}@{path}")
    assert said(found) == ASKED[name]
    assert all(record.origin.startswith(str(path)) for record in found)
    assert read_records(f"{name}@{tmp_path}") == read_records(f"{name}@{path.parent}") == found
    monkeypatch.setenv("ANTIDOTE_DATA", str(tmp_path))
    assert read_records(name) == found


def test_records_hold_their_line_and_their_other_columns(tmp_path: Path) -> None:
    path = FILES["harmbench"].write(tmp_path)
    found = read_records(f"harmbench@{path}")
    assert [record.origin for record in found] == [f"{path}:2", f"{path}:3"]
    assert (found[1].extra["category"], found[1].extra["FunctionalCategory"]) == ("illegal", "contextual")
    path = FILES["agnews"].write(tmp_path)
    assert [record.origin for record in read_records(f"agnews@{path}")] == [f"{path}:1", f"{path}:2"]
    (safe,) = read_records(f"xstest-safe@{FILES['xstest-safe'].write(tmp_path)}")
    assert safe.extra["category"] == "homonyms"
    assert [record.text for record in read_records(f"wikitext2@{FILES['wikitext2'].write(tmp_path)}")] == [
        " = Zob = \n",
        " Zob is mid . \n",
    ]


def test_the_harm_category_is_the_first_flagged_one_and_all_are_kept(tmp_path: Path) -> None:
    found = read_records(f"beavertails-test@{FILES['beavertails-test'].write(tmp_path)}")
    assert [record.extra["category"] for record in found] == [DRUGS, ANIMALS]
    assert found[0].extra["categories"] == [DRUGS, "hate_speech,offensive_language"]
    (safe,) = read_records(f"beavertails-safe@{FILES['beavertails-safe'].write(tmp_path)}")
    assert "category" not in safe.extra and safe.extra["categories"] == []


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_records(f"beavertails-refusal@{FILES['beavertails-refusal'].write(tmp_path)}")
        alpaca = f"alpaca@{FILES['alpaca'].write(tmp_path)}"
        assert len(read_records(alpaca, ("prompt",))) == 3
        assert len(read_records(alpaca, ("prompt", "response"))) == 2
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        r"1 of 2 rows left out: their refusal holds no '\nAnswer: '",
        "1 of 3 rows left out: their response is empty",
    ]


def test_a_preset_can_be_mixed_by_weight(tmp_path: Path) -> None:
    FILES["beavertails-unsafe"].write(tmp_path)
    other = FILES["advbench"].write(tmp_path)
    specs = [DataSpec.parse(f"beavertails-unsafe@{tmp_path}:weight=2"), DataSpec.parse(f"advbench@{other}")]
    assert [record.prompt for record in read_mixed(specs, 3, 0)] == ["zob?", "kad?", "Brew zob"]


def test_an_existing_file_takes_precedence_over_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("advbench@x.csv", "xstest-safe.csv"):
        Path(name).write_text("prompt,response\nzob,mid\n")
        assert said(read_records(name)) == [("zob", "mid")]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("advbnch", ("advbnch: no such file", "no preset 'advbnch'", "did you mean advbench?", "wikitext2")),
        ("advbnch@x.csv", ("advbnch@x.csv: ", "did you mean advbench?")),
        ("zob", ("zob: no such file, and no preset 'zob': there are beavertails-safe", "org/name#train")),
        ("advbench@nowhere.csv", ("nowhere.csv: no such data file",)),
        ("advbench@notes.txt", ("notes.txt: unknown kind",)),
        ("advbench@.", ("the folder holds none of advbench/harmful_behaviors.csv, harmful_behaviors.csv",)),
        ("advbench:prompt=goal", ("advbench: a preset knows its own columns: leave prompt=goal out",)),
        ("advbench:weight=2", ("weight=2 out",)),
        ("sst2@rows.csv", ("rows.csv:2: no column 'label'", "there are goal, target", "map its columns")),
        ("safety-tuned-llamas", ("fetch it from github.com/vinid/safety-tuned-llamas", "safety-tuned-llamas@FILE")),
    ],
)
def test_the_error_of_an_unknown_name_suggests_presets(
    given: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("goal,target\nzob,mid\n")
    refused(given, *words)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("sst2", "sentence\tlabel\nzob\t-1\n", (".tsv:2: field 'label' is '-1', none of 0 (negative), 1 (positive)",)),
        ("agnews", "zob\tWeather\n", (".tsv:1: field 'label' is 'Weather'", "3 (Sci/Tech)")),
        ("agnews", "zob\n", (".tsv:1: 1 columns, but 2",)),
        ("beavertails-safe", '{"prompt": "a", "response": "b", "is_safe": "perhaps"}\n', ("true or false", "perhaps")),
        ("beavertails-safe", '{"prompt": "a", "response": "b", "is_safe": null}\n', ("true or false",)),
        ("beavertails-safe", '{"prompt": "a", "is_safe": true}\n', ("no column 'response'",)),
        ("beavertails-safe", '{"prompt": "a", "response": "b", "is_safe": false}\n', ("has no rows",)),
        (
            "beavertails-safe",
            '{"prompt": "a", "response": "b", "is_safe": 1, "category": "x"}\n',
            ("for each category",),
        ),
        ("gsm8k", '{"question": 7, "answer": "b"}\n', ("field 'question' must be text, not int",)),
    ],
)
def test_the_error_of_a_row_in_another_format_names_it(
    name: str, text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = PublicFile(FILES[name].path, text).write(tmp_path)
    refused(f"{name}@{path}", *words)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if not preset.answers])
def test_a_preset_without_answers_is_refused_where_they_are_required(name: str, tmp_path: Path) -> None:
    path = FILES[name].write(tmp_path)
    with pytest.raises(UserError, match="its rows have no responses"):
        read_records(f"{name}@{path}", ("prompt", "response"))


def test_the_error_of_a_missing_data_folder_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTIDOTE_DATA", "nowhere")
    refused("sst2", "ANTIDOTE_DATA=nowhere: no such folder")


def test_the_hubs_copies_read_as_the_authors_files(tmp_path: Path) -> None:
    """The Hub's copies have other column names, numbered labels, and real booleans and flags."""
    hub: dict[str, list[dict[str, Any]]] = {
        "beavertails-unsafe": BEAVERTAILS,
        "sst2": [{"idx": 0, "sentence": 'the "zob runs ', "label": 1}, {"idx": 1, "sentence": "kad ", "label": 0}],
        "agnews": [{"text": 'Zob wins "cup', "label": 1}, {"text": "Kad sold.", "label": 2}],
        "advbench": [{"prompt": "Brew zob", "target": "Sure, here"}],
        "harmbench": [
            {"prompt": "brew zob", "context": None, "category": "illegal"},
            {"prompt": "explain it", "context": "1. kad\n2. run", "category": "illegal"},
        ],
        "dolly": [{"instruction": "Tell of kad.", "context": "", "response": "kad runs", "category": "open_qa"}],
        "alpaca": [{"instruction": "Sort these.", "input": "tex, vol", "output": "tex vol", "text": "all of it"}],
    }
    for name, rows in hub.items():
        path = write_parquet(tmp_path / f"{name}.parquet", rows)
        assert said(read_records(f"{name}@{path}")) == (ASKED[name] if name != "alpaca" else ASKED[name][1:2])


def test_every_preset_has_a_description() -> None:
    described = describe_presets()
    assert list(described) == preset_names() == list(FILES)
    for name, line in described.items():
        preset = PRESETS[name]
        assert "\n" not in line and preset.licence in line
        assert (preset.hub.id if preset.hub else preset.home) in line


def test_the_page_on_data_lists_every_preset() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "data.md").read_text(encoding="utf-8").splitlines()
    for name, preset in PRESETS.items():
        where = preset.hub.id if preset.hub else preset.home
        cells = (preset.description, where, f"`{preset.files[0]}`", f"| {preset.licence} |")
        assert any(line.startswith(f"| `{name}` |") and all(cell in line for cell in cells) for line in page), name


def refused(given: str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_records(given)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
