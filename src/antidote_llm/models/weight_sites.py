"""The sites of whole weights: linear layers, and the matrices of experts, which files hold one by one or as slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from antidote_llm.errors import UserError, setting
from antidote_llm.io.safetensors_files import FLOAT_BYTES
from antidote_llm.models.checkpoint import Checkpoint, StoredTensor
from antidote_llm.models.decoder import decoder_layers
from antidote_llm.models.experts import ExpertStack, expert_stacks
from antidote_llm.models.sites import Site, chosen_sites, in_group
from antidote_llm.models.tensor_names import TensorSource, tensor_sources


@dataclass(frozen=True)
class ExpertMatrix:
    """One matrix of one expert, as it is in its file.

    Attributes:
        name: The experts' module, the expert's number and what the matrix is called.
        stack: The stack of the model that it is part of.
        stored: The tensor that holds it.
        expert: Which expert's it is.
        first_output: Which output of the stack's matrix its first row is.
        shape: Its rows (outputs) and columns (inputs).
        part: Which slice of the stored tensor it is; None where that is this one matrix.
        transposed: Whether the file holds it with inputs as rows.
    """

    name: str
    stack: ExpertStack
    stored: StoredTensor
    expert: int
    first_output: int
    shape: tuple[int, int]
    part: int | None
    transposed: bool

    def is_the_models(self) -> bool:
        """Compare a few rows of the file with what the model computes with; a model without values is not compared."""
        weight = self.stack.weight
        if weight.is_meta:
            return True
        in_memory = weight[self.expert].T if self.stack.transposed else weight[self.expert]
        in_memory_OI = in_memory[self.first_output : self.first_output + self.shape[0]]
        in_file = in_memory_OI.T if self.transposed else in_memory_OI
        return all(
            torch.equal(self._row(row).to(weight.dtype).nan_to_num(), in_file[row].cpu().nan_to_num())
            for row in {0, len(in_file) // 2, len(in_file) - 1}
        )

    def _row(self, row: int) -> Tensor:
        return self.stored.file.read_rows(self.stored.entry.key, row, row + 1, self.part)[0]

    def site(self) -> Site:
        """Return it as a site."""
        return Site(
            name=self.name,
            module=self.name,
            role="weight",
            file=self.stored.file_name,
            key=self.stored.entry.key,
            shape=self.shape,
            scaling=1.0,
            observed=(self.stack.inlet,),
            transposed=self.transposed,
            part=self.part,
            expert=self.expert,
        )


def expert_matrices(stack: ExpertStack, source: TensorSource | None) -> tuple[ExpertMatrix, ...]:
    """Return the matrices of a stack in the order of the experts; none where the files hold them in an unknown way.

    Args:
        stack: A stack of the model.
        source: How the files make it.
    """
    if source is None:
        return ()
    if source.layout == "stacked":
        return tuple(_stacked(stack, source))
    if source.layout in ("same", "transposed"):
        return tuple(_slices(stack, source))
    return ()


def _stacked(stack: ExpertStack, source: TensorSource) -> Iterator[ExpertMatrix]:
    """Yield matrices that have a tensor each: in the model's tensor, those of one expert are joined by rows."""
    outputs, inputs = stack.shape
    experts = {len(group) for group in source.groups}
    shapes = [{stored.entry.shape for stored in group} for group in source.groups]
    heights = [shape[0] for shape, *others in shapes if not others and len(shape) == 2 and shape[1] == inputs]
    if stack.transposed or experts != {len(stack.weight)} or len(heights) < len(shapes) or sum(heights) != outputs:
        return
    for expert in range(len(stack.weight)):
        first = 0
        for group, height in zip(source.groups, heights, strict=True):
            name = f"{stack.experts}.{expert}.{_own_name(group[expert].entry.key)}"
            yield ExpertMatrix(name, stack, group[expert], expert, first, (height, inputs), None, False)
            first += height


def _slices(stack: ExpertStack, source: TensorSource) -> Iterator[ExpertMatrix]:
    """Yield matrices that are slices of one tensor, as in the model or each of them transposed."""
    [[stored]] = source.groups
    transposed = stack.transposed != (source.layout == "transposed")
    outputs, inputs = stack.shape
    if stored.entry.shape != (len(stack.weight), *((inputs, outputs) if transposed else (outputs, inputs))):
        return
    for expert in range(len(stack.weight)):
        name = f"{stack.experts}.{expert}.{stack.own_name}"
        yield ExpertMatrix(name, stack, stored, expert, 0, (outputs, inputs), expert, transposed)


def _own_name(key: str) -> str:
    return key.removesuffix(".weight").rsplit(".", 1)[-1]


# Parameters of two and more axes that are no linear matrix: what they multiply is not a site's input.
_NO_MATRICES = (nn.Embedding, nn.Conv1d)
_STATE = ("A_log", "e_score_correction_bias")
_ROUTERS = ("gate", "router", "shared_expert_gate")


