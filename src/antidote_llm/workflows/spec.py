"""What a spec is: the typed declaration of what a user asks for.

The command line, YAML, JSON and the Python functions are made from it. To the command line and to Python a spec is
flat: the settings of its method or defense, of its training and of its adapter stand beside its own fields. In YAML and
JSON they have parts of their own.
"""

from __future__ import annotations

import difflib
import inspect
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar

from annotated_types import Ge, Le
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from antidote_llm.choices import GROUPS, Group
from antidote_llm.errors import UserError, option_name, setting
from antidote_llm.io.visible_text import cut_middle
from antidote_llm.method_registry import Method
from antidote_llm.training.settings import LoraSettings, TrainingSettings

# The flat name of a setting of adapters, where another has its own name already.
LORA_NAMES = {"rank": "rank", "alpha": "lora_alpha", "targets": "lora_targets", "dropout": "lora_dropout"}
_LONGEST_SHOWN = 120
TRAINING_NAMES = tuple(name for name in TrainingSettings.model_fields if name != "lora")


@dataclass(frozen=True)
class Shown:
    """How the command line shows a field.

    Attributes:
        group: Where in the help.
        metavar: What stands for its value.
        name: Its option without dashes, where it is not the field's name.
        flag: The declaration of a switch, as in ``--merge/--no-merge``.
        argument: Whether it is given by its place and not by an option.
    """

    group: Group = "advanced"
    metavar: str | None = None
    name: str | None = None
    flag: str | None = None
    argument: bool = False


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (str, Path)) else value


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


Text: TypeAlias = Annotated[str, BeforeValidator(_as_text)]
Names: TypeAlias = Annotated[tuple[Text, ...], BeforeValidator(_listed)]
SomeNames: TypeAlias = Annotated[Names, Field(min_length=1)]


class Spec(BaseModel):
    """The base of all specs: nothing unknown is taken, nothing changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    command: ClassVar[str] = ""

    @classmethod
    def methods(cls) -> Mapping[str, Method]:
        """Return the methods or defenses whose settings it takes."""
        return {}

    @classmethod
    def training_defaults(cls) -> TrainingSettings | None:
        """Return the defaults of its training, where it has one."""
        return None

    def require_sound(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            UserError: Names the setting.
        """


SpecT = TypeVar("SpecT", bound=Spec)


def shown(spec: type[BaseModel], field: str) -> Shown:
    """Return how the command line shows a field."""
    found = [item for item in spec.model_fields[field].metadata if isinstance(item, Shown)]
    return found[0] if found else Shown()


def option_of(spec: type[Spec], field: str) -> str:
    """Return the option of a field, or of a setting beside the fields, with its dashes."""
    if field in spec.model_fields and (name := shown(spec, field).name):
        return f"--{name}"
    return option_name(field)


