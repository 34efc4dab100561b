from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from antidote_llm.data.presets import PRESETS
from antidote_llm.evaluation.tasks.task import load_task
from antidote_llm.training.settings import TrainingSettings
from antidote_llm.workflows.recipe_file import read_recipe, shipped_recipes
from antidote_llm.workflows.recipe_steps import Step, recipe_steps
from antidote_llm.workflows.spec import command_line
from antidote_llm.workflows.specs import Recipe

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
MODELS = {
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "gemma-7b": "google/gemma-7b",
}
# arXiv 2408.09600, section 5.1 and appendix A, and git-disl/Antidote where the paper is silent (precision, length).
LORA = {"rank": 256, "alpha": 4, "targets": ("q_proj", "k_proj", "v_proj"), "dropout": 0}
SHARED = {"epochs": 20, "batch_size": 5, "weight_decay": 0.1, "precision": "bfloat16", "max_length": 2048, "lora": LORA}
ALIGNMENT = {"learning_rate": 1e-3, "schedule": "cosine", "warmup": 0.1, **SHARED}
FINETUNING = {"learning_rate": 1e-4, "schedule": "constant", "warmup": 0, **SHARED}


@pytest.fixture(params=MODELS)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return read_recipe(f"paper/{request.param}")


def words(step: Step) -> list[str]:
    return shlex.split(command_line(step.spec))


def settings_of(training: TrainingSettings, names: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in training.model_dump().items() if name in names}


def test_every_recipe_is_found_by_its_name() -> None:
    assert shipped_recipes() == sorted(f"paper/{name}" for name in MODELS)
    assert all(read_recipe(str(path)) == read_recipe(f"paper/{path.stem}") for path in PAPER.glob("*.yaml"))


def test_the_models_are_those_of_the_paper(recipe: Recipe) -> None:
    assert recipe.model == MODELS[recipe.name]


def test_alignment_is_the_papers(recipe: Recipe) -> None:
    stage = recipe.align
    assert (stage.data, stage.rows, stage.defense) == (("beavertails-safe",), 5000, "sft")
    assert settings_of(stage.training, ALIGNMENT) == ALIGNMENT


def test_fine_tuning_is_the_papers(recipe: Recipe) -> None:
    stage = recipe.finetune
    assert (stage.data, stage.rows, stage.harmful_ratio) == (("sst2",), 5000, 0.2)
    assert (stage.harmful, stage.defense) == (("beavertails-unsafe",), "sft")
    assert settings_of(stage.training, FINETUNING) == FINETUNING


def test_the_repair_is_the_papers(recipe: Recipe) -> None:
    stage = recipe.repair
    assert (stage.method, stage.settings, stage.harmful_rows) == ("antidote", {"alpha": 0.1}, 2000)


def test_the_evaluation_is_the_papers(recipe: Recipe) -> None:
    stage = recipe.evaluate
    assert (stage.harmful, stage.harmful_rows) == (("beavertails-test",), 1000)
    # The paper does not ask for over-refusal: we never measure harm without it.
    assert stage.harmless == "xstest-safe"
    assert (stage.judge, stage.max_new_tokens, stage.tasks) == (("beaver-dam",), 512, ("sst2",))
    task = load_task("sst2")
    assert task is not None and task.rows == 872


def test_the_data_have_names_that_are_known(recipe: Recipe) -> None:
    named = [*recipe.align.data, *recipe.finetune.data, *recipe.finetune.harmful, *recipe.repair.harmful]
    assert {*named, *recipe.evaluate.harmful} <= PRESETS.keys()


def test_a_recipe_is_a_readable_script(recipe: Recipe) -> None:
    steps = recipe_steps(recipe, Path("out"), ("align", "finetune", "repair", "evaluate"), ())
    assert [(step.stage, step.name) for step in steps] == [
        ("align", "aligned"),
        ("finetune", "attacked"),
        ("repair", "repaired"),
        *(("evaluate", name) for name in ("aligned", "attacked", "repaired")),
    ]
    assert words(steps[0])[:3] == ["antidote", "align", recipe.model]
    assert words(steps[2])[1:3] == ["repair", "out/aligned/model"]
    assert "--adapter out/tuned/model" in command_line(steps[2].spec)
    apart = "--apart-from out/data/realign.jsonl --apart-from out/data/harmful_test.jsonl"
    assert apart in command_line(steps[1].spec)


def test_a_full_fine_tune_is_repaired_against_the_aligned_model() -> None:
    recipe = read_recipe("paper/llama2-7b", ["finetune.training.lora=null"])
    steps = recipe_steps(recipe, Path("out"), ("finetune", "repair", "evaluate"), ())
    assert "--full" in words(steps[0])
    assert words(steps[1])[1:3] == ["repair", "out/tuned/model"]
    assert "--aligned out/aligned/model" in command_line(steps[1].spec)
    assert [step.spec.model for step in steps[2:]] == ["out/tuned/model", "out/repaired/model"]


def test_values_can_be_set_over_the_files() -> None:
    settings = ["finetune.defense=lisa", "finetune.safe=[beavertails-safe]", "finetune.settings.rho=1e-1", "seed=7"]
    recipe = read_recipe("paper/llama2-7b", [*settings, "align.training.lora.rank=8", "repair.settings={alpha: 0.2}"])
    assert (recipe.finetune.defense, recipe.finetune.safe) == ("lisa", ("beavertails-safe",))
    assert recipe.align.training.lora is not None
    assert (recipe.align.training.lora.rank, recipe.align.training.lora.alpha) == (8, 4)
    assert recipe.align.training.seed == recipe.finetune.training.seed == 7
    assert recipe.repair.settings == {"alpha": 0.2}
    found = words(recipe_steps(recipe, Path("out"), ("finetune",), ())[0])
    assert found[found.index("--rho") + 1] == "1e-1"


def test_what_is_left_out_is_the_commands_own_default(tmp_path: Path) -> None:
    content = yaml.safe_load((PAPER / "llama2-7b.yaml").read_text())
    for stage in ("align", "finetune"):
        del content[stage]["training"]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(content))
    recipe = read_recipe(str(tmp_path / "short.yaml"))
    own = {"learning_rate", "schedule", "warmup", "epochs", "batch_size", "weight_decay", "lora"}
    for training, wanted in ((recipe.align.training, ALIGNMENT), (recipe.finetune.training, FINETUNING)):
        assert settings_of(training, dict.fromkeys(own)) == {name: wanted[name] for name in own}
