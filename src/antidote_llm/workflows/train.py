"""Trains a model: stage 1 (align) and stage 2 (fine-tune), with or without a defense; or plans the training."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import BaseModel

from antidote_llm import __version__
from antidote_llm.data.data_spec import DataSpec, Field
from antidote_llm.data.mixing import MixPreset, poisoned, read_mixed
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, TokenizedRow, check_lengths, check_token_ids, rendered_sha256
from antidote_llm.errors import UserError, listed, setting
from antidote_llm.io.files import sha256_json, write_json, write_text
from antidote_llm.io.processes import is_first_process, process_count
from antidote_llm.io.resources import Stopwatch, peak_rss_bytes
from antidote_llm.io.result_folder import ResultFolder, changed_since
from antidote_llm.io.strict_json import parse_model
from antidote_llm.models.checkpoint_files import carry_over
from antidote_llm.models.config import quiet_transformers
from antidote_llm.models.from_pretrained import require_not_quantised
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.skeleton import open_skeleton
from antidote_llm.training.checkpoints import newest, unusable
from antidote_llm.training.defense import Defense, StageData, StageResult, defense_named, run_stage
from antidote_llm.training.estimate import StagePlan, given_speed, plan_stage, renderer_for
from antidote_llm.training.record import TrainedRows, TrainingRecord
from antidote_llm.training.trainer import RunOptions, require_integrations, require_shareable
from antidote_llm.workflows.inputs import inputs_sha256
from antidote_llm.workflows.opening import opened, say_prompts
from antidote_llm.workflows.reporter import Reporter
from antidote_llm.workflows.result import complete, required_out
from antidote_llm.workflows.spec import command_line
from antidote_llm.workflows.specs import AlignSpec, FinetuneSpec

_LIBRARIES = ("antidote-llm", "torch", "transformers", "peft", "accelerate", "safetensors")
_FIELDS: tuple[Field, ...] = ("prompt", "response")
RECORD_FILE = "record/training.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training came to.

    Attributes:
        record: What was trained, from what, and how.
        out: The result's folder.
        finished_before: Whether it was there already.
    """

    record: TrainingRecord
    out: Path
    finished_before: bool

    @property
    def model_dir(self) -> Path:
        """The trained model or adapter, which loads with ``from_pretrained`` or ``PeftModel``."""
        return self.out / "model"


@dataclass(frozen=True)
class _Rows:
    """The stage's own rows, the rows that the defense learns from beside them, and what both are called."""

    own: list[Record]
    auxiliary: list[Record]
    references: tuple[Sequence[str], Sequence[str]]


class _Training:
    """A defense with its settings, and the rows that it learns from."""

    def __init__(self, spec: AlignSpec | FinetuneSpec) -> None:
        self.spec = spec
        self.defense: Defense = defense_named(spec.stage, spec.defense)
        self.settings: BaseModel = self.defense.configure(spec.settings, spec.preset)
        self.rows = (
            _alignment_rows(spec, self.defense) if isinstance(spec, AlignSpec) else _finetuning_rows(spec, self.defense)
        )

    def plan(self, reporter: Reporter, flops: float | None) -> StagePlan:
        """Work out what the training would take; ``flops`` are measured where not given."""
        spec = self.spec
        skeleton = open_skeleton(spec.model, spec.tokenizer, trust_remote_code=spec.trust_remote_code)
        renderer = renderer_for(skeleton, spec.template, spec.system)
        rows = [*self.rows.own, *self.rows.auxiliary]
        if skeleton.tokenizer is not None and any(row.prompt is not None for row in rows):
            reporter.say(renderer.described)
        return plan_stage(
            skeleton,
            StageData(renderer, self.rows.own, self.rows.auxiliary),
            self.defense,
            spec.training,
            self.settings,
            dtype=spec.dtype,
            speed=None if flops is None else given_speed(flops),
        )


def plan_training(spec: AlignSpec | FinetuneSpec, reporter: Reporter, flops: float | None = None) -> StagePlan:
    """Work out steps, tokens, memory and time of a training; nothing is trained.

    Args:
        spec: The training.
        reporter: Hears how prompts would be put.
        flops: Floating-point operations a second; measured on this machine where not given.

    Raises:
        UserError: A setting or an input is wrong.
    """
    return _Training(spec).plan(reporter, flops)


