"""Decoder layers set apart from their model: what each is called with is recorded, and one batch runs as ever.

The model's own forward pass is run with layers that only take down what they are given, so that masks, rotary tables
and whatever else an architecture hands to its layers are its own. One micro-batch goes through the model's own forward
pass for real, in a thread that waits at every layer: it shows whether layers that are run apart get the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from queue import Queue
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from antidote_llm.calibration.batching import ShardedBatches, add_in_order, decoder_inputs
from antidote_llm.calibration.input_hooks import Observer, experts_seen
from antidote_llm.calibration.moments import MomentAccumulator
from antidote_llm.calibration.resume import KeptState
from antidote_llm.errors import UserError
from antidote_llm.io.processes import agreed, all_equal
from antidote_llm.models.layer_stream import LayerStream
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.sites import Site

Output: TypeAlias = Any
_HIDDEN = "hidden_states"


def hidden_states(output: Output) -> Tensor:
    """Return the hidden states among what a layer gives."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@dataclass(frozen=True)
class LayerCall:
    """What a layer is called with, hidden states apart."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def parted(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, LayerCall]:
        """Part a call into hidden states and the rest."""
        if args:
            return args[0], cls(args[1:], kwargs)
        rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
        return kwargs[_HIDDEN], cls((), rest)

    def same_as(self, other: LayerCall) -> bool:
        """Whether two calls hand over the same, bit for bit."""
        return _same([self.args, dict(self.kwargs)], [other.args, dict(other.kwargs)])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (not isinstance(one, (int, float, str)) or one == other)


class LayerRecorder:
    """A model's decoder layers, taken out of its forward pass for the length of a block.

    Args:
        decoder: What is called with token ids.
        layers: Its decoder layers, in order.
        tuple_length: How many things they give, hidden states first; 0 where they give these alone. Known for sure once
            one of them has run.
    """

    def __init__(self, decoder: nn.Module, layers: Sequence[nn.Module], *, tuple_length: int = 0) -> None:
        self._decoder = decoder
        self.tuple_length = tuple_length
        self._layers = layers
        self._forwards: list[Callable[..., Output]] = [layer.forward for layer in layers]
        self._recorded: list[tuple[int, Tensor, LayerCall]] = []

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Replace the layers' forward functions, and put them back."""
        try:
            for index, layer in enumerate(self._layers):
                layer.forward = self._taking_down(index)
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def run(self, index: int, hidden_BTD: Tensor, call: LayerCall) -> Output:
        """Run one layer for real, and return what it gives."""
        args = () if _HIDDEN in call.kwargs else call.args
        output = self._forwards[index](hidden_BTD, *args, **call.kwargs)
        self.tuple_length = len(output) if isinstance(output, tuple) else 0
        return output

    def calls(self, inputs: Mapping[str, Any]) -> tuple[Tensor, list[tuple[int, LayerCall]]]:
        """Return the hidden states that come first, and which layers are called after one another, and with what."""
        self._recorded.clear()
        self._decoder(**inputs)
        hidden_BTD = self._recorded[0][1]
        found = [(index, call) for index, _, call in self._recorded]
        self._recorded.clear()
        return hidden_BTD, found

    def as_output(self, hidden_BTD: Tensor) -> Output:
        """Return hidden states in the form that the layers give them."""
        return (hidden_BTD, *[None] * (self.tuple_length - 1)) if self.tuple_length else hidden_BTD

    def _taking_down(self, index: int) -> Callable[..., Output]:
        def forward(*args: Any, **kwargs: Any) -> Output:
            waiting = _Waiting.current()
            if waiting is not None:
                return waiting.at(index, *LayerCall.parted(args, kwargs))
            self._recorded.append((index, *LayerCall.parted(args, kwargs)))
            return self.as_output(self._recorded[-1][1])

        return forward


class _End:
    """Stands for no further output."""


class _Stopped(BaseException):
    """The forward pass is not needed any further."""


class _Waiting:
    """The two ends of a forward pass that waits at every layer."""

    _here = threading.local()

    def __init__(self) -> None:
        self.calls: Queue[tuple[int, Tensor, LayerCall] | BaseException | None] = Queue()
        self.outputs: Queue[Output | _End] = Queue()

    @classmethod
    def current(cls) -> _Waiting | None:
        return getattr(cls._here, "waiting", None)

    def enter(self) -> None:
        self._here.waiting = self

    def at(self, index: int, hidden_BTD: Tensor, call: LayerCall) -> Output:
        self.calls.put((index, hidden_BTD, call))
        output = self.outputs.get()
        if isinstance(output, _End):
            raise _Stopped
        return output


