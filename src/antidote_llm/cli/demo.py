"""``antidote demo``: the three stages and the repair on the miniature, from nothing, with the report."""

from __future__ import annotations

from antidote_llm.cli.options import command_from, json_flag
from antidote_llm.cli.terminal import Terminal, say_loading
from antidote_llm.workflows.specs import DemoSpec


def _demo(spec: DemoSpec, *, as_json: bool) -> None:
    """Watch a model learn, be aligned, be broken and be repaired: on a made-up world, from nothing, in minutes.

    Example: antidote demo --out runs/demo
    """
    terminal = Terminal(as_json)
    say_loading(terminal)
    from antidote_llm.cli.result_tables import demo_tables
    from antidote_llm.workflows.demo import run_demo

    result = run_demo(spec, terminal)
    terminal.result(result.value, *demo_tables(result))


demo = command_from(DemoSpec, _demo, (json_flag(),))
