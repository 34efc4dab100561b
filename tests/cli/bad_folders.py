"""Folders with links that lead out of them, with what is no file, and with names of files elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import torch

from tests import tiny
from tests.cli import bad_checkpoints
from tests.cli.bad_checkpoints import Case, repair_with, shards
from tests.cli.command import Place, edit_json
from tests.patching.making import NAME, patched, write

CASES: list[Case] = []
bad = partial(bad_checkpoints.bad, cases=CASES)


def secret(place: Place) -> Path:
    """Return a file of the machine that is no part of any input."""
    return place.write("id_rsa", "zorbik")


def linked(place: Place, folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(secret(place))


def delta(place: Place, aligned: Path) -> list[object]:
    return ["repair", place.base, "--aligned", aligned, "--harmful", place.harmful, "--out", place.out]


@bad("NOTICE.txt", "out of the folder", "id_rsa", "remove the link")
def link_in_an_adapter(place: Place) -> list[object]:
    linked(place, place.adapter, "NOTICE.txt")
    return place.repair()


@bad("README.md", "out of the folder", "id_rsa")
def link_in_a_model(place: Place) -> list[object]:
    linked(place, place.base, "README.md")
    return place.repair()


@bad("modeling_zorbik.py", "out of the folder", "id_rsa")
def link_of_code(place: Place) -> list[object]:
    linked(place, place.base, "modeling_zorbik.py")
    return place.repair("--trust-remote-code")


@bad("code/blocks.py", "out of the folder", "id_rsa")
def link_of_code_in_a_folder(place: Place) -> list[object]:
    linked(place, place.base, "code/blocks.py")
    return place.repair("--trust-remote-code")


@bad("additional_chat_templates/tools.jinja", "out of the folder", "id_rsa")
def link_of_a_chat_template(place: Place) -> list[object]:
    linked(place, place.base, "additional_chat_templates/tools.jinja")
    return place.repair()


@bad("additional_chat_templates", "out of the folder", "elsewhere")
def linked_folder_of_chat_templates(place: Place) -> list[object]:
    place.write("elsewhere/tools.jinja", "zorbik")
    (place.base / "additional_chat_templates").symlink_to("../elsewhere")
    return place.repair()


@bad("model.safetensors", "out of the folder", "elsewhere")
def link_of_weights(place: Place) -> list[object]:
    (place.root / "elsewhere").mkdir()
    moved = shutil.move(place.base / "model.safetensors", place.root / "elsewhere")
    (place.base / "model.safetensors").symlink_to(moved)
    return place.repair()


@bad("config.json", "out of the folder")
def link_in_a_folder_that_is_a_link(place: Place) -> list[object]:
    linked(place, place.adapter, "config.json")
    (place.root / "link").symlink_to(place.adapter)
    return repair_with(place, place.root / "link")


@bad("back", "in itself", "remove the link")
def link_to_the_folder_itself(place: Place) -> list[object]:
    (place.base / "back").symlink_to(".")
    return place.repair()


@bad("tokenizer.json", "where there is nothing", "fetch the file again")
def link_to_nothing(place: Place) -> list[object]:
    (place.base / "tokenizer.json").unlink()
    (place.base / "tokenizer.json").symlink_to("nowhere")
    return place.repair()


@bad("vocab.json", "a pipe, not a file", "remove it")
def pipe_in_a_model(place: Place) -> list[object]:
    os.mkfifo(place.base / "vocab.json")
    return place.repair()


@bad("additional_chat_templates/tools.jinja", "a pipe, not a file")
def pipe_in_a_folder_of_a_model(place: Place) -> list[object]:
    (place.base / "additional_chat_templates").mkdir()
    os.mkfifo(place.base / "additional_chat_templates" / "tools.jinja")
    return place.repair()


@bad("merges.txt", "out of the folder", "id_rsa")
def link_in_a_tokenizers_folder(place: Place) -> list[object]:
    folder = place.root / "tokenizer"
    tiny.tokenizer().save_pretrained(folder)
    linked(place, folder, "merges.txt")
    return place.repair("--tokenizer", folder)


@bad("LICENSE", "out of the folder", "id_rsa")
def link_in_an_aligned_model(place: Place) -> list[object]:
    aligned = tiny.write_model(place.root / "aligned", seed=1)
    linked(place, aligned, "LICENSE")
    return delta(place, aligned)


@bad("LICENSE", "out of the folder", "id_rsa")
def link_in_a_lower_adapter(place: Place) -> list[object]:
    lower = tiny.write_adapter(place.root / "lower", place.base, seed=9)
    linked(place, lower, "LICENSE")
    return ["repair", place.base, "--adapter", lower, *place.repair()[2:]]


@bad("judge", "vocab.txt", "out of the folder", "id_rsa")
def link_in_a_judges_model(place: Place) -> list[object]:
    judge = tiny.write_model(place.root / "judge")
    linked(place, judge, "vocab.txt")
    evaluate = ["evaluate", place.base, "--harmful", place.harmful, "--out", place.out]
    return [*evaluate, "--judge", f"llama-guard={judge}"]


@bad("NOTICE", "out of the folder", "id_rsa")
def link_in_what_is_evaluated(place: Place) -> list[object]:
    linked(place, place.base, "NOTICE")
    return ["evaluate", place.base, "--harmful", place.harmful, "--out", place.out]


@bad("NOTICE", "out of the folder", "id_rsa")
def link_in_what_is_trained(place: Place) -> list[object]:
    linked(place, place.base, "NOTICE")
    return ["finetune", place.base, "--data", place.harmful, "--out", place.out]


def repaired(place: Place) -> Path:
    """Return the folder of a result with a patch of one weight file."""
    source = write(place.root / "source", {"w": torch.arange(1.0, 13.0)})
    patch = patched(source, place.root / "repaired", {"w": torch.zeros(12)})
    (place.root / "result" / "record").mkdir(parents=True)
    shutil.move(patch.stored.path, place.root / "result" / "record" / "patch.safetensors")
    return place.root / "result"


@bad("adapter.json", "out of the folder", "id_rsa")
def link_in_what_a_patch_is_put_on(place: Place) -> list[object]:
    result = repaired(place)
    linked(place, place.root / "source", "adapter.json")
    return ["patch", "apply", result, "--onto", place.root / "source", "--out", place.out]


@bad(NAME, "out of the folder", "elsewhere")
def weights_that_a_patch_is_taken_off_are_a_link(place: Place) -> list[object]:
    result = repaired(place)
    shutil.move(place.root / "repaired" / NAME, place.root / "elsewhere")
    (place.root / "repaired" / NAME).symlink_to("../elsewhere")
    return ["patch", "revert", result, "--onto", place.root / "repaired", "--out", place.out]


@bad("record/patch.safetensors", "out of the folder", "elsewhere")
def patch_of_a_result_is_a_link(place: Place) -> list[object]:
    record = repaired(place) / "record"
    shutil.move(record / "patch.safetensors", place.root / "elsewhere")
    (record / "patch.safetensors").symlink_to("../../elsewhere")
    return ["patch", "show", record.parent]


@bad("record", "out of the folder", "elsewhere")
def record_of_a_result_is_a_link(place: Place) -> list[object]:
    result = repaired(place)
    shutil.move(result / "record", place.root / "elsewhere")
    (result / "record").symlink_to("../elsewhere")
    return ["patch", "diff", result, result]


@bad("index.json", "outside its folder", "'../elsewhere.safetensors'")
def index_that_names_a_file_elsewhere(place: Place) -> list[object]:
    return _indexed(place, "../elsewhere.safetensors")


@bad("index.json", "outside its folder", "'/elsewhere.safetensors'")
def index_that_names_a_file_from_the_root(place: Place) -> list[object]:
    return _indexed(place, "/elsewhere.safetensors")


@bad("index.json", "outside its folder", r"'a\nb.safetensors'")
def index_that_names_a_file_of_two_lines(place: Place) -> list[object]:
    return _indexed(place, "a\nb.safetensors")


@bad("index.json", "outside its folder")
def index_that_names_a_file_too_long(place: Place) -> list[object]:
    return _indexed(place, "a" * 300)


def _indexed(place: Place, name: str) -> list[object]:
    shards(place)
    path = place.base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit_json(path, weight_map={**index["weight_map"], "lm_head.weight": name})
    return place.repair()


@bad("config.json", "transformers_weights", "other.safetensors", "take the entry out")
def configuration_that_names_other_weights(place: Place) -> list[object]:
    shutil.copy(place.base / "model.safetensors", place.base / "other.safetensors")
    edit_json(place.base / "config.json", transformers_weights="other.safetensors")
    return place.repair()


@bad("config.json", "code outside the folder", "../elsewhere--modeling_zorbik.Zorbik", "into the folder")
def code_of_another_folder(place: Place) -> list[object]:
    edit_json(place.base / "config.json", auto_map={"AutoModelForCausalLM": "../elsewhere--modeling_zorbik.Zorbik"})
    return place.repair("--trust-remote-code")


@bad("config.json", "code outside the folder", "/elsewhere/modeling_zorbik.Zorbik")
def code_from_the_root(place: Place) -> list[object]:
    edit_json(place.base / "config.json", auto_map={"AutoConfig": "/elsewhere/modeling_zorbik.Zorbik"})
    return place.repair("--trust-remote-code")


@bad("tokenizer_config.json", "code outside the folder")
def code_of_a_tokenizer_of_another_folder(place: Place) -> list[object]:
    folder = place.root / "tokenizer"
    tiny.tokenizer().save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "../x/tokenization_zorbik.Zorbik"]})
    return place.repair("--trust-remote-code", "--tokenizer", folder)


@bad("'a\\nb.json'", "rename it")
def name_of_two_lines(place: Place) -> list[object]:
    (place.adapter / "a\nb.json").write_text("{}")
    return place.repair()