class SteppedForward:
    """One micro-batch in the model's own forward pass, which stops at every layer until it is given its output.

    Args:
        decoder: What is called with token ids; its layers are set apart.
        inputs: What it is called with.
    """

    def __init__(self, decoder: nn.Module, inputs: Mapping[str, Any]) -> None:
        self._waiting = _Waiting()
        self._thread = threading.Thread(target=self._run, args=(decoder, inputs), daemon=True)

    def __enter__(self) -> SteppedForward:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.outputs.put(_End())
        self._thread.join()

    def _run(self, decoder: nn.Module, inputs: Mapping[str, Any]) -> None:
        self._waiting.enter()
        try:
            with torch.inference_mode():
                decoder(**inputs)
            self._waiting.calls.put(None)
        except _Stopped:
            self._waiting.calls.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._waiting.calls.put(error)

    def next(self) -> tuple[int, Tensor, LayerCall] | None:
        """Return the next layer that is called, and with what; None where there is no further one."""
        found = self._waiting.calls.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def give(self, output: Output) -> None:
        """Let it go on with what a layer gave, whole: a model may use more of it than hidden states."""
        self._waiting.outputs.put(output)


def sums_by_layer(
    opened: LoadedModel,
    stream: LayerStream,
    sites: Sequence[Site],
    work: ShardedBatches,
    *,
    sweeps: int = 1,
    progress: Callable[[int], None] | None = None,
    kept: KeptState | None = None,
) -> Iterator[tuple[tuple[Site, ...], MomentAccumulator]]:
    """Run all micro-batches layer by layer, and yield the sites of each layer with their sums when they are complete.

    Args:
        opened: The model, its decoder layers on the disk.
        stream: Those layers.
        sites: What to observe.
        work: The micro-batches.
        sweeps: How many times to go through the layers, each time with a part of the micro-batches.
        progress: Called with a number of rows, which come to all rows in the end.
        kept: Where hidden states and sums are kept, and found again.

    Raises:
        UserError: A site lies outside the decoder layers, or the model does more between its layers than hand hidden
            states on.
    """
    by_layer = _by_layer(stream, sites)
    last = max(by_layer)
    begun = _Begun.found(kept)
    told, rows = 0, sum(map(len, work.plan))
    for number, part in enumerate(work.sweeps(sweeps)):
        if number < begun.sweep:
            continue
        final = number == sweeps - 1
        with experts_seen(opened.causal_model, sites), _Run(opened, stream, part, last, begun) as run:
            for index in range(begun.layer if final else 0):
                if index in by_layer:
                    yield by_layer[index], begun.sums[index]
            with stream.loaded(range(begun.layer, last + 1)) as indices:
                for index in indices:
                    layer_sites = by_layer.get(index, ())
                    parts = run.through(index, layer_sites)
                    if layer_sites:
                        add_in_order(begun.sums.setdefault(index, MomentAccumulator()), part, parts)
                    begun.layer = index + 1
                    if kept is not None and index < last and agreed(kept.due):
                        kept.keep(begun.tensors(run.hidden, run.tuple_length))
                    if progress:
                        share = (number + (index + 1) / (last + 1)) / sweeps
                        progress(int(rows * share) - told)
                        told = int(rows * share)
                    if final and layer_sites:
                        yield layer_sites, begun.sums[index]
        begun.next_sweep()


def _by_layer(stream: LayerStream, sites: Sequence[Site]) -> dict[int, tuple[Site, ...]]:
    found: dict[int, list[Site]] = {}
    places = {f"{name}.": index for index, name in enumerate(stream.names)}
    for site in sites:
        index = next((index for start, index in places.items() if site.module.startswith(start)), None)
        if index is None:
            raise UserError(
                f"{site.name} lies outside the decoder layers, which are all that can be read one by one: pass "
                "--engine memory, or leave it out of --sites"
            )
        found.setdefault(index, []).append(site)
    return {index: tuple(members) for index, members in sorted(found.items())}


class _Begun:
    """How far a run has come: the sweep, the next layer, sums by layer, and what the next layer gets."""

    def __init__(self) -> None:
        self.sweep, self.layer = 0, 0
        self.sums: dict[int, MomentAccumulator] = {}
        self.hidden: dict[int, Tensor] = {}
        self.tuple_length = 0

    def next_sweep(self) -> None:
        self.sweep, self.layer = self.sweep + 1, 0
        self.hidden = {}

    def tensors(self, hidden: dict[int, Tensor], tuple_length: int) -> dict[str, Tensor]:
        found = {f"hidden/{place}": values.cpu() for place, values in hidden.items()}
        found["begun"] = torch.tensor([self.sweep, self.layer, tuple_length])
        for index, sums in self.sums.items():
            found |= {f"layer/{index}/{name}": values for name, values in sums.tensors().items()}
        return found

    @classmethod
    def found(cls, kept: KeptState | None) -> _Begun:
        """Return where a run that was cut off can go on: all processes from the same place, or all from the start."""
        begun, tensors = cls(), kept.read() if kept is not None else None
        place = None if tensors is None else tuple(tensors["begun"].tolist())
        # Asked in every process, whatever this one found: those that did find something wait for the answer.
        if not all_equal(place) or place is None or tensors is None:
            return begun
        begun.sweep, begun.layer, begun.tuple_length = place
        layers: dict[int, dict[str, Tensor]] = {}
        for name, values in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "hidden":
                begun.hidden[int(rest)] = values
            elif kind == "layer":
                index, _, key = rest.partition("/")
                layers.setdefault(int(index), {})[key] = values
        begun.sums = {index: MomentAccumulator.of(found) for index, found in layers.items()}
        return begun


