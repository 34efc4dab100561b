"""``antidote repair``: repairs a fine-tuned model, proves it, and keeps what undoes it."""

from __future__ import annotations

from antidote_llm.cli.options import command_from, flag, json_flag
from antidote_llm.cli.terminal import Terminal, say_loading
from antidote_llm.io.processes import is_first_process
from antidote_llm.workflows.result import required_out
from antidote_llm.workflows.specs import RepairSpec


def _repair(spec: RepairSpec, *, list_sites: bool, as_json: bool) -> None:
    """Repair a LoRA adapter or a full fine-tune: write the repaired model, what undoes it, the record and a report.

    Example: antidote repair my-model --adapter my-adapter --harmful harm.csv:prompt=goal,response=target --out fixed
    """
    terminal = Terminal(as_json, silent=not is_first_process())
    if not (spec.dry_run or list_sites):
        required_out(spec.out, "dry_run")
    say_loading(terminal)
    from antidote_llm.cli.result_tables import repair_tables, target_tables, target_value
    from antidote_llm.workflows.repair import find_target, run_repair

    if list_sites:
        target = find_target(spec, terminal)
        terminal.result(target_value(target), *target_tables(target))
    elif (result := run_repair(spec, terminal)) is not None:
        terminal.result(result.json_value(), *repair_tables(result))


_LIST_SITES = flag("list_sites", "Print the matrices that would be edited, and do nothing.", "target")
repair = command_from(RepairSpec, _repair, (_LIST_SITES, json_flag()))
