"""The engine for a model whose decoder layers are on the disk: all micro-batches go through one layer after the other.

1. Every layer is replaced by a stub, and the model's own forward pass runs over each micro-batch: the stubs record what
   layers are called with, so that masks, rotary tables and whatever else an architecture passes are its own.
2. Each layer is loaded, and called with the hidden states of each micro-batch and its recorded arguments.
3. A probe, which is a small micro-batch of its own, goes the same way. Before each layer the model's own forward pass
   runs over it once more, with stubs that return the true outputs of the layers so far: bit for bit, the layer must get
   what it gets when layers are run one by one. A model that does more between its layers is refused.

Legend: B rows of a batch, T positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from antidote_llm.calibration.batching import MicroBatch, ShardedBatches, add_in_order, decoder_inputs, padded
from antidote_llm.calibration.input_hooks import Observer, experts_seen
from antidote_llm.calibration.moments import MomentAccumulator
from antidote_llm.calibration.resume import KeptState
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.errors import UserError, setting
from antidote_llm.io.processes import agreed, all_equal
from antidote_llm.models.layer_stream import LayerStream
from antidote_llm.models.load import LoadedModel
from antidote_llm.models.sites import Site

Output: TypeAlias = Any
_HIDDEN = "hidden_states"
# The probe has two rows of so many tokens at most: its outputs of all layers are held.
PROBE_ROWS, PROBE_LENGTH = 2, 16
# Its key among the places of micro-batches.
_PROBE = -1


def hidden_states(output: Output) -> Tensor:
    """Return the hidden states of a layer's output."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


@dataclass(frozen=True)
class LayerCall:
    """The arguments of a layer, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def split(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, LayerCall]:
        """Split arguments into hidden states and the rest."""
        if args:
            return args[0], cls(args[1:], kwargs)
        rest = {name: value for name, value in kwargs.items() if name != _HIDDEN}
        return kwargs[_HIDDEN], cls((), rest)

    def same_as(self, other: LayerCall) -> bool:
        """Whether two calls have the same arguments, bit for bit."""
        return _same([self.args, dict(self.kwargs)], [other.args, dict(other.kwargs)])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (not isinstance(one, (int, float, str)) or one == other)


@dataclass(frozen=True)
class RecordedCall:
    """A call of a layer in the model's own forward pass."""

    layer: int
    hidden_BTD: Tensor
    call: LayerCall

    def same_as(self, other: RecordedCall) -> bool:
        """Whether two calls are of one layer and have the same arguments, bit for bit."""
        hidden_is_same = torch.equal(self.hidden_BTD, other.hidden_BTD)
        return self.layer == other.layer and hidden_is_same and self.call.same_as(other.call)


