"""``antidote repair``: repairs a fine-tuned model, proves it, and keeps what undoes it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.choices import TokenPolicy
from antidote_llm.cli import calibration_data as data_opts
from antidote_llm.cli import engine_options as engine_opts
from antidote_llm.cli import model_options as model_opts
from antidote_llm.cli import suite_options as suite_opts
from antidote_llm.cli import target_options as target_opts
from antidote_llm.cli.examining import examination_from
from antidote_llm.cli.method_options import with_method_settings
from antidote_llm.cli.prompts_said import say_prompts
from antidote_llm.cli.repair_job import RepairJob
from antidote_llm.cli.terminal import JsonFlag, Terminal
from antidote_llm.errors import UserError
from antidote_llm.io.processes import is_first_process
from antidote_llm.io.resources import Stopwatch
from antidote_llm.models.target import resolve_target
from antidote_llm.repairs.edits import needs_harmful
from antidote_llm.repairs.method import method_named, methods


@with_method_settings(methods().values())
def repair(
    model: model_opts.ModelArgument,
    adapter: model_opts.AdapterOption = None,
    harmful: data_opts.HarmfulOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes.")] = None,
    method: Annotated[str, typer.Option("--method", help="Repair method.")] = "antidote",
    preset: Annotated[
        str | None, typer.Option("--preset", help="Named settings of the method: paper or official-code.")
    ] = None,
    aligned: target_opts.AlignedOption = None,
    target: target_opts.TargetOption = "auto",
    sites: target_opts.SitesOption = "all",
    restore_outside: target_opts.RestoreOutsideOption = False,
    list_sites: target_opts.ListSitesOption = False,
    harmful_rows: data_opts.HarmfulRowsOption = None,
    data_seed: data_opts.DataSeedOption = 0,
    calibration: data_opts.CalibrationOption = "all",
    tokens: Annotated[TokenPolicy, typer.Option("--tokens", help="Which tokens of a harmful row count.")] = "all",
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            metavar="DATA|none",
            help="Harmful requests to judge before and after; by default a fifth of --harmful is kept apart for it.",
        ),
    ] = None,
    harmless: suite_opts.HarmlessOption = None,
    task: suite_opts.TaskOption = None,
    judge: suite_opts.JudgeOption = None,
    template: suite_opts.TemplateOption = "auto",
    system: data_opts.SystemOption = None,
    thinking: data_opts.ThinkingOption = False,
    max_new_tokens: suite_opts.MaxNewTokensOption = 64,
    task_match: suite_opts.TaskMatchOption = "exact",
    show_answers: Annotated[
        bool, typer.Option("--show-answers", help="Show the models' answers in the report instead of redacting them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change, and write nothing.")] = False,
    engine: engine_opts.EngineOption = "auto",
    max_ram: engine_opts.MaxRamOption = None,
    max_vram: engine_opts.MaxVramOption = None,
    max_disk: engine_opts.MaxDiskOption = None,
    patch_only: engine_opts.PatchOnlyFlag = False,
    hard_links: model_opts.HardLinksOption = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Collect statistics anew and do not keep them.")] = False,
    tokenizer: model_opts.TokenizerOption = None,
    dtype: model_opts.DtypeOption = "auto",
    device: model_opts.DeviceOption = "auto",
    trust_remote_code: model_opts.TrustOption = False,
    as_json: JsonFlag = False,
    **settings: Any,
) -> None:
    """Repair a LoRA adapter or a full fine-tune: write the repaired model, what undoes it, the record and a report.

    Example: antidote repair my-model --adapter my-adapter --harmful harm.csv:prompt=goal,response=target --out fixed
    """
    terminal, stopwatch = Terminal(as_json, silent=not is_first_process()), Stopwatch()
    how = engine_opts.Engine.of(engine, max_ram, max_vram, max_disk)
    open_it = partial(
        model_opts.opened,
        *(terminal, model, adapter, tokenizer, dtype, device, trust_remote_code),
        layers_on_disk=how.layers_on_disk,
        room=how.room,
    )
    if list_sites:
        target_opts.show(terminal, resolve_target(open_it(), target, aligned, sites))
        return
    if out is None and not dry_run:
        raise UserError("nowhere to write to: pass --out DIR, or --dry-run")
    chosen = method_named(method)
    configured = chosen.configure({name: value for name, value in settings.items() if value is not None}, preset)
    records = data_opts.read_calibration(harmful, harmful_rows, data_seed)
    asking = suite_opts.settings_from(template, max_new_tokens, task_match, system, thinking)
    records, examination = examination_from(records, evaluate, harmless, task, judge, asking)
    if out is not None and examination is not None:
        model_opts.require_openable(out)
    if patch_only and examination is not None:
        raise UserError("--patch-only writes no model that could be judged: pass --evaluate none")
    with stopwatch.step("open"):
        opened = open_it()
        found_target = resolve_target(opened, target, aligned, sites)
    if examination is not None:
        engine_opts.require_in_memory(opened, "answers to judge", "pass --evaluate none")
    asked = None if examination is None else examination.asking(opened)
    target_opts.warn(terminal, found_target, restore_outside)
    learnt = records if harmful and needs_harmful(chosen, configured) else []
    judged = [] if examination is None else [row for part in examination.suite.parts().values() for row in part]
    prompts = say_prompts(terminal, opened, asking.renderer(opened.tokenizer), [*learnt, *judged])
    data = None
    if harmful and needs_harmful(chosen, configured):
        with stopwatch.step("own answers"):
            data = data_opts.harmful_data(terminal, opened, harmful, records, asking, cache=not no_cache)
    job = RepairJob(
        terminal=terminal,
        stopwatch=stopwatch,
        opened=opened,
        target=found_target,
        restore_outside=restore_outside,
        method=chosen,
        settings=configured,
        harmful=data,
        prompts=prompts,
        calibration=CalibrationSettings(tokens=tokens),
        until_settled=calibration == "auto",
        examination=examination,
        asking=asked,
        engine=how,
        patch_only=patch_only,
        hard_links=hard_links,
        cache=not no_cache,
        show_answers=show_answers,
    )
    if out is None or dry_run:
        job.rehearse()
    else:
        job.perform(out)
