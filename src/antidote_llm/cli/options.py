"""Commands made from specs: every option, its help, its range and its group come from the spec's field."""

from __future__ import annotations

import inspect
import logging
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Optional

import typer
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from antidote_llm.choices import GROUPS, Group
from antidote_llm.errors import DefectError, option_name
from antidote_llm.method_registry import Method
from antidote_llm.training.settings import LoraSettings
from antidote_llm.workflows.spec import (
    LORA_NAMES,
    TRAINING_NAMES,
    Spec,
    SpecT,
    option_of,
    shown,
    spec_from,
)

JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object and nothing else on standard output.",
        rich_help_panel=GROUPS["main"],
    ),
]


def command_from(
    spec: type[SpecT], run: Callable[..., Any], further: Sequence[inspect.Parameter] = ()
) -> Callable[..., Any]:
    """Return the function of a command: typer reads its options from the signature, and it calls ``run`` with the spec.

    Args:
        spec: What is asked for.
        run: Takes the spec, and the further parameters by name; its docstring is the command's help.
        further: Options of the command line alone.
    """
    parameters = [*_parameters(spec), *further]
    parameters.sort(key=_order)

    def command(**given: Any) -> Any:
        beside = {parameter.name: given.pop(parameter.name) for parameter in further}
        return run(spec_from(spec, given), **beside)

    command.__doc__ = run.__doc__
    command.__name__ = run.__name__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def flag(name: str, help_text: str, group: Group = "main") -> inspect.Parameter:
    """Return a switch of the command line alone."""
    option = typer.Option(option_name(name), help=help_text, rich_help_panel=GROUPS[group])
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])


def json_flag() -> inspect.Parameter:
    """Return ``--json``."""
    return inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonFlag)


def _order(parameter: inspect.Parameter) -> int:
    """Arguments come first, then the groups in their order."""
    info = parameter.annotation.__metadata__[0]
    if isinstance(info, typer.models.ArgumentInfo):
        return -1
    return list(GROUPS.values()).index(info.rich_help_panel)


def _parameters(spec: type[Spec]) -> list[inspect.Parameter]:
    found = []
    for name, field in spec.model_fields.items():
        if name == "settings":
            trained = {"lora", *TRAINING_NAMES, *LORA_NAMES.values()} if spec.training_defaults() else set()
            taken = {*spec.model_fields, *trained}
            found += [_method_option(key, users) for key, users in _settings(spec.methods(), taken).items()]
        elif name == "training":
            found += _training_options(spec)
        else:
            found.append(_field_option(spec, name, field))
    return found


def _field_option(spec: type[Spec], name: str, field: FieldInfo) -> inspect.Parameter:
    how = shown(spec, name)
    plain = _without_metadata(field.annotation)
    listed = typing.get_origin(plain) is tuple
    annotation: Any = Optional[list[str]] if listed else plain  # noqa: UP045 - known at run time only
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        default, annotation = inspect.Parameter.empty, list[str] if listed else plain
    elif listed:
        default = list(default) or None
    help_text = str(field.description)
    if how.argument:
        info: Any = typer.Argument(metavar=how.metavar, help=help_text)
    else:
        info = typer.Option(
            how.flag or option_of(spec, name),
            metavar=how.metavar,
            help=help_text,
            rich_help_panel=GROUPS[how.group],
            **_range(field),
        )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
    )


def _without_metadata(annotation: Any) -> Any:
    """Return a type without what pydantic alone reads."""
    if typing.get_origin(annotation) is Annotated:
        return _without_metadata(typing.get_args(annotation)[0])
    arguments = typing.get_args(annotation)
    if type(None) in arguments:
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return Optional[_without_metadata(inner)]  # noqa: UP045 - known at run time only
    return annotation


def _range(field: FieldInfo) -> dict[str, Any]:
    """Return the bounds that typer checks itself: those of whole numbers, which its help shows."""
    found: dict[str, Any] = {}
    if float in (field.annotation, *typing.get_args(field.annotation)):
        return found
    for item in field.metadata:
        if isinstance(item, Ge):
            found["min"] = item.ge
        if isinstance(item, Le):
            found["max"] = item.le
    return found


def _training_options(spec: type[Spec]) -> list[inspect.Parameter]:
    defaults = spec.training_defaults()
    if defaults is None:
        return []
    lora_defaults = defaults.lora or LoraSettings()
    found = [
        _setting_option(name, type(defaults).model_fields[name], getattr(defaults, name)) for name in TRAINING_NAMES
    ]
    option = typer.Option(
        "--lora/--full", help="Train a LoRA adapter, or every weight.", rich_help_panel=GROUPS["training"]
    )
    found.insert(
        0, inspect.Parameter("lora", inspect.Parameter.KEYWORD_ONLY, default=True, annotation=Annotated[bool, option])
    )
    found += [
        _setting_option(name, type(lora_defaults).model_fields[field], getattr(lora_defaults, field))
        for field, name in LORA_NAMES.items()
    ]
    return found


def _settings(methods: Mapping[str, Method], taken: Collection[str]) -> dict[str, list[tuple[Method, FieldInfo]]]:
    """Return the methods that have each setting; settings that share a name with other options are left out."""
    found: dict[str, list[tuple[Method, FieldInfo]]] = {}
    for method in methods.values():
        for name, field in method.settings.model_fields.items():
            if name not in taken:
                found.setdefault(name, []).append((method, field))
            elif method.plug_in is None:
                raise DefectError(f"the setting {name} of {method.name} has the name of another option")
            else:
                logging.getLogger(__name__).warning(
                    "the setting '%s' of %s is no option, because the command has another of this name",
                    *(name, method.plug_in.label),
                )
    return found


def _method_option(name: str, users: list[tuple[Method, FieldInfo]]) -> inspect.Parameter:
    field = users[0][1]
    defaults = {method.name: found.default for method, found in users}
    default = field.default
    if len({repr(value) for value in defaults.values()}) > 1:
        default = ", ".join(f"{value} ({method})" for method, value in defaults.items())
    meanings: dict[str, list[str]] = {}
    for method, found in users:
        meanings.setdefault(str(found.description), []).append(method.name)
    described = " ".join(f"[{', '.join(names)}] {meaning}" for meaning, names in meanings.items())
    return _setting_option(name, field, default, described, "strength")


def _setting_option(
    name: str, field: FieldInfo, default: Any, described: str | None = None, group: Group = "training"
) -> inspect.Parameter:
    """Return the option of a setting whose default depends on the method or the stage: it is shown in the help."""
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    default_text = "" if default is None else f" Default {default}."
    option = option_name(name)
    info = typer.Option(
        f"{option}/--no-{option.removeprefix('--')}" if field.annotation is bool else option,
        help=f"{described or field.description}{default_text}",
        show_default=False,
        rich_help_panel=GROUPS[group],
    )
    # Lists are written with commas.
    annotation = str if typing.get_origin(field.annotation) is tuple else field.annotation
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[annotation], info],  # noqa: UP045 - the type is known at run time only
    )
