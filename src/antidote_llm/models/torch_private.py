"""What is used of torch beyond its documented interface.

What is assumed of it is tested in ``tests/models/test_torch_private.py``; the versions are bounded in
``pyproject.toml``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters of a module itself by name: the dictionary that it reads, so that they can be replaced."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers of a module itself by name: the dictionary that it reads, so that they can be replaced."""
    return module._buffers


def computed_buffers(module: nn.Module) -> Collection[str]:
    """Return the names of the buffers of a module that are computed and not saved."""
    return module._non_persistent_buffers_set


def fake_tensors() -> AbstractContextManager[Any]:
    """Return a block in which tensors have shapes and devices and no values."""
    # It imports much that nothing else needs.
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode: AbstractContextManager[Any] = FakeTensorMode()
    return mode


def storage_of(tensor: Tensor) -> int:
    """Return a number for the memory of a tensor: views of the same memory have the same, also without values."""
    number: int = tensor.untyped_storage()._cdata
    return number


def add_scaled_differences(
    targets: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], scale: float
) -> None:
    """Add ``scale * (first - second)`` to tensors in place, all of them in few kernels."""
    torch._foreach_add_(list(targets), torch._foreach_sub(list(first), list(second)), alpha=scale)
