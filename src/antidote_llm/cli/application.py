"""The commands, assembled."""

from __future__ import annotations

from importlib import import_module

import typer

from antidote_llm.cli.grouped_help import GroupedCommand

# Each is a module of this package, and a function or a group of its own commands there.
_COMMANDS = {
    "demo": "From nothing: a model aligned, broken and repaired.",
    "repair": "Repair a LoRA adapter or a full fine-tune.",
    "align": "Teach a model to refuse: stage 1.",
    "finetune": "Fine-tune an aligned model on a user's rows: stage 2.",
    "evaluate": "Measure harm, refusals, coherence and tasks.",
    "compare": "Compare two evaluations: was the repair worth it?",
    "run": "Run a recipe: all three stages from one file.",
    "patch": "Show, apply, revert and compare patches.",
    "miniature": "A made-up world with models that train in a minute.",
}
# The commands that share a module.
_MODULES = {"align": "train", "finetune": "train"}


def application(asked: str | None = None) -> typer.Typer:
    """Assemble the commands.

    Args:
        asked: The name that the command line begins with. Of the other commands only the names are needed, and their
            code, with the seconds that its libraries take to import, is left alone. ``None`` reads all.
    """
    app = typer.Typer(
        name="antidote",
        help="Repairs the safety of fine-tuned language models: in one pass, reversibly, with proof.",
        no_args_is_help=True,
        add_completion=True,
        rich_markup_mode=None,
    )

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", help="Print the version."),
    ) -> None:
        del version

    for name, summary in _COMMANDS.items():
        if asked not in (None, name):
            app.command(name, short_help=summary)(_unread)
            continue
        module = import_module(f"antidote_llm.cli.{_MODULES.get(name, name)}")
        if isinstance(group := getattr(module, "app", None), typer.Typer):
            app.add_typer(group, name=name, short_help=summary)
        else:
            app.command(name, short_help=summary, cls=GroupedCommand)(getattr(module, name))
    return app


def _unread() -> None:
    """Stand for a command that was not asked for."""
