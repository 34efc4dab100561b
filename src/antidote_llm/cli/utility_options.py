"""Options for what is measured beyond answers: perplexity, and tasks of lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from antidote_llm.cli.terminal import Terminal, by_steps
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.errors import UserError
from antidote_llm.evaluation.lm_eval_bridge import lm_eval_version, require_lm_eval_tasks, run_lm_eval
from antidote_llm.evaluation.perplexity import PerplexityText, perplexity
from antidote_llm.io.files import sha256_json
from antidote_llm.models.load import LoadedModel

PerplexityOption = Annotated[
    str | None,
    typer.Option(
        "--perplexity", metavar="DATA", help="Text whose perplexity is measured: wikitext2, or rows with a column text."
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        "--perplexity-window", min=2, help="Most tokens seen at once; 2048, or the model's positions if fewer."
    ),
]
StrideOption = Annotated[
    int | None,
    typer.Option("--perplexity-stride", min=1, help="Tokens from one window to the next; half a window."),
]
LmEvalOption = Annotated[
    str | None,
    typer.Option("--lm-eval", metavar="TASK[,TASK]", help="Tasks of lm-eval, which must be installed."),
]


@dataclass(frozen=True)
class Further:
    """What the options ask to measure, before a model is opened."""

    text: Sequence[Record]
    window: int | None
    stride: int | None
    lm_eval: tuple[str, ...]
    rows: int | None

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.text or self.lm_eval)

    def ready(self, opened: LoadedModel) -> Measuring:
        """Make the text ready for a model.

        Raises:
            UserError: The model has no tokenizer, or a window does not fit it.
        """
        if self.lm_eval and opened.tokenizer is None:
            raise UserError("the model folder has no tokenizer: pass --tokenizer (lm-eval asks in text)")
        text = (
            PerplexityText.of(opened.model, opened.tokenizer, self.text, self.window, self.stride)
            if self.text
            else None
        )
        return Measuring(opened, text, self.lm_eval, self.rows)


@dataclass(frozen=True)
class Measuring:
    """What is measured of one model."""

    opened: LoadedModel
    text: PerplexityText | None
    lm_eval: tuple[str, ...]
    rows: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """All that the results depend on besides the model, as JSON values."""
        found: dict[str, Any] = {}
        if (text := self.text) is not None:
            found["perplexity"] = {
                "text": sha256_json([text.ids, text.start]),
                "window": text.window,
                "stride": text.stride,
            }
        if self.lm_eval:
            found["lm_eval"] = {"tasks": self.lm_eval, "rows": self.rows, "version": lm_eval_version()}
        return found

    def measured(self, terminal: Terminal) -> dict[str, Any]:
        """Measure it under progress bars, and return the fields of the evaluation."""
        found: dict[str, Any] = {}
        if self.text is not None:
            with terminal.progress("reading", len(self.text.spans()), "windows") as advance:
                found["perplexity"] = perplexity(self.opened.model, self.text, progress=by_steps(advance))
        if self.lm_eval:
            terminal.say(f"lm-eval: {', '.join(self.lm_eval)}")
            found["lm_eval"] = run_lm_eval(self.opened.model, self.opened.tokenizer, self.lm_eval, self.rows)
        return found


def further_from(
    text: str | None, window: int | None, stride: int | None, lm_eval: str | None, rows: int | None
) -> Further:
    """Read the text, and see that lm-eval and its tasks are there.

    Raises:
        UserError: The text cannot be read, or lm-eval or a task is not there.
    """
    if text is None and (window is not None or stride is not None):
        raise UserError("--perplexity-window and --perplexity-stride are for --perplexity: name its text")
    names = tuple(name.strip() for name in (lm_eval or "").split(",") if name.strip())
    if lm_eval is not None:
        require_lm_eval_tasks(names)
    records = read_records(DataSpec.parse(text)) if text else []
    for record in records:
        if record.text is None:
            raise UserError(f"{record.origin}: perplexity needs rows of text: map a column, as in file.csv:text=COLUMN")
    return Further(records, window, stride, names, rows)
