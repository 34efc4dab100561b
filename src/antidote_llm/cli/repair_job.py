"""Carries out a repair that has been asked for: rehearses it, or writes, evaluates and tells it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import RenderableType
from rich.filesize import decimal

from antidote_llm import __version__
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.cli import calibration_data as data_opts
from antidote_llm.cli import engine_options as engine_opts
from antidote_llm.cli.examining import EvaluationPlan
from antidote_llm.cli.finished import as_finished, inputs_sha256, require_as_finished
from antidote_llm.cli.panel_tables import panel_tables
from antidote_llm.cli.tables import counts_table, outcome_tables, repair_summary
from antidote_llm.cli.terminal import Terminal
from antidote_llm.data.rendering import rendered_sha256
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.io.files import write_json, write_text
from antidote_llm.io.processes import agreed, is_first_process
from antidote_llm.io.resources import Stopwatch, peak_rss_bytes
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.io.strict_json import parse_model
from antidote_llm.models.checkpoint import FileStamp
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.target import Target
from antidote_llm.patching.shipping import require_unchanged, shipped_stamps
from antidote_llm.repairs.method import RepairMethod
from antidote_llm.repairs.plan import HarmfulData, PlannedRepair, plan_repair
from antidote_llm.repairs.record import RepairRecord
from antidote_llm.repairs.write import predicted_patch_bytes, rehearse_repair, write_repair
from antidote_llm.report.compose import AFTER, ALIGNED, BEFORE, compose
from antidote_llm.report.model_card import model_card_section
from antidote_llm.report.page import write as write_report


@dataclass(frozen=True, kw_only=True)
class RepairJob:
    """A repair that has been asked for: with what, of what, how, and what is done with the result."""

    terminal: Terminal
    stopwatch: Stopwatch
    opened: LoadedModel
    target: Target
    restore_outside: bool
    method: RepairMethod
    settings: BaseModel
    harmful: HarmfulData | None
    prompts: str
    calibration: CalibrationSettings
    until_settled: bool
    examination: EvaluationPlan | None
    asking: dict[str, Any] | None
    engine: engine_opts.Engine
    patch_only: bool
    hard_links: bool
    cache: bool
    show_answers: bool

    def rehearse(self) -> None:
        """Print what a repair would change."""
        if not is_first_process():
            self._help(None)
            return
        with self._planned(None) as planned:
            found = self._completed(rehearse_repair(planned, _command(), self.stopwatch))
        lines = [*repair_summary(found), _patch_size(planned)]
        self.terminal.result(found.model_dump(mode="json"), counts_table(found), *lines)

    def perform(self, out: Path) -> None:
        """Repair, evaluate, and write everything or nothing."""
        checkpoint = self.target.checkpoint
        stamps = shipped_stamps(checkpoint.folder, checkpoint.weights)
        read = {found.folder for found in (*self.opened.checkpoints, self.target.aligned) if found}
        folder = ResultFolder(
            out,
            self._manifest(),
            manifest_at="record/manifest.json",
            inputs=read,
            # Patch and evaluations know their own hashes, and the report says nothing that they do not.
            sealed=("record/repair.json", "model/*"),
        )
        finished_before = agreed(folder.finished)
        if not is_first_process():
            if not finished_before:
                self._help(folder.work)
            return
        if finished_before:
            require_as_finished(out, checkpoint, self._evaluated(), with_model=not self.patch_only)
            self.terminal.say(f"{out} is finished already: nothing was done")
        else:
            if any(folder.work.glob("statistics-*")):
                self.terminal.say("an earlier run was interrupted: going on from its statistics")
            with folder as staging:
                folder.known_sha256 = self._write(staging, out, folder.work, stamps)
        with as_finished(out, "record", finished_before):
            self._tell(out, finished_before)

    def _help(self, work: Path | None) -> None:
        """Collect this process's share of the statistics, from which the first process makes the repair."""
        with self._planned(work) as planned:
            for _ in planned.parts:
                pass

    def _write(self, staging: Path, out: Path, work: Path, stamps: Mapping[str, FileStamp]) -> dict[str, str]:
        """Write everything but the manifest, and return the hashes of weights that are known already."""
        with self._planned(work) as planned:
            self.terminal.say(_patch_size(planned))
            found = write_repair(
                planned,
                staging,
                _command(),
                self.stopwatch,
                hard_links=self.hard_links,
                patch_only=self.patch_only,
                max_disk_bytes=self.engine.max_disk_bytes,
            )
        require_unchanged(self.target.checkpoint.folder, stamps, self.target.checkpoint.weights)
        evaluations = {}
        if self.examination is not None:
            evaluations = self.examination.before_and_after(
                self.terminal, self.opened, self.target, staging / "model", self.stopwatch
            )
        if self.harmful is not None:
            data_opts.write_own_answers(staging / "record" / data_opts.OWN_ANSWERS_FILE, self.harmful.records)
        for name, evaluation in evaluations.items():
            evaluation.write(staging / "record" / name)
        found = self._completed(found)
        write_json(staging / "record" / "repair.json", found.model_dump(mode="json"))
        report = compose(found, evaluations, revert_command=_revert_command(out, patch_only=self.patch_only))
        write_report(staging / "record" / "report.html", report, show_answers=self.show_answers)
        write_text(staging / "record" / "model_card.md", model_card_section(report))
        known = {**self.target.checkpoint.sha256, **(found.patch.sha256_after if found.patch else {})}
        return {f"model/{name}": sha256 for name, sha256 in known.items()}

    def _evaluated(self) -> list[str]:
        """Return the names of the models that the result holds evaluations of."""
        if self.examination is None:
            return []
        knows_aligned = self.target.name == "adapter" or self.target.aligned is not None
        return [BEFORE, AFTER, *([ALIGNED] if knows_aligned else [])]

    def _completed(self, record: RepairRecord) -> RepairRecord:
        """Add to a record what it does not know itself: prompts' template, whose answers the rows hold, the cost."""
        known: dict[str, Any] = {
            "prompts": self.prompts,
            "wall_seconds": dict(self.stopwatch.seconds),
            "peak_rss_bytes": peak_rss_bytes(),
        }
        if record.calibration is not None and self.harmful is not None:
            own, refused = data_opts.own_answers(self.harmful.records)
            counts = {"own_answers": own, "refused_own_answers": refused}
            known["calibration"] = record.calibration.model_copy(update=counts)
        return record.model_copy(update=known)

    def _tell(self, out: Path, finished_before: bool) -> None:
        """Give the result as it lies on the disk."""
        found = parse_model(RepairRecord, (out / "record" / "repair.json").read_bytes())
        folders = {name: out / "record" / name for name in (ALIGNED, BEFORE, AFTER)}
        evaluations = {name: Evaluation.read(folder) for name, folder in folders.items() if folder.is_dir()}
        report = compose(found, evaluations, revert_command=_revert_command(out, patch_only=self.patch_only))
        value = {
            "out": str(out),
            "finished_before": finished_before,
            "verdict": {"kind": report.verdict_kind, "sentence": report.verdict},
            "repair": found.model_dump(mode="json"),
            "evaluations": {name: evaluation.model_dump(mode="json") for name, evaluation in evaluations.items()},
        }
        shown: list[RenderableType] = [counts_table(found), *repair_summary(found)]
        if evaluations:
            metrics = {name: evaluation.metrics for name, evaluation in evaluations.items()}
            shown += [*outcome_tables(metrics, {}), *panel_tables(evaluations)]
        if self.patch_only:
            apply = ["antidote", "patch", "apply", str(out), "--onto", self.target.checkpoint.reference, "--out", "DIR"]
            shown.append(f"the repaired model: {shlex.join(apply)}")
        self.terminal.result(value, *shown, report.verdict, f"report: {out}/record/report.html")

    @contextmanager
    def _planned(self, work: Path | None) -> Iterator[PlannedRepair]:
        """Plan the repair; the bar may go on while it is written."""
        rows = len(self.harmful.records) if self.harmful is not None else 0
        with self.terminal.progress("statistics", rows, "rows") as advance:
            yield plan_repair(
                self.opened,
                self.method,
                self.settings,
                self.harmful,
                self.calibration,
                target=self.target,
                restore_outside=self.restore_outside,
                progress=advance,
                cache=self.cache,
                stopwatch=self.stopwatch,
                work=work,
                room=self.engine.room,
                until_settled=self.until_settled,
                told=lambda estimate: self.terminal.say(engine_opts.described(estimate)),
            )

    def _manifest(self) -> dict[str, Any]:
        harmful = self.harmful
        return {
            "kind": "repair",
            "version": __version__,
            **self.opened.identity,
            "aligned": self.target.aligned.sha256 if self.target.aligned else None,
            "files": inputs_sha256(self.opened, self.target.aligned),
            "target": self.target.name,
            "sites": [site.name for site in self.target.sites],
            "outside": "restored" if self.restore_outside else "kept",
            "method": self.method.name,
            "settings": self.settings.model_dump(mode="json"),
            "harmful": rendered_sha256(harmful.renderer.rows(harmful.records)) if harmful else None,
            "calibration": self.calibration.model_dump(mode="json"),
            "evaluation": self.asking,
            "patch_only": self.patch_only,
            "until_settled": self.until_settled,
            "show_answers": self.show_answers,
        }


def _command() -> str:
    return shlex.join(["antidote", *sys.argv[1:]])


def _revert_command(out: Path, *, patch_only: bool) -> str:
    repaired = "REPAIRED" if patch_only else f"{out}/model"
    return shlex.join(["antidote", "patch", "revert", str(out), "--onto", repaired, "--out", f"{out}-reverted"])


def _patch_size(planned: PlannedRepair) -> str:
    return f"the patch that undoes it takes at most {decimal(predicted_patch_bytes(planned))}"
