"""Booster: alignment to weights from which one step towards harmful answers gains little.

Source: Huang et al., arXiv 2409.01586, equation 3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from antidote_llm.training.batches import Batch, carrying, model_inputs
from antidote_llm.training.defense import Cost, StageData, TrainingJob, alignment_defense
from antidote_llm.training.objective import Objective, at_least_float32
from antidote_llm.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


@alignment_defense(
    needs_harmful=True,
    cost=Cost(passes=3, copies=2),
    presets={"paper": {"strength": 5.0, "alpha": 0.1}, "official-code": {"strength": 5.0, "alpha": 0.1}},
)
def booster(
    data: StageData,
    training: TrainingSettings,
    *,
    strength: Annotated[
        float, Field(ge=0, description="Lambda, how much the gain of a harmful step counts; Panacea's runs use 100.")
    ] = 5.0,
    alpha: Annotated[
        float, Field(gt=0, description="Length of the harmful step, over all trained weights; Panacea's runs use 0.01.")
    ] = 0.1,
) -> TrainingJob:
    """Booster (arXiv 2409.01586): the alignment data's cross-entropy, plus what a harmful step would gain.

    f(w) + lambda (h(w) - h(w - alpha g / ||g||)), where f and h are the cross-entropies of the alignment data and of
    the harmful rows and g is the gradient of h. Second derivatives are left out: the gradient of both terms of h is
    taken at their own weights, on the same harmful rows. Every row carries a harmful one; those beyond the number of
    rows are not used. The reported loss is f.
    """
    examples = carrying(data.examples(training), "harmful", data.auxiliary_examples(training), training.seed)
    return TrainingJob(examples, _Booster(strength, alpha), training)


class _Booster(Objective):
    """Computes the gradient of the gain before each step, and adds it to the step's own gradient."""

    def __init__(self, strength: float, alpha: float) -> None:
        self._strength, self._alpha = strength, alpha
        self._added: list[Tensor] = []

    def before_step(self, window: Sequence[Batch]) -> None:
        if self._strength == 0:
            return
        import torch

        harmful = [batch["harmful"] for batch in window]
        trained = [value for _, value in self.session.parameters()]
        here = self._gradients(harmful, trained)
        # One norm over all weights.
        norm = torch.stack([gradient.norm() for gradient in here]).norm()
        step = self._alpha / norm.clamp_min(torch.finfo(norm.dtype).eps)
        with _moved(trained, here, -step):
            there = self._gradients(harmful, trained)
        self._added = [(a - b).mul_(self._strength) for a, b in zip(here, there, strict=True)]

    def adjust_gradients(self) -> None:
        # Nothing was prepared where the strength is 0.
        for (_, value), added in zip(self.session.parameters(), self._added, strict=False):
            added = added.to(value.dtype)
            value.grad = added if value.grad is None else value.grad.add_(added)
        self._added = []

    def detach(self) -> None:
        self._added = []

    def _gradients(self, batches: Sequence[Batch], trained: Sequence[nn.Parameter]) -> list[Tensor]:
        """Return the gradient of the batches' mean cross-entropy, over all processes and at least in float32."""
        import torch

        tokens = self.session.tokens_of(batches)
        sums: list[Tensor | None] = [None] * len(trained)
        # The same dropout before and after the harmful step.
        with self.session.same_dropout():
            for batch in batches:
                outputs: Any = self.session.inner(**model_inputs(batch))
                share = self.session.cross_entropy(outputs.logits, batch["labels"], tokens) / self.session.processes
                gradients = torch.autograd.grad(share, trained, allow_unused=True)
                sums = [_sum(total, gradient) for total, gradient in zip(sums, gradients, strict=True)]
        # An expert that no token is routed to has no gradient.
        whole = [
            torch.zeros_like(value) if total is None else total for value, total in zip(trained, sums, strict=True)
        ]
        return [self.session.sum_over_processes(at_least_float32(total)) for total in whole]


@contextmanager
def _moved(weights: Sequence[nn.Parameter], directions: Sequence[Tensor], factor: Tensor) -> Iterator[None]:
    """Move weights within the block, then restore the very same bits."""
    import torch

    kept = [value.detach().clone() for value in weights]
    try:
        with torch.no_grad():
            for value, direction in zip(weights, directions, strict=True):
                value.add_(factor * direction)
        yield
    finally:
        with torch.no_grad():
            for value, bits in zip(weights, kept, strict=True):
                value.copy_(bits)


def _sum(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    if total is None or gradient is None:
        return gradient if total is None else total
    return at_least_float32(total) + gradient
