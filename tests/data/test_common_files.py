"""Files of other tools are read, and no file makes a reader hang or use up the memory."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antidote_llm.data import files as data_files
from antidote_llm.data import text_files
from antidote_llm.data.reading import read_records
from antidote_llm.errors import UserError

GOOD = [{"prompt": "zob", "response": "mid"}, {"prompt": "kad", "response": "rux"}]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD)
PRETTY = "".join(json.dumps(row, indent=2) + "\n" for row in GOOD)
CSV = "prompt,response\nzob,mid\nkad,rux\n"
TSV = CSV.replace(",", "\t")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.json", LINES),
        ("lines.ndjson", LINES),
        ("blank_lines.json", f"\n{LINES}\n\n"),
        ("windows.json", "\ufeff" + LINES.replace("\n", "\r\n")),
        ("one_after_the_other.json", LINES.replace("\n", "")),
        ("pretty.json", PRETTY),
        ("pretty.jsonl", PRETTY),
        ("list.jsonl", json.dumps(GOOD)),
        ("pretty_list.jsonl", json.dumps(GOOD, indent=2)),
        ("data.json", json.dumps({"data": GOOD})),
        ("train.json", json.dumps({"version": "1", "train": GOOD})),
        ("semicolons.csv", CSV.replace(",", ";")),
        ("tabs.csv", TSV),
        ("quoted.csv", '"prompt";"response"\n"zob";"mid"\n"kad";"rux"\n'),
        ("quoted_tabs.csv", '"prompt"\t"response"\n"zob"\t"mid"\n"kad"\t"rux"\n'),
        ("said.csv", "sep=;\r\n" + CSV.replace(",", ";")),
        ("blank.csv", f"\n\n{CSV}"),
        ("empty_cells.csv", CSV.replace(",", ";").replace("kad", ";\nkad") + ";\n;\n"),
        ("index.csv", ",prompt,response\n0,zob,mid\n1,kad,rux\n"),
        ("spreadsheet.csv", "prompt,response,,\nzob,mid,,\nkad,rux,,\n"),
    ],
)
def test_text_files_of_every_tool_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, newline="")
    assert read(tmp_path / name) == [("zob", "mid"), ("kad", "rux")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl.gz", LINES),
        ("a.ndjson.gz", LINES),
        ("a.json.gz", json.dumps(GOOD)),
        ("a.csv.gz", CSV),
        ("a.tsv.gz", TSV),
        ("A.CSV.GZ", CSV),
        ("unsaid.jsonl", LINES),
    ],
)
def test_text_files_may_be_packed_with_gzip(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / name) == [("zob", "mid"), ("kad", "rux")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('prompt\tresponse\nzob\tmid\n"say ""kad"" now"\trux\n', 3),
        ('prompt\tresponse\n"zob\nkad"\tmid\n', 2),
        ('prompt\tresponse\n"zob\tkad"\tmid\n', 2),
        ('"prompt"\t"response"\n"zob"\t"mid"\n', 1),
    ],
)
def test_quoted_cells_in_a_tsv_are_refused_and_the_suggested_fix_works(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(UserError, match=rf"a\.tsv:{line}: a cell in quotes.*name the file \.csv"):
        read_records(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").rename(tmp_path / "a.csv")
    assert {record.response for record in read_records(tmp_path / "a.csv")} <= {"mid", "rux"}


def test_quote_marks_inside_sentences_of_a_tsv_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('prompt\tresponse\n"zob" said kad\t"mid"\nso "zob\tmid"\n""\tx\n')
    assert [record.prompt for record in read_records(tmp_path / "a.tsv")] == ['"zob" said kad', 'so "zob', '""']


def test_one_object_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"messages": [{"role": "user", "content": "zob"}]}))
    assert read(tmp_path / "a.json") == [("zob", None)]


def test_the_origin_of_a_row_in_a_document_holds_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f"\n{LINES}")
    (tmp_path / "b.json").write_text(PRETTY)
    assert [row.origin for row in read_records(tmp_path / "a.json")] == [f"{tmp_path}/a.json:{n}" for n in (2, 3)]
    assert [row.origin for row in read_records(tmp_path / "b.json")] == [f"{tmp_path}/b.json:{n}" for n in (1, 5)]


def test_a_cell_may_be_long_and_the_global_csv_limit_is_restored(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"prompt,response,notes\nzob,mid,{'kad ' * 50_000}\n")
    assert read(tmp_path / "a.csv") == [("zob", "mid")]
    assert csv.field_size_limit() == before == 131_072


def test_nan_counts_as_a_missing_cell(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "zob", "response": NaN}\n')
    assert read(tmp_path / "a.jsonl") == [("zob", None)]


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_files_of_both_forms_are_read(tmp_path: Path, form: str) -> None:
    table = pa.Table.from_pylist(GOOD)
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "a.arrow") == [("zob", "mid"), ("kad", "rux")]


def saved_folder(folder: Path, rows: list[dict[str, Any]] = GOOD) -> Path:
    """Write a folder as ``save_to_disk`` does, in two files."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{len(rows):05}.arrow" for number in range(len(rows))]
    for name, row in zip(names, rows, strict=True):
        table = pa.Table.from_pylist([row])
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def saved_splits(folder: Path, *splits: str) -> Path:
    for split in splits:
        saved_folder(folder / split)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return folder


