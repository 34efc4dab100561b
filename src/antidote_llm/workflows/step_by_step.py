"""A repair step by step, for research: open a model, collect statistics, plan what a method does, and write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from antidote_llm import __version__
from antidote_llm.calibration.moments import Moments
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.choices import TemplateName, TokenPolicy
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError, listed
from antidote_llm.io.files import write_json, write_text
from antidote_llm.io.resources import Stopwatch, peak_rss_bytes
from antidote_llm.io.result_folder import ResultFolder
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.target import Target, resolve_target
from antidote_llm.patching.shipping import require_unchanged, shipped_stamps
from antidote_llm.repairs.edits import Plan, Problem, plan
from antidote_llm.repairs.method import RepairMethod, method_named, needs_harmful
from antidote_llm.repairs.plan import HarmfulData, PlannedRepair, collected
from antidote_llm.repairs.record import CalibrationData
from antidote_llm.repairs.tally import outside_records
from antidote_llm.repairs.write import write_repair
from antidote_llm.report.compose import compose
from antidote_llm.report.model_card import model_card_section
from antidote_llm.report.page import write as write_report
from antidote_llm.workflows.harmful_data import read_harmful
from antidote_llm.workflows.inputs import inputs_sha256
from antidote_llm.workflows.repair import (
    RECORD_FILE,
    RepairResult,
    read_repair,
    require_repair_as_finished,
    revert_command,
)
from antidote_llm.workflows.reporter import LogReporter, Reporter
from antidote_llm.workflows.result import complete


@dataclass(frozen=True)
class Statistics:
    """What the inputs of a model's sites looked like on a data set.

    Attributes:
        moments: Sums over tokens, by site.
        target: The sites.
        data: The rows that they were collected on.
    """

    moments: Moments
    target: Target
    data: CalibrationData


def collect(
    model: LoadedModel,
    rows: str | Path | Sequence[str | Path] | Sequence[Record],
    *,
    target: Target | None = None,
    template: TemplateName = "auto",
    tokens: TokenPolicy = "all",
    cache: bool = True,
    reporter: Reporter | None = None,
) -> Statistics:
    """Collect the statistics of every site's input over harmful rows, in one pass.

    Args:
        model: The model.
        rows: Files of prompts and responses, or records.
        target: What is to be edited; by default the adapter, or the delta.
        template: How prompts are put.
        tokens: Which tokens of a row count.
        cache: Whether statistics that were collected before are used, and new ones are kept.
        reporter: Hears how far it is; by default the package's logger.

    Raises:
        UserError: A row has no response, or a site did not see every token.
    """
    target = target or resolve_target(model)
    records, names = _records(rows)
    harmful = HarmfulData(names, records, Renderer(model.tokenizer, template))
    with (reporter or LogReporter()).progress("statistics", len(records), "rows") as advance:
        moments, data = collected(model, target, harmful, CalibrationSettings(tokens=tokens), advance, cache=cache)
    return Statistics(moments, target, data)


@dataclass(frozen=True)
class ConfiguredMethod:
    """A repair method with its settings.

    Attributes:
        method: The method.
        settings: Its settings.
    """

    method: RepairMethod
    settings: BaseModel

    def plan(
        self,
        model: LoadedModel,
        statistics: Statistics | None = None,
        *,
        target: Target | None = None,
        restore_outside: bool = False,
    ) -> RepairPlan:
        """Find what the method does to every site; nothing is written.

        Args:
            model: The model.
            statistics: As :func:`collect` gives them, for methods that read any.
            target: What is edited; by default what the statistics are of.
            restore_outside: Whether whatever else the fine-tune moved goes back to the aligned model.

        Raises:
            UserError: The method needs statistics, they are of other sites, or there is nothing to repair.
        """
        if statistics is None and needs_harmful(self.method, self.settings):
            raise UserError(f"the method {self.method.name} reads statistics: pass what collect(model, rows) returns")
        target = target or (statistics.target if statistics else resolve_target(model))
        if statistics is not None:
            _require_seen(target, statistics)
        made = plan(Problem(target, statistics.moments if statistics else None), self.method, self.settings)
        planned = PlannedRepair(
            target=target,
            base=model.base,
            adapter=model.adapter,
            lower_adapters=model.lower_adapters,
            method=self.method,
            settings=self.settings,
            solved=made.settings,
            parts=(made,),
            calibration=statistics.data if statistics else None,
            outside=outside_records(target.outside, restored=restore_outside),
            restores_outside=restore_outside,
        )
        return RepairPlan(model, planned, made)


@dataclass(frozen=True)
class RepairPlan:
    """What a repair would do.

    Attributes:
        model: The model that it starts from.
        planned: The repair.
        plan: The edit of every site: ``plan.edit(site)`` gives the matrix before and after, shape [rows, columns].
    """

    model: LoadedModel
    planned: PlannedRepair
    plan: Plan

    def write(self, out: str | Path, *, reporter: Reporter | None = None) -> RepairResult:
        """Write the repaired model, the patch that undoes it, the record and the report; nothing is evaluated.

        Args:
            out: Where the result goes.
            reporter: Hears messages; by default the package's logger.

        Raises:
            UserError: ``out`` holds something else, or the disk is full.
        """
        place, checkpoint = Path(out), self.planned.target.checkpoint
        stamps = shipped_stamps(checkpoint.folder, checkpoint.weights)
        folder = ResultFolder(
            place,
            self._manifest(),
            manifest_at="record/manifest.json",
            inputs={found.folder for found in (*self.model.checkpoints, self.planned.target.aligned) if found},
            sealed=(RECORD_FILE, "model/*"),
        )

        def write(staging: Path) -> None:
            stopwatch = Stopwatch()
            record = write_repair(self.planned, staging, "", stopwatch)
            require_unchanged(checkpoint.folder, stamps, checkpoint.weights)
            cost = {"wall_seconds": dict(stopwatch.seconds), "peak_rss_bytes": peak_rss_bytes()}
            record = record.model_copy(update=cost)
            write_json(staging / RECORD_FILE, record.model_dump(mode="json"))
            report = compose(record, {}, revert_command=revert_command(place, patch_only=False))
            write_report(staging / "record" / "report.html", report, show_answers=False)
            write_text(staging / "record" / "model_card.md", model_card_section(report))

        finished_before = complete(
            folder,
            write,
            reporter or LogReporter(),
            require=lambda: require_repair_as_finished(place, checkpoint, ()),
        )
        return read_repair(place, finished_before)

    def _manifest(self) -> dict[str, Any]:
        planned = self.planned
        return {
            "kind": "repair, step by step",
            "version": __version__,
            **self.model.identity,
            "files": inputs_sha256(self.model, planned.target.aligned),
            "target": planned.target.name,
            "sites": [site.name for site in planned.target.sites],
            "outside": "restored" if planned.restores_outside else "kept",
            "method": planned.method.name,
            "settings": planned.settings.model_dump(mode="json"),
            "statistics": planned.calibration.moments_sha256 if planned.calibration else None,
        }


def method(name: str, preset: str | None = None, **settings: Any) -> ConfiguredMethod:
    """Configure a repair method.

    Args:
        name: The method, such as ``antidote``.
        preset: Named settings: ``paper`` or ``official-code``.
        settings: The method's own settings, such as ``alpha``.

    Raises:
        UserError: There is no such method or setting, or a value is outside its range.
    """
    if not isinstance(name, str):
        raise UserError(f"a method is named, not passed as an object of type {type(name).__name__}: pass its name")
    found = method_named(name)
    return ConfiguredMethod(found, found.configure(settings, preset))


def _require_seen(target: Target, statistics: Statistics) -> None:
    seen = {site.name for site in statistics.target.sites}
    if unseen := [site.name for site in target.sites if site.name not in seen]:
        raise UserError(f"the statistics are not of {listed(unseen, 3)}: collect them with this target")


def _records(
    rows: str | Path | Sequence[str | Path] | Sequence[Record],
) -> tuple[list[Record], tuple[str, ...]]:
    """Return records, and the names of the files that they were read from."""
    if isinstance(rows, (str, Path)):
        rows = [rows]
    if other := [type(row).__name__ for row in rows if not isinstance(row, (str, Path, Record))]:
        raise UserError(f"a row is a {other[0]}: pass files, or records such as read_records gives")
    records = [row for row in rows if isinstance(row, Record)]
    names = tuple(str(row) for row in rows if not isinstance(row, Record))
    found = [*records, *read_harmful(names, None, 0)]
    if not found:
        raise UserError("no rows: name files of harmful requests with answers, or pass records")
    for record in found:
        if record.response is None and record.text is None and record.input_ids is None:
            raise UserError(f"{record.origin}: no response: statistics are of harmful answers: name rows that have one")
    return found, names
