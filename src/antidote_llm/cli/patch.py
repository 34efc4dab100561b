"""``antidote patch``: the patch as a thing of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from antidote_llm.cli.model_options import HardLinksOption
from antidote_llm.cli.terminal import JsonFlag, Terminal
from antidote_llm.errors import UserError, listed
from antidote_llm.io.files import sha256_file, sha256_json
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.models.checkpoint import locate
from antidote_llm.models.checkpoint_files import CODE_SUFFIX, is_document
from antidote_llm.patching.apply import Direction, require_fits, require_unchanged_files, transform
from antidote_llm.patching.diff import diff
from antidote_llm.patching.patch import Patch, read_patch
from antidote_llm.patching.shipping import copy_checkpoint, require_unchanged, shipped_sha256, shipped_stamps, shipping

app = typer.Typer(
    help="Show, apply, revert and compare patches.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)

PatchArgument = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch.safetensors, or the folder of a repair.")]
OntoOption = Annotated[
    str,
    typer.Option("--onto", metavar="REF", help="Folder or Hub id of the checkpoint or adapter; it is not modified."),
]
_UNSEALED = "the patch itself: of format 2, which holds no sha256 of itself: not verified"
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result goes.")]


@app.command("show")
def show(patch: PatchArgument, as_json: JsonFlag = False) -> None:
    """Say what a patch changes and what it applies to.

    Example: antidote patch show repaired
    """
    terminal = Terminal(as_json)
    opened = read_patch(patch)
    description = opened.description
    table = Table(
        title=f"{description.recipe.get('method')} on {description.recipe.get('target')}", title_justify="left"
    )
    table.add_column("tensor", overflow="fold")
    for heading in ("shape", "kept as", "changed", "share"):
        table.add_column(heading, justify="right" if heading in ("changed", "share") else "left", no_wrap=True)
    for record in description.tensors:
        shape = " x ".join(map(str, record.shape))
        share = f"{100 * record.changed / max(record.entries, 1):.2f} %"
        table.add_row(record.key, shape, record.encoding, f"{record.changed:,}", share)
    lines = []
    for file in description.files:
        lines.append(f"{file.path}  {file.size_bytes:,} bytes")
        lines += [f"  before {file.sha256_before}", f"  after  {file.sha256_after}"]
    same = len(description.unchanged)
    lines.append(f"unchanged: {same} files, which the patch knows by their sha256" if same else "unchanged: unknown")
    lines.append(f"the patch itself: sha256 {opened.sha256}, verified" if opened.sha256 else _UNSEALED)
    terminal.result({**description.model_dump(mode="json"), "sha256": opened.sha256}, table, *lines)


@app.command("apply")
def apply(
    patch: PatchArgument,
    onto: OntoOption,
    out: OutOption,
    hard_links: HardLinksOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a copy of a checkpoint with a patch put on.

    Example: antidote patch apply repaired --onto my-adapter --out patched
    """
    _transformed(patch, onto, out, "apply", hard_links, Terminal(as_json))


@app.command("revert")
def revert(
    patch: PatchArgument,
    onto: OntoOption,
    out: OutOption,
    hard_links: HardLinksOption = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a copy of a repaired checkpoint with the patch taken off: the original bytes.

    Example: antidote patch revert repaired --onto repaired/model --out original
    """
    _transformed(patch, onto, out, "revert", hard_links, Terminal(as_json))


def _transformed(path: Path, onto: str, out: Path, direction: Direction, hard_links: bool, terminal: Terminal) -> None:
    patch = read_patch(path)
    folder = locate(onto, with_code=_has_code(patch))
    require_fits(patch, folder)
    stamps, found = shipped_stamps(folder), shipping(folder)
    files = {
        file.path: file.sha256_after if direction == "apply" else file.sha256_before for file in patch.description.files
    }
    unknown_code = _unknown_code(patch, onto, found.code)
    sha256 = shipped_sha256(folder, stamps.keys() - files.keys() - unknown_code)
    remarks = require_unchanged_files(patch, folder, sha256)
    left_out = [*found.left_out, *sorted(unknown_code)]
    digest = sha256_json(patch.description.model_dump(mode="json"))
    copied = {name: value for name, value in sha256.items() if not is_document(name)}
    manifest = {"kind": f"patch {direction}", "patch": digest, "files": files, "copied": copied}
    result = ResultFolder(out, manifest, manifest_at=".antidote.json", inputs=[folder])
    finished_before = result.finished
    if finished_before:
        _require_as_finished(out, {**files, **copied})
        terminal.say(f"{out} is finished already: nothing was done")
    else:
        with result as staging:
            transform(patch, folder, staging, direction)
            copy_checkpoint(folder, staging, leave_out=frozenset({*files, *unknown_code}), hard_links=hard_links)
            require_unchanged(folder, stamps)
    for remark in remarks:
        terminal.warn(remark)
    verified = _verified(patch, len(files), len(copied))
    lines = [str(out), *(f"  {name}  sha256 {value}" for name, value in files.items()), *_left_out(left_out), verified]
    value = {"out": str(out), "finished_before": finished_before, **manifest, "left_out": left_out, "remarks": remarks}
    terminal.result(value, *lines)


def _has_code(patch: Patch) -> bool:
    return any(file.path.endswith(CODE_SUFFIX) for file in patch.description.unchanged)


def _unknown_code(patch: Patch, onto: str, code: Collection[str]) -> set[str]:
    """Return the code in the Hub's cache of a model that was repaired without its code: it may be fetched since."""
    from_hub = not Path(onto).expanduser().is_dir()
    return set(code) if from_hub and patch.sha256 is not None and not _has_code(patch) else set()


def _left_out(names: Sequence[str]) -> list[str]:
    return [f"left out, because no class loads it: {listed(names)}"] if names else []


def _verified(patch: Patch, changed: int, same: int) -> str:
    """Say which hashes were compared."""
    if patch.sha256 is None:
        return f"verified by sha256: {changed} changed files; not the patch itself, nor any other file"
    return f"verified by sha256: the patch itself, {changed} changed and {same} unchanged files"


def _require_as_finished(out: Path, files: Mapping[str, str]) -> None:
    for name, sha256 in files.items():
        if not (out / name).is_file() or sha256_file(out / name) != sha256:
            raise UserError(f"{out} has been changed since it was finished ({name}): remove it or choose another --out")


@app.command("diff")
def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="A patch.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another patch of the same checkpoint.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what two patches of the same checkpoint share.

    Example: antidote patch diff repaired-by-antidote repaired-by-random
    """
    terminal = Terminal(as_json)
    patches: list[Patch] = [read_patch(first), read_patch(second)]
    found = diff(*patches)
    table = Table(title="entries that change", title_justify="left")
    table.add_column("tensor", overflow="fold")
    for heading in ("first only", "both", "to the same value", "second only", "Jaccard"):
        table.add_column(heading, justify="right", no_wrap=True)
    columns = ("first_only", "both", "equal", "second_only")
    totals = [sum(getattr(row, name) for row in found) for name in columns]
    for row in found:
        table.add_row(row.key, *(f"{getattr(row, name):,}" for name in columns), f"{row.jaccard:.3f}")
    either = totals[0] + totals[1] + totals[3]
    overall = totals[1] / either if either else 1.0
    table.add_row("all", *(f"{n:,}" for n in totals), f"{overall:.3f}", style="bold")
    tensors = [{**asdict(row), "jaccard": row.jaccard} for row in found]
    value = {**dict(zip(columns, totals, strict=True)), "jaccard": overall, "tensors": tensors}
    terminal.result(value, table)
