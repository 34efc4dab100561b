"""Forward hooks that sum the squares of every site's input: of matrices that see all tokens, and of experts.

Each expert sees the tokens that the router sends to it, and has its own sums.

Legend: B rows of a batch, T positions, S tokens that one expert sees, R rows that they belong to, I input columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from antidote_llm.calibration.moments import MomentAccumulator
from antidote_llm.errors import UserError, setting
from antidote_llm.models.experts import ExpertInlet, observed_experts
from antidote_llm.models.sites import Site


def is_routed(site: Site) -> bool:
    """Whether a site's input is what a router sends to an expert."""
    return any(isinstance(module, ExpertInlet) for module in site.observed)


@contextmanager
def experts_seen(model: nn.Module, sites: Sequence[Site]) -> Iterator[None]:
    """Make the inputs of experts observable in the block, if a site needs it.

    Args:
        model: The model that computes.
        sites: All sites, of all layers: engines that run layers one by one must agree on it.
    """
    if any(map(is_routed, sites)):
        with observed_experts(model):
            yield
    else:
        yield


class RoutedInputs:
    """Adds up the inputs of experts while a model runs.

    Args:
        sites: The observed sites, those that are not of experts included.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.inlets: dict[ExpertInlet, dict[int, list[Site]]] = {}
        for site in sites:
            for module in site.observed:
                if isinstance(module, ExpertInlet) and site.expert is not None:
                    self.inlets.setdefault(module, {}).setdefault(site.expert, []).append(site)
        self._sums = MomentAccumulator()
        self._counted_BT = torch.empty(0)
        self._wanted: dict[ExpertInlet, int] = {}
        self._passed: dict[ExpertInlet, int] = {}
        self._counted: dict[ExpertInlet, int] = {}

    def start(self, counted_BT: Tensor, sums: MomentAccumulator) -> None:
        """Begin a forward pass, in which the marked positions count."""
        self._sums, self._counted_BT = sums, counted_BT
        self._wanted.clear()
        self._passed, self._counted = dict.fromkeys(self.inlets, 0), dict.fromkeys(self.inlets, 0)

    def hooks(self, done: Callable[[], None]) -> list[RemovableHandle]:
        """Hook every inlet.

        Args:
            done: Called when an inlet has seen all its tokens of a forward pass.
        """

        def hook(inlet: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(inlet, ExpertInlet)
            if self.observe(inlet, *args):
                done()

        return [inlet.register_forward_pre_hook(hook) for inlet in self.inlets]

    def observe(self, inlet: ExpertInlet, input_SI: Tensor, source_S: Tensor, expert: int, choices: int) -> bool:
        """Add the input of one expert's matrix, and return whether the inlet has now seen every token.

        Args:
            inlet: Where it was seen.
            input_SI: The input.
            source_S: The index of each token.
            expert: The expert.
            choices: How many experts every token is routed to.
        """
        counted_S = self._counted_BT.reshape(-1).to(source_S.device)[source_S]
        tokens = int(counted_S.sum())
        self._wanted[inlet] = choices
        self._passed[inlet] += len(source_S)
        self._counted[inlet] += tokens
        if names := [site.name for site in self.inlets[inlet].get(expert, ())]:
            squares_RI = squares_of_rows(input_SI, counted_S, source_S // self._counted_BT.shape[1])
            sum_squares_I = squares_RI.double().sum(dim=0)
            sum_norms_I = squares_RI.double().sqrt().sum(dim=0)
            for name in names:
                self._sums.add(name, sum_squares_I, sum_norms_I, tokens)
        return self._passed[inlet] == self._counted_BT.numel() * choices

    def finish(self) -> None:
        """End a forward pass: the sums of an expert that saw no token are zero.

        Raises:
            UserError: The experts of a module did not see every counted token as often as the router sends it.
        """
        counted = int(self._counted_BT.sum())
        for inlet, sites in self.inlets.items():
            some = next(site for each in sites.values() for site in each)
            wanted = counted * self._wanted.get(inlet, 1)
            if self._counted[inlet] != wanted or self._passed[inlet] == 0:
                raise UserError(
                    f"{some.name}: all experts saw {self._counted[inlet]} of {wanted} tokens in a forward pass: the "
                    f"model computes them in another way, or more than once: leave it out of {setting('sites')}"
                )
            for site in (site for each in sites.values() for site in each):
                if site.name not in self._sums.tokens:
                    nothing_I = torch.zeros(site.shape[1], dtype=torch.float64, device=self._counted_BT.device)
                    self._sums.add(site.name, nothing_I, nothing_I, 0)


def squares_of_rows(input_SI: Tensor, counted_S: Tensor, row_S: Tensor) -> Tensor:
    """Return the sums of squares over the counted tokens of each row that has any here, shape [R, I].

    Args:
        input_SI: An expert's input.
        counted_S: Which tokens count.
        row_S: The row of each token, ascending.
    """
    wide_SI = input_SI if input_SI.dtype == torch.float64 else input_SI.float()
    squares_SI = wide_SI.masked_fill(~counted_S.unsqueeze(-1), 0).square()
    _, lengths_R = torch.unique_consecutive(row_S, return_counts=True)
    return torch.stack([part_SI.sum(dim=0) for part_SI in torch.split(squares_SI, lengths_R.tolist())])


# Called with the names of sites that share an input, and its sums of squares by row, shape [B, I].
OnSiteSquares: TypeAlias = Callable[[Sequence[str], Tensor], None]


class NonFiniteInputError(UserError):
    """A site's input was NaN or infinite: the weights are broken, or the type is too narrow."""


