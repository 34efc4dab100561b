"""Options, outputs and patches that cannot be used: what a user does, and the words that the one line must hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from safetensors.torch import load_file, save_file

from antidote_llm.cli.main import run
from tests import tiny
from tests.cli.bad_targets import sharded, weight
from tests.cli.command import Place
from tests.patching.making import with_description

Case = tuple[str, Callable[[Place], list[object]], tuple[str, ...]]


def with_options(name: str, *words: str, options: tuple[object, ...]) -> Case:
    """Return the case of a repair with more options."""
    return name, lambda place: place.repair(*options), words


GROWING = "name: [&a0 [zorbik]," + ",".join(f"&a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 7)) + "]"


def recipes(texts: dict[str, tuple[str, ...]]) -> list[Case]:
    """Return the cases of runs of these recipes."""

    def of(text: str) -> Callable[[Place], list[object]]:
        return lambda place: ["run", place.write("recipe.yaml", text), "--out", place.out]

    return [(f"recipe_of_{name}", of(text), ("recipe.yaml", *words)) for name, (text, *words) in texts.items()]


def repaired(place: Place, name: str = "finished", *more: object) -> object:
    """Repair for real, and return the folder."""
    out = place.root / name
    assert run([str(argument) for argument in [*place.repair(*more), "--out", out]]) == 0
    return out


def foreign_folder(place: Place) -> list[object]:
    place.write("results/notes.txt", "mine")
    return [*place.repair(), "--out", place.root / "results"]


def file_at_out(place: Place) -> list[object]:
    return [*place.repair(), "--out", place.harmful]


def input_at_out(place: Place) -> list[object]:
    return [*place.repair(), "--out", place.adapter]


def other_settings_at_out(place: Place) -> list[object]:
    return [*place.repair("--alpha", "0.3"), "--out", repaired(place)]


def other_data_at_out(place: Place) -> list[object]:
    out = repaired(place)
    other = tiny.write_rows(place.root / "other.jsonl", seed=3)
    return [*place.repair(), "--harmful", other, "--out", out]


def file_for_a_parent(place: Place) -> list[object]:
    return [*place.repair(), "--out", place.harmful / "deep" / "repaired"]


def name_too_long(place: Place) -> list[object]:
    return [*place.repair(), "--out", place.out.with_name("n" * 300)]


def current_folder(place: Place) -> list[object]:
    place.out.mkdir(parents=True)
    os.chdir(place.out)
    return [*place.repair(), "--out", "."]


def nowhere_to_write(place: Place) -> list[object]:
    return place.repair()[:-2]


def no_harmful(place: Place) -> list[object]:
    return ["repair", place.base, "--adapter", place.adapter, "--out", place.out]


def no_harmful_for_the_match(place: Place) -> list[object]:
    return [*no_harmful(place), "--method", "interpolate"]


def patch(direction: str, *, onto: str, name: str, words: tuple[str, ...]) -> Case:
    """Return the case of a patch put on or taken off the wrong thing."""

    def make(place: Place) -> list[object]:
        finished = repaired(place)
        return ["patch", direction, finished, "--onto", place.root / onto, "--out", place.out]

    return name, make, words


def other_adapter(direction: str) -> Callable[[Place], list[object]]:
    def make(place: Place) -> list[object]:
        finished = repaired(place)
        path = place.adapter / "adapter_model.safetensors"
        changed = {key: value + 1 for key, value in load_file(path).items()}
        save_file(changed, path, metadata={"format": "pt"})
        return ["patch", direction, finished, "--onto", place.adapter, "--out", place.out]

    return make


def damaged_patch(length: int) -> Callable[[Place], list[object]]:
    def make(place: Place) -> list[object]:
        repaired(place)
        path = place.root / "finished" / "record" / "patch.safetensors"
        os.truncate(path, length if length >= 0 else path.stat().st_size + length)
        return ["patch", "apply", path, "--onto", place.adapter, "--out", place.out]

    return make


def patch_saying(*names: str | int, value: object) -> Callable[[Place], list[object]]:
    """Return the case of a patch whose description says something else at one place."""

    def make(place: Place) -> list[object]:
        repaired(place)
        path = place.root / "finished" / "record" / "patch.safetensors"

        def say(description: dict[str, Any]) -> dict[str, Any]:
            inner: Any = description
            for name in names[:-1]:
                inner = inner[name]
            inner[names[-1]] = value
            return description

        with_description(path, say)
        return ["patch", "apply", path, "--onto", place.adapter, "--out", place.out]

    return make


def patch_on_a_changed_shard(place: Place) -> list[object]:
    sharded(place.base)
    out = place.root / "finished"
    assert run([*map(str, weight(place)), "--out", str(out)]) == 0
    shard = place.base / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    save_file({key: -value for key, value in tensors.items()}, shard, metadata={"format": "pt"})
    return ["patch", "apply", out, "--onto", place.base, "--out", place.out]


def patch_inside_its_input(place: Place) -> list[object]:
    return ["patch", "apply", repaired(place), "--onto", place.adapter, "--out", place.adapter / "patched"]


def patch_into_a_foreign_folder(place: Place) -> list[object]:
    return ["patch", "apply", repaired(place), "--onto", place.adapter, "--out", place.base]


def patches_of_different_models(place: Place) -> list[object]:
    first = repaired(place, "first")
    tiny.write_adapter(place.adapter, place.base, seed=9)
    return ["patch", "diff", first, repaired(place, "second")]


def evaluate(*more: object) -> Callable[[Place], list[object]]:
    return lambda place: ["evaluate", place.base, *more, "--out", place.out]


def set_in_a_recipe(name: str, setting: str, *words: str) -> Case:
    """Return the case of a value that is set over a shipped recipe's."""
    return name, lambda place: ["run", "paper/llama2-7b", "--set", setting, "--out", place.out], words