def flat_fields(kind: type[Spec]) -> dict[str, tuple[Any, Any]]:
    """Return the type and the default of every flat value of a spec."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, field in kind.model_fields.items():
        if name == "settings":
            for method in kind.methods().values():
                found |= {key: (own.annotation, None) for key, own in method.settings.model_fields.items()}
        elif name == "training":
            found["lora"] = (bool, True)
            found |= {key: (TrainingSettings.model_fields[key].annotation, None) for key in TRAINING_NAMES}
            found |= {key: (LoraSettings.model_fields[own].annotation, None) for own, key in LORA_NAMES.items()}
        else:
            required = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
            found[name] = (field.annotation, required)
    return found


def spec_from(kind: type[SpecT], given: Mapping[str, Any]) -> SpecT:
    """Make a spec of flat values; those that are None are not given.

    Raises:
        UserError: Names the setting that is unknown, missing or wrong.
    """
    values = {name: value for name, value in given.items() if value is not None}
    nested = dict(_taken(values, set(kind.model_fields)))
    if (defaults := kind.training_defaults()) is not None:
        _take_training(defaults, values, nested)
    known = {name for method in kind.methods().values() for name in method.settings.model_fields}
    settings = dict(_taken(values, known))
    if values:
        name = next(iter(values))
        near = difflib.get_close_matches(name, flat_fields(kind), n=1)
        hint = f" (did you mean {setting(near[0])}?)" if near else ""
        raise UserError(f"{setting(name)}: no such setting of {kind.command or kind.__name__}{hint}: leave it out")
    if settings:
        nested["settings"] = {**nested.get("settings", {}), **settings}
    try:
        spec = kind.model_validate(nested)
    except ValidationError as error:
        raise _explained(error, bounds=_bounds(kind)) from error
    spec.require_sound()
    return spec


def _taken(values: dict[str, Any], names: set[str]) -> Iterator[tuple[str, Any]]:
    for name in list(values):
        if name in names:
            yield name, values.pop(name)


def _take_training(defaults: TrainingSettings, values: dict[str, Any], nested: dict[str, Any]) -> None:
    """Move the flat settings of a training into one, where it is not given as a whole.

    Raises:
        UserError: It is given in both ways, or a value is wrong.
    """
    flat = [name for name in values if name in ("lora", *TRAINING_NAMES, *LORA_NAMES.values())]
    if "training" in nested:
        if flat:
            raise UserError(f"{setting(flat[0])} is a part of {setting('training')}: give one of them")
        return
    if not isinstance(lora := values.pop("lora", True), bool):
        raise UserError(
            f"{setting('lora')} says whether an adapter is trained, True or False: its settings are "
            f"{', '.join(map(setting, LORA_NAMES.values()))}"
        )
    nested["training"] = _training_from(defaults, values, lora=lora and defaults.lora is not None)


def _training_from(defaults: TrainingSettings, values: dict[str, Any], *, lora: bool) -> TrainingSettings:
    """Build the settings of a training, and take them out of the flat values.

    Raises:
        UserError: A value is outside its range, or a setting of adapters is given where every weight is trained.
    """
    chosen = dict(_taken(values, set(TRAINING_NAMES)))
    adapter = {field: values.pop(name) for field, name in LORA_NAMES.items() if name in values}
    if adapter and not lora:
        name = LORA_NAMES[next(iter(adapter))]
        raise UserError(f"{setting(name)} is for adapters: leave it out, or pass {setting('lora')}")
    if "targets" in adapter:
        adapter["targets"] = _names_of(adapter["targets"])
        if not adapter["targets"]:
            raise UserError(
                f"{setting('lora_targets')} names no layer: pass names such as q_proj,v_proj, or leave it out"
            )
    try:
        kept = (defaults.lora or LoraSettings()).model_dump()
        settings = LoraSettings.model_validate({**kept, **adapter}) if lora else None
        return TrainingSettings.model_validate({**defaults.model_dump(exclude={"lora"}), **chosen, "lora": settings})
    except ValidationError as error:
        raise _explained(error, LORA_NAMES if str(error.errors()[0]["loc"][0]) in adapter else {}) from error


def _names_of(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def _bounds(kind: type[Spec]) -> dict[str, str]:
    """Return the range of every field that has a lowest and a highest value, in words."""
    found = {}
    for name, field in kind.model_fields.items():
        low = [item.ge for item in field.metadata if isinstance(item, Ge)]
        high = [item.le for item in field.metadata if isinstance(item, Le)]
        if low and high:
            found[name] = f"pass a number from {low[0]} to {high[0]}"
    return found


def _explained(
    error: ValidationError, names: Mapping[str, str] | None = None, bounds: Mapping[str, str] | None = None
) -> UserError:
    """Return what is wrong with the first value, in one line."""
    first = error.errors()[0]
    field = next((str(part) for part in reversed(first["loc"]) if isinstance(part, str)), "")
    said = (bounds or {}).get(field) or first["msg"].removeprefix("Value error, ")
    if not field:
        return UserError(said)
    if first["type"] in ("string_type", "tuple_type"):
        kind = type(first["input"]).__name__
        return UserError(
            f"{setting((names or {}).get(field, field))} takes a name, not an object of type {kind}: pass its name"
        )
    if first["type"] == "missing":
        return UserError(f"{setting(field)} is missing: pass it")
    given = cut_middle(str(first["input"]), _LONGEST_SHOWN)
    return UserError(f"{setting((names or {}).get(field, field))} {given}: {said[:1].lower()}{said[1:]}")


def command_line(spec: Spec) -> str:
    """Return the command that repeats what a spec says: what is not a default, in the order of its help."""
    return shlex.join(["antidote", *spec.command.split(), *_words(spec)])


def _words(spec: Spec) -> Iterator[str]:
    kind = type(spec)
    places: list[str] = []
    options: list[str] = []
    order = list(GROUPS)
    fields = sorted(kind.model_fields.items(), key=lambda item: order.index(shown(kind, item[0]).group))
    for name, field in fields:
        value = getattr(spec, name)
        if shown(kind, name).argument:
            places += [] if value is None else [str(value)]
        elif name == "settings":
            options += [word for key, held in value.items() for word in _given(option_name(key), held)]
        elif name == "training" and (defaults := kind.training_defaults()) is not None:
            options += _training_words(value, defaults)
        elif value != field.get_default(call_default_factory=True):
            options += _given(option_of(kind, name), value, shown(kind, name).flag)
    yield from places
    yield from options


def _training_words(training: TrainingSettings, defaults: TrainingSettings) -> Iterator[str]:
    for name in TRAINING_NAMES:
        if (value := getattr(training, name)) != getattr(defaults, name):
            yield from _given(option_name(name), value)
    if training.lora is None and defaults.lora is not None:
        yield "--full"
    elif training.lora is not None:
        kept = defaults.lora or LoraSettings()
        for field, name in LORA_NAMES.items():
            if (value := getattr(training.lora, field)) != getattr(kept, field):
                yield from _given(option_name(name), ",".join(value) if isinstance(value, tuple) else value)


def _given(option: str, value: Any, flag: str | None = None) -> Sequence[str]:
    """Return an option with its value; a list is repeated."""
    if isinstance(value, bool):
        yes, _, no = (flag or f"{option}/--no-{option.removeprefix('--')}").partition("/")
        return [yes if value or not no else no]
    if isinstance(value, tuple):
        return [word for item in value for word in (option, str(item))]
    return [] if value is None else [option, str(value)]