class LayerRecorder:
    """Replaces a model's decoder layers by stubs in a block, and runs the layers themselves one by one.

    Args:
        opened: The model.
        layers: Its decoder layers, in order.
        tuple_length: How many things the layers return, hidden states first; 0 if they return these alone. None until
            one of them has run.
    """

    def __init__(self, opened: LoadedModel, layers: Sequence[nn.Module], *, tuple_length: int | None) -> None:
        self._reference, self._decoder, self._layers = opened.base.reference, opened.causal_model.base_model, layers
        self.tuple_length = tuple_length
        self._forwards: list[Callable[..., Output]] = [layer.forward for layer in layers]
        self._recorded: list[RecordedCall] = []
        self._outputs: Sequence[Output] = ()

    @contextmanager
    def stubs(self) -> Iterator[None]:
        """Replace the layers' forward functions in the block."""
        try:
            for index, layer in enumerate(self._layers):
                layer.forward = self._stub(index)
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    def run(self, index: int, hidden_BTD: Tensor, call: LayerCall) -> Output:
        """Run a layer, and return its output."""
        args = () if _HIDDEN in call.kwargs else call.args
        output = self._forwards[index](hidden_BTD, *args, **call.kwargs)
        self.tuple_length = len(output) if isinstance(output, tuple) else 0
        return output

    def calls(self, inputs: Mapping[str, Any], outputs: Sequence[Output] = ()) -> list[RecordedCall]:
        """Run the model's own forward pass, and return which layers it calls with what.

        Args:
            inputs: What the decoder is called with.
            outputs: What its first calls of layers return; the others return the hidden states that they get. As long
                as their form is not known, the first layer runs, which must be loaded.

        Raises:
            UserError: The first layer is not called first.
        """
        self._recorded, self._outputs = [], outputs
        self._decoder(**inputs)
        found, self._recorded, self._outputs = self._recorded, [], ()
        return found

    def as_output(self, hidden_BTD: Tensor) -> Output:
        """Return hidden states in the form in which the layers return them."""
        return (hidden_BTD, *[None] * (self.tuple_length - 1)) if self.tuple_length else hidden_BTD

    def out_of_order(self) -> UserError:
        """Return the error of a model that uses its layers in another way than one after the other."""
        return UserError(
            f"{self._reference}: it does not use each of its decoder layers once and in order, and cannot be run one "
            f"by one: pass {setting('engine')} memory"
        )

    def _stub(self, index: int) -> Callable[..., Output]:
        def forward(*args: Any, **kwargs: Any) -> Output:
            hidden_BTD, call = LayerCall.split(args, kwargs)
            place = len(self._recorded)
            self._recorded.append(RecordedCall(index, hidden_BTD, call))
            if place < len(self._outputs):
                return self._outputs[place]
            if self.tuple_length is None:
                if index != 0:
                    raise self.out_of_order()
                self.run(index, hidden_BTD.clone(), call)
            return self.as_output(hidden_BTD)

        return forward


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
        opened: The model, with its decoder layers on the disk.
        stream: Those layers.
        sites: What to observe.
        work: The micro-batches.
        sweeps: How many times to go through the layers, each time with a part of the micro-batches.
        progress: Called with a number of rows, which add up to all rows.
        kept: The checkpoint of hidden states and sums.

    Raises:
        UserError: A site is outside the decoder layers, or the model does more between its layers than pass hidden
            states on.
    """
    by_layer = _by_layer(stream, sites)
    last = max(by_layer)
    state = _ResumeState.read(kept)
    reported, rows = 0, sum(map(len, work.plan))
    for number, part in enumerate(work.sweeps(sweeps)):
        if number < state.sweep:
            continue
        final = number == sweeps - 1
        sweep = _Sweep(opened, stream, part, last, state)
        with experts_seen(opened.causal_model, sites), sweep.recorder.stubs():
            for index in range(state.layer if final else 0):
                if index in by_layer:
                    yield by_layer[index], state.sums[index]
            with stream.loaded(range(state.layer, last + 1)) as indices:
                for index in indices:
                    layer_sites = by_layer.get(index, ())
                    parts = sweep.run_layer(index, layer_sites)
                    if layer_sites:
                        add_in_order(state.sums.setdefault(index, MomentAccumulator()), part, parts)
                    state.layer = index + 1
                    if kept is not None and index < last and agreed(kept.due):
                        kept.keep(state.tensors(sweep.hidden, sweep.recorder.tuple_length or 0))
                    if progress:
                        share = (number + (index + 1) / (last + 1)) / sweeps
                        progress(int(rows * share) - reported)
                        reported = int(rows * share)
                    if final and layer_sites:
                        yield layer_sites, state.sums[index]
        state.next_sweep()


def _by_layer(stream: LayerStream, sites: Sequence[Site]) -> dict[int, tuple[Site, ...]]:
    found: dict[int, list[Site]] = {}
    places = {f"{name}.": index for index, name in enumerate(stream.names)}
    for site in sites:
        index = next((index for start, index in places.items() if site.module.startswith(start)), None)
        if index is None:
            raise UserError(
                f"{site.name} lies outside the decoder layers, which are all that can be read one by one: pass "
                f"{setting('engine')} memory, or leave it out of {setting('sites')}"
            )
        found.setdefault(index, []).append(site)
    return {index: tuple(members) for index, members in sorted(found.items())}


class _ResumeState:
    """How far a run has come: the sweep, the next layer, sums by layer, and the next layer's hidden states."""

    def __init__(self) -> None:
        self.sweep, self.layer = 0, 0
        self.sums: dict[int, MomentAccumulator] = {}
        self.hidden: dict[int, Tensor] = {}
        self.tuple_length: int | None = None

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
    def read(cls, kept: KeptState | None) -> _ResumeState:
        """Return where an interrupted run can resume: all processes at the same place, or all at the start."""
        state, tensors = cls(), kept.read() if kept is not None else None
        place = None if tensors is None else tuple(tensors["begun"].tolist())
        # A collective call, which every process makes whatever it has read itself.
        if not all_equal(place) or place is None or tensors is None:
            return state
        state.sweep, state.layer, state.tuple_length = place
        layers: dict[int, dict[str, Tensor]] = {}
        for name, values in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "hidden":
                state.hidden[int(rest)] = values
            elif kind == "layer":
                index, _, key = rest.partition("/")
                layers.setdefault(int(index), {})[key] = values
        state.sums = {index: MomentAccumulator.of(found) for index, found in layers.items()}
        return state