BAD_SETTINGS = (
    ("set_keys_without_end", f"{'a.' * 5000}a=1", "--set a.a", "name a key"),
    ("set_brackets", f"seed={'[' * 5000}", "--set seed", "levels deep"),
    ("set_a_date", "name=2001-13-45", "--set name", "2001-13-45"),
    ("set_a_seed_too_large", "seed=10000000000000000000000", "seed: ", "should be less than"),
    ("set_a_model_that_is_an_option", "model=--trust-remote-code", "model: ", "begins with a dash"),
    ("set_a_rank_without_end", "align.training.lora.rank=1000000000000", "lora.rank", "should be less than"),
)

CASES: list[Case] = [
    *(
        with_options(f"alpha_{value}", "--alpha", value, options=("--alpha", value))
        for value in ("1.5", "-0.1", "nan", "inf", "-inf")
    ),
    with_options("home_of_nobody", "~", "write the path", options=("--harmful", "~nobody_at_all/rows.jsonl")),
    with_options("data_of_no_name", "data without a name", options=("--harmful", "")),
    with_options("system_of_half_a_character", "--system", "surrogate", options=("--system", "\udcff")),
    with_options("adapter_of_no_name", "model without a name", options=("--adapter", " ")),
    *recipes(
        {
            "empty": ("", "not a recipe", "write keys"),
            "a_list": ("- model", "not a recipe", "write keys"),
            "an_open_bracket": ("model: [x", "not valid YAML", "correct the file"),
            "code": ('model: !!python/object/apply:os.system ["true"]', "not valid YAML", "os.system"),
            "no_name": ("model: x", "name is missing", "add it"),
            "brackets": ("[" * 5000, "not valid YAML", "levels deep"),
            "a_date": ("name: 2001-13-45", "not valid YAML", "2001-13-45"),
            "a_word_for_a_number": ("x: !!int abc", "not valid YAML", "abc"),
            "nothing_for_a_number": ('x: !!int ""', "not valid YAML", "int"),
            "what_grows": (GROWING, "not valid YAML", "values"),
            "an_anchor_in_itself": ("name: &a [*a]", "not valid YAML", "itself"),
            "a_key_twice": ("name: a\nname: b", "not valid YAML", "name is given twice"),
            "a_number_for_a_key": ("1: a", "not valid YAML", "quotes"),
            "a_long_number": (f"seed: {'9' * 6000}", "not valid YAML", "a number too long"),
            "a_long_name": (f"name: {'z' * 200_000}", "is missing"),
            "a_long_value": (
                f"seed: {'z' * 200_000}\nname: x\nsource: x\nmodel: x",
                "seed: ",
                "should be a valid integer",
            ),
            "a_zero_byte": ('model: "x\\0y"', "not valid YAML", "no name can hold"),
            "half_a_character": ('model: "\\ud800"', "not valid YAML", "no name can hold"),
            "a_megabyte": ("#" * (1 << 20), "not valid YAML", "longer"),
            "an_unknown_key": ("name: x\nmodel: x\nalgin: {}\nalign: {data: [x]}", "algin", "did you mean align"),
        }
    ),
    (
        "recipe_of_another_encoding",
        lambda place: ["run", place.write("recipe.yaml", "name: é".encode("utf-16")), "--out", place.out],
        ("recipe.yaml", "not valid YAML", "UTF-8"),
    ),
    *(set_in_a_recipe(name, setting, *words) for name, setting, *words in BAD_SETTINGS),
    with_options("max_ram_without_end", "--max-ram", "not a size", options=("--max-ram", "9" * 400)),
    with_options("max_disk_of_nothing", "--max-disk", "not a size", options=("--max-disk", "0")),
    with_options("data_seed_without_end", "--data-seed", "integer", options=("--data-seed", "9" * 6000)),
    with_options("zero_byte", "zero byte", options=("--sites", "a\0b")),
    with_options("value_without_end", "--method z", "no such", options=("--method", "z" * 100_000)),
    with_options("harmful_rows_zero", "--harmful-rows", options=("--harmful-rows", "0")),
    with_options("harmful_rows_word", "--harmful-rows", options=("--harmful-rows", "all")),
    with_options("harmful_rows_too_many", "12 rows", "fewer", options=("--harmful-rows", "13")),
    with_options("data_seed_word", "--data-seed", options=("--data-seed", "x")),
    with_options("data_seed_below_zero", "--data-seed", options=("--data-seed", "-5")),
    with_options("alpha_word", "--alpha", "number", options=("--alpha", "ten")),
    with_options("alpha_percent", "--alpha", "number", options=("--alpha", "20%")),
    with_options("alpha_comma", "--alpha", "number", options=("--alpha", "0,2")),
    with_options("strength", "--strength 2", options=("--strength", "2")),
    with_options("norm_power", "--norm-power 3", options=("--norm-power", "3")),
    with_options("unknown_option", "--aplha", options=("--aplha", "0.1")),
    with_options("method", "--method antidot", "did you mean antidote", options=("--method", "antidot")),
    with_options("setting_of_another", "--keep", "no setting of antidote", options=("--keep", "0.5")),
    with_options("preset", "--preset best", "official-code", options=("--preset", "best")),
    with_options("scope", "--scope", "matrix", options=("--scope", "column")),
    with_options("target", "--target", "adapter", options=("--target", "everything")),
    with_options("tokens", "--tokens", "response", options=("--tokens", "answer")),
    with_options("template", "--template", "llama", "alpaca", options=("--template", "llama")),
    with_options("task_match", "--task-match", "fuzzy", "prefix", options=("--task-match", "fuzzy")),
    with_options("judge", "'orakel'", "did you mean 'oracle'", options=("--judge", "orakel")),
    with_options("device", "--device nonsense", "cpu", options=("--device", "nonsense")),
    with_options("device_meta", "--device meta", "cpu", options=("--device", "meta")),
    with_options("device_not_there", "--device cuda:99", "cpu", options=("--device", "cuda:99")),
    with_options("dtype", "--dtype", "bfloat16", options=("--dtype", "int8")),
    with_options("max_new_tokens", "--max-new-tokens", "1", options=("--max-new-tokens", "0")),
    with_options("task_without_name", "--task harmful.jsonl", "name the task", options=("--task", "harmful.jsonl")),
    with_options("task_without_data", "--task sst2=", "name the task", options=("--task", "sst2=")),
    with_options("task_twice", "--task t", "twice", options=("--task", "t=harmful.jsonl", "--task", "t=harmful.jsonl")),
    with_options("evaluation_not_there", "nowhere.csv", options=("--evaluate", "nowhere.csv")),
    with_options("harmless_not_there", "nowhere.csv", options=("--harmless", "nowhere.csv")),
    ("nowhere_to_write", nowhere_to_write, ("--out", "--dry-run")),
    ("no_harmful", no_harmful, ("antidote", "--harmful")),
    ("no_harmful_for_the_match", no_harmful_for_the_match, ("interpolate", "--harmful")),
    ("no_model", lambda place: ["repair"], ("MODEL",)),
    ("unknown_command", lambda place: ["repiar", place.base], ("repiar", "'repair'? see antidote --help")),
    ("two_models", lambda place: [*place.repair(), "second"], ("second",)),
    ("foreign_folder", foreign_folder, ("results", "not a result", "--out")),
    ("file_at_out", file_at_out, ("harmful.jsonl", "not a result", "--out")),
    ("input_at_out", input_at_out, ("adapter", "input", "--out")),
    ("other_settings_at_out", other_settings_at_out, ("finished", "other inputs or settings", "--out")),
    ("other_data_at_out", other_data_at_out, ("finished", "other inputs or settings", "--out")),
    ("file_for_a_parent", file_for_a_parent, ("cannot write", "--out")),
    ("name_too_long", name_too_long, ("cannot write", "--out")),
    ("current_folder", current_folder, ("current folder", "--out")),
    ("apply_to_another", other_adapter("apply"), ("another model", "sha256")),
    ("revert_from_another", other_adapter("revert"), ("another model", "sha256")),
    patch("apply", onto="base", name="apply_to_a_base", words=("base", "another model")),
    patch("apply", onto="finished/model", name="apply_twice", words=("already has this patch",)),
    patch("revert", onto="adapter", name="revert_what_was_not_applied", words=("does not have this patch",)),
    ("truncated_patch", damaged_patch(-10), ("patch.safetensors", "damaged", "sha256")),
    ("patch_cut_in_its_header", damaged_patch(50), ("patch.safetensors", "damaged", "sha256")),
    ("patch_of_format_1", patch_saying("format", value=1), ("patch.safetensors", "another version")),
    (
        "patch_to_the_outside",
        patch_saying("files", 0, "path", value="../outside.safetensors"),
        ("patch.safetensors", "damaged"),
    ),
    ("patch_to_the_parent", patch_saying("files", 0, "path", value=".."), ("patch.safetensors", "another version")),
    (
        "patch_of_a_tensor_outside",
        patch_saying("tensors", 0, "file", value="../outside.safetensors"),
        ("patch.safetensors", "damaged"),
    ),
    ("patch_of_no_tensor", patch_saying("tensors", 0, "key", value="zorbik"), ("zorbik", "damaged")),
    ("patch_of_another_shape", patch_saying("tensors", 0, "shape", value=[4, 64]), ("lora_A", "another model")),
    ("patch_of_other_counts", patch_saying("tensors", 0, "changed", value=1), ("patch.safetensors", "damaged", "lora")),
    (
        "patch_of_another_size",
        patch_saying("files", 0, "size_bytes", value=99999),
        ("another model", "99999 are wanted"),
    ),
    ("patch_on_a_changed_shard", patch_on_a_changed_shard, ("00002-of-00002", "another model", "sha256")),
    ("patch_inside_its_input", patch_inside_its_input, ("patched", "nothing is written into", "--out")),
    (
        "patch_not_there_to_apply",
        lambda place: ["patch", "apply", "nowhere", "--onto", place.adapter, "--out", "new"],
        ("nowhere", "no such patch"),
    ),
    (
        "patch_onto_nowhere",
        lambda place: ["patch", "apply", repaired(place), "--onto", "./nowhere", "--out", "new"],
        ("./nowhere", "no such folder"),
    ),
    ("adapter_as_patch", lambda place: ["patch", "show", place.adapter], ("no such patch",)),
    (
        "weights_as_patch",
        lambda place: ["patch", "show", place.adapter / "adapter_model.safetensors"],
        ("adapter_model.safetensors", "not a patch"),
    ),
    ("text_as_patch", lambda place: ["patch", "show", place.harmful], ("harmful.jsonl", "not a safetensors file")),
    ("patch_not_there", lambda place: ["patch", "show", "nowhere"], ("nowhere", "no such patch")),
    ("patch_into_a_foreign_folder", patch_into_a_foreign_folder, ("base", "not a result", "--out")),
    ("patches_of_different_models", patches_of_different_models, ("different models",)),
    ("evaluate_nothing", evaluate(), ("nothing to ask", "--harmful")),
    ("evaluate_no_file", evaluate("--harmful", "nowhere.csv"), ("nowhere.csv", "no such")),
    ("evaluate_judge", evaluate("--harmful", "harmful.jsonl", "--judge", "nobody"), ("nobody", "refusal-patterns")),
    (
        "evaluate_no_room",
        evaluate("--harmful", "harmful.jsonl", "--max-new-tokens", "1000"),
        ("positions", "--max-new-tokens"),
    ),
]