class _Seen(Exception):  # noqa: N818
    """Every site has seen its input: the rest of the forward pass is not needed."""


class Observer:
    """Adds up the inputs of sites while a model runs.

    Squares are formed and summed over a row's tokens in float32 (float64 where the model computes in it), and rows
    are added up in float64.

    Args:
        sites: The sites.
        to_the_end: Whether every forward pass runs to its end, and not only to the last site's input.
    """

    def __init__(self, sites: Sequence[Site], *, to_the_end: bool = False) -> None:
        self._routed = RoutedInputs(sites)
        self._sites = [site for site in sites if not is_routed(site)]
        self._to_the_end = to_the_end
        self._names: dict[nn.Module, list[str]] = {}
        for site in self._sites:
            for module in site.observed:
                self._names.setdefault(module, []).append(site.name)
        self._sums = MomentAccumulator()
        self._counted_BT: Tensor | None = None
        self._uncounted_N = torch.empty(0, dtype=torch.long)
        self._counted = 0
        self._calls = 0
        self._knows_calls = False
        # The last input of each width and its sums: q, k and v share an input, and B has its own in between.
        self._shared: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._on_squares: OnSiteSquares | None = None

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
    def counting(
        self, counted_BT: Tensor, sums: MomentAccumulator, on_squares: OnSiteSquares | None = None
    ) -> Iterator[None]:
        """Count the marked positions of the one forward pass in the block, which may end with the last site's input.

        The first pass runs to its end, so that a module that is used twice is found.

        Args:
            counted_BT: Which positions count.
            sums: What the inputs are added to.
            on_squares: Called with the names of sites that share an input, and its sums of squares by row.

        Raises:
            UserError: A site saw no input, so that its statistics would be empty.
        """
        before = dict(sums.tokens)
        self._sums, self._counted_BT, self._calls, self._on_squares = sums, counted_BT, 0, on_squares
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
                    f"or the model uses it another number of times than once: leave it out of {setting('sites')}"
                )
        self._routed.finish()
        self._knows_calls = True

    def observe(self, names: Sequence[str], input_BTI: Tensor) -> None:
        """Add the input of the sites of one module."""
        counted_BT = self._counted_BT
        if counted_BT is None or not _rows_by_tokens(input_BTI.shape[:-1], counted_BT.shape):
            raise UserError(
                f"{names[0]}: its input has shape {list(input_BTI.shape)}, not rows by tokens: leave it out of "
                f"{setting('sites')}"
            )
        if input_BTI.shape[:-1] != counted_BT.shape:
            input_BTI = input_BTI.reshape(*counted_BT.shape, -1)
        squares_BI, sum_squares_I, sum_norms_I = self._summed(input_BTI)
        if self._on_squares is not None:
            self._on_squares(names, squares_BI)
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
    # Whole positions are filled: a mask that is broadcast over columns costs more than all else here.
    squares_BTI = squares_BTI.contiguous()
    squares_BTI.view(-1, squares_BTI.shape[-1]).index_fill_(0, uncounted_N.to(squares_BTI.device), 0)
    return squares_BTI.sum(dim=1)


def require_finite(sums: MomentAccumulator) -> None:
    """Refuse sums of inputs that were not finite.

    Raises:
        NonFiniteInputError: Names the site.
    """
    for name, sum_squares_I in sums.squares.items():
        if not bool(torch.isfinite(sum_squares_I).all()):
            raise NonFiniteInputError(
                f"{name}: its input is NaN or infinite: open the model with {setting('dtype')} float32, or "
                "fetch it again"
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
