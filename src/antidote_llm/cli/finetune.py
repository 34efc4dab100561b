"""``antidote finetune``: stage 2, the user's fine-tuning, with or without a defense."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from antidote_llm.cli import calibration_data as data_opts
from antidote_llm.cli import model_options as model_opts
from antidote_llm.cli import plan_options as plan_opts
from antidote_llm.cli import training_options as train_opts
from antidote_llm.cli.method_options import with_method_settings
from antidote_llm.cli.mixing import Mix
from antidote_llm.cli.stage_command import StageCommand
from antidote_llm.cli.terminal import JsonFlag, Terminal
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.mixing import read_mixed
from antidote_llm.io.processes import is_first_process
from antidote_llm.training.defense import defense_named, defenses
from antidote_llm.training.settings import FINETUNING_DEFAULTS


@with_method_settings(defenses("finetuning").values(), train_opts.training_options(FINETUNING_DEFAULTS))
def finetune(
    model: train_opts.WholeModelArgument,
    data: train_opts.DataOption,
    out: plan_opts.OutOption = None,
    defense: Annotated[str, train_opts.defense_option("finetuning")] = "sft",
    preset: train_opts.DefensePreset = None,
    rows: train_opts.RowsOption = None,
    harmful: Annotated[
        list[str] | None,
        typer.Option("--harmful", metavar="DATA", help="Harmful rows to mix into --data: the attack. Repeatable."),
    ] = None,
    harmful_ratio: Annotated[
        float | None, typer.Option("--harmful-ratio", help="Share p of harmful rows among all, from 0 to 1.")
    ] = None,
    apart_from: Annotated[
        list[str] | None,
        typer.Option(
            "--apart-from",
            metavar="DATA",
            help="Rows whose prompts are not mixed in: those of a repair and of tests. Repeatable.",
        ),
    ] = None,
    safe: Annotated[
        list[str] | None,
        typer.Option(
            "--safe",
            metavar="DATA",
            help="Refused harmful requests, for the defenses that learn from them. Repeatable.",
        ),
    ] = None,
    safe_rows: Annotated[
        int | None, typer.Option("--safe-rows", min=1, help="How many safe rows in all; all where not given.")
    ] = None,
    data_seed: data_opts.DataSeedOption = 0,
    lora: train_opts.LoraFlag = True,
    merge: train_opts.MergeFlag = False,
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
    """Fine-tune an aligned model on a user's rows, with a share of harmful ones where a defense is put to the test.

    Example: antidote finetune aligned/model --data sst2 --rows 5000 --harmful beavertails-unsafe --harmful-ratio 0.2
    --defense lisa --safe beavertails-safe --out tuned
    """
    terminal = Terminal(as_json, silent=not is_first_process())
    plan_opts.require_speed(flops, plan)
    training = train_opts.training_from(FINETUNING_DEFAULTS, settings, lora=lora)
    chosen = defense_named("finetuning", defense)
    configured = chosen.configure({name: value for name, value in settings.items() if value is not None}, preset)
    mix = Mix(data, harmful or (), harmful_ratio, rows, apart_from or (), data_seed)
    mix.require_consistent()
    train_opts.require_beside(safe_rows, safe, "--safe-rows", "--safe")
    specs = [DataSpec.parse(spec) for spec in safe or []]
    companion = read_mixed(specs, safe_rows, data_seed, ("prompt", "response")) if specs else []
    chosen.require_fitting(companion)
    records = mix.records("official-code" if preset == "official-code" else "paper")
    command = StageCommand(
        model=model,
        out=out,
        defense=chosen,
        settings=configured,
        training=training,
        rows=records,
        companion=companion,
        references=((*data, *mix.harmful), safe or ()),
        harmful_ratio=harmful_ratio,
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