class _Sweep:
    """The micro-batches of one sweep and the probe on their way through the layers."""

    def __init__(
        self, opened: LoadedModel, stream: LayerStream, work: ShardedBatches, last: int, state: _ResumeState
    ) -> None:
        self._opened, self._work, self._last, self._state = opened, work, last, state
        self.recorder = LayerRecorder(opened, stream.modules, tuple_length=state.tuple_length)
        self._places = [place for shard in work.own_shards for place in work.shards[shard]]
        self._counted_BT: dict[int, Tensor] = {}
        self._calls: dict[int, list[LayerCall]] = {}
        self._probe_outputs: list[Output] = []
        self.hidden: dict[int, Tensor] = {}

    def _inputs(self, place: int) -> dict[str, object]:
        batch = _probe(self._work) if place == _PROBE else self._work.batch(place)
        return decoder_inputs(self._opened.causal_model.base_model, batch, self._opened.device)

    def _record_calls(self) -> None:
        """Record what every layer is called with, for every micro-batch."""
        if self.recorder.tuple_length is None:
            self.recorder.calls(self._inputs(_PROBE))
        for place in (_PROBE, *self._places):
            called = [each for each in self.recorder.calls(self._inputs(place)) if each.layer <= self._last]
            if [each.layer for each in called] != list(range(self._last + 1)):
                raise self.recorder.out_of_order()
            self._calls[place] = [each.call for each in called]
            # A copy, for every layer overwrites it: it may be the embedding's own memory.
            self.hidden[place] = called[0].hidden_BTD.clone()
        if self._state.layer:
            for place in self.hidden:
                self.hidden[place] = self._state.hidden.pop(place).to(self._opened.device)
            # What earlier layers returned is not kept: they were checked before the run was interrupted.
            self._probe_outputs = [self.recorder.as_output(self.hidden[_PROBE])] * self._state.layer

    @torch.inference_mode()
    def run_layer(self, index: int, sites: Sequence[Site]) -> dict[int, MomentAccumulator]:
        """Run a loaded layer on all micro-batches, and return the sums of each shard."""
        if not self._places:
            return {}
        if not self._calls:
            self._record_calls()
        self._require_own_input(index)
        parts: dict[int, MomentAccumulator] = {}
        is_last = index == self._last
        observer = Observer(sites, to_the_end=not is_last)
        with observer.attached():
            for shard in self._work.own_shards:
                parts[shard] = MomentAccumulator()
                for place in self._work.shards[shard]:
                    on_squares = self._work.on_site_squares(place)
                    counted_BT = self._counted(place)
                    counting = observer.counting(counted_BT, parts[shard], on_squares) if sites else nullcontext()
                    output = None
                    with counting:
                        output = self.recorder.run(index, self.hidden[place], self._calls[place][index])
                    if output is not None and not is_last:
                        self._pass_on(place, hidden_states(output))
        if not is_last:
            self._probe_outputs.append(self.recorder.run(index, self.hidden[_PROBE], self._calls[_PROBE][index]))
            self.hidden[_PROBE] = hidden_states(self._probe_outputs[-1]).clone()
        return parts

    def _counted(self, place: int) -> Tensor:
        if place not in self._counted_BT:
            self._counted_BT[place] = self._work.batch(place).counted_BT.to(self._opened.device)
        return self._counted_BT[place]

    def _pass_on(self, place: int, hidden_BTD: Tensor) -> None:
        if hidden_BTD.dtype == self.hidden[place].dtype:
            self.hidden[place].copy_(hidden_BTD)
        else:
            # A first layer may return a wider type than embeddings have.
            self.hidden[place] = hidden_BTD.clone()

    def _require_own_input(self, index: int) -> None:
        """Refuse a model whose own forward pass calls a layer with something else than this engine does."""
        alone = RecordedCall(index, self.hidden[_PROBE], self._calls[_PROBE][index])
        own = self.recorder.calls(self._inputs(_PROBE), self._probe_outputs)[index : index + 1]
        if not all(call.same_as(alone) for call in own) or not own:
            raise UserError(
                f"{self._opened.base.reference}: decoder layer {index} gets something else in the model's own forward "
                f"pass than when layers are run one by one: pass {setting('engine')} memory"
            )


def _probe(work: ShardedBatches) -> MicroBatch:
    """Return the beginnings of the shortest and the longest row as a micro-batch."""
    rows = (work.plan[0][0], work.plan[-1][-1])
    short = tuple(TokenizedRow(row.input_ids[:PROBE_LENGTH], 0) for row in rows[:PROBE_ROWS])
    return padded(short, "all", work.settings.padding_side)
