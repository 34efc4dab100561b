"""Sequence classifiers: the logits of texts, in batches that do not depend on the padding token.

Axes: B rows of a batch, T tokens, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from antidote_llm.errors import UserError
from antidote_llm.evaluation.judges.folders import JudgeFolder, require_architecture

Done = Callable[[int, list[float]], None]

_BATCH_SIZE = 16
_MOST_TOKENS = 4096


class Classifier:
    """A sequence classifier of transformers, loaded at the first text.

    Args:
        opened: Its folder.
        max_tokens: Texts are truncated to so many tokens; None for the model's positions.

    Raises:
        UserError: It is not a sequence classifier.
    """

    def __init__(self, opened: JudgeFolder, max_tokens: int | None = None) -> None:
        require_architecture(opened, "ForSequenceClassification", "a sequence classifier")
        self.opened, self._model = opened, None
        positions = getattr(opened.config.get_text_config(), "max_position_embeddings", None) or _MOST_TOKENS
        # RoBERTa and similar models number positions from after the padding id.
        most = int(positions) - 2
        self._max_tokens = max(1, min(most, max_tokens or most, int(opened.tokenizer.model_max_length)))

    @property
    def labels(self) -> list[str]:
        """The names of its labels, in the order of its logits."""
        names: dict[int, str] = self.opened.config.id2label
        return [str(names[place]) for place in sorted(names)]

    def read(self, texts: Sequence[str], done: Done) -> None:
        """Call ``done`` with the index and the logits of each text, batch by batch, the longest first."""
        encoded = [self._encoded(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda place: -len(encoded[place]))
        for start in range(0, len(order), _BATCH_SIZE):
            places = order[start : start + _BATCH_SIZE]
            for place, logits in zip(places, self._logits([encoded[place] for place in places]), strict=True):
                done(place, logits)

    def _encoded(self, text: str) -> list[int]:
        tokenizer = self.opened.tokenizer
        ids: list[int] = tokenizer(text, truncation=True, max_length=self._max_tokens)["input_ids"]
        return ids or [tokenizer.eos_token_id or 0]

    def _logits(self, rows: Sequence[list[int]]) -> list[list[float]]:
        model = self._loaded()
        width, pad = max(map(len, rows)), self._pad_id(rows)
        model.config.get_text_config().pad_token_id = pad
        input_ids_BT = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=model.device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        with torch.inference_mode():
            logits_BL = model(input_ids=input_ids_BT, attention_mask=mask_BT).logits.float()
        if not bool(logits_BL.isfinite().all()):
            raise UserError(
                f"judge '{self.opened.judge}': {self.opened.reference} gives no finite numbers: fetch it again"
            )
        found: list[list[float]] = logits_BL.tolist()
        return found

    def _pad_id(self, rows: Sequence[list[int]]) -> int:
        """Return a padding id that no text ends in.

        Decoders classify at the last token that is not padding: if the end-of-sequence token were also the padding, the
        one that ends the text would be skipped.
        """
        last = {row[-1] for row in rows}
        own = self.opened.config.get_text_config().pad_token_id
        own = self.opened.tokenizer.pad_token_id if own is None else own
        if own is not None and own not in last:
            return int(own)
        return next(token for token in range(len(last) + 1) if token not in last)

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = self.opened.load(AutoModelForSequenceClassification)
        return self._model
