"""What repair methods and defenses share: one typed function, whose keyword parameters are its settings.

The command line, its help and the record are made from the function's signature and docstring, and another package adds
a method through an entry-point group.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from antidote_llm.errors import DefectError, UserError

MethodT = TypeVar("MethodT", bound="Method")


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: What it is called on the command line.
        function: Does the work; takes the settings as keywords.
        settings: The pydantic model that was made from the function's signature.
        presets: Named settings.
    """

    name: str
    function: Callable[..., Any]
    settings: type[BaseModel]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    def configure(self, given: Mapping[str, Any], preset: str | None = None) -> BaseModel:
        """Build the settings: the defaults, under a preset's, under those given.

        Raises:
            UserError: A setting or preset is unknown, or a value is outside its range.
        """
        if preset is not None and preset not in self.presets:
            if not self.presets:
                raise UserError(f"--preset {preset}: {self.name} has no presets: leave it out")
            raise UserError(
                f"--preset {preset}: no such preset of {self.name}{_hint(preset, self.presets)}: "
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
                raise UserError(f"{option_name(name)} is no setting of {self.name}{whose}: leave it out") from error
            raise UserError(f"{option_name(name)} {first['input']}: {first['msg'].lower()}") from error

    def siblings(self) -> Iterable[Method]:
        """Return the methods of the same kind, which a user may have meant."""
        return ()

    def arguments(self, settings: BaseModel) -> dict[str, Any]:
        """Return the settings that the function itself takes."""
        return {name: getattr(settings, name) for name in keyword_parameters(self.function)}


def settings_model(function: Callable[..., Any], shared: Mapping[str, tuple[Any, Any]]) -> type[BaseModel]:
    """Make the pydantic model of a function's keyword parameters, behind those that its kind shares."""
    fields: dict[str, Any] = {**shared, **keyword_parameters(function)}
    config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    return create_model(f"{function.__name__.title()}Settings", __config__=config, **fields)


def keyword_parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the type and the default of every keyword-only parameter."""
    found = [each for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]
    # Only these: the other annotations may name types, such as a tensor's, that are imported for type checkers alone.
    annotated = SimpleNamespace(__annotations__={parameter.name: parameter.annotation for parameter in found})
    hints = typing.get_type_hints(annotated, inspect.unwrap(function).__globals__, include_extras=True)
    return {
        parameter.name: (hints[parameter.name], ... if parameter.default is parameter.empty else parameter.default)
        for parameter in found
    }


def option_name(setting: str) -> str:
    """Return a setting's option on the command line."""
    return "--" + setting.replace("_", "-")


def registered(group: str, kind: type[MethodT], what: str) -> dict[str, MethodT]:
    """Return every method of an entry-point group by name, sorted.

    Raises:
        DefectError: An entry point is something else.
    """
    found = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        loaded = entry.load()
        if not isinstance(loaded, kind):
            raise DefectError(f"the entry point {entry.name} ({entry.value}) is not a {what}")
        found[entry.name] = loaded
    return found


def named(known: Mapping[str, MethodT], name: str, option: str, what: str) -> MethodT:
    """Return a method by name.

    Raises:
        UserError: Lists the known methods, with the nearest one.
    """
    if name not in known:
        raise UserError(f"{option} {name}: no such {what}{_hint(name, known)}: use one of {', '.join(known)}")
    return known[name]


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
