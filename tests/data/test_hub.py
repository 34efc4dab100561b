"""Data sets on the Hub: read through datasets from a repository's folder or the Hub's cache, refused in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from antidote_llm.data.reading import read_records
from antidote_llm.errors import UserError
from tests.data.public_rows import FILES, write_parquet

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"goal": f"zob {index}", "target": f"mid {index}"} for index in range(3)]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder and an empty cache; no network requests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "hub"


def repository(name: str, **splits: list[dict[str, str]]) -> Path:
    """Write a repository as the Hub stores it: one table for each split."""
    for split, rows in splits.items():
        write_parquet(Path(name) / "data" / f"{split}-00000-of-00001.parquet", rows)
    return Path(name)


def test_columns_of_a_data_set_on_the_hub_are_mapped() -> None:
    repository("org/name", train=ROWS, test=ROWS[:1])
    found = read_records("org/name#train:prompt=goal,response=target")
    assert [(record.prompt, record.response) for record in found] == [(row["goal"], row["target"]) for row in ROWS]
    assert [record.origin for record in found] == [f"org/name#train: row {index}" for index in range(3)]
    assert len(read_records("org/name#test:prompt=goal")) == 1


def test_the_only_split_need_not_be_named_and_one_of_several_must() -> None:
    repository("org/one", train=ROWS)
    assert len(read_records("org/one:prompt=goal")) == 3
    repository("org/two", train=ROWS, test=ROWS)
    refused("org/two:prompt=goal", "org/two: name one of its splits behind a #: train, test")
    refused("org/two#dev:prompt=goal", "no split 'dev': name one of", "train, test")


def test_a_configuration_is_named_before_the_split() -> None:
    folder = repository("org/name")
    for config in ("mid", "kad"):
        write_parquet(folder / config / "train.parquet", [{"prompt": config}])
    listed = [
        {"config_name": config, "data_files": [{"split": "train", "path": f"{config}/*"}]} for config in ("mid", "kad")
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(listed)}\n---\n")
    assert [record.prompt for record in read_records("org/name#kad/train")] == ["kad"]
    refused("org/name#run/train", "org/name#run/train", "run", "mid")
    refused("org/name#train", "org/name#train: name one of its configurations, as in org/name#CONFIG/SPLIT: mid, kad")


@pytest.mark.parametrize("given", ["org/nowhere", "org/nowhere#train:prompt=goal"])
def test_the_error_of_a_data_set_that_the_hub_does_not_give_names_it(given: str) -> None:
    refused(given, "org/nowhere", "no such file here, and the Hub did not give", "check the name and the network")


@pytest.mark.parametrize("name", ["sst2", "harmbench", "alpacaeval"])
def test_a_preset_that_the_hub_does_not_give_can_be_read_from_a_file(name: str) -> None:
    refused(name, f"{name}: no such file here", f"or pass {name}@FILE")


def test_a_preset_comes_from_the_hub_where_no_folder_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    repository("stanfordnlp/sst2", train=[], validation=[])
    write_parquet(Path("stanfordnlp/sst2/data/train-00000-of-00001.parquet"), [{"sentence": "zob ", "label": 1}])
    write_parquet(Path("stanfordnlp/sst2/data/validation-00000-of-00001.parquet"), [{"sentence": "kad ", "label": 0}])
    monkeypatch.setenv("ANTIDOTE_DATA", ".")
    (found,) = read_records("sst2-test")
    assert (found.response, found.origin) == ("negative", "stanfordnlp/sst2#validation: row 0")
    FILES["sst2-test"].write(Path())
    assert read_records("sst2-test")[0].origin == "sst2/test.tsv:2"


def test_all_configurations_of_a_preset_are_read() -> None:
    folder = Path("walledai/HarmBench")
    listed = []
    for config in ("standard", "contextual", "copyright"):
        rows = [{"prompt": config, "category": "illegal"} | ({"context": "run"} if config == "contextual" else {})]
        write_parquet(folder / config / "train.parquet", rows)
        listed.append({"config_name": config, "data_files": [{"split": "train", "path": f"{config}/*"}]})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(listed)}\n---\n")
    found = read_records("harmbench")
    assert [record.prompt for record in found] == ["standard", "run\n\n---\n\ncontextual", "copyright"]


def test_a_single_file_of_a_repository_is_read_from_the_hubs_cache(hub: Path) -> None:
    cached = hub / "datasets--anonymous4486--repnoise_beavertail"
    file = cached / "snapshots" / COMMIT / "beavertails_with_refusals_train.json"
    file.parent.mkdir(parents=True)
    file.write_text(FILES["beavertails-refusal"].text)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    assert [record.response for record in read_records("beavertails-refusal")] == ["I will not."]


def test_the_code_of_a_data_set_is_not_run() -> None:
    Path("org/name").mkdir(parents=True)
    Path("org/name/name.py").write_text("open('it_ran', 'w').close()\n")
    refused("org/name", "org/name")
    assert not Path("it_ran").exists()


def test_data_that_are_not_a_table_of_text_are_refused() -> None:
    Path("org/name").mkdir(parents=True)
    Path("org/name/train.xml").write_text("<zob>mid</zob>")
    refused("org/name", "org/name: a data set of kind 'xml', no table of text")


def test_the_slow_library_is_imported_where_it_is_used() -> None:
    source = Path(sys.modules["antidote_llm.data.hub"].__file__ or "").read_text()
    assert "\nimport datasets" not in source and "    import datasets" in source


def refused(given: str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_records(given)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
