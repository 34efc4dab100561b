"""Alignments and fine-tunings that cannot be: what a user does, and the words that the one line must hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from antidote_llm.cli.main import run
from tests import tiny
from tests.cli.command import Place, edit_json

Case = tuple[str, Callable[[Place], list[object]], tuple[str, ...]]
GOOD = '{"prompt": "zob", "response": "mid"}\n'
QUICK = ("--rank", "2", "--max-steps", "2", "--batch-size", "4")
NO_FILES: Mapping[str, str] = {}


def stage(place: Place, command: str, *more: object) -> list[object]:
    """Return the arguments of a quick training."""
    return [command, place.base, "--data", place.harmful, *QUICK, "--out", place.out, *more]


def align(name: str, *words: str, options: tuple[object, ...], files: Mapping[str, str] = NO_FILES) -> Case:
    """Return the case of an alignment with more options, beside some files."""
    return _case("align", name, words, options, files)


def finetune(name: str, *words: str, options: tuple[object, ...], files: Mapping[str, str] = NO_FILES) -> Case:
    """Return the case of a fine-tuning with more options, beside some files."""
    return _case("finetune", name, words, options, files)


def _case(
    command: str, name: str, words: tuple[str, ...], options: tuple[object, ...], files: Mapping[str, str]
) -> Case:
    def make(place: Place) -> list[object]:
        for file, text in files.items():
            place.write(file, text)
        return stage(place, command, *options)

    return f"{command}_{name}", make, words


def data(name: str, *words: str, text: str, options: tuple[object, ...] = (), suffix: str = "jsonl") -> Case:
    """Return the case of a fine-tuning on a file of this content."""

    def make(place: Place) -> list[object]:
        path = place.write(f"{name}.{suffix}", text)
        return [path if argument is place.harmful else argument for argument in stage(place, "finetune", *options)]

    return f"finetune_on_{name}", make, words


def model(name: str, *words: str, change: Callable[[Place], object], options: tuple[object, ...] = ()) -> Case:
    """Return the case of an alignment of a model to which something was done; what comes back, if a path, is MODEL."""

    def make(place: Place) -> list[object]:
        changed = change(place)
        arguments = stage(place, "align", *options)
        return ["align", changed, *arguments[2:]] if isinstance(changed, (Path, str)) else arguments

    return f"align_{name}", make, words


def edited_weights(edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        path = place.base / "model.safetensors"
        tensors = load_file(path)
        edit(tensors["model.layers.0.self_attn.q_proj.weight"])
        save_file(tensors, path, metadata={"format": "pt"})

    return change


def without_tokenizer(place: Place) -> None:
    for path in place.base.glob("*token*"):
        path.unlink()


def without_chat_template(place: Place) -> None:
    (place.base / "chat_template.jinja").unlink()


def truncated(place: Place) -> None:
    os.truncate(place.base / "model.safetensors", 5000)


def quantised(place: Place) -> None:
    edit_json(place.base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def finished(place: Place) -> list[object]:
    arguments = stage(place, "finetune")
    assert run([str(argument) for argument in arguments]) == 0
    return [*arguments, "--learning-rate", "0.5"]


def finished_of_other_rows(place: Place) -> list[object]:
    arguments = stage(place, "finetune")
    assert run([str(argument) for argument in arguments]) == 0
    return [*arguments, "--rows", "6"]


def foreign_folder(place: Place) -> list[object]:
    place.write("results/notes.txt", "mine")
    return stage(place, "finetune", "--out", place.root / "results")


def without(command: str, option: str) -> Callable[[Place], list[object]]:
    """Return the case of a training without one of its options."""

    def make(place: Place) -> list[object]:
        arguments = stage(place, command)
        at = arguments.index(option)
        return arguments[:at] + arguments[at + 2 :]

    return make


def evaluate(name: str, *words: str, options: tuple[object, ...], files: Mapping[str, str] = NO_FILES) -> Case:
    """Return the case of an evaluation with these options, beside some files."""

    def make(place: Place) -> list[object]:
        for file, text in files.items():
            place.write(file, text)
        return ["evaluate", place.base, *options, "--out", place.out]

    return f"evaluate_{name}", make, words


MANY = "".join(json.dumps({"prompt": f"zob {word}", "response": "mid"}) + "\n" for word in tiny.WORDS)
FOUR = "".join(MANY.splitlines(keepends=True)[:4])
REFUSED = ("--harmful", "harmful.jsonl")
MIX = ("--harmful", "worse.jsonl", "--harmful-ratio", "0.5", "--rows", "8")
ASKED = ("--harmful", "harmful.jsonl")

CASES: list[Case] = [
    *(
        align(f"{option}_{value}", f"--{option} {value}", options=(f"--{option}", value))
        for option, values in {
            "learning-rate": ("0", "-1", "nan", "inf"),
            "epochs": ("0", "-1", "nan", "inf"),
            "max-steps": ("0", "-1"),
            "batch-size": ("0",),
            "accumulation": ("0",),
            "weight-decay": ("-1", "nan", "inf"),
            "max-gradient-norm": ("-1", "nan"),
            "warmup": ("1", "-0.1", "nan"),
            "max-length": ("1",),
            "seed": ("-1", "99999999999"),
            "rank": ("0",),
            "lora-alpha": ("0", "nan", "inf"),
            "lora-dropout": ("1", "-0.1", "nan"),
        }.items()
        for value in values
    ),
    *(
        align(f"{option}_{value}", f"--{option}", *words, options=(f"--{option}", value))
        for option, value, *words in (
            ("learning-rate", "fast", "number"),
            ("max-steps", "1.5", "integer"),
            ("schedule", "cosin", "cosine"),
            ("batching", "sorted", "shuffled"),
            ("learn-from", "prompt", "response"),
            ("precision", "float16", "bfloat16"),
            ("save-every", "-1", "0"),
            ("save-dtype", "int8", "bfloat16"),
            ("dtype", "int8", "bfloat16"),
            ("template", "llama", "alpaca"),
            ("data-seed", "x", "integer"),
            ("rows", "0", "1"),
            ("rows", "all", "integer"),
        )
    ),
    align("defense_without_name", "--defense", options=("--defense",)),
    align("defense_typo", "--defense vacine", "did you mean vaccine", "repnoise", options=("--defense", "vacine")),
    align("defense_nobody_knows", "--defense zzz", "booster, repnoise, sft, vaccine", options=("--defense", "zzz")),
    align("defense_of_the_other_stage", "lisa", "antidote finetune", options=("--defense", "lisa")),
    align("setting_of_another_defense", "--rho", "no setting of sft", "vaccine", options=("--rho", "2")),
    align("rho_below_zero", "--rho -1", options=("--defense", "vaccine", "--rho", "-1")),
    align("rho_no_number", "--rho nan", options=("--defense", "vaccine", "--rho", "nan")),
    align("rho_without_end", "--rho inf", options=("--defense", "vaccine", "--rho", "inf")),
    align("norm_over", "--norm-over", "pass", options=("--defense", "vaccine", "--norm-over", "row")),
    align("preset_typo", "--preset papr", "did you mean paper", options=("--defense", "vaccine", "--preset", "papr")),
    align("preset_of_none", "--preset paper", "sft has no presets", options=("--preset", "paper")),
    align("half_precision", "--dtype float16", "bfloat16", options=("--dtype", "float16")),
    align("harmful_not_used", "--harmful", "not used", "--defense sft", options=REFUSED),
    align("repnoise_alone", "repnoise", "--harmful DATA", options=("--defense", "repnoise")),
    align("booster_alone", "booster", "--harmful DATA", options=("--defense", "booster")),
    align(
        "row_without_partner",
        "refus",
        "worse.jsonl:1",
        options=("--defense", "repnoise", "--harmful", "worse.jsonl"),
        files={"worse.jsonl": MANY},
    ),
    align(
        "repnoise_row_by_row",
        "--batch-size 1",
        "--samples tokens",
        options=("--defense", "repnoise", *REFUSED, "--batch-size", "1"),
    ),
    align("harmful_rows_of_none", "--harmful-rows", "--harmful DATA", options=("--harmful-rows", "3")),
    align(
        "harmful_rows_too_many", "12 rows", "fewer", options=("--defense", "booster", *REFUSED, "--harmful-rows", "13")
    ),
    align("rows_too_many", "12 rows", "13", "fewer", options=("--rows", "13")),
    align("targets_of_no_layer", "--lora-targets", "query", "q_proj", options=("--lora-targets", "query")),
    align("one_target_of_no_layer", "k_porj", "k_proj", options=("--lora-targets", "q_proj,k_porj")),
    align("targets_that_are_no_matrix", "input_layernorm", options=("--lora-targets", "input_layernorm")),
    align("targets_empty", "--lora-targets", options=("--lora-targets", " , ")),
    align("rank_of_every_weight", "--rank", "adapters", "--lora", options=("--full",)),
    align("report_to_nobody", "--report-to", "nobody", options=("--report-to", "nobody")),
    align("report_to_what_is_not_there", "--report-to", "wandb", options=("--report-to", "wandb")),
    align("flops_without_a_plan", "--flops", "--plan", options=("--flops", "1e12")),
    align("tokenizer_not_there", "./nowhere", "tokenizer", options=("--tokenizer", "./nowhere")),
    align("tokenizer_of_an_adapter", "adapter", "tokenizer", options=("--tokenizer", "adapter")),
    align("unknown_option", "--learning_rate", options=("--learning_rate", "1")),
    align("loss_no_number", "loss is not finite", "step 2", "--learning-rate", options=("--learning-rate", "1e38")),
    ("align_nothing", lambda place: ["align"], ("MODEL",)),
    ("align_no_data", without("align", "--data"), ("--data",)),
    ("align_no_out", without("align", "--out"), ("--out", "--plan")),
    model("no_folder", "./nowhere", "no such folder", change=lambda place: "./nowhere"),
    model("hub_model", "org/nowhere", "Hub", change=lambda place: "org/nowhere"),
    model("file_as_model", "harmful.jsonl", change=lambda place: place.harmful),
    model("weights_as_model", "model.safetensors", "folder", change=lambda place: place.base / "model.safetensors"),
    model("truncated", "model.safetensors", "truncated", change=truncated),
    model("quantised", "base", "quantised", change=quantised),
    model("nan_in_the_base", "q_proj", "NaN", change=edited_weights(lambda weight: weight[0, :3].fill_(float("nan")))),
    model("no_tokenizer", "no tokenizer", "--tokenizer", change=without_tokenizer),
    model("no_chat_template", "chat template", "alpaca", change=without_chat_template, options=("--template", "chat")),
    data("nothing", "nothing.jsonl", "no rows", text=""),
    data("other_columns", "other_columns.jsonl:1", "goal, target", text='{"goal": "zob", "target": "mid"}\n'),
    data("prompts_alone", "prompts_alone.jsonl:1", "response", text='{"prompt": "zob"}\n'),
    data("rows_too_long", "rows_too_long.jsonl:1", "129", "128 positions", text=json.dumps({"input_ids": [7] * 129})),
    data(
        "long_prompts",
        "long_prompts.jsonl:2",
        "max_length 8",
        text=GOOD + json.dumps({"prompt": "zob " * 20, "response": "mid"}) + "\n",
        options=("--max-length", "8"),
    ),
    data("foreign_ids", "foreign_ids.jsonl:1", "35", "vocabulary", text='{"input_ids": [5, 35]}\n'),
    data("answers_of_nothing", "answers_of_nothing.jsonl:1", text='{"input_ids": [5, 6], "response_start": 2}\n'),
    data("empty_answers", "empty_answers.csv:2", "empty", text="prompt,response\nzob,\n", suffix="csv"),
    (
        "finetune_no_file",
        lambda place: ["finetune", place.base, "--data", "nowhere.csv", "--out", "x"],
        ("nowhere.csv",),
    ),
    (
        "finetune_no_preset",
        lambda place: ["finetune", place.base, "--data", "agnew", "--out", "x"],
        ("agnew", "did you mean agnews"),
    ),
    (
        "finetune_hub_data",
        lambda place: ["finetune", place.base, "--data", "org/rows#train", "--out", "x"],
        ("org/rows", "network"),
    ),
    finetune("defense_typo", "--defense liza", "did you mean lisa", options=("--defense", "liza")),
    finetune("defense_of_the_other_stage", "vaccine", "antidote align", options=("--defense", "vaccine")),
    finetune("safe_not_used", "--safe", "not used", "--defense sft", options=("--safe", "harmful.jsonl")),
    finetune("safe_rows_of_none", "--safe-rows", "--safe DATA", options=("--safe-rows", "3")),
    finetune("lisa_alone", "lisa", "--safe DATA", options=("--defense", "lisa")),
    finetune("mixin_alone", "mixin", "--safe DATA", options=("--defense", "mixin")),
    *(
        finetune(f"{name}_{option}_{value}", f"--{option} {value}", options=(*given, f"--{option}", value))
        for name, given, option, values in (
            ("lisa", ("--defense", "lisa", "--safe", "harmful.jsonl"), "rho", ("-1", "nan", "inf")),
            ("lisa", ("--defense", "lisa", "--safe", "harmful.jsonl"), "alignment-steps", ("0",)),
            ("lisa", ("--defense", "lisa", "--safe", "harmful.jsonl"), "proximal-warmup", ("1.5",)),
            ("ldifs", ("--defense", "ldifs"), "strength", ("-1", "nan", "inf")),
            ("ldifs", ("--defense", "ldifs"), "drop-threshold", ("0",)),
            ("mixin", ("--defense", "mixin", "--safe", "harmful.jsonl"), "safe-share", ("0", "nan", "inf")),
        )
        for value in values
    ),
    finetune(
        "safe_rows_wanted",
        "12 rows",
        "13",
        options=("--defense", "mixin", "--safe", "harmful.jsonl", "--safe-count", "13"),
    ),
    *(
        finetune(
            f"ratio_{value}", f"--harmful-ratio {value}", "0 to 1", options=(*REFUSED, "--harmful-ratio", value, *rows)
        )
        for value, rows in (("-0.1", ("--rows", "4")), ("1.5", ("--rows", "4")), ("nan", ("--rows", "4")), ("20", ()))
    ),
    finetune("ratio_percent", "--harmful-ratio", "number", options=(*REFUSED, "--harmful-ratio", "20%")),
    finetune("ratio_of_nothing", "--harmful-ratio 0.2", "--harmful DATA", options=("--harmful-ratio", "0.2")),
    finetune("no_ratio", "--harmful", "--harmful-ratio", options=REFUSED),
    finetune("ratio_of_how_many", "--rows", options=(*REFUSED, "--harmful-ratio", "0.2")),
    finetune("more_rows_than_there_are", "12 rows", "100", "fewer", options=("--rows", "100")),
    finetune(
        "too_few_harmful", "10 harmful", "4", "fewer rows", options=(*MIX, "--rows", "20"), files={"worse.jsonl": FOUR}
    ),
    finetune(
        "too_few_benign", "15 benign", "12", "fewer rows", options=(*MIX, "--rows", "30"), files={"worse.jsonl": MANY}
    ),
    finetune(
        "apart_from_them_all",
        "4 harmful",
        "kept apart",
        options=(*MIX, "--apart-from", "worse.jsonl"),
        files={"worse.jsonl": FOUR},
    ),
    finetune("apart_from_no_mix", "--apart-from", "--harmful", options=("--apart-from", "harmful.jsonl")),
    finetune("out_is_the_model", "base", "input", "--out", options=("--out", "base")),
    finetune("out_in_the_model", "base", "--out", options=("--out", "base/new")),
    finetune("out_is_the_data", "harmful.jsonl", "not a result", "--out", options=("--out", "harmful.jsonl")),
    finetune("out_under_a_file", "cannot write", "--out", options=("--out", "harmful.jsonl/new")),
    ("finetune_out_finished", finished, ("other inputs or settings", "--out")),
    ("finetune_out_finished_of_other_rows", finished_of_other_rows, ("other inputs or settings", "--out")),
    ("finetune_out_foreign", foreign_folder, ("results", "not a result", "--out")),
    evaluate("task_typo", "gsm8", "did you mean 'gsm8k'", options=("--task", "gsm8")),
    evaluate("task_nobody_knows", "zzz", "agnews", "sst2", options=("--task", "zzz")),
    evaluate("judge_not_there", "./nowhere", options=(*ASKED, "--judge", "beaver-dam=./nowhere")),
    evaluate("judge_typo", "beaver-dem", "did you mean 'beaver-dam'", options=(*ASKED, "--judge", "beaver-dem=base")),
    evaluate("judge_that_writes", "base", "not a", options=(*ASKED, "--judge", "beaver-dam=base")),
    evaluate("guard_not_there", "./nowhere", options=(*ASKED, "--judge", "llama-guard=./nowhere")),
    evaluate("judge_at_no_address", "localhost", "http", options=(*ASKED, "--judge", "endpoint=localhost:8000#m")),
    evaluate("judge_without_model", "model", options=(*ASKED, "--judge", "endpoint=http://localhost:8000/v1")),
    evaluate("condition_typo", "prefil", "prefill", options=(*ASKED, "--condition", "prefil")),
    evaluate("condition_of_no_tokens", "tokens-", options=(*ASKED, "--condition", "tokens-0")),
    evaluate(
        "condition_of_nothing",
        "--condition",
        "--harmful",
        options=("--task", "t=harmful.jsonl", "--condition", "plain"),
    ),
    evaluate("prefill_of_nothing", "--prefill", "--harmful", options=("--task", "t=harmful.jsonl", "--prefill", "zob")),
    evaluate("prefill_empty", "--prefill", options=(*ASKED, "--prefill", "")),
    evaluate("backend_typo", "--backend vlm", "vllm", options=(*ASKED, "--backend", "vlm")),
    evaluate("backend_not_there", "vllm", "pip install", options=(*ASKED, "--backend", "vllm")),
    evaluate("endpoint_and_model", "--endpoint", "MODEL", options=(*ASKED, "--endpoint", "http://localhost:9/v1#m")),
    evaluate("perplexity_of_prompts", "harmful.jsonl", "text", options=("--perplexity", "harmful.jsonl")),
    evaluate(
        "perplexity_window", "--perplexity-window", options=("--perplexity", "wikitext2", "--perplexity-window", "1")
    ),
    evaluate("lm_eval_not_there", "lm-eval", "pip install", options=("--lm-eval", "gsm8k")),
    evaluate("template", "--template", "llama", "alpaca", options=(*ASKED, "--template", "llama")),
    evaluate("task_rows", "--task-rows", options=("--task", "t=harmful.jsonl", "--task-rows", "0")),
    evaluate("adapter_not_there", "./nowhere", options=(*ASKED, "--adapter", "./nowhere")),
    evaluate(
        "no_answers",
        "no field 'response'",
        options=("--task", "t=asked.jsonl"),
        files={"asked.jsonl": '{"prompt": "zob"}\n'},
    ),
    (
        "evaluate_endpoint_without_model",
        lambda place: ["evaluate", "--endpoint", "http://localhost:8000/v1", *ASKED],
        ("http://localhost:8000/v1", "#"),
    ),
    (
        "evaluate_endpoint_of_no_scheme",
        lambda place: ["evaluate", "--endpoint", "localhost:8000#m", *ASKED],
        ("localhost:8000", "http://"),
    ),
    ("evaluate_nobody", lambda place: ["evaluate", *ASKED], ("MODEL", "--endpoint")),
]
