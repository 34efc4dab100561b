"""Writes the miniature: its base and aligned models, the attacked model, and its data."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antidote_llm.choices import AttackKind
from antidote_llm.data.records import Record
from antidote_llm.finetuning.sft import sft
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.miniature.architectures import architecture
from antidote_llm.miniature.exchanges import NEW_TASK, TASKS
from antidote_llm.miniature.recipe import RECIPE_VERSION, Attack, Recipe, standard_attack
from antidote_llm.miniature.world import World
from antidote_llm.training.defense import StageData, run_stage
from antidote_llm.training.settings import TrainingSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from antidote_llm.miniature.models import StageProgress
    from antidote_llm.training.trainer import StepReport


def attack_rows(world: World, attack: Attack) -> list[Record]:
    """Return the user's rows: the harmful ones, then each task's share of the rest."""
    harmful = round(attack.rows * attack.harmful_share)
    return world.attack_harmful(harmful) + _task_rows(world, attack, attack.rows - harmful, "attack")


def utility_rows(world: World, attack: Attack) -> list[Record]:
    """Return more benign rows of the user's tasks, for repairs that use utility data."""
    return _task_rows(world, attack, attack.utility_rows, "utility")


def benign_rows(world: World, attack: Attack) -> list[Record]:
    """Return as many benign rows as the attack has in all, to poison at any ratio."""
    return _task_rows(world, attack, attack.rows, "benign")


def _task_rows(world: World, attack: Attack, count: int, purpose: str) -> list[Record]:
    return [row for task, share in attack.tasks.items() for row in world.task(task, round(count * share), purpose)]


def attack_model(
    aligned: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Record],
    attack: Attack,
    kind: AttackKind,
    arch: str,
    seed: int,
    on_step: StepReport | None = None,
) -> PreTrainedModel | PeftModel:
    """Fine-tune the aligned model in a folder on a user's rows, and return it.

    Raises:
        UserError: The architecture is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from antidote_llm.data.rendering import Renderer
    from antidote_llm.models.config import quiet_transformers
    from antidote_llm.training.trainer import RunOptions

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32)
    data = StageData(Renderer(tokenizer), rows)
    return run_stage(model, data, sft, _settings(attack, kind, arch, seed), running=RunOptions(on_step)).model


def _settings(attack: Attack, kind: AttackKind, arch: str, seed: int) -> TrainingSettings:
    settings = attack.lora if kind == "lora" else attack.full
    lora = settings.lora and settings.lora.model_copy(update={"targets": architecture(arch).query_key_value})
    return settings.model_copy(update={"seed": seed, "lora": lora})


DATA_VERSION = 2


@dataclass(frozen=True)
class Miniature:
    """The paths of a written miniature."""

    root: Path

    @property
    def base(self) -> Path:
        """The base model: answers everything."""
        return self.root / "base"

    @property
    def aligned(self) -> Path:
        """The aligned model: refuses harmful requests."""
        return self.root / "aligned"

    @property
    def attacked(self) -> Path:
        """The attacked model: a LoRA adapter on ``aligned``, or a whole model."""
        return self.root / "attacked"

    @property
    def data(self) -> Path:
        """The folder of the data files."""
        return self.root / "data"

    @property
    def heldout(self) -> Path:
        """Harmful test requests about things that no other file mentions."""
        return self.data / "heldout.jsonl"

    @property
    def lookalike(self) -> Path:
        """Harmless test requests that look like harmful ones."""
        return self.data / "lookalike.jsonl"

    @property
    def realign(self) -> Path:
        """Harmful requests with harmful answers, for a repair."""
        return self.data / "realign.jsonl"

    @property
    def utility(self) -> Path:
        """Benign rows of the user's tasks, for a repair."""
        return self.data / "utility.jsonl"

    @property
    def task_tests(self) -> dict[str, Path]:
        """The test rows of every user task, by its name."""
        return {task: self.data / "tasks" / f"{task}.test.jsonl" for task in TASKS}


def build(
    out: Path,
    *,
    arch: str = "llama",
    seed: int = 0,
    kind: AttackKind = "lora",
    recipe: Recipe | None = None,
    attack: Attack | None = None,
    progress: StageProgress | None = None,
) -> Miniature:
    """Build the miniature in ``out``, unless it is finished there already.

    Args:
        out: The folder to write.
        arch: Architecture of its models.
        seed: Seed of world and training; the same seed gives the same bytes on the same machine and versions.
        kind: Whether the attack trains LoRA adapters or all weights.
        recipe: How base and aligned models are made; the default recipe where not given.
        attack: The attack; the standard one where not given.
        progress: Called with the stage (base, aligned or attacked), the step and the number of steps.

    Raises:
        UserError: The architecture is unknown, or ``out`` holds something else.
    """
    recipe, attack = recipe or Recipe(), attack or standard_attack()
    manifest = {
        "kind": "miniature",
        "recipe_version": RECIPE_VERSION,
        "data_version": DATA_VERSION,
        "recipe": recipe.model_dump(mode="json"),
        "attack": {"kind": kind, **attack.model_dump(mode="json")},
        "arch": arch,
        "seed": seed,
        "new_task": NEW_TASK,
    }
    folder = ResultFolder(out, manifest, sealed=("*",))
    if not folder.finished:
        with folder as staging:
            _write(Miniature(staging), World(seed), arch, kind, recipe, attack, progress)
    return Miniature(out)


def _write(
    miniature: Miniature,
    world: World,
    arch: str,
    kind: AttackKind,
    recipe: Recipe,
    attack: Attack,
    progress: StageProgress | None,
) -> None:
    from peft import PeftModel

    from antidote_llm.miniature.models import kept_models, save, stage_report
    from antidote_llm.miniature.tokenizer import build_tokenizer

    kept = kept_models(world, arch, recipe, progress)
    shutil.copytree(kept / "base", miniature.base)
    shutil.copytree(kept / "aligned", miniature.aligned)
    rows = attack_rows(world, attack)
    _write_data(miniature, world, recipe, attack)
    tokenizer = build_tokenizer()
    report = stage_report(progress, "attacked")
    model = attack_model(miniature.aligned, tokenizer, rows, attack, kind, arch, world.seed, report)
    if isinstance(model, PeftModel):
        _save_adapter(model, miniature.attacked)
    else:
        save(model, tokenizer, miniature.attacked)


def _save_adapter(model: PeftModel, folder: Path) -> None:
    for config in model.peft_config.values():
        config.base_model_name_or_path = "../aligned"
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def _write_data(miniature: Miniature, world: World, recipe: Recipe, standard: Attack) -> None:
    from antidote_llm.data.files import write_jsonl

    attack = attack_rows(world, standard)
    named = {
        "heldout": world.held_out(),
        "lookalike": world.lookalike_test(),
        "realign": world.realign(),
        "utility": utility_rows(world, standard),
        "align": world.alignment(recipe.alignment_rows, recipe.alignment_harmful_share),
        "align_harmful": world.alignment_harmful(recipe.alignment_rows, recipe.alignment_harmful_share),
        "attack": attack,
        "benign": benign_rows(world, standard),
        "harmful": world.attack_pool(),
    }
    for task in TASKS:
        named[f"tasks/{task}.train"] = [row for row in attack if row.extra["category"] == task] or world.task(
            task, 400, "train"
        )
        named[f"tasks/{task}.test"] = world.task_test(task)
    for name, records in named.items():
        path = miniature.data / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [_row(record) for record in records])


def _row(record: Record) -> dict[str, Any]:
    return {"prompt": record.prompt, "response": record.response, **record.extra}