def test_folders_of_save_to_disk_are_read(tmp_path: Path) -> None:
    assert read(saved_folder(tmp_path / "one")) == [("zob", "mid"), ("kad", "rux")]
    assert len(read(saved_splits(tmp_path / "only", "train"))) == 2
    two = saved_splits(tmp_path / "two", "train", "test")
    assert len(read(f"{two}#test:prompt=response")) == len(read(two / "train")) == 2
    refused(two, "two: name one of its splits, as in two#train: train, test")
    refused(f"{two}#dev", "no split 'dev': name one of them, as in two#train: train, test")
    refused(f"{tmp_path}/one#train", "a folder without splits: leave #train out")


def test_a_folder_written_by_the_real_save_to_disk_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(GOOD)
    datasets.DatasetDict(train=made, test=made.select([1])).save_to_disk(tmp_path / "saved")
    assert read(f"{tmp_path}/saved#test") == [("kad", "rux")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / "data-00001-of-00002.arrow").unlink(),
            "00002.arrow: missing, though state.json names",
        ),
        (lambda folder: (folder / "state.json").write_text("[" * 99_999), "not as save_to_disk writes it"),
        (lambda folder: (folder / "state.json").write_text('{"_data_files": [7]}'), "not as save_to_disk writes it"),
        (lambda folder: names_in(folder, "../other/data.arrow"), "names '../other/data.arrow', nothing in its folder"),
        (lambda folder: names_in(folder, 7), "names '7', nothing in its folder"),
        (lambda folder: selects(folder), "a selection of the rows in this folder"),
        (lambda folder: link_out(folder), "names 'data-00000-of-00002.arrow', nothing in its folder"),
    ],
)
def test_the_error_of_a_damaged_folder_names_the_cause(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    folder = saved_folder(tmp_path / "saved")
    change(folder)
    refused(folder, words)


def selects(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))


def names_in(folder: Path, name: object) -> None:
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))


def link_out(folder: Path) -> None:
    file = folder / "data-00000-of-00002.arrow"
    file.rename(folder.parent / "other.arrow")
    file.symlink_to(folder.parent / "other.arrow")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def shards(folder: Path, of: int, split: str = "train") -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number in range(2):
        table = pa.Table.from_pylist(GOOD[number : number + 1])
        pq.write_table(table, folder / "data" / f"{split}-{number:05}-of-{of:05}.parquet")
    return folder


