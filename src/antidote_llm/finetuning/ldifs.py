"""LDIFS: fine-tuning that keeps the outputs of feed-forward layers near the initial ones.  Axes: N tokens, D hidden.

Source: Mukhoti et al., arXiv 2308.13320, equation 4; the port to language models is that of arXiv 2408.09600.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from antidote_llm.training.batches import Batch, model_inputs, valid_tokens
from antidote_llm.training.defense import Cost, StageData, TrainingJob, finetuning_defense
from antidote_llm.training.objective import Objective, Session, Trained, at_least_float32, module_outputs
from antidote_llm.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

_SMALLEST_NORM = 1e-8


@finetuning_defense(
    cost=Cost(passes=4 / 3, copies=1),
    presets={
        "paper": {"strength": 10.0},
        "official-code": {
            "strength": 5e-5,
            "normalise": False,
            "reduction": "sum",
            "drop_threshold": 0.1,
            "include_pads": True,
        },
    },
)
def ldifs(
    data: StageData,
    training: TrainingSettings,
    *,
    strength: Annotated[
        float, Field(ge=0, description="Weight of the drift in the loss. It must be tuned: model and task decide.")
    ] = 10.0,
    normalise: Annotated[
        bool, Field(description="Bring every token's features to length 1, so that only their direction counts.")
    ] = True,
    reduction: Annotated[
        Literal["mean", "sum"], Field(description="How the drift is put together over layers and the step's tokens.")
    ] = "mean",
    drop_threshold: Annotated[
        float | None, Field(gt=0, description="Leave a layer's term out of a pass where it is this large or larger.")
    ] = None,
    include_pads: Annotated[bool, Field(description="Let pads count as tokens.")] = False,
) -> TrainingJob:
    """LDIFS (arXiv 2308.13320): cross-entropy, plus a penalty on the drift of feed-forward outputs.

    The drift is ||f/||f|| - f_0/||f_0|| ||^2, the mean over layers and tokens, where f_0 is from the model that
    fine-tuning starts from. The published code halves its strength (1e-4) and clips gradients to 5 before the trainer
    clips them to 1, which changes nothing. With pads or a threshold, how rows are batched changes the result.
    """
    objective = _Ldifs(strength, normalise, reduction, drop_threshold, include_pads)
    return TrainingJob(data.examples(training), objective, training)


class _Ldifs(Objective):
    """Runs every micro-batch through the initial model too."""

    def __init__(
        self, strength: float, normalise: bool, reduction: str, drop_threshold: float | None, include_pads: bool
    ) -> None:
        import torch

        self._strength, self._normalise, self._reduction = strength, normalise, reduction
        self._drop_threshold, self._include_pads = drop_threshold, include_pads
        self._layers: tuple[nn.Module, ...] = ()
        self._start: dict[str, Tensor] | None = None
        self._without_logits: dict[str, int] = {}
        self._terms = torch.ones(())
        # How many layers' terms were left out so far.
        self.dropped = torch.zeros((), dtype=torch.long)

    def prepare(self, model: Trained) -> None:
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if self._strength and not _starts_as_its_base(model, trained):
            self._start = {name: value.detach().clone() for name, value in trained.items()}

    def attach(self, session: Session) -> None:
        from antidote_llm.models.decoder import find_decoder

        super().attach(session)
        self._layers = find_decoder(session.inner).feed_forward
        if "logits_to_keep" in inspect.signature(type(_base(session.inner)).forward).parameters:
            self._without_logits = {"logits_to_keep": 1}

    def before_step(self, window: Sequence[Batch]) -> None:
        import torch

        tokens = torch.stack([self._counted(batch).sum() for batch in window]).sum()
        self._terms = self.session.sum_over_processes(tokens) * len(self._layers)

    def loss(self, batch: Batch) -> Tensor:
        if self._strength == 0:
            return super().loss(batch)
        references = self._references(batch)
        with module_outputs(self._layers) as features:
            loss = super().loss(batch)
        scale = self._strength / (self._terms if self._reduction == "mean" else 1)
        counted_N = self._counted(batch).flatten()
        for layer in self._layers:
            drift = _drift_function()(features.pop(layer), references.pop(layer), counted_N, self._normalise)
            loss = loss + self._kept(scale * drift) * self.session.processes
        return loss

    def state(self) -> dict[str, Tensor]:
        return {"dropped": self.dropped}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.dropped = state["dropped"]

    def _counted(self, batch: Batch) -> Tensor:
        return batch["labels"].new_ones(batch["labels"].shape).bool() if self._include_pads else valid_tokens(batch)

    def _kept(self, term: Tensor) -> Tensor:
        if self._drop_threshold is None:
            return term
        import torch

        dropped = ~(term.detach() < self._drop_threshold)
        self.dropped = self.dropped + dropped.cpu()
        return torch.where(dropped, 0, term)

    def _references(self, batch: Batch) -> dict[nn.Module, Tensor]:
        """Return the layers' outputs in the initial model, under the same dropout."""
        import torch

        model, inputs = self.session.inner, {**model_inputs(batch), **self._without_logits}
        with torch.no_grad(), self.session.same_dropout(), module_outputs(self._layers) as features:
            if self._start is not None:
                torch.func.functional_call(model, self._start, kwargs=inputs)
            else:
                with model.disable_adapter():
                    model(**inputs)
        return features


@cache
def _drift_function() -> Any:
    """Return the function of one layer's summed drift, which keeps only its gradient for the backward pass."""
    import torch

    class Drift(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, features: Tensor, reference: Tensor, counted_N: Tensor, normalise: bool) -> Tensor:
            with torch.enable_grad():
                leaf = features.detach().requires_grad_()
                drift = _drift(leaf, reference, counted_N, normalise)
                (gradient,) = torch.autograd.grad(drift, leaf)
            ctx.save_for_backward(gradient)
            return drift.detach()

        @staticmethod
        def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
            (gradient,) = ctx.saved_tensors
            return (gradient * scale).to(gradient.dtype), None, None, None

    return Drift.apply


def _drift(features: Tensor, reference: Tensor, counted_N: Tensor, normalise: bool) -> Tensor:
    import torch
    from torch import nn

    # OPT's layers have no axis of rows: [N, D] instead of [B, T, D].
    found_ND, wanted_ND = (at_least_float32(values.flatten(0, -2)) for values in (features, reference))
    if normalise:
        found_ND, wanted_ND = (
            nn.functional.normalize(values_ND, dim=-1, eps=_SMALLEST_NORM) for values_ND in (found_ND, wanted_ND)
        )
    drift_N = (found_ND - wanted_ND).square().sum(-1)
    return torch.where(counted_N, drift_N, 0).sum()


def _base(model: Trained) -> nn.Module:
    from peft import PeftModel

    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return base


def _starts_as_its_base(model: Trained, trained: dict[str, Tensor]) -> bool:
    """Say whether the model without its adapters is the initial model."""
    from peft import PeftModel

    if not isinstance(model, PeftModel) or len(model.peft_config) > 1:
        return False
    without_dropout = not any(getattr(config, "lora_dropout", 1) for config in model.peft_config.values())
    if not without_dropout or not all(".lora_A." in name or ".lora_B." in name for name in trained):
        return False
    return not any(value.any() for name, value in trained.items() if ".lora_B." in name)