def weight_sites(model: PreTrainedModel, checkpoint: Checkpoint, pattern: str) -> tuple[Site, ...]:
    """Return the sites of a model's decoder layers, a shared matrix once, in the order of the network.

    Embeddings, the head, norms, biases and routers are no sites. The matrices of experts are, one by one.

    Args:
        model: The open model, with or without values in its parameters: without, the files are not compared with it.
        checkpoint: Where it was opened from.
        pattern: Which of them: see :func:`antidote_llm.models.sites.in_group`.

    Raises:
        UserError: The pattern matches nothing, or covers something that cannot be scored, or that the files hold in
            another form than the model.
    """
    made = tensor_sources(checkpoint, model)
    shared: dict[int, list[tuple[str, nn.Module]]] = {}
    makers: dict[str, Callable[[], Site]] = {}
    for name, module in list(_decoder_modules(model, checkpoint)):
        if _is_router(name, model):
            continue
        if isinstance(module, (nn.Linear, Conv1D)):
            uses = shared.setdefault(id(module.weight), [])
            uses.append((name, module))
            makers.setdefault(uses[0][0], partial(_site, uses, made, checkpoint))
        elif stacks := expert_stacks(name, module):
            if in_group(name, pattern):
                _require_no_matrix(name, module, checkpoint, known=[stack.own_name for stack in stacks])
            found = [expert_matrices(stack, made.get(stack.name)) for stack in stacks]
            if in_group(name, pattern) and not all(found):
                raise _other_form(stacks[found.index(())].name, stacks[found.index(())].weight, checkpoint)
            for matrix in sorted((matrix for each in found for matrix in each), key=lambda matrix: matrix.expert):
                makers[matrix.name] = partial(_expert_site, matrix, checkpoint)
        elif in_group(name, pattern):
            _require_no_matrix(name, module, checkpoint)
    placeless = [Site(name, name, "weight", "", "", (0, 0), 1.0, ()) for name in makers]
    return tuple(makers[site.module]() for site in chosen_sites(placeless, pattern))


def _decoder_modules(model: PreTrainedModel, checkpoint: Checkpoint) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module inside the decoder layers."""
    stack, layers = decoder_layers(model, checkpoint.reference)
    for inner, module in layers.named_modules(prefix=stack):
        if inner != stack:
            yield inner, module


def _is_router(name: str, model: PreTrainedModel) -> bool:
    """Whether a module routes tokens to experts: it, or a module that contains it, is next to experts."""
    steps = name.split(".")
    for place, step in enumerate(steps):
        if step in _ROUTERS:
            siblings = model.get_submodule(".".join(steps[:place])).named_children()
            if any("expert" in f"{own_name} {type(child).__name__}".lower() for own_name, child in siblings):
                return True
    return False


def _require_no_matrix(name: str, module: nn.Module, checkpoint: Checkpoint, known: Sequence[str] = ()) -> None:
    """Refuse a module with matrices that are neither known nor the biases of known ones, a row for each expert."""
    if isinstance(module, _NO_MATRICES) or name.rsplit(".", 1)[-1] in _ROUTERS:
        return
    for own_name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() >= 2 and own_name not in _STATE and own_name.removesuffix("_bias") not in known:
            raise UserError(
                f"{checkpoint.reference}: {name}.{own_name} ({type(module).__name__}) is no linear layer of its own "
                f"and cannot be repaired yet: choose what can be, as with {setting('sites')} attention"
            )


def _site(uses: list[tuple[str, nn.Module]], made: Mapping[str, TensorSource], checkpoint: Checkpoint) -> Site:
    name, module = uses[0]
    weight = module.get_parameter("weight")
    transposed = isinstance(module, Conv1D)
    source = next((made[f"{use}.weight"] for use, _ in uses if f"{use}.weight" in made), None)
    stored = source.groups[0][0] if source is not None and source.layout == "same" else None
    if stored is None or stored.entry.shape != tuple(weight.shape):
        raise _other_form(f"{name}.weight", weight, checkpoint)
    _require_floating(stored, checkpoint)
    if not _same_values(stored, weight):
        raise _converted(stored, checkpoint)
    rows, columns = weight.shape[::-1] if transposed else weight.shape
    return Site(
        name=name,
        module=name,
        role="weight",
        file=stored.file_name,
        key=stored.entry.key,
        shape=(rows, columns),
        scaling=1.0,
        observed=tuple(module for _, module in uses),
        transposed=transposed,
    )


def _expert_site(matrix: ExpertMatrix, checkpoint: Checkpoint) -> Site:
    _require_floating(matrix.stored, checkpoint)
    if not matrix.is_the_models():
        raise _converted(matrix.stored, checkpoint)
    return matrix.site()


def _same_values(stored: StoredTensor, weight: Tensor) -> bool:
    """Compare a few rows; a model without values is not compared."""
    return weight.is_meta or all(
        torch.equal(
            stored.file.read_row(stored.entry.key, row).to(weight.dtype).nan_to_num(), weight[row].cpu().nan_to_num()
        )
        for row in {0, weight.shape[0] // 2, weight.shape[0] - 1}
    )


def _require_floating(stored: StoredTensor, checkpoint: Checkpoint) -> None:
    if stored.entry.dtype not in FLOAT_BYTES:
        raise UserError(
            f"{checkpoint.reference}: {stored.entry.key} is {stored.entry.dtype}: only floating-point weights can be "
            "repaired: use the checkpoint before quantisation"
        )


def _other_form(name: str, weight: Tensor, checkpoint: Checkpoint) -> UserError:
    return UserError(
        f"{checkpoint.reference}: the files hold no {name} of {' x '.join(map(str, weight.shape))}: they keep it in "
        "another form than the model computes with, and it cannot be repaired there"
    )


def _converted(stored: StoredTensor, checkpoint: Checkpoint) -> UserError:
    """Return the error of a tensor that has another meaning than its name, or that a library converts when loading."""
    return UserError(
        f"{checkpoint.reference}: {stored.entry.key} is not what the model computes with: the library converts it when "
        "loading, and it cannot be repaired in its file"
    )