@pytest.mark.usefixtures("offline")
def test_a_folder_of_tables_is_read_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shards(tmp_path / "whole", 2)
    assert read(folder) == [("zob", "mid"), ("kad", "rux")]
    shards(folder, 2, "test")
    refused(folder, "name one of its splits behind a #: train, test")
    assert len(read(f"{folder}#test")) == 2
    refused(shards(tmp_path / "part", 3), "2 of 3 files are there: copy the whole folder again")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "a folder that cannot be read as data", "name a file in it")
    (folder / "more.parquet").symlink_to(tmp_path / "part" / "data" / "train-00000-of-00003.parquet")
    refused(folder, "more.parquet: a link that leaves the folder")
    # No progress bar without a terminal.
    assert "\r" not in capsys.readouterr().err


def test_links_to_the_blobs_of_the_hubs_cache_stay(tmp_path: Path) -> None:
    folder = saved_folder(tmp_path / "hub" / "datasets--org--name" / "snapshots" / "0" / "saved")
    (blobs := folder.parents[2] / "blobs").mkdir()
    file = folder / "data-00000-of-00002.arrow"
    file.rename(blobs / "abc")
    file.symlink_to(blobs / "abc")
    assert len(read(folder)) == 2


def test_a_file_of_a_saved_folder_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    folder = saved_folder(tmp_path / "saved")
    (file := folder / "data-00000-of-00002.arrow").unlink()
    file.symlink_to(file.name)
    refused(folder, file.name, "cannot be looked at", "check the name")


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    for name in ("pipe", "zero"):
        refused(tmp_path / f"{name}.jsonl", "a pipe, socket or device, no data file: write the rows to a file")
    refused(tmp_path / "gone.jsonl", "a link to nothing: check the name")
    refused("/dev/stdin", "/dev/stdin: ")


def test_a_file_without_line_ends_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name in ("sparse.jsonl", "sparse.csv"):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(1 << 40)
        refused(tmp_path / name, f"{name}:1: ")


def test_more_than_a_million_rows_are_read_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "MOST_ROWS", 3)
    (tmp_path / "a.csv").write_text("prompt\n" + "zob\n" * 4)
    (tmp_path / "a.jsonl").write_text('{"prompt": "zob"}\n' * 4)
    (tmp_path / "a.json").write_text('[{"prompt": "zob"}, {"prompt": "zob"}, {"prompt": "zob"}, {"prompt": "zob"}]')
    pq.write_table(pa.table({"prompt": ["zob"] * 4}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "zob"}\n' * 4))
    for name in ("a.csv", "a.jsonl", "a.json", "a.parquet", "a.jsonl.gz"):
        refused(tmp_path / name, "rows", "that are read unasked", f"{name}:rows=3")
        assert len(read(f"{tmp_path / name}:rows=4")) == 4
        assert len(read(f"{tmp_path / name}:rows=2")) == 2
    saved = saved_folder(tmp_path / "saved", [{"prompt": "zob"}] * 4)
    refused(saved, "that are read unasked")
    assert len(read(f"{saved}:rows=4")) == 4


def test_more_rows_than_bytes_are_refused_before_any_is_read(tmp_path: Path) -> None:
    schema = pa.schema([("prompt", pa.null())])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.nulls(2**30)], schema=schema))
    refused(tmp_path / "a.arrow", "1,073,741,824 rows, more than the 1,000,000")
    refused(f"{tmp_path}/a.arrow:rows=2000000000", "rows in", "the same row over and over")


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_MOST_UNPACKED_BYTES", 1 << 16)
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["zob " * 5000]))
    pq.write_table(pa.table({"prompt": once}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": once.dictionary_decode()}), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        refused(tmp_path / name, "unpack to more than 100 times as many")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    for name, write in (("a.jsonl", LINES), ("a.parquet", "PAR1")):
        (tmp_path / name).write_text(write)
        (tmp_path / name).chmod(0)
        if os.access(tmp_path / name, os.R_OK):
            pytest.skip("this user may read everything")
        refused(tmp_path / name, "cannot be read: Permission denied: check its permissions")


def read(spec: Path | str) -> list[tuple[str | None, str | None]]:
    return [(record.prompt, record.response) for record in read_records(str(spec))]


def refused(spec: Path | str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_records(str(spec))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
