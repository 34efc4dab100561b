"""Hooks that sum the squares of every site's input, pads never counted.

Legend: B rows of a batch, T positions, N some of the B x T positions, I input columns of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from antidote_llm.calibration.routed import RoutedInputs, is_routed
from antidote_llm.calibration.sums import Sums
from antidote_llm.errors import UserError
from antidote_llm.models.sites import Site

# Is told the names of sites that share an input, and its sums of squares by row, shape [B, I].
Heard: TypeAlias = Callable[[Sequence[str], Tensor], None]


class NonFiniteInputError(UserError):
    """A site's input was NaN or infinite: the weights are broken, or the type is too narrow."""


class _Seen(Exception):  # noqa: N818
    """Every site has seen its input: what a forward pass would still compute is not needed."""


class Observer:
    """Hands the inputs of sites to sums while a model runs.

    Squares are formed and summed over a row's tokens in float32 (float64 where the model computes in it), and rows
    are added up in float64.

    Args:
        sites: Whose inputs.
        to_the_end: Whether every forward pass is run to its end; otherwise it ends with the last site's input.
    """

    def __init__(self, sites: Sequence[Site], *, to_the_end: bool = False) -> None:
        self._routed = RoutedInputs(sites)
        self._sites = [site for site in sites if not is_routed(site)]
        self._to_the_end = to_the_end
        self._names: dict[nn.Module, list[str]] = {}
        for site in self._sites:
            for module in site.observed:
                self._names.setdefault(module, []).append(site.name)
        self._sums = Sums()
        self._counted_BT: Tensor | None = None
        self._uncounted_N = torch.empty(0, dtype=torch.long)
        self._counted = 0
        self._calls = 0
        self._knows_calls = False
        # The last input of each width and its sums: q, k and v share an input, and B sees its own between two of them.
        self._shared: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._heard: Heard | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook every site for the length of the block."""
        handles = []
        try:
            for module, names in self._names.items():
                handles.append(module.register_forward_pre_hook(_input_hook(self, names), with_kwargs=True))
            handles += self._routed.hooks(self._count_call)
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._shared.clear()

    @contextmanager
    def counting(self, counted_BT: Tensor, sums: Sums, heard: Heard | None = None) -> Iterator[None]:
        """Count the marked positions of the one forward pass in the block, which may end with the last site's input.

        The first pass is run to its end, so that a module that is used twice is found.

        Args:
            counted_BT: Which positions count.
            sums: What the inputs are added to.
            heard: Called with the names of sites that share an input, and its sums of squares by row.

        Raises:
            UserError: A site saw no input, so that its statistics would be empty.
        """
        before = dict(sums.tokens)
        self._sums, self._counted_BT, self._calls, self._heard = sums, counted_BT, 0, heard
        self._uncounted_N = (~counted_BT).reshape(-1).nonzero().squeeze(1)
        self._counted = counted_BT.numel() - len(self._uncounted_N)
        self._shared.clear()
        self._routed.start(counted_BT, sums)
        with suppress(_Seen):
            yield
        self._counted_BT = None
        for site in self._sites:
            seen, wanted = sums.tokens.get(site.name, 0) - before.get(site.name, 0), len(site.observed) * self._counted
            if seen != wanted:
                raise UserError(
                    f"{site.name} saw {seen} of {wanted} tokens in a forward pass: it is not a plain, active matrix, "
                    "or the model uses it another number of times than once: leave it out of --sites"
                )
        self._routed.finish()
        self._knows_calls = True

    def observe(self, names: Sequence[str], input_BTI: Tensor) -> None:
        """Add the input of the sites of one module."""
        counted_BT = self._counted_BT
        if counted_BT is None or not _rows_by_tokens(input_BTI.shape[:-1], counted_BT.shape):
            raise UserError(
                f"{names[0]}: its input has shape {list(input_BTI.shape)}, not rows by tokens: leave it out of --sites"
            )
        if input_BTI.shape[:-1] != counted_BT.shape:
            input_BTI = input_BTI.reshape(*counted_BT.shape, -1)
        squares_BI, sum_squares_I, sum_norms_I = self._summed(input_BTI)
        if self._heard is not None:
            self._heard(names, squares_BI)
        for name in names:
            self._sums.add(name, sum_squares_I, sum_norms_I, self._counted)
        self._count_call()

    def _count_call(self) -> None:
        self._calls += 1
        everything = len(self._names) + len(self._routed.inlets)
        if self._knows_calls and not self._to_the_end and self._calls == everything:
            raise _Seen

    def _summed(self, input_BTI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self._shared.get(input_BTI.shape[-1])
        if shared is not None and shared[0] is input_BTI:
            return shared[1:]
        squares_BI = _squares_of_rows(input_BTI, self._uncounted_N).double()
        found = squares_BI, squares_BI.sum(dim=0), squares_BI.sqrt().sum(dim=0)
        self._shared[input_BTI.shape[-1]] = (input_BTI, *found)
        return found


def _squares_of_rows(input_BTI: Tensor, uncounted_N: Tensor) -> Tensor:
    """Return the sums of squares over the counted tokens of each row, shape [B, I]."""
    narrow = input_BTI.dtype not in (torch.float32, torch.float64)
    squares_BTI = input_BTI.float().square_() if narrow else input_BTI.square()
    # Whole positions are filled: a mask that is spread over columns costs more than all else here.
    squares_BTI = squares_BTI.contiguous()
    squares_BTI.view(-1, squares_BTI.shape[-1]).index_fill_(0, uncounted_N.to(squares_BTI.device), 0)
    return squares_BTI.sum(dim=1)


def require_finite(sums: Sums) -> None:
    """Refuse sums of inputs that were not finite.

    Raises:
        NonFiniteInputError: Names the site.
    """
    for name, sum_squares_I in sums.squares.items():
        if not bool(torch.isfinite(sum_squares_I).all()):
            raise NonFiniteInputError(
                f"{name}: its input is NaN or infinite: open the model with --dtype float32, or fetch it again"
            )


def _rows_by_tokens(axes: torch.Size, counted: torch.Size) -> bool:
    """Whether axes hold rows by tokens: as they are, as one axis, or with axes of one between them."""
    longer = [side for side in axes if side != 1]
    return longer in ([side for side in counted if side != 1], [counted.numel()])


def _input_hook(observer: Observer, names: Sequence[str]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        observer.observe(names, args[0] if args else next(iter(kwargs.values())))

    return hook
