"""Decoder layers set apart from their model: what each is called with is recorded, and one batch runs as ever.

The model's own forward pass is run with layers that only take down what they are given, so that masks, rotary tables
and whatever else an architecture hands to its layers are its own. One micro-batch goes through the model's own forward
pass for real, in a thread that waits at every layer: it shows whether layers that are run apart get the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

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


class SetApart:
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


class OwnForward:
    """One micro-batch in the model's own forward pass, which stops at every layer until it is given its output.

    Args:
        decoder: What is called with token ids; its layers are set apart.
        inputs: What it is called with.
    """

    def __init__(self, decoder: nn.Module, inputs: Mapping[str, Any]) -> None:
        self._waiting = _Waiting()
        self._thread = threading.Thread(target=self._run, args=(decoder, inputs), daemon=True)

    def __enter__(self) -> OwnForward:
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
