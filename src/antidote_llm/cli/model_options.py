"""Options that every command with a model shares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from antidote_llm.choices import DtypeName
from antidote_llm.cli.tables import tensors
from antidote_llm.cli.terminal import Terminal
from antidote_llm.errors import UserError
from antidote_llm.io.strict_json import is_utf8
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.memory_budget import MemoryBudget

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hub id of a model, or of an adapter.")]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="DIR",
        help="LoRA adapter on MODEL. Repeatable: the last is meant, those before it were on MODEL when it was trained.",
    ),
]
TokenizerOption = Annotated[
    str | None, typer.Option("--tokenizer", metavar="DIR", help="Tokenizer, where the model's folder has none.")
]
DtypeOption = Annotated[
    DtypeName, typer.Option("--dtype", help="Type to load weights in; auto is the checkpoint's own.")
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="cpu, cuda, cuda:1 …; auto takes a GPU where there is one; spread deals the layers out over all GPUs.",
    ),
]
HardLinksOption = Annotated[
    bool, typer.Option("--hard-links", help="Link weight files that do not change instead of copying them.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
]


def require_openable(out: Path) -> None:
    """Refuse a place at which libraries could not open the models that are written there.

    Raises:
        UserError: Its name is not UTF-8.
    """
    if not is_utf8(os.path.realpath(out)):
        raise UserError(
            f"{out}: its name, or that of a folder above it, is not UTF-8, and no model can be opened there: "
            "choose another --out"
        )


def opened(
    terminal: Terminal,
    model: str,
    adapters: list[str] | None,
    tokenizer: str | None,
    dtype: DtypeName,
    device: str,
    trust_remote_code: bool,
    *,
    layers_on_disk: bool | None = False,
    room: MemoryBudget | None = None,
) -> LoadedModel:
    """Open the model that the options name, and say which."""
    adapters = adapters or []
    terminal.say(f"opening {model}" + "".join(f" with adapter {name}" for name in adapters))
    found = load_model(
        model,
        adapters[-1] if adapters else None,
        beneath=adapters[:-1],
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        layers_on_disk=layers_on_disk,
        room=room,
    )
    if left_out := found.left_out:
        more = " …" if len(left_out) > 1 else ""
        terminal.warn(
            f"{found.base.reference}: {type(found.causal_model).__name__} has no place for {tensors(len(left_out))} of "
            f"its files, which are left out ({left_out[0]}{more})"
        )
    return found
