"""Where the matrices of experts lie in a checkpoint's files: one by one, or as slices of the model's own stacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from antidote_llm.models.conversion import Recipe
from antidote_llm.models.experts import ExpertStack
from antidote_llm.models.sites import Site
from antidote_llm.models.stored import StoredTensor


@dataclass(frozen=True)
class ExpertMatrix:
    """One matrix of one expert, as it lies in its file.

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
        """Compare a few rows of the file with what the model computes with; a model without values has no say."""
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


def expert_matrices(stack: ExpertStack, recipe: Recipe | None) -> tuple[ExpertMatrix, ...]:
    """Return the matrices of a stack in the order of the experts; none where the files hold them in an unknown way.

    Args:
        stack: A stack of the model.
        recipe: How the files make it.
    """
    if recipe is None:
        return ()
    if recipe.layout == "listed":
        return tuple(_listed(stack, recipe))
    if recipe.layout in ("same", "turned"):
        return tuple(_slices(stack, recipe))
    return ()


def _listed(stack: ExpertStack, recipe: Recipe) -> Iterator[ExpertMatrix]:
    """Yield matrices that have a tensor each: those of one expert stand below each other in the model's."""
    outputs, inputs = stack.shape
    experts = {len(group) for group in recipe.groups}
    shapes = [{stored.entry.shape for stored in group} for group in recipe.groups]
    heights = [shape[0] for shape, *others in shapes if not others and len(shape) == 2 and shape[1] == inputs]
    if stack.transposed or experts != {len(stack.weight)} or len(heights) < len(shapes) or sum(heights) != outputs:
        return
    for expert in range(len(stack.weight)):
        first = 0
        for group, height in zip(recipe.groups, heights, strict=True):
            name = f"{stack.experts}.{expert}.{_own_name(group[expert].entry.key)}"
            yield ExpertMatrix(name, stack, group[expert], expert, first, (height, inputs), None, False)
            first += height


def _slices(stack: ExpertStack, recipe: Recipe) -> Iterator[ExpertMatrix]:
    """Yield matrices that lie in one tensor, as in the model's or each of them turned."""
    [[stored]] = recipe.groups
    transposed = stack.transposed != (recipe.layout == "turned")
    outputs, inputs = stack.shape
    if stored.entry.shape != (len(stack.weight), *((inputs, outputs) if transposed else (outputs, inputs))):
        return
    for expert in range(len(stack.weight)):
        name = f"{stack.experts}.{expert}.{stack.own_name}"
        yield ExpertMatrix(name, stack, stored, expert, 0, (outputs, inputs), expert, transposed)


def _own_name(key: str) -> str:
    return key.removesuffix(".weight").rsplit(".", 1)[-1]
