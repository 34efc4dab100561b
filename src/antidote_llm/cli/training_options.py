"""Options that say how a stage is trained."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from antidote_llm.choices import SaveDtype, TemplateName
from antidote_llm.choices import TrainingStage as Stage
from antidote_llm.cli.method_options import model_settings
from antidote_llm.errors import UserError
from antidote_llm.methods import option_name
from antidote_llm.training.defense import defenses
from antidote_llm.training.settings import LoraSettings, TrainingSettings

# The option's name by the field of the settings.
_TRAINING = {name: name for name in TrainingSettings.model_fields if name != "lora"}
_LORA = {"rank": "rank", "alpha": "lora_alpha", "targets": "lora_targets", "dropout": "lora_dropout"}

WholeModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a model.")]
DataOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="DATA",
        help="Rows of prompt and response: a file, a folder, a named data set or a Hub id; map columns as in "
        "file.csv:prompt=goal,response=target, and weigh several files as in file.csv:weight=2. Repeatable.",
    ),
]
RowsOption = Annotated[
    int | None,
    typer.Option("--rows", min=1, help="How many rows in all, each file by its weight; all where not given."),
]
LoraFlag = Annotated[bool, typer.Option("--lora/--full", help="Train a LoRA adapter, or every weight.")]
MergeFlag = Annotated[
    bool, typer.Option("--merge/--no-merge", help="Write the adapter merged into the weights, or by itself.")
]
DefensePreset = Annotated[
    str | None, typer.Option("--preset", help="Named settings of the defense, such as paper or official-code.")
]
SaveEveryOption = Annotated[
    int,
    typer.Option(
        "--save-every", min=0, help="Steps between checkpoints, from which an interrupted run goes on; 0 for none."
    ),
]
ReportToOption = Annotated[
    str | None,
    typer.Option("--report-to", help="Logging integrations of transformers, such as tensorboard,wandb."),
]
TemplateOption = Annotated[
    TemplateName, typer.Option("--template", help="How prompts are put; auto is the chat template where there is one.")
]
SaveDtypeOption = Annotated[
    SaveDtype, typer.Option("--save-dtype", help="Type of the weights that are written; auto is the checkpoint's own.")
]


def training_options(defaults: TrainingSettings) -> list[inspect.Parameter]:
    """Return one option for each setting of a training, and of its adapters."""
    return [*model_settings(defaults, _TRAINING), *model_settings(defaults.lora or LoraSettings(), _LORA)]


def training_from(defaults: TrainingSettings, given: dict[str, Any], *, lora: bool) -> TrainingSettings:
    """Build the settings of a training, and take its options out of those given.

    Raises:
        UserError: A value is outside its range, or an option of adapters is given where every weight is trained.
    """
    chosen = {field: given.pop(name) for field, name in _TRAINING.items() if given.get(name) is not None}
    adapter = {field: given.pop(name) for field, name in _LORA.items() if given.get(name) is not None}
    for name in (*_TRAINING.values(), *_LORA.values()):
        given.pop(name, None)
    if adapter and not lora:
        raise UserError(f"{option_name(_LORA[next(iter(adapter))])} is for adapters: leave it out, or pass --lora")
    if "targets" in adapter:
        names = tuple(name.strip() for name in adapter["targets"].split(",") if name.strip())
        if not names:
            raise UserError("--lora-targets names no layer: pass names such as q_proj,v_proj, or leave it out")
        adapter["targets"] = names
    try:
        kept = (defaults.lora or LoraSettings()).model_dump()
        settings = LoraSettings.model_validate({**kept, **adapter}) if lora else None
        return TrainingSettings.model_validate({**defaults.model_dump(exclude={"lora"}), **chosen, "lora": settings})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        name = _LORA[field] if field in adapter else _TRAINING.get(field, field)
        raise UserError(f"{option_name(name)} {first['input']}: {first['msg'].lower()}") from error


def require_beside(rows: int | None, data: Sequence[str] | None, option: str, of: str) -> None:
    """Refuse a number of rows of data that are not named.

    Raises:
        UserError: Names the option of the data.
    """
    if rows is not None and not data:
        raise UserError(f"{option} {rows}: of what? pass {of} DATA, or leave it out")


def defense_option(stage: Stage) -> typer.models.OptionInfo:
    """Return the option that names a defense, with those there are."""
    others = ", ".join(name for name in defenses(stage) if name != "sft")
    found: typer.models.OptionInfo = typer.Option(
        "--defense", help=f"sft, which is plain fine-tuning, or one of {others}."
    )
    return found


def listed(text: str | None) -> Sequence[str]:
    """Return the parts of a list that is written with commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
