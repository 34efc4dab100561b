"""The files that a repair was made from, and whether its result is still what it was when it was finished."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from antidote_llm.cli.calibration_data import OWN_ANSWERS_FILE
from antidote_llm.errors import DefectError, UserError
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.io.files import sha256_file
from antidote_llm.io.result_folder import changed_since
from antidote_llm.io.strict_json import parse_model
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.checkpoint_files import is_document, nested_files
from antidote_llm.models.load import LoadedModel
from antidote_llm.patching.apply import require_reverts
from antidote_llm.patching.patch import PATCH_FILE, read_patch
from antidote_llm.patching.shipping import shipping
from antidote_llm.repairs.record import RepairRecord

_WEIGHTS = ".safetensors"
_TOKENIZER_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
_REPORT_FILES = ("report.html", "model_card.md")


def files_sha256(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the hashes of all files that ship with a checkpoint, but for documents, by name."""
    names = [name for name in shipping(checkpoint.folder).files if not is_document(name)]
    return {name: checkpoint.sha256.get(name) or sha256_file(checkpoint.folder / name) for name in names}


def inputs_sha256(opened: LoadedModel, aligned: Checkpoint | None = None) -> dict[str, Any]:
    """Return the hashes of all files that shape what a model answers: weights, configuration, tokenizer, code."""
    checkpoints = [*opened.checkpoints, *([aligned] if aligned else [])]
    found: dict[str, Any] = {"checkpoints": [files_sha256(checkpoint) for checkpoint in checkpoints]}
    if opened.tokenizer is not None:
        found["tokenizer"] = _tokenizer_sha256(opened.tokenizer.name_or_path)
    return found


def _tokenizer_sha256(reference: str) -> dict[str, str] | str:
    """Return the hashes of the files beside a tokenizer and in its folders, or the Hub id that it was fetched by."""
    folder = Path(reference)
    if not folder.is_dir():
        return reference
    names = [path.name for path in folder.iterdir() if path.suffix.lower() in _TOKENIZER_SUFFIXES and path.is_file()]
    return {name: sha256_file(folder / name) for name in sorted([*names, *nested_files(folder)])}


@contextmanager
def as_finished(out: Path, name: str, finished_before: bool) -> Iterator[None]:
    """Tell what a result's files say; of one that was finished before, a file that says anything else is refused.

    Raises:
        UserError: Names the file.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if finished_before:
            raise changed_since(out, name) from error
        raise


def require_as_finished(
    out: Path, repaired: Checkpoint, evaluated: Collection[str], *, with_model: bool = True
) -> None:
    """Refuse the result of a repair that is no longer what was written.

    Documents in the folder that ships may have changed: the model card's section is meant for one. Report, card and own
    answers need only be there: what they say stands in the record and in the evaluations.

    Args:
        out: The result.
        repaired: The checkpoint that was repaired, as it came.
        evaluated: The names of the evaluations that must be there.
        with_model: Whether a model belongs to it.

    Raises:
        UserError: A file is missing, damaged, or another; names the first.
    """
    if (name := _first_changed(out, repaired, evaluated, with_model)) is not None:
        raise changed_since(out, name)


def _first_changed(out: Path, repaired: Checkpoint, evaluated: Collection[str], with_model: bool) -> str | None:
    try:
        record = parse_model(RepairRecord, (out / "record" / "repair.json").read_bytes())
    except (OSError, ValueError):
        return "record/repair.json"
    own_answers = record.calibration is not None and record.calibration.own_answers > 0
    for name in (*_REPORT_FILES, *([OWN_ANSWERS_FILE] if own_answers else [])):
        if not (out / "record" / name).is_file():
            return f"record/{name}"
    for name in evaluated:
        try:
            Evaluation.read(out / "record" / name)
        except UserError:
            return f"record/{name}"
    if with_model and (changed := _changed_model(out / "model", files_sha256(repaired), record)) is not None:
        return f"model/{changed}"
    return None if _patch_fits(out, record, with_model) else f"record/{PATCH_FILE}"


def _patch_fits(out: Path, record: RepairRecord, with_model: bool) -> bool:
    """Whether the patch is the one of the record, and still takes the model back to what it was."""
    try:
        patch = read_patch(out)
        if with_model:
            require_reverts(patch, out / "model")
    except (DefectError, UserError):
        return False
    after = {file.path: file.sha256_after for file in patch.description.files}
    return record.patch is not None and (after, patch.sha256) == (record.patch.sha256_after, record.patch.sha256)


def _changed_model(folder: Path, before: Mapping[str, str], record: RepairRecord) -> str | None:
    wanted = {**before, **(record.patch.sha256_after if record.patch else {})}
    there = {path.name for path in folder.glob("*") if path.suffix.lower() == _WEIGHTS}
    there |= {name for name in wanted if (folder / name).is_file()}
    for name in sorted(wanted.keys() | there):
        if name not in wanted or name not in there or sha256_file(folder / name) != wanted[name]:
            return name
    return None
