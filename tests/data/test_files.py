"""Every format gives the same records, and columns can have any name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.files import write_jsonl
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError

ROWS: list[dict[str, Any]] = [
    {"prompt": 'say "zob", mid', "response": "kad\nrun", "category": "a"},
    {"prompt": "  zoé 🦊  ", "response": "", "category": "b"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".tsv":
        path.write_text("\n".join("\t".join(cells) for cells in [list(rows[0]), *(list(row.values()) for row in rows)]))
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".JSONL"])
def test_every_format_gives_the_same_records(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix.lower()}"
    write(path, ROWS)
    found = read_records(path.rename(tmp_path / f"rows{suffix}"))
    assert [(r.prompt, r.response, r.extra["category"]) for r in found] == [tuple(row.values()) for row in ROWS]


def test_a_tsv_has_no_quoting(tmp_path: Path) -> None:
    rows = [{"prompt": '"zob" mid', "response": '"kad'}, {"prompt": "run", "response": 'te"x'}]
    found = read_records(write(tmp_path / "rows.tsv", rows))
    assert [(r.prompt, r.response) for r in found] == [(row["prompt"], row["response"]) for row in rows]


def test_a_byte_order_mark_and_windows_line_ends_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfprompt,response\r\nzob,mid\r\n\r\nkad,run\r\n")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "zob", "response": "mid"}\r\n')
    assert [r.response for r in read_records(tmp_path / "a.csv")] == ["mid", "run"]
    assert read_records(tmp_path / "a.jsonl")[0].response == "mid"


def test_the_origin_of_a_row_holds_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,response\n"zob\nmid",kad\nrun,tex\n')
    assert [r.origin for r in read_records(tmp_path / "a.csv")] == [f"{tmp_path}/a.csv:{n}" for n in (2, 4)]
    (tmp_path / "a.jsonl").write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [r.origin for r in read_records(tmp_path / "a.jsonl")] == [f"{tmp_path}/a.jsonl:{n}" for n in (2, 4)]


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a b.csv", [{"the goal": "zob", "target": "mid", "prompt": "not this"}])
    (found,) = read_records(f"{path}:prompt=the goal,response=target")
    assert (found.prompt, found.response) == ("zob", "mid")
    assert found.extra == {"prompt": "not this"}


@pytest.mark.parametrize(
    ("mapping", "wanted"),
    [
        ("", Record(input_ids=(5, 6))),
        (":prompt=prompt", Record(prompt="zob")),
        (":text=text", Record(text="all of it")),
        (":input_ids=input_ids", Record(input_ids=(5, 6))),
    ],
)
def test_a_mapped_kind_of_row_takes_precedence(tmp_path: Path, mapping: str, wanted: Record) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "zob", "text": "all of it", "input_ids": [5, 6]}])
    (found,) = read_records(f"{path}{mapping}")
    assert (found.prompt, found.text, found.input_ids) == (wanted.prompt, wanted.text, wanted.input_ids)


def test_text_and_token_ids_need_no_response(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"text": "zob mid"}, {"text": "kad"}])
    assert [r.text for r in read_records(path, require=("prompt", "response"))] == ["zob mid", "kad"]
    path = write(tmp_path / "b.parquet", [{"input_ids": [1, 2, 3], "response_start": 2}])
    (found,) = read_records(path, require=("prompt", "response"))
    assert (found.input_ids, found.response_start) == ((1, 2, 3), 2)


def test_an_empty_response_is_refused_only_where_one_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS)
    assert len(read_records(path, require=("prompt",))) == 2
    with pytest.raises(UserError, match=r"'response' is empty"):
        read_records(path, require=("prompt", "response"))


@pytest.mark.parametrize(
    ("text", "path", "columns"),
    [
        ("a.csv", "a.csv", {}),
        ("a.csv:prompt=goal", "a.csv", {"prompt": "goal"}),
        ("a:b=c/d.csv:text=a b", "a:b=c/d.csv", {"text": "a b"}),
    ],
)
def test_a_mapping_is_distinguished_from_a_path(text: str, path: str, columns: dict[str, str]) -> None:
    found = DataSpec.parse(text)
    assert (str(found.path), found.columns, found.weight) == (path, columns, None)


@pytest.mark.parametrize(("text", "weight"), [("2", 2), ("0.5", 0.5), ("1e-3", 0.001)])
def test_a_file_may_have_a_weight(text: str, weight: float) -> None:
    assert DataSpec.parse(f"a.jsonl:weight={text}") == DataSpec(Path("a.jsonl"), {}, weight)
    assert DataSpec.parse(f"a.csv:prompt=goal,weight={text}") == DataSpec(Path("a.csv"), {"prompt": "goal"}, weight)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much"])
def test_a_weight_is_a_number_above_0(text: str) -> None:
    with pytest.raises(UserError, match=rf"a\.jsonl:weight={text}: weight '{text}' is no number above 0"):
        DataSpec.parse(f"a.jsonl:weight={text}")


def test_a_weight_where_nothing_is_mixed_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS)
    with pytest.raises(UserError, match="weight=2 out"):
        read_records(f"{path}:weight=2")


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert DataSpec.parse("~/a.csv:prompt=goal").path == tmp_path / "a.csv"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert [(r.prompt, r.response) for r in read_records(tmp_path / "a.jsonl")] == [
        (row["prompt"], row["response"]) for row in ROWS
    ]