def run_training(spec: AlignSpec | FinetuneSpec, reporter: Reporter) -> TrainResult | None:
    """Train a model as a spec says; a run that was cut off goes on from its last checkpoint.

    Returns:
        The result; None in all processes of a distributed run but the first.

    Raises:
        UserError: A setting or an input is wrong.
    """
    training = _Training(spec)
    out = required_out(spec.out)
    stopwatch = Stopwatch()
    with stopwatch.step("open"):
        model = opened(
            reporter,
            spec.model,
            tokenizer=spec.tokenizer,
            dtype=spec.dtype,
            device="cpu",
            trust_remote_code=spec.trust_remote_code,
        )
    return _Run(training, reporter, stopwatch, model).perform(out)


def _alignment_rows(spec: AlignSpec, defense: Defense) -> _Rows:
    rows = _mixed(spec.data, spec.rows, spec.data_seed)
    _require_named(spec.harmful_rows, spec.harmful, "harmful_rows", "harmful")
    auxiliary = _mixed(spec.harmful, spec.harmful_rows, spec.data_seed)
    defense.require_fitting(auxiliary)
    return _Rows(rows, auxiliary, (spec.data, spec.harmful))


def _finetuning_rows(spec: FinetuneSpec, defense: Defense) -> _Rows:
    _require_consistent_mix(spec)
    _require_named(spec.safe_rows, spec.safe, "safe_rows", "safe")
    auxiliary = _mixed(spec.safe, spec.safe_rows, spec.data_seed)
    defense.require_fitting(auxiliary)
    return _Rows(_user_rows(spec), auxiliary, ((*spec.data, *spec.harmful), spec.safe))


def _user_rows(spec: FinetuneSpec) -> list[Record]:
    """Return the user's rows with their share of harmful ones.

    Raises:
        UserError: A file cannot be read, or there are too few rows.
    """
    if spec.harmful_ratio is None or spec.rows is None:
        return _mixed(spec.data, spec.rows, spec.data_seed)
    preset: MixPreset = "official-code" if spec.preset == "official-code" else "paper"
    return poisoned(
        _mixed(spec.data, None, spec.data_seed),
        _mixed(spec.harmful, None, spec.data_seed),
        rows=spec.rows,
        harmful_ratio=spec.harmful_ratio,
        seed=spec.data_seed,
        apart_from=_mixed(spec.apart_from, None, spec.data_seed, ()),
        preset=preset,
    )


def _mixed(specs: Sequence[str], rows: int | None, seed: int, require: Sequence[Field] = _FIELDS) -> list[Record]:
    return read_mixed([DataSpec.parse(spec) for spec in specs], rows, seed, require) if specs else []


def _require_named(rows: int | None, data: Sequence[str], name: str, of: str) -> None:
    """Refuse a number of rows of data that are not named.

    Raises:
        UserError: Names the data.
    """
    if rows is not None and not data:
        raise UserError(f"{setting(name)} {rows}: of what? pass {setting(of)} DATA, or leave it out")


def _require_consistent_mix(spec: FinetuneSpec) -> None:
    """Refuse a mix of which a part is missing.

    Raises:
        UserError: Names the part.
    """
    ratio, option = spec.harmful_ratio, setting("harmful_ratio")
    if spec.harmful and ratio is None:
        raise UserError(f"{setting('harmful')}: how much of it? pass {option}, such as 0.2")
    if ratio and not spec.harmful:
        raise UserError(f"{option} {ratio:g}: of what? pass {setting('harmful')} DATA")
    if spec.apart_from and ratio is None:
        raise UserError(
            f"{setting('apart_from')} is for a mix: pass {setting('harmful')} DATA and {option}, or leave it out"
        )
    if ratio is not None and spec.rows is None:
        raise UserError(f"{option} {ratio:g}: of how many rows? pass {setting('rows')}")


