"""Reads a recipe: YAML, with values set over it by name; whatever is wrong with it is one line."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from antidote_llm.errors import UserError, setting
from antidote_llm.io.strict_yaml import parse_yaml, read_yaml
from antidote_llm.io.visible_text import cut_middle
from antidote_llm.repairs.method import method_named
from antidote_llm.training.defense import defense_named
from antidote_llm.workflows.specs import Recipe

# In the installed package, and in the repository.
_SHIPPED = (Path(__file__).parent / "recipes", Path(__file__).parents[3] / "recipes")
_REQUIRED = {"finetune": ("rows", "harmful", "harmful_ratio"), "repair": ("harmful",)}
_LONGEST_SHOWN = 120
_DEEPEST_KEY = 10


def read_recipe(reference: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        reference: A file, or the name of a shipped recipe such as ``paper/llama2-7b``.
        settings: Values set over the file's, as in ``repair.settings.alpha=0.2``.

    Raises:
        UserError: There is no such file, it is no recipe, or a value in it is not allowed.
    """
    path = _located(reference)
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UserError(f"{reference}: cannot be read: {error.strerror}: check the file") from error
    except ValueError as error:
        raise UserError(f"{reference}: not valid YAML ({error}): correct the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{reference}: not a recipe: write keys such as name, model, align and finetune")
    for text in settings:
        _set(content, text)
    return parsed_recipe(content, reference)


def parsed_recipe(content: Mapping[str, Any], reference: str) -> Recipe:
    """Check what a recipe says.

    Raises:
        UserError: A key is unknown or missing, a value is not allowed, or there is no such defense or method.
    """
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        # A misspelt key is one too many, and the one that was meant is missing: the first says more.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise UserError(f"{reference}: {_explained(first)}") from error
    _require_filled(recipe, reference)
    try:
        alignment = defense_named("alignment", recipe.align.defense)
        alignment.configure(recipe.align.settings, recipe.align.preset)
        finetuning = defense_named("finetuning", recipe.finetune.defense)
        finetuning.configure(recipe.finetune.settings, recipe.finetune.preset)
        method_named(recipe.repair.method).configure(recipe.repair.settings, recipe.repair.preset)
    except UserError as error:
        raise UserError(f"{reference}: {error.text}") from error
    return recipe


def _require_filled(recipe: Recipe, reference: str) -> None:
    """Refuse a recipe that leaves out what a command may leave out, and an experiment may not.

    Raises:
        UserError: Names the key.
    """
    for stage, names in _REQUIRED.items():
        for name in names:
            if getattr(getattr(recipe, stage), name) in (None, ()):
                raise UserError(f"{reference}: {stage}.{name} is missing: {_description([stage], name)}: add it")


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    return sorted(
        {
            path.relative_to(folder).with_suffix("").as_posix()
            for folder in _SHIPPED
            for path in folder.glob("**/*.yaml")
        }
    )


def _located(reference: str) -> Path:
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    for folder in _SHIPPED:
        if (shipped := folder / f"{reference}.yaml").is_file():
            return shipped
    known = shipped_recipes()
    raise UserError(f"{reference}: no such recipe{_near(reference, known)}: name a file, or one of {', '.join(known)}")


def _set(content: dict[str, Any], given: str) -> None:
    """Set one value, given as ``key.key=value``; the value is read as YAML."""
    name, equals, text = given.partition("=")
    option = setting("set")
    keys = name.split(".")
    if not equals or not all(keys) or len(keys) > _DEEPEST_KEY:
        raise UserError(f"{option} {given}: name a key and its value, as in {option} repair.settings.alpha=0.2")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{option} {given}: the value is not valid YAML ({error}): correct it") from error
    place = content
    for key in keys[:-1]:
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            raise UserError(f"{option} {given}: {key} holds a value and no keys: name a key that is there")
    place[keys[-1]] = value


def _explained(problem: Any) -> str:
    """Return what is wrong with one value, and what would be right."""
    *parents, last = [str(part) for part in problem["loc"]] or [""]
    name = ".".join([*parents, last])
    if problem["type"] == "extra_forbidden":
        known = list(_model_at(parents).model_fields)
        return f"unknown key {name}{_near(last, known)}: name one of {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{name} is missing: {_description(parents, last)}: add it"
    wrong = problem["msg"].removeprefix("Value error, ").lower()
    return f"{name}: {wrong}, not {cut_middle(repr(problem['input']), _LONGEST_SHOWN)}"


def _model_at(parents: Iterable[str]) -> type[BaseModel]:
    """Return the model that stands at a path; what a path leaves it for is a part of the last one."""
    model: type[BaseModel] = Recipe
    for name in parents:
        if (field := model.model_fields.get(name)) is None:
            break
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return model


def _description(parents: Sequence[str], last: str) -> str:
    field = _model_at(parents).model_fields[last]
    text = field.description or ""
    return text[:1].lower() + text[1:].rstrip(".")


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
