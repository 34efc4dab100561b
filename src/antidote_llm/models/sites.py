"""Sites: the matrices that may be edited, and where each one's input can be seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from antidote_llm.errors import UserError, setting

if TYPE_CHECKING:
    from torch import Tensor, nn

Role = Literal["lora_A", "lora_B", "weight"]
_LAYER_INDEX = re.compile(r"\.(\d+)\.")
# What attention modules and their query, key and value projections are called in transformers.
_ATTENTION = re.compile(r"(^|\.)\w*(attn|attention)\w*(\.|$)", re.IGNORECASE)
_QUERY_KEY_VALUE = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack"),
    *("qkv", "query", "key", "value", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
)
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
GROUPS = ("all", "attention", "mlp", "qkv")


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
        scaling: What the update B A is multiplied by; 1 for a whole weight.
        observed: The modules of the open model whose first argument is the matrix's input: more than one where
            modules share the matrix.
        transposed: Whether the file holds it with inputs as rows, as GPT-2's ``Conv1D`` does.
        part: Which slice along its first axis it is, where the file stacks matrices, as it may those of experts.
        expert: Which expert's matrix it is: its input is what the router sends there.
    """

    name: str
    module: str
    role: Role
    file: str
    key: str
    shape: tuple[int, int]
    scaling: float
    observed: tuple[nn.Module, ...]
    transposed: bool = False
    part: int | None = None
    expert: int | None = None

    @property
    def layer(self) -> int | None:
        """The index of the decoder layer, None outside of any."""
        match = _LAYER_INDEX.search(f".{self.module}.")
        return int(match[1]) if match else None

    @property
    def kind(self) -> str:
        """The module's own name inside its layer, as in ``q_proj``."""
        return self.module.rsplit(".", 1)[-1]

    def turned(self, values: Tensor) -> Tensor:
        """Change the file's layout into rows and columns, or rows and columns into the file's layout."""
        return values.T if self.transposed else values


def in_group(module: str, pattern: str) -> bool:
    """Whether a module is among those that the setting ``sites`` names.

    Args:
        module: The module's name.
        pattern: Parts, separated by commas: ``all``, ``attention``, ``mlp`` (whatever of a decoder layer is not
            attention), ``qkv``, names and shell patterns. A name without a dot or a star is a module's own name, others
            match the whole name.
    """
    return any(_matches(module, part) for part in _parts(pattern))


def _matches(module: str, part: str) -> bool:
    own_name = module.rsplit(".", 1)[-1]
    if part == "all":
        return True
    if part == "attention":
        return bool(_ATTENTION.search(module))
    if part == "mlp":
        return bool(_LAYER_INDEX.search(module)) and not _ATTENTION.search(module)
    if part == "qkv":
        return own_name in _QUERY_KEY_VALUE
    return fnmatchcase(module, part) if set(part) & set(".*?[") else part == own_name


def chosen_sites(sites: Sequence[Site], pattern: str) -> tuple[Site, ...]:
    """Return the sites that ``--sites`` names.

    Raises:
        UserError: A part of the pattern matches no site; the message lists the kinds that there are.
    """
    for part in _parts(pattern) or [pattern]:
        if not any(_matches(site.module, part) for site in sites):
            kinds = ", ".join(dict.fromkeys(site.kind for site in sites))
            raise UserError(
                f"{setting('sites')} {pattern}: '{part}' matches no matrix: there are {kinds}; use one of "
                f"{', '.join(GROUPS)}, "
                "their names, or a pattern such as *.layers.3.*"
            )
    return tuple(site for site in sites if in_group(site.module, pattern))


def _parts(pattern: str) -> list[str]:
    return [part.strip() for part in pattern.split(",") if part.strip()]


def without_layer_numbers(key: str) -> str:
    """Return a tensor's name with a star for each layer's number, as in ``model.layers.*.mlp.up_proj.bias``."""
    return _LAYER_NUMBER.sub("*", key)
