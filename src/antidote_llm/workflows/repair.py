"""Repairs a fine-tuned model: plans, writes, evaluates before and after, and keeps what undoes it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from antidote_llm import __version__
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import rendered_sha256
from antidote_llm.decision.compare import Verdict
from antidote_llm.errors import DefectError, UserError, setting
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.io.files import sha256_file, write_json, write_text
from antidote_llm.io.processes import is_first_process
from antidote_llm.io.resources import Stopwatch, peak_rss_bytes
from antidote_llm.io.result_folder import ResultFolder, changed_since
from antidote_llm.io.strict_json import parse_model
from antidote_llm.models.checkpoint import Checkpoint
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.target import Target, resolve_target
from antidote_llm.patching.apply import require_reverts
from antidote_llm.patching.patch import PATCH_FILE, read_patch
from antidote_llm.patching.shipping import require_unchanged, shipped_stamps
from antidote_llm.repairs.method import method_named, needs_harmful
from antidote_llm.repairs.plan import HarmfulData, PlannedRepair, PlanOptions, plan_repair
from antidote_llm.repairs.record import RepairRecord
from antidote_llm.repairs.write import predicted_patch_bytes, rehearse_repair, write_repair
from antidote_llm.report.compose import AFTER, ALIGNED, BEFORE, compose
from antidote_llm.report.data import ReportData
from antidote_llm.report.model_card import model_card_section
from antidote_llm.report.page import write as write_report
from antidote_llm.workflows.harmful_data import (
    OWN_ANSWERS_FILE,
    harmful_data,
    own_answers,
    read_harmful,
    write_own_answers,
)
from antidote_llm.workflows.inputs import files_sha256, inputs_sha256
from antidote_llm.workflows.opening import (
    Engine,
    described,
    opened,
    require_in_memory,
    require_openable,
    say_prompts,
    tensors,
)
from antidote_llm.workflows.questions import plan_of_repair, settings_from
from antidote_llm.workflows.reporter import Reporter
from antidote_llm.workflows.result import as_finished, complete, required_out
from antidote_llm.workflows.spec import command_line
from antidote_llm.workflows.specs import RepairSpec

RECORD_FILE = "record/repair.json"
_WEIGHTS = ".safetensors"
_REPORT_FILES = ("report.html", "model_card.md")


@dataclass(frozen=True)
class RepairResult:
    """What a repair came to.

    Attributes:
        record: What was repaired, with what, and how.
        evaluations: The evaluations by model: ``aligned``, ``before``, ``after``; none where nothing was asked.
        out: The result's folder; None after a dry run.
        finished_before: Whether it was there already.
        patch_bytes_at_most: What the patch takes at most, of a dry run.
    """

    record: RepairRecord
    evaluations: Mapping[str, Evaluation]
    out: Path | None = None
    finished_before: bool = False
    patch_bytes_at_most: int | None = None

    @property
    def model_dir(self) -> Path:
        """The repaired checkpoint or adapter, which loads with ``from_pretrained`` or ``PeftModel``.

        Raises:
            UserError: No model was written.
        """
        found = self._folder / "model"
        if not found.is_dir():
            raise UserError("this repair wrote no model (patch_only): make one with apply_patch")
        return found

    @property
    def patch(self) -> Path:
        """The file that undoes the repair."""
        return self._folder / "record" / PATCH_FILE

    @property
    def _folder(self) -> Path:
        if self.out is None:
            raise UserError("this repair was a dry run: nothing was written")
        return self.out

    @cached_property
    def report(self) -> ReportData:
        """The report's content."""
        undo = revert_command(self._folder, patch_only=not (self._folder / "model").is_dir())
        return compose(self.record, self.evaluations, revert_command=undo)

    @property
    def verdict(self) -> Verdict:
        """What the repair came to, as a kind and a sentence."""
        return Verdict(kind=self.report.verdict_kind, sentence=self.report.verdict)

    def json_value(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        if self.out is None:
            return self.record.model_dump(mode="json")
        return {
            "out": str(self.out),
            "finished_before": self.finished_before,
            "verdict": {"kind": self.report.verdict_kind, "sentence": self.report.verdict},
            "repair": self.record.model_dump(mode="json"),
            "evaluations": {name: found.model_dump(mode="json") for name, found in self.evaluations.items()},
        }


def find_target(spec: RepairSpec, reporter: Reporter) -> Target:
    """Find what a repair would edit.

    Raises:
        UserError: The model cannot be opened, or holds nothing that can be edited.
    """
    return resolve_target(_open(spec, reporter), spec.target, spec.aligned, spec.sites)


def run_repair(spec: RepairSpec, reporter: Reporter) -> RepairResult | None:
    """Repair a model as a spec says.

    Returns:
        The result; None in all processes of a distributed run but the first.

    Raises:
        UserError: A setting or an input is wrong; nothing is left at ``out``.
    """
    job = _Repair(spec, reporter)
    return job.rehearse() if spec.dry_run or spec.out is None else job.perform(Path(spec.out))


def revert_command(out: Path, *, patch_only: bool) -> str:
    """Return the command that undoes a repair."""
    repaired = "REPAIRED" if patch_only else f"{out}/model"
    return shlex.join(["antidote", "patch", "revert", str(out), "--onto", repaired, "--out", f"{out}-reverted"])


def _engine(spec: RepairSpec) -> Engine:
    return Engine.of(spec.engine, spec.max_ram, spec.max_vram, spec.max_disk)


def _open(spec: RepairSpec, reporter: Reporter) -> LoadedModel:
    return opened(
        reporter,
        spec.model,
        spec.adapter,
        tokenizer=spec.tokenizer,
        dtype=spec.dtype,
        device=spec.device,
        trust_remote_code=spec.trust_remote_code,
        engine=_engine(spec),
    )


class _Repair:
    """A repair whose inputs are open."""

    def __init__(self, spec: RepairSpec, reporter: Reporter) -> None:
        if not spec.dry_run:
            required_out(spec.out, "dry_run")
        self._spec, self._reporter, self._stopwatch = spec, reporter, Stopwatch()
        self._method = method_named(spec.method)
        self._settings = self._method.configure(spec.settings, spec.preset)
        self._engine = _engine(spec)
        self._calibration = CalibrationSettings(tokens=spec.tokens)
        records = read_harmful(spec.harmful, spec.harmful_rows, spec.data_seed)
        asking = settings_from(spec)
        records, self._plan = plan_of_repair(spec, records, asking)
        if spec.out is not None and self._plan is not None:
            require_openable(Path(spec.out))
        if spec.patch_only and self._plan is not None:
            raise UserError(
                f"{setting('patch_only')} writes no model that could be judged: pass {setting('evaluate')} none"
            )
        with self._stopwatch.step("open"):
            self._model = _open(spec, reporter)
            self._target = resolve_target(self._model, spec.target, spec.aligned, spec.sites)
        if self._plan is not None:
            require_in_memory(self._model, "answers to judge", f"pass {setting('evaluate')} none")
        self._questions = None if self._plan is None else self._plan.identity(self._model)
        _warn_of_target(reporter, self._target, spec.restore_outside)
        self._prompts, self._harmful = self._learnt_from(records, asking)

    def _learnt_from(self, records: list[Record], asking: EvaluationSettings) -> tuple[str, HarmfulData | None]:
        """Return how prompts are put, in words, and the rows that the repair learns from."""
        spec, model = self._spec, self._model
        learns = bool(spec.harmful) and needs_harmful(self._method, self._settings)
        asked = [] if self._plan is None else self._plan.records()
        renderer = asking.renderer(model.tokenizer)
        prompts = say_prompts(self._reporter, model, renderer, [*(records if learns else []), *asked])
        if not learns:
            return prompts, None
        with self._stopwatch.step("own answers"):
            found = harmful_data(self._reporter, model, spec.harmful, records, asking, cache=spec.cache)
        return prompts, found

    def rehearse(self) -> RepairResult | None:
        """Work out what a repair would change."""
        if not is_first_process():
            self._help_out(None)
            return None
        with self._planned(None) as planned:
            found = self._completed(rehearse_repair(planned, command_line(self._spec), self._stopwatch))
            return RepairResult(found, {}, patch_bytes_at_most=predicted_patch_bytes(planned))

    def perform(self, out: Path) -> RepairResult | None:
        """Repair, evaluate, and write everything or nothing."""
        checkpoint = self._target.checkpoint
        stamps = shipped_stamps(checkpoint.folder, checkpoint.weights)
        read = {found.folder for found in (*self._model.checkpoints, self._target.aligned) if found}
        folder = ResultFolder(
            out,
            self._manifest(),
            manifest_at="record/manifest.json",
            inputs=read,
            # Patch and evaluations know their own hashes, and the report says nothing that they do not.
            sealed=(RECORD_FILE, "model/*"),
        )

        def write(staging: Path) -> dict[str, str]:
            with self._planned(folder.work) as planned:
                self._reporter.say(patch_size(predicted_patch_bytes(planned)))
                record = write_repair(
                    planned,
                    staging,
                    command_line(self._spec),
                    self._stopwatch,
                    hard_links=self._spec.hard_links,
                    patch_only=self._spec.patch_only,
                    max_disk_bytes=self._engine.max_disk_bytes,
                )
            require_unchanged(checkpoint.folder, stamps, checkpoint.weights)
            return self._write_record(record, staging, out)

        finished_before = complete(
            folder,
            write,
            self._reporter,
            require=lambda: require_repair_as_finished(
                out, checkpoint, self._evaluated(), with_model=not self._spec.patch_only
            ),
            resume=self._say_from_where,
            help_out=lambda finished: None if finished else self._help_out(folder.work),
        )
        return read_repair(out, finished_before) if is_first_process() else None

    def _say_from_where(self, work: Path) -> None:
        if any(work.glob("statistics-*")):
            self._reporter.say("an earlier run was interrupted: going on from its statistics")

    def _help_out(self, work: Path | None) -> None:
        """Collect this process's share of the statistics, from which the first process makes the repair."""
        with self._planned(work) as planned:
            for _ in planned.parts:
                pass

    def _write_record(self, record: RepairRecord, staging: Path, out: Path) -> dict[str, str]:
        """Write everything beside model and patch, and return the hashes of weights that are known already."""
        evaluations: Mapping[str, Evaluation] = {}
        if self._plan is not None:
            evaluations = self._plan.before_and_after(
                self._reporter, self._model, self._target, staging / "model", self._stopwatch
            )
        if self._harmful is not None:
            write_own_answers(staging / "record" / OWN_ANSWERS_FILE, self._harmful.records)
        for name, evaluation in evaluations.items():
            evaluation.write(staging / "record" / name)
        record = self._completed(record)
        write_json(staging / RECORD_FILE, record.model_dump(mode="json"))
        undo = revert_command(out, patch_only=self._spec.patch_only)
        report = compose(record, evaluations, revert_command=undo)
        write_report(staging / "record" / "report.html", report, show_answers=self._spec.show_answers)
        write_text(staging / "record" / "model_card.md", model_card_section(report))
        known = {**self._target.checkpoint.sha256, **(record.patch.sha256_after if record.patch else {})}
        return {f"model/{name}": sha256 for name, sha256 in known.items()}

    def _evaluated(self) -> list[str]:
        """Return the names of the models that the result holds evaluations of."""
        if self._plan is None:
            return []
        knows_aligned = self._target.name == "adapter" or self._target.aligned is not None
        return [BEFORE, AFTER, *([ALIGNED] if knows_aligned else [])]

    def _completed(self, record: RepairRecord) -> RepairRecord:
        """Add to a record what it does not know itself: prompts' template, whose answers the rows hold, the cost."""
        known: dict[str, Any] = {
            "prompts": self._prompts,
            "wall_seconds": dict(self._stopwatch.seconds),
            "peak_rss_bytes": peak_rss_bytes(),
        }
        if record.calibration is not None and self._harmful is not None:
            own, refused = own_answers(self._harmful.records)
            counts = {"own_answers": own, "refused_own_answers": refused}
            known["calibration"] = record.calibration.model_copy(update=counts)
        return record.model_copy(update=known)

    @contextmanager
    def _planned(self, work: Path | None) -> Iterator[PlannedRepair]:
        """Plan the repair; the bar may go on while it is written."""
        rows = len(self._harmful.records) if self._harmful is not None else 0
        with self._reporter.progress("statistics", rows, "rows") as advance:
            yield plan_repair(
                self._model,
                self._method,
                self._settings,
                self._harmful,
                self._calibration,
                target=self._target,
                restore_outside=self._spec.restore_outside,
                options=PlanOptions(
                    progress=advance,
                    cache=self._spec.cache,
                    stopwatch=self._stopwatch,
                    work=work,
                    budget=self._engine.memory,
                    on_estimate=lambda estimate: self._reporter.say(described(estimate)),
                    until_settled=self._spec.calibration == "auto",
                ),
            )

    def _manifest(self) -> dict[str, Any]:
        harmful = self._harmful
        return {
            "kind": "repair",
            "version": __version__,
            **self._model.identity,
            "aligned": self._target.aligned.sha256 if self._target.aligned else None,
            "files": inputs_sha256(self._model, self._target.aligned),
            "target": self._target.name,
            "sites": [site.name for site in self._target.sites],
            "outside": "restored" if self._spec.restore_outside else "kept",
            "method": self._method.name,
            "settings": self._settings.model_dump(mode="json"),
            "harmful": rendered_sha256(harmful.renderer.rows(harmful.records)) if harmful else None,
            "calibration": self._calibration.model_dump(mode="json"),
            "evaluation": self._questions,
            "patch_only": self._spec.patch_only,
            "until_settled": self._spec.calibration == "auto",
            "show_answers": self._spec.show_answers,
        }


def patch_size(most_bytes: int) -> str:
    """Say what the patch takes on the disk."""
    return f"the patch that undoes it takes at most {decimal(most_bytes)}"


def read_repair(out: Path, finished_before: bool = True) -> RepairResult:
    """Read a finished repair.

    Raises:
        UserError: A file of it has been changed.
    """
    with as_finished(out, "record", finished_before):
        record = parse_model(RepairRecord, (out / RECORD_FILE).read_bytes())
        folders = {name: out / "record" / name for name in (ALIGNED, BEFORE, AFTER)}
        evaluations = {name: Evaluation.read(folder) for name, folder in folders.items() if folder.is_dir()}
        result = RepairResult(record, evaluations, out, finished_before)
        result.json_value()
    return result


def require_repair_as_finished(
    out: Path, repaired: Checkpoint, evaluated: Collection[str], *, with_model: bool = True
) -> None:
    """Refuse the result of a repair that is no longer what was written.

    Documents in the folder that ships may have changed: the model card's section is meant for one. Report, card and own
    answers need only be there: what they say is in the record and in the evaluations.

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
        record = parse_model(RepairRecord, (out / RECORD_FILE).read_bytes())
    except (OSError, ValueError):
        return RECORD_FILE
    has_own_answers = record.calibration is not None and record.calibration.own_answers > 0
    for name in (*_REPORT_FILES, *([OWN_ANSWERS_FILE] if has_own_answers else [])):
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


def _warn_of_target(reporter: Reporter, target: Target, restore_outside: bool) -> None:
    """Say what the user should know about a target."""
    if target.name == "weight":
        reporter.warn(
            "zeroing pre-trained weights costs far more than going back to an aligned model: pass "
            f"{setting('aligned')} where there is one"
        )
    if target.name == "adapter" and target.outside and not restore_outside:
        more = " …" if len(target.outside) > 1 else ""
        reporter.warn(
            "the adapter also holds what is not edited "
            f"({tensors(len(target.outside))}: {target.outside[0].key}{more}): "
            f"it stays as it is unless {setting('restore_outside')} is given"
        )
