"""The registry of repair methods and defenses, which any installed package may add.

A repair method or a defense is one typed function, whose keyword-only parameters are its settings. The command line,
its help and the record are made from the function's signature and docstring. A package adds one through an entry point;
the entry point's name is the name that users type and that records hold.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from antidote_llm.errors import DefectError, UserError, setting
from antidote_llm.plug_ins import PlugIn, only, plug_ins

MethodT = TypeVar("MethodT", bound="Method")
SettingsT = TypeVar("SettingsT", bound="MethodSettings")

_OPTION_TYPES = (bool, int, float, str, Path)


class MethodSettings(BaseModel):
    """The settings of a method; its own are added to those of its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: The entry point's name; the function's own where it was not loaded from an entry point.
        function: Does the work; takes the settings as keywords.
        settings: The pydantic model that was made from the function's signature.
        presets: Named settings.
        plug_in: The entry point of another package that adds it; None for this package and in a script.
    """

    name: str
    function: Callable[..., Any]
    settings: type[BaseModel]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True)
    plug_in: PlugIn | None = field(default=None, kw_only=True)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    def configure(self, given: Mapping[str, Any], preset: str | None = None) -> BaseModel:
        """Return the settings: those given, over the preset's, over the defaults.

        Raises:
            UserError: A setting or preset is unknown, or a value is missing or outside its range.
        """
        if preset is not None and preset not in self.presets:
            if not self.presets:
                raise UserError(f"{setting('preset')} {preset}: {self.name} has no presets: leave it out")
            raise UserError(
                f"{setting('preset')} {preset}: no such preset of {self.name}{_hint(preset, self.presets)}: "
                f"use one of {', '.join(self.presets)}"
            )
        chosen = {**(self.presets[preset] if preset else {}), **given}
        try:
            return self.settings.model_validate(chosen)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                users = [method.name for method in self.siblings() if name in method.settings.model_fields]
                whose = f" but of {' and '.join(users)}" if users else ""
                raise UserError(f"{setting(name)} is no setting of {self.name}{whose}: leave it out") from error
            if first["type"] == "missing":
                raise UserError(f"{self.name} needs a value of {setting(name)}: pass it") from error
            raise UserError(f"{setting(name)} {first['input']}: {first['msg'].lower()}") from error

    def siblings(self) -> Iterable[Method]:
        """Return the methods of the same kind, which a user may have meant."""
        return ()

    def arguments(self, settings: BaseModel) -> dict[str, Any]:
        """Return the settings that the function itself takes."""
        parameters = inspect.signature(self.function).parameters.values()
        return {each.name: getattr(settings, each.name) for each in parameters if each.kind is each.KEYWORD_ONLY}

    def attributed_errors(self) -> AbstractContextManager[None]:
        """Return a context that attributes what another package's code raises to it; a ``UserError`` passes."""
        return nullcontext() if self.plug_in is None else self.plug_in.running(label_user_errors=False)

    def run(self, settings: BaseModel, *inputs: Any) -> Any:
        """Call the function.

        Raises:
            UserError: The function is another package's, and it failed.
        """
        with self.attributed_errors():
            return self.function(*inputs, **self.arguments(settings))


def settings_model(function: Callable[..., Any], base: type[SettingsT]) -> type[SettingsT]:
    """Return the pydantic model of a function's keyword-only parameters, added to the settings of its kind.

    Raises:
        UserError: A parameter cannot become an option of the command line.
    """
    fields: dict[str, Any] = keyword_parameters(function)
    return create_model(f"{function.__name__.title()}Settings", __base__=base, **fields)


