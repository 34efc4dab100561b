"""Tensors of torch and the bytes of a safetensors file: types, views and checks of values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from antidote_llm.io.safetensors_files import BLOCK_ENTRIES, TensorEntry

# Weights that can be repaired have one of these types.
FLOAT_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
DTYPES: Mapping[str, torch.dtype] = {
    **FLOAT_DTYPES,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_SUM_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def flat_blocks(values: Tensor) -> tuple[Tensor, ...]:
    """View a tensor as flat blocks of some millions of entries, so that what is computed from each stays small."""
    return torch.split(values.reshape(-1), BLOCK_ENTRIES)


def is_finite(values: Tensor) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinite values."""
    return all(map(_is_finite, flat_blocks(values)))


def _is_finite(block: Tensor) -> bool:
    # A sum is many times faster than looking at every value, and finite only if they all are.
    total = float(block.sum(dtype=_SUM_DTYPES.get(block.dtype)))
    return math.isfinite(total) or bool(torch.isfinite(block).all())


def bytes_to_tensor(data: bytearray, entry: TensorEntry) -> Tensor:
    """View raw little-endian bytes as the tensor that ``entry`` describes."""
    if not data:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    return torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def tensor_bytes(values: Tensor) -> memoryview:
    """View the bytes of a tensor on the CPU, in the order of its entries."""
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().data
