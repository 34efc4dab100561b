"""Reads records of this program that anybody may have edited."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from antidote_llm.artifacts.json_reading import parse_json
from antidote_llm.errors import first_line

Model = TypeVar("Model", bound=BaseModel)


def parse_model(kind: type[Model], data: str | bytes) -> Model:
    """Return the record that a JSON text describes.

    Raises:
        ValueError: As :func:`parse_json`, or it describes another kind of thing. Says why in one line.
    """
    parse_json(data)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong with a value, and where, without the value."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*filter(None, [".".join(map(str, problem["loc"]))]), first_line(ValueError(problem["msg"]))])