class _Run:
    """One training, ready to run."""

    def __init__(self, training: _Training, reporter: Reporter, stopwatch: Stopwatch, model: LoadedModel) -> None:
        self._training, self._spec = training, training.spec
        self._reporter, self._stopwatch, self._model = reporter, stopwatch, model
        rows = training.rows
        renderer = Renderer(model.tokenizer, self._spec.template, system=self._spec.system)
        self._prompts = say_prompts(reporter, model, renderer, [*rows.own, *rows.auxiliary])
        self._data = StageData(renderer, rows.own, rows.auxiliary)
        self._report_to = [part.strip() for part in (self._spec.report_to or "").split(",") if part.strip()]
        self._require_sound()

    def _require_sound(self) -> None:
        """Refuse what cannot be trained, before anything is: a checkpoint that was kept is not lost by it.

        Raises:
            UserError: Names the setting, the adapter or the row.
        """
        model, data, training = self._model, self._data, self._spec.training
        require_shareable(training.batch_size)
        require_integrations(self._report_to)
        if model.adapter is not None:
            raise UserError(
                f"{model.adapter.reference} is an adapter: training starts from a whole model: merge it into "
                f"its base (finetune with {setting('merge')} writes it so) and name the result"
            )
        require_not_quantised(model.base, "trained")
        if model.dtype == torch.float16:
            dtype = setting("dtype")
            raise UserError(f"{dtype} float16 has too small a range for gradients: pass {dtype} float32 or bfloat16")
        parts = ((data.rows, data.rendered), (data.auxiliary, data.rendered_auxiliary))
        for records, rows in parts:
            check_token_ids(records, rows, model.vocabulary_size)
            cut = [TokenizedRow(row.input_ids[: training.max_length], row.response_start) for row in rows]
            check_lengths(records, cut, model.positions)

    def perform(self, out: Path) -> TrainResult | None:
        """Train, and write everything or nothing."""
        folder = ResultFolder(
            out,
            self._manifest,
            manifest_at="record/manifest.json",
            inputs=[checkpoint.folder for checkpoint in self._model.checkpoints],
            sealed=("*",),
            resumable=lambda work: newest(work) is not None,
        )
        if not is_first_process() and not folder.finished:
            self._train(folder.work, None)
            return None
        try:
            finished_before = complete(
                folder,
                lambda staging: self._write(staging, folder.work, out),
                self._reporter,
                resume=self._say_from_where,
            )
        except KeyboardInterrupt:
            if (kept := newest(folder.work)) is not None:
                self._reporter.say(f"the same command goes on from {kept.name}")
            raise
        return TrainResult(read_training(out), out, finished_before)

    def _say_from_where(self, work: Path) -> None:
        """Say from where an interrupted run goes on.

        Raises:
            UserError: Its logs are a link: they would be written elsewhere.
        """
        if (work / "logs").is_symlink():
            raise UserError(f"{work / 'logs'} is a link, which no interrupted run leaves: remove it")
        kept = newest(work)
        for name in unusable(work):
            self._reporter.say(f"an earlier run was interrupted: {name} is not whole and is not used")
        if kept is not None:
            self._reporter.say(f"an earlier run was interrupted: going on from {kept.name}")

    def _write(self, staging: Path, work: Path, out: Path) -> None:
        result = self._train(work, work / "logs")
        if (work / "logs").is_dir():
            shutil.copytree(work / "logs", staging / "record" / "logs")
        with self._stopwatch.step("save"):
            left_out = self._save(result, staging / "model", out / "model")
        record = self._record(result, left_out)
        write_json(staging / RECORD_FILE, record.model_dump(mode="json"))
        losses = enumerate(result.training.losses, 1)
        write_text(staging / "record" / "losses.csv", "step,loss\n" + "".join(f"{n},{loss!r}\n" for n, loss in losses))

    def _train(self, work: Path, logs: Path | None) -> StageResult:
        spec, defense = self._spec, self._training.defense
        with self._stopwatch.step("train"), self._reporter.stages("steps") as progress:
            options = RunOptions(
                on_step=lambda step, steps: progress(defense.name, step, steps),
                checkpoints=work if spec.save_every else None,
                save_every=spec.save_every or 1,
                report_to=tuple(self._report_to),
                logs=logs,
                key=sha256_json(self._manifest),
            )
            model = self._model.model.requires_grad_(spec.training.lora is None)
            return run_stage(model, self._data, defense, spec.training, self._training.settings, options)

    def _save(self, result: StageResult, folder: Path, final: Path) -> list[str]:
        """Write what was trained, and return what of the base's folder was left out."""
        model: Any = result.model
        with quiet_transformers():
            if isinstance(model, PeftModel) and not self._spec.merge:
                for config in model.peft_config.values():
                    config.base_model_name_or_path = self._base_from(final)
                model.save_pretrained(folder, save_embedding_layers=False)
                (folder / "README.md").unlink(missing_ok=True)
                return []
            whole = model.merge_and_unload() if isinstance(model, PeftModel) else model
            whole.to(self._saved_type()).save_pretrained(folder)
        if self._model.tokenizer is not None:
            self._model.tokenizer.save_pretrained(folder)
        return self._carry_over(folder)

    def _carry_over(self, folder: Path) -> list[str]:
        """Add what neither model nor tokenizer writes, and name what is left out."""
        base, tokenizer = self._model.base, self._model.tokenizer
        own = tokenizer is None or Path(tokenizer.name_or_path).resolve() == base.folder.resolve()
        if left := carry_over(base.folder, folder, tokenizer=own):
            self._reporter.say(f"not taken over from {base.reference}: {listed(left)}")
        if tokenizer is not None and not own and Path(tokenizer.name_or_path).is_dir():
            carry_over(Path(tokenizer.name_or_path), folder, model=False)
        return left

    def _base_from(self, folder: Path) -> str:
        """Return the base's place relative to the adapter's, so that both can be moved together; or its Hub id."""
        reference = self._model.base.reference
        if not Path(reference).expanduser().is_dir():
            return reference
        return os.path.relpath(Path(reference).expanduser().resolve(), folder.resolve())

    def _saved_type(self) -> torch.dtype:
        config = self._model.base.config
        own = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        found: torch.dtype = getattr(torch, own if self._spec.save_dtype == "auto" else self._spec.save_dtype)
        return found

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "kind": self._training.defense.stage,
            "version": __version__,
            **self._model.identity,
            "files": inputs_sha256(self._model),
            "defense": self._training.defense.name,
            "settings": self._training.settings.model_dump(mode="json"),
            "training": spec.training.model_dump(mode="json"),
            "rows": rendered_sha256(self._data.rendered),
            "companion": rendered_sha256(self._data.rendered_auxiliary),
            "merge": spec.merge,
            "save_dtype": spec.save_dtype,
        }

    def _record(self, result: StageResult, left_out: Sequence[str]) -> TrainingRecord:
        losses = result.training.losses
        own, auxiliary = self._training.rows.references
        return TrainingRecord(
            versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
            command=command_line(self._spec),
            stage=self._training.defense.stage,
            defense=self._training.defense.name,
            settings=self._training.settings.model_dump(mode="json"),
            training=self._spec.training,
            merged=self._spec.merge and self._spec.training.lora is not None,
            base=self._model.base.reference,
            base_sha256=self._model.base.sha256,
            template=self._data.renderer.template,
            prompts=self._prompts,
            data=_described(own, self._data.rendered),
            harmful_ratio=getattr(self._spec, "harmful_ratio", None),
            companion=_described(auxiliary, self._data.rendered_auxiliary) if self._data.auxiliary else None,
            left_out=tuple(left_out),
            trainable_parameters=result.trainable_parameters,
            processes=process_count(),
            steps=result.training.steps,
            resumed_from=result.training.resumed_from,
            first_loss=losses[0],
            last_loss=losses[-1],
            wall_seconds=dict(self._stopwatch.seconds),
            peak_rss_bytes=peak_rss_bytes(),
        )


def _described(references: Sequence[str], rows: Sequence[TokenizedRow]) -> TrainedRows:
    return TrainedRows(
        references=tuple(references),
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        sha256=rendered_sha256(rows),
    )


def read_training(out: Path) -> TrainingRecord:
    """Read the record of a finished training.

    Raises:
        UserError: It is damaged, or the weights are gone.
    """
    try:
        record = parse_model(TrainingRecord, (out / RECORD_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise changed_since(out, RECORD_FILE) from error
    if "train" not in record.wall_seconds:
        raise changed_since(out, RECORD_FILE)
    if not any((out / "model").glob("*.safetensors")):
        raise changed_since(out, "model")
    return record
