"""Vaccine: alignment under the worst small shift of every attention output.  Axes: B rows, T tokens, D hidden.

Source: Huang et al., arXiv 2402.01109, equations 3 to 5 and algorithm 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from antidote_llm.training.batches import Batch, model_inputs
from antidote_llm.training.defense import Cost, StageData, TrainingJob, alignment_defense
from antidote_llm.training.objective import Objective, Session, at_least_float32
from antidote_llm.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

# By layer: what is added to the output of its attention, [B, T, D].
Shifts: TypeAlias = "dict[int, Tensor]"


@alignment_defense(
    cost=Cost(passes=2),
    presets={"paper": {"rho": 2.0}, "official-code": {"rho": 2.0, "norm_over": "pass"}},
)
def vaccine(
    data: StageData,
    training: TrainingSettings,
    *,
    rho: Annotated[
        float,
        Field(ge=0, description="Length of the shift of all attention outputs together; Panacea's runs use 20."),
    ] = 2.0,
    norm_over: Annotated[
        Literal["step", "pass"],
        Field(description="Whether the shift has that length over the optimiser step's rows or over each pass's."),
    ] = "step",
) -> TrainingJob:
    """Vaccine (arXiv 2402.01109): the alignment data's cross-entropy, under the worst small shift of attention outputs.

    Layer l's attention output e_l gets rho * g_l / ||(g_1, ..., g_L)||, where g_l is the loss's gradient at e_l and the
    norm is over all layers, tokens and rows. With ``norm_over`` "pass", accumulation and processes change the result.
    """
    return TrainingJob(data.examples(training), _Vaccine(rho, norm_over), training)


class _Vaccine(Objective):
    """Computes all shifts of a step before it begins, and uses each with its micro-batch.

    Pads need no mask: they are on the right, no token attends to them, and their gradient is zero.
    """

    def __init__(self, rho: float, norm_over: str) -> None:
        self._rho, self._norm_over = rho, norm_over
        self._hooks: list[Any] = []
        self._waiting: deque[Shifts] = deque()
        self._shifts: Shifts | None = None

    def attach(self, session: Session) -> None:
        from antidote_llm.models.decoder import find_decoder

        super().attach(session)
        # They stay during the backward pass, in which gradient checkpointing runs layers again.
        self._hooks = [
            module.register_forward_hook(self._shifting(layer))
            for layer, module in enumerate(find_decoder(session.inner).attention)
        ]

    def before_step(self, window: Sequence[Batch]) -> None:
        import torch

        with self.session.same_dropout():
            gradients = [self._gradients(batch) for batch in window]
        squares = torch.stack([_square(of_batch) for of_batch in gradients])
        if self._norm_over == "step":
            squares = self.session.sum_over_processes(squares.sum()).expand_as(squares)
        scales = torch.where(squares > 0, self._rho / squares.sqrt(), 0)
        for of_batch, scale in zip(gradients, scales, strict=True):
            for gradient_BTD in of_batch.values():
                gradient_BTD.mul_(scale)
        self._waiting = deque(gradients)

    def loss(self, batch: Batch) -> Tensor:
        self._shifts = self._waiting.popleft()
        return super().loss(batch)

    def adjust_gradients(self) -> None:
        self._shifts = None

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._shifts = [], None
        self._waiting.clear()

    def _gradients(self, batch: Batch) -> Shifts:
        """Return the loss's gradient at every attention output: the gradient of a shift of zero."""
        import torch

        shifts: Shifts = {}
        self._shifts = shifts
        outputs: Any = self.session.inner(**model_inputs(batch))
        loss = self.session.cross_entropy(outputs.logits, batch["labels"])
        gradients = torch.autograd.grad(loss, list(shifts.values()))
        self._shifts = None
        return dict(zip(shifts, gradients, strict=True))

    def _shifting(self, layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        import torch

        def shift(module: nn.Module, inputs: Any, output: Any) -> Any:
            del module, inputs
            if self._shifts is None:
                return output
            whole = output if isinstance(output, tuple) else (output,)
            if layer not in self._shifts:
                self._shifts[layer] = torch.zeros_like(whole[0], requires_grad=True)
            shifted = (whole[0] + self._shifts[layer], *whole[1:])
            return shifted if isinstance(output, tuple) else shifted[0]

        return shift


def _square(gradients: Shifts) -> Tensor:
    """Return the squared norm of all gradients together."""
    import torch

    return torch.stack([at_least_float32(gradient).square().sum() for gradient in gradients.values()]).sum()
