"""What ``antidote align`` and ``antidote finetune`` share: from options to a trained model in a folder."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import BaseModel
from rich.table import Table

from antidote_llm import __version__
from antidote_llm.choices import SaveDtype
from antidote_llm.cli.finished import inputs_sha256
from antidote_llm.cli.terminal import Terminal
from antidote_llm.data.rendering import TokenizedRow, check_lengths, check_token_ids, rendered_sha256
from antidote_llm.errors import UserError, listed
from antidote_llm.io.files import sha256_json, write_json, write_text
from antidote_llm.io.processes import is_first_process, process_count
from antidote_llm.io.resources import Stopwatch, peak_rss_bytes
from antidote_llm.io.result_folder import ResultFolder, changed_since
from antidote_llm.io.strict_json import parse_model
from antidote_llm.models.checkpoint_files import carry_over
from antidote_llm.models.config import quiet_transformers
from antidote_llm.models.from_pretrained import require_not_quantised
from antidote_llm.models.load import LoadedModel
from antidote_llm.training.checkpoints import newest, unusable
from antidote_llm.training.defense import Defense, StageData, StageResult, run_stage
from antidote_llm.training.record import TrainedRows, TrainingRecord
from antidote_llm.training.settings import TrainingSettings
from antidote_llm.training.trainer import RunOptions, require_integrations, require_shareable

_LIBRARIES = ("antidote-llm", "torch", "transformers", "peft", "accelerate", "safetensors")


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """One training, ready to run.

    Attributes:
        terminal: Says what goes on.
        stopwatch: Times it.
        opened: The model that it starts from.
        defense: How it is defended.
        settings: The defense's settings.
        training: How it is trained.
        data: What it learns from.
        prompts: How its prompts are rendered, in words.
        references: The data as the user named them: the stage's own, then those beside them.
        harmful_ratio: The share of harmful rows that were mixed in; None where none were.
        merge: Whether an adapter is merged into the weights.
        save_dtype: The type of whole weights that are written.
        save_every: Steps between checkpoints.
        report_to: Logging integrations.
    """

    terminal: Terminal
    stopwatch: Stopwatch
    opened: LoadedModel
    defense: Defense
    settings: BaseModel
    training: TrainingSettings
    data: StageData
    prompts: str
    references: tuple[Sequence[str], Sequence[str]]
    harmful_ratio: float | None
    merge: bool
    save_dtype: SaveDtype
    save_every: int
    report_to: Sequence[str]

    def require_sound(self) -> None:
        """Refuse what cannot be trained, before anything is: a checkpoint that was kept is not lost by it.

        Raises:
            UserError: Names the option, the adapter or the row.
        """
        require_shareable(self.training.batch_size)
        require_integrations(self.report_to)
        if self.opened.adapter is not None:
            raise UserError(
                f"{self.opened.adapter.reference} is an adapter: training starts from a whole model: merge it into "
                "its base (finetune --merge writes it so) and name the result"
            )
        require_not_quantised(self.opened.base, "trained")
        if self.opened.dtype == torch.float16:
            raise UserError("--dtype float16 has too small a range for gradients: pass --dtype float32 or bfloat16")
        parts = ((self.data.rows, self.data.rendered), (self.data.companion, self.data.rendered_companion))
        for records, rows in parts:
            check_token_ids(records, rows, self.opened.vocabulary_size)
            cut = [TokenizedRow(row.input_ids[: self.training.max_length], row.response_start) for row in rows]
            check_lengths(records, cut, self.opened.positions)

    def perform(self, out: Path) -> None:
        """Train, and write everything or nothing; a run that was killed goes on from its last checkpoint."""
        folder = ResultFolder(
            out,
            self._manifest(),
            manifest_at="record/manifest.json",
            inputs=self._read_folders(),
            sealed=("*",),
            resumable=lambda work: newest(work) is not None,
        )
        finished_before = folder.finished
        if finished_before:
            self.terminal.say(f"{out} is finished already: nothing was done")
        elif is_first_process():
            self._say_from_where(folder.work)
            try:
                with folder as staging:
                    self._write(staging, folder.work, out)
            except KeyboardInterrupt:
                if (kept := newest(folder.work)) is not None:
                    self.terminal.say(f"the same command goes on from {kept.name}")
                raise
        else:
            self._train(folder.work, None)
            return
        self._tell(out)

    def _say_from_where(self, work: Path) -> None:
        """Say from where an interrupted run goes on.

        Raises:
            UserError: Its logs are a link: they would be written elsewhere.
        """
        if (work / "logs").is_symlink():
            raise UserError(f"{work / 'logs'} is a link, which no interrupted run leaves: remove it")
        kept = newest(work)
        for name in unusable(work):
            self.terminal.say(f"an earlier run was interrupted: {name} is not whole and is not used")
        if kept is not None:
            self.terminal.say(f"an earlier run was interrupted: going on from {kept.name}")

    def _write(self, staging: Path, work: Path, out: Path) -> None:
        result = self._train(work, work / "logs")
        if (work / "logs").is_dir():
            shutil.copytree(work / "logs", staging / "record" / "logs")
        with self.stopwatch.step("save"):
            left_out = self._save(result, staging / "model", out / "model")
        record = self._record(result, left_out)
        write_json(staging / "record" / "training.json", record.model_dump(mode="json"))
        losses = enumerate(result.training.losses, 1)
        write_text(staging / "record" / "losses.csv", "step,loss\n" + "".join(f"{n},{loss!r}\n" for n, loss in losses))

    def _train(self, work: Path, logs: Path | None) -> StageResult:
        with self.stopwatch.step("train"), self.terminal.stages("steps") as progress:
            running = RunOptions(
                on_step=lambda step, steps: progress(self.defense.name, step, steps),
                checkpoints=work if self.save_every else None,
                save_every=self.save_every or 1,
                report_to=tuple(self.report_to),
                logs=logs,
                key=sha256_json(self._manifest()),
            )
            model = self.opened.model.requires_grad_(self.training.lora is None)
            return run_stage(model, self.data, self.defense, self.training, self.settings, running)

    def _save(self, result: StageResult, folder: Path, final: Path) -> list[str]:
        """Write what was trained, and return what of the base's folder was left out."""
        model: Any = result.model
        with quiet_transformers():
            if isinstance(model, PeftModel) and not self.merge:
                for config in model.peft_config.values():
                    config.base_model_name_or_path = self._base_as_seen_from(final)
                model.save_pretrained(folder, save_embedding_layers=False)
                (folder / "README.md").unlink(missing_ok=True)
                return []
            whole = model.merge_and_unload() if isinstance(model, PeftModel) else model
            whole.to(self._saved_type()).save_pretrained(folder)
        if self.opened.tokenizer is not None:
            self.opened.tokenizer.save_pretrained(folder)
        return self._carry_over(folder)

    def _carry_over(self, folder: Path) -> list[str]:
        """Add what neither model nor tokenizer writes, and name what is left out."""
        base, tokenizer = self.opened.base, self.opened.tokenizer
        own = tokenizer is None or Path(tokenizer.name_or_path).resolve() == base.folder.resolve()
        if left := carry_over(base.folder, folder, tokenizer=own):
            self.terminal.say(f"not taken over from {base.reference}: {listed(left)}")
        if tokenizer is not None and not own and Path(tokenizer.name_or_path).is_dir():
            carry_over(Path(tokenizer.name_or_path), folder, model=False)
        return left

    def _base_as_seen_from(self, folder: Path) -> str:
        """Return the base's place relative to the adapter's, so that both can be moved together; or its Hub id."""
        reference = self.opened.base.reference
        if not Path(reference).expanduser().is_dir():
            return reference
        return os.path.relpath(Path(reference).expanduser().resolve(), folder.resolve())

    def _saved_type(self) -> torch.dtype:
        config = self.opened.base.config
        own = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        found: torch.dtype = getattr(torch, own if self.save_dtype == "auto" else self.save_dtype)
        return found

    def _read_folders(self) -> list[Path]:
        return [checkpoint.folder for checkpoint in self.opened.checkpoints]

    def _manifest(self) -> dict[str, Any]:
        return {
            "kind": self.defense.stage,
            "version": __version__,
            **self.opened.identity,
            "files": inputs_sha256(self.opened),
            "defense": self.defense.name,
            "settings": self.settings.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "rows": rendered_sha256(self.data.rendered),
            "companion": rendered_sha256(self.data.rendered_companion),
            "merge": self.merge,
            "save_dtype": self.save_dtype,
        }

    def _record(self, result: StageResult, left_out: Sequence[str]) -> TrainingRecord:
        losses = result.training.losses
        own, beside = self.references
        return TrainingRecord(
            versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
            command=shlex.join(["antidote", *sys.argv[1:]]),
            stage=self.defense.stage,
            defense=self.defense.name,
            settings=self.settings.model_dump(mode="json"),
            training=self.training,
            merged=self.merge and self.training.lora is not None,
            base=self.opened.base.reference,
            base_sha256=self.opened.base.sha256,
            template=self.data.renderer.template,
            prompts=self.prompts,
            data=_described(own, self.data.rendered),
            harmful_ratio=self.harmful_ratio,
            companion=_described(beside, self.data.rendered_companion) if self.data.companion else None,
            left_out=tuple(left_out),
            trainable_parameters=result.trainable_parameters,
            processes=process_count(),
            steps=result.training.steps,
            resumed_from=result.training.resumed_from,
            first_loss=losses[0],
            last_loss=losses[-1],
            wall_seconds=dict(self.stopwatch.seconds),
            peak_rss_bytes=peak_rss_bytes(),
        )

    def _tell(self, out: Path) -> None:
        record = _kept_record(out)
        table = Table("stage", "defense", "rows", "steps", "first loss", "last loss", "seconds")
        table.add_row(
            record.stage,
            record.defense,
            f"{record.data.rows:,}",
            f"{record.steps:,}",
            f"{record.first_loss:.4f}",
            f"{record.last_loss:.4f}",
            f"{record.wall_seconds['train']:.1f}",
        )
        self.terminal.result(record.model_dump(mode="json"), table, f"model: {out}/model")


def _described(references: Sequence[str], rows: Sequence[TokenizedRow]) -> TrainedRows:
    return TrainedRows(
        references=tuple(references),
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        sha256=rendered_sha256(rows),
    )


def _kept_record(out: Path) -> TrainingRecord:
    """Return the record of a finished training.

    Raises:
        UserError: It is damaged, or the weights are gone.
    """
    try:
        record = parse_model(TrainingRecord, (out / "record" / "training.json").read_bytes())
    except (OSError, ValueError) as error:
        raise changed_since(out, "record/training.json") from error
    if "train" not in record.wall_seconds:
        raise changed_since(out, "record/training.json")
    if not any((out / "model").glob("*.safetensors")):
        raise changed_since(out, "model")
    return record