class _Run:
    """The micro-batches of one sweep on their way through the layers."""

    def __init__(
        self, opened: LoadedModel, stream: LayerStream, work: ShardedBatches, last: int, begun: _Begun
    ) -> None:
        self._opened, self._work, self._last = opened, work, last
        self._decoder = opened.causal_model.base_model
        self._apart = LayerRecorder(self._decoder, stream.modules, tuple_length=begun.tuple_length)
        self._places = [place for share in work.own_shares for place in work.shares[share]]
        self._counted_BT: dict[int, Tensor] = {}
        self._calls: dict[int, list[LayerCall]] = {}
        self._own: SteppedForward | None = None
        self._begun = begun
        self.hidden: dict[int, Tensor] = {}

    @property
    def tuple_length(self) -> int:
        """How many things the layers give; 0 where they give hidden states alone."""
        return self._apart.tuple_length

    def __enter__(self) -> _Run:
        self._stack = ExitStack()
        self._stack.enter_context(self._apart.apart())
        if self._places:
            self._own = self._stack.enter_context(SteppedForward(self._decoder, self._inputs(self._places[0])))
            if self._begun.layer:
                self._go_on(self._own)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _inputs(self, place: int) -> dict[str, object]:
        return decoder_inputs(self._decoder, self._work.batch(place), self._opened.device)

    @torch.inference_mode()
    def _go_on(self, own: SteppedForward) -> None:
        """Take the hidden states of a run that was cut off; the model's own forward pass skips what is done."""
        self._take_down()
        for place in self._places:
            self.hidden[place] = self._begun.hidden.pop(place).to(self._opened.device)
        for _ in range(self._begun.layer):
            own.next()
            own.give(self._apart.as_output(self.hidden[self._places[0]]))

    @torch.inference_mode()
    def _take_down(self) -> None:
        """Find what every layer is called with, for every micro-batch."""
        for place in self._places:
            hidden_BTD, called = self._apart.calls(self._inputs(place))
            needed = [(index, call) for index, call in called if index <= self._last]
            if [index for index, _ in needed] != list(range(self._last + 1)):
                raise UserError(
                    f"{self._opened.base.reference}: it does not use each of its decoder layers once and in order, and "
                    "cannot be run one by one: pass --engine memory"
                )
            self._calls[place] = [call for _, call in needed]
            # Written over by every layer: not to be the embedding's own memory.
            self.hidden[place] = hidden_BTD.clone()

    @torch.inference_mode()
    def through(self, index: int, sites: Sequence[Site]) -> dict[int, MomentAccumulator]:
        """Send all micro-batches through a layer, and return the sums of each share."""
        parts: dict[int, MomentAccumulator] = {}
        is_last = index == self._last
        observer = Observer(sites, to_the_end=not is_last)
        with observer.attached():
            for share in self._work.own_shares:
                parts[share] = MomentAccumulator()
                for place in self._work.shares[share]:
                    hidden_BTD, call = self._next_call(index, place)
                    heard = self._work.listener(place)
                    counting = observer.counting(self._counted(place), parts[share], heard) if sites else nullcontext()
                    output = None
                    with counting:
                        output = self._apart.run(index, hidden_BTD, call)
                    if output is not None and not is_last:
                        self._hand_on(place, output)
        if self._places and not self._calls:
            self._take_down()
        return parts

    def _counted(self, place: int) -> Tensor:
        if place not in self._counted_BT:
            self._counted_BT[place] = self._work.batch(place).counted_BT.to(self._opened.device)
        return self._counted_BT[place]

    def _next_call(self, index: int, place: int) -> tuple[Tensor, LayerCall]:
        if self._own is None or place != self._places[0]:
            if not self._calls:
                # Not before a layer has run: only then is it known in which form layers give what they give.
                self._take_down()
            return self.hidden[place], self._calls[place][index]
        found = self._own.next()
        if found is None or found[0] != index:
            raise self._differs(index)
        _, hidden_BTD, call = found
        if self._calls and not (
            torch.equal(hidden_BTD, self.hidden[place]) and call.same_as(self._calls[place][index])
        ):
            raise self._differs(index)
        return hidden_BTD, call

    def _hand_on(self, place: int, output: Output) -> None:
        if not self._calls:
            self._take_down()
        hidden_BTD = hidden_states(output)
        if hidden_BTD.dtype == self.hidden[place].dtype:
            self.hidden[place].copy_(hidden_BTD)
        else:
            # A first layer may hand on wider numbers than embeddings are.
            self.hidden[place] = hidden_BTD.clone()
        if self._own is not None and place == self._places[0]:
            self._own.give(output)

    def _differs(self, index: int) -> UserError:
        return UserError(
            f"{self._opened.base.reference}: decoder layer {index} gets something else in the model's own forward "
            "pass than when layers are run one by one: pass --engine memory"
        )
