"""The miniature's base and aligned models, cached by seed, architecture and recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from antidote_llm.alignment.sft import sft
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.io.cache import cache_root
from antidote_llm.io.files import sha256_json
from antidote_llm.io.reproducible_arithmetic import rounding
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.miniature.architectures import model_config, untrained_model
from antidote_llm.miniature.recipe import RECIPE_VERSION, Recipe
from antidote_llm.miniature.tokenizer import build_tokenizer
from antidote_llm.miniature.world import World
from antidote_llm.models.config import quiet_transformers
from antidote_llm.training.batches import examples_of
from antidote_llm.training.defense import StageData, run_stage
from antidote_llm.training.trainer import RunOptions, StepReport, train

StageProgress: TypeAlias = Callable[[str, int, int], None]


def kept_models(world: World, arch: str, recipe: Recipe, progress: StageProgress | None = None) -> Path:
    """Return the folder with ``base/`` and ``aligned/``, from the cache or trained now.

    Raises:
        UserError: The architecture is unknown, or the cache cannot be written.
    """
    tokenizer = build_tokenizer()
    manifest: dict[str, Any] = {
        "kind": "miniature models",
        "recipe_version": RECIPE_VERSION,
        "recipe": recipe.model_dump(mode="json"),
        "arch": arch,
        "config": model_config(arch, tokenizer).to_diff_dict(),
        "seed": world.seed,
        "rows_sha256": _rows_sha256([*_pretraining(world, recipe), *_alignment(world, recipe)]),
        "rounding": rounding(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    place = cache_root() / "miniature" / sha256_json(manifest)[:16]
    folder = ResultFolder(place, manifest, sealed=("*",), way="set ANTIDOTE_CACHE to another folder")
    if not folder.finished:
        with folder as staging:
            _make_models(world, arch, recipe, staging, progress)
    return folder.path


def _make_models(world: World, arch: str, recipe: Recipe, folder: Path, progress: StageProgress | None) -> None:
    tokenizer = build_tokenizer()
    seeded = {"seed": world.seed}
    model, renderer = untrained_model(arch, tokenizer, world.seed), Renderer(tokenizer)
    pretraining = recipe.pretraining.model_copy(update=seeded)
    rows = examples_of(renderer.rows(_pretraining(world, recipe)), pretraining)
    train(model, rows, pretraining, running=RunOptions(stage_report(progress, "base")))
    save(model, tokenizer, folder / "base")
    alignment = recipe.alignment.model_copy(update=seeded)
    data = StageData(renderer, _alignment(world, recipe))
    run_stage(model, data, sft, alignment, running=RunOptions(stage_report(progress, "aligned")))
    save(model, tokenizer, folder / "aligned")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model and its tokenizer as a Hugging Face folder."""
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def stage_report(progress: StageProgress | None, stage: str) -> StepReport | None:
    """Return the callback of a training run for its steps; None without progress."""
    return None if progress is None else lambda step, steps: progress(stage, step, steps)


def _pretraining(world: World, recipe: Recipe) -> list[Record]:
    return world.pretraining(recipe.pretraining_rows)


def _alignment(world: World, recipe: Recipe) -> list[Record]:
    return world.alignment(recipe.alignment_rows, recipe.alignment_harmful_share)


def _rows_sha256(records: Sequence[Record]) -> str:
    return sha256_json([[record.prompt, record.response, record.text] for record in records])
