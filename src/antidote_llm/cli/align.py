"""``antidote align``: stage 1, with or without a defense."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from antidote_llm.cli import calibration_data as data_opts
from antidote_llm.cli import model_options as model_opts
from antidote_llm.cli import plan_options as plan_opts
from antidote_llm.cli import training_options as train_opts
from antidote_llm.cli.method_options import with_method_settings
from antidote_llm.cli.stage_command import StageCommand
from antidote_llm.cli.terminal import JsonFlag, Terminal
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.mixing import read_mixed
from antidote_llm.io.processes import is_first_process
from antidote_llm.training.defense import defense_named, defenses
from antidote_llm.training.settings import ALIGNMENT_DEFAULTS


@with_method_settings(defenses("alignment").values(), train_opts.training_options(ALIGNMENT_DEFAULTS))
def align(
    model: train_opts.WholeModelArgument,
    data: train_opts.DataOption,
    out: plan_opts.OutOption = None,
    defense: Annotated[str, train_opts.defense_option("alignment")] = "sft",
    preset: train_opts.DefensePreset = None,
    harmful: Annotated[
        list[str] | None,
        typer.Option(
            "--harmful",
            metavar="DATA",
            help="Harmful requests with harmful answers, for the defenses that learn from them. Repeatable.",
        ),
    ] = None,
    rows: train_opts.RowsOption = None,
    harmful_rows: data_opts.HarmfulRowsOption = None,
    data_seed: data_opts.DataSeedOption = 0,
    lora: train_opts.LoraFlag = True,
    merge: train_opts.MergeFlag = True,
    template: train_opts.TemplateOption = "auto",
    system: data_opts.SystemOption = None,
    save_every: train_opts.SaveEveryOption = 500,
    report_to: train_opts.ReportToOption = None,
    save_dtype: train_opts.SaveDtypeOption = "auto",
    tokenizer: model_opts.TokenizerOption = None,
    dtype: model_opts.DtypeOption = "float32",
    trust_remote_code: model_opts.TrustOption = False,
    plan: plan_opts.PlanFlag = False,
    flops: plan_opts.FlopsOption = None,
    as_json: JsonFlag = False,
    **settings: Any,
) -> None:
    """Align a model: teach it to refuse, by plain fine-tuning or in a way that is harder to undo.

    Example: antidote align my-base --data refusals.jsonl --defense vaccine --out aligned
    """
    terminal = Terminal(as_json, silent=not is_first_process())
    plan_opts.require_speed(flops, plan)
    training = train_opts.training_from(ALIGNMENT_DEFAULTS, settings, lora=lora)
    chosen = defense_named("alignment", defense)
    configured = chosen.configure({name: value for name, value in settings.items() if value is not None}, preset)
    records = read_mixed([DataSpec.parse(spec) for spec in data], rows, data_seed, ("prompt", "response"))
    train_opts.require_beside(harmful_rows, harmful, "--harmful-rows", "--harmful")
    specs = [DataSpec.parse(spec) for spec in harmful or []]
    companion = read_mixed(specs, harmful_rows, data_seed, ("prompt", "response")) if specs else []
    chosen.require_fitting(companion)
    command = StageCommand(
        model=model,
        out=out,
        defense=chosen,
        settings=configured,
        training=training,
        rows=records,
        companion=companion,
        references=(data, harmful or ()),
        harmful_ratio=None,
        merge=merge,
        template=template,
        system=system,
        save_every=save_every,
        report_to=report_to,
        save_dtype=save_dtype,
        tokenizer=tokenizer,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    if plan:
        command.tell(terminal, flops)
    else:
        command.perform(terminal)