def keyword_parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the type and the default of every keyword-only parameter: the settings of a method.

    Other annotations are not resolved: they may name types that are imported for type checkers only.

    Raises:
        UserError: A parameter cannot become an option of the command line.
    """
    _require_settings_by_keyword(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            default = ... if parameter.default is parameter.empty else parameter.default
            found[name] = (_option_type(function, parameter), default)
    return found


class Installed(dict[str, MethodT]):
    """The methods of a kind by name, sorted, and why others that are installed cannot be used."""

    def __init__(self, usable: Mapping[str, MethodT], unusable: Mapping[str, UserError]) -> None:
        super().__init__(usable)
        self.unusable = unusable


def registered(group: str, kind: type[MethodT], what: str) -> Installed[MethodT]:
    """Return every method of an entry-point group; warn of those that cannot be used."""
    usable: dict[str, MethodT] = {}
    unusable: dict[str, UserError] = {}
    # This package's own first: where settings clash, the other package is at fault.
    for name, found in sorted(plug_ins(group, what).items(), key=lambda item: (not item[1][0].is_own, item[0])):
        try:
            method = _method(found, kind)
            _require_same_types(method, usable.values())
            usable[name] = method
        except UserError as error:
            unusable[name] = error
            logging.getLogger(__name__).warning("%s", error)
    return Installed(dict(sorted(usable.items())), unusable)


def named(known: Mapping[str, MethodT], name: str, option: str, what: str) -> MethodT:
    """Return a method by name.

    Args:
        known: The methods of its kind.
        name: What the user wrote.
        option: Where it was written, for the error.
        what: What its kind is called, for the error.

    Raises:
        UserError: The method cannot be used, or there is none of this name: then the error names the nearest.
    """
    if name in known:
        return known[name]
    if isinstance(known, Installed) and name in known.unusable:
        raise known.unusable[name]
    raise UserError(f"{option} {name}: no such {what}{_hint(name, known)}: use one of {', '.join(known)}")


def _method(found: Sequence[PlugIn], kind: type[MethodT]) -> MethodT:
    plug_in = only(found)
    loaded, value = plug_in.load(), plug_in.entry.value
    if isinstance(loaded, kind):
        return loaded if plug_in.is_own else replace(loaded, name=plug_in.entry.name, plug_in=plug_in)
    if plug_in.is_own:
        raise DefectError(f"the entry point {plug_in.entry.name} ({value}) is not a {plug_in.kind}")
    raise _unusable(plug_in, f"{value} is not a {plug_in.kind}: its function lacks a decorator of antidote_llm")


def _require_same_types(method: Method, others: Iterable[Method]) -> None:
    """Refuse a setting that has another type in another method: both are one option of the command."""
    for other in others:
        for name in method.settings.model_fields.keys() & other.settings.model_fields.keys():
            hints = [each.settings.model_fields[name].annotation for each in (method, other)]
            if hints[0] == hints[1]:
                continue
            clash = f"its setting '{name}' is {_type_name(hints[0])}, but {_type_name(hints[1])} in {other.name}"
            if method.plug_in is None:
                raise DefectError(f"{method.name}: {clash}")
            raise _unusable(method.plug_in, clash)


def _unusable(plug_in: PlugIn, reason: str) -> UserError:
    return UserError(f"{plug_in.label} cannot be used: {reason}: update or uninstall {plug_in.package}")


def _require_settings_by_keyword(function: Callable[..., Any]) -> None:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            raise UserError(f"setting '{name}' of {function.__name__} is positional: put a * before the settings")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(f"parameter '{name}' of {function.__name__} takes any arguments: name each setting")


def _option_type(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return a setting's annotation as a type, which must be one that can become an option."""
    if parameter.name.startswith("_"):
        raise _bad_setting(function, parameter.name, "its name begins with an underscore")
    if parameter.annotation is parameter.empty:
        raise _bad_setting(function, parameter.name, "it has no type")
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    scope = getattr(function, "__globals__", {})
    try:
        hint = typing.get_type_hints(holder, globalns=scope, include_extras=True)[parameter.name]
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise _bad_setting(function, parameter.name, f"its type cannot be resolved: {error}") from error
    if not _becomes_option(hint):
        raise _bad_setting(function, parameter.name, f"its type is {_type_name(hint)}")
    return hint


def _becomes_option(hint: Any) -> bool:
    """Say whether a type is one value that can be written on a command line, or that or None."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _becomes_option(parts[0])
    if origin in (Union, types.UnionType):
        values = [part for part in parts if part is not types.NoneType]
        return len(values) == 1 and _becomes_option(values[0])
    if origin is Literal:
        return all(isinstance(part, str) for part in parts)
    return hint in _OPTION_TYPES


def _bad_setting(function: Callable[..., Any], name: str, reason: str) -> UserError:
    return UserError(
        f"setting '{name}' of {function.__name__} cannot become an option ({reason}): "
        "declare it as bool, int, float, str, Path or Literal of words, or as one of them | None"
    )


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
