"""What one optimiser step minimises, and what a defense sees of the run.  Axes: B rows, T tokens, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from antidote_llm.training.batches import Batch, label_tokens, model_inputs

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel, Trainer

Trained: TypeAlias = "PreTrainedModel | PeftModel"

# The methods of an objective that the trainer calls.
HOOKS = (
    "prepare",
    "attach",
    "before_step",
    "loss",
    "adjust_gradients",
    "after_step",
    "state",
    "restore",
    "detach",
)


class Session:
    """A training run as a defense sees it.

    Attributes:
        label_tokens: How many tokens of the main rows count in this step's loss, over all its micro-batches and all
            processes.
    """

    def __init__(self, trainer: Trainer) -> None:
        import torch

        self._trainer = trainer
        self.label_tokens = torch.zeros(())

    @property
    def model(self) -> nn.Module:
        """The model as it is trained: its backward pass averages gradients over processes."""
        model: nn.Module = self._trainer.model_wrapped
        return model

    @property
    def inner(self) -> Trained:
        """The model itself, for passes whose gradients a defense takes with ``torch.autograd.grad``."""
        return self._trainer.model

    @property
    def step(self) -> int:
        """How many optimiser steps have been taken."""
        return int(self._trainer.state.global_step)

    @property
    def steps(self) -> int:
        """How many optimiser steps the run takes."""
        return int(self._trainer.state.max_steps)

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return int(self._trainer.accelerator.num_processes)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the trained parameters by name."""
        return ((name, value) for name, value in self.inner.named_parameters() if value.requires_grad)

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """Return the sum of every process's tensor; no gradient flows through it."""
        if self.processes == 1:
            return value
        summed: Tensor = self._trainer.accelerator.reduce(value.detach().clone(), reduction="sum")
        return summed

    def gather_over_processes(self, rows_BT: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of a run on one; gradients flow through this process's rows.

        Args:
            rows_BT: As many rows on every process, shape [B, T, ...]; shorter ones are padded with zeros.
        """
        import torch

        if self.processes == 1:
            return rows_BT
        accelerator = self._trainer.accelerator
        filled = accelerator.gather(accelerator.pad_across_processes(rows_BT.detach(), dim=1))
        own = torch.zeros_like(filled[: len(rows_BT)])
        own[:, : rows_BT.shape[1]] = rows_BT
        shares = list(filled.split(len(rows_BT)))
        shares[accelerator.process_index] = own
        return torch.cat(shares)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the model's forward pass, for parts of the model that a defense calls by themselves."""
        context: AbstractContextManager[Any] = self._trainer.accelerator.autocast()
        return context

    @contextmanager
    def same_dropout(self) -> Iterator[None]:
        """Restore the random state at the end, so that later passes draw the same dropout as those in the block."""
        import torch

        device = self.inner.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield

    def tokens_of(self, batches: Sequence[Batch]) -> Tensor:
        """Return how many tokens of some batches count in a loss, over all processes."""
        import torch

        return self.sum_over_processes(torch.stack([label_tokens(batch) for batch in batches]).sum())

    def cross_entropy(self, logits_BTV: Tensor, labels_BT: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return a micro-batch's share of the step's mean cross-entropy.

        A step's shares add up to the mean over its tokens, however it is cut into micro-batches. Over processes, the
        mean of the shares is that mean, because gradients are averaged over processes.

        Args:
            logits_BTV: Logits, shape [B, T, V].
            labels_BT: Labels, shape [B, T], -100 where nothing is learned.
            tokens: How many labels there are in the whole step; those of the main rows where not given.
        """
        from transformers.loss.loss_utils import ForCausalLMLoss

        tokens = self.label_tokens if tokens is None else tokens
        mean: Tensor = ForCausalLMLoss(
            logits=logits_BTV, labels=labels_BT, vocab_size=logits_BTV.shape[-1], num_items_in_batch=tokens
        )
        return mean * self.processes


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or in their own type where that is wider."""
    import torch

    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def module_outputs(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Record what modules return within the block, in the order of their calls.

    Compute with the tensors after the block: gradient checkpointing does not repeat what hooks compute.
    """
    outputs: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[module] = output[0] if isinstance(output, tuple) else output

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class Objective:
    """Supervised fine-tuning: the cross-entropy of the labels. A defense overrides the hooks that it needs.

    One optimiser step calls ``before_step`` once with all its micro-batches, ``loss`` for each of them,
    ``adjust_gradients`` once and ``after_step`` once. In ``adjust_gradients``, gradients are summed over micro-batches
    and averaged over processes, but not yet clipped. No other hook may change accumulated gradients.
    """

    session: Session

    def prepare(self, model: Trained) -> None:
        """Look at the model that the run starts from, before any checkpoint is loaded."""

    def attach(self, session: Session) -> None:
        """Get ready: the model is on its device, and the weights of a checkpoint are loaded."""
        self.session = session

    def before_step(self, window: Sequence[Batch]) -> None:
        """Look at all micro-batches of the next step."""

    def loss(self, batch: Batch) -> Tensor:
        """Return a micro-batch's share of the step's loss."""
        outputs: Any = self.session.model(**model_inputs(batch))
        return self.session.cross_entropy(outputs.logits, batch["labels"])

    def adjust_gradients(self) -> None:
        """Change the step's gradients."""

    def after_step(self) -> None:
        """Look at the weights after the step."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must save of the objective."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what a checkpoint saved; called after ``attach``."""

    def detach(self) -> None:
        """Remove every hook and reference; called when the run ends, also by an error."""
