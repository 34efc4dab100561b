"""Sites: the matrices that may be edited, and where each one's input can be seen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

Role = Literal["lora_A", "lora_B"]
_LAYER_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Site:
    """One matrix of one weight file.

    Attributes:
        name: The module's name and the matrix's role in it.
        module: The name of the module that the matrix belongs to, as in ``model.layers.3.self_attn.q_proj``.
        role: Which of the module's matrices it is.
        file: The weight file that holds it, relative to the checkpoint's folder.
        key: Its name in that file.
        shape: Rows (outputs) and columns (inputs).
        scaling: What the update B A is multiplied by.
        observed: The module of the open model whose first argument is the matrix's input.
    """

    name: str
    module: str
    role: Role
    file: str
    key: str
    shape: tuple[int, int]
    scaling: float
    observed: nn.Module

    @property
    def layer(self) -> int | None:
        """The index of the decoder layer, None outside of any."""
        match = _LAYER_INDEX.search(f".{self.module}.")
        return int(match[1]) if match else None

    @property
    def kind(self) -> str:
        """The module's own name inside its layer, as in ``q_proj``."""
        return self.module.rsplit(".", 1)[-1]
