"""Options that say how hard a model is asked, and who generates its answers."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from antidote_llm.cli.utility_options import Further
from antidote_llm.errors import UserError
from antidote_llm.evaluation.backends.vllm import require_vllm
from antidote_llm.evaluation.conditions import AFFIRMATIVE, HARDER, all_condition_settings
from antidote_llm.evaluation.endpoint import Endpoint
from antidote_llm.evaluation.judge import Judge
from antidote_llm.evaluation.judges.likelihood_margin import LikelihoodMargin
from antidote_llm.evaluation.panel import margin_of
from antidote_llm.evaluation.settings import EvaluationSettings

PrefillOption = Annotated[
    str | None,
    typer.Option(
        "--prefill",
        metavar="TEXT",
        help="Opening of every answer to a harmful prompt, which the model goes on from; 'affirmative' is "
        f"'{AFFIRMATIVE}'.",
    ),
]
ConditionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        metavar="NAME",
        help="Ask the harmful prompts again under it: plain, prefill, system or tokens-N. Repeatable.",
    ),
]
HarderOption = Annotated[bool, typer.Option("--harder", help=f"All of the conditions {', '.join(HARDER)}.")]
BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help="Who generates: transformers, vllm (an extra), or endpoint; transformers where nothing else is said.",
    ),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL#NAME",
        help="Evaluate a model that is served already, as in http://localhost:8000/v1#my-model; MODEL is left out.",
    ),
]
BACKENDS = ("transformers", "vllm", "endpoint")


def opening_from(prefill: str | None) -> str | None:
    """Return the opening that the option asks for."""
    return AFFIRMATIVE if prefill == "affirmative" else prefill


def server_from(
    backend: str | None, endpoint: str | None, model: str | None, adapter: list[str] | None
) -> Endpoint | None:
    """Return the served model that the options name, None where one is to be opened; the key is the environment's.

    Raises:
        UserError: There is no such backend, or the options do not go together.
    """
    if backend is not None and backend not in BACKENDS:
        near = difflib.get_close_matches(backend, BACKENDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"--backend {backend}: {hint}there are {', '.join(BACKENDS)}")
    if endpoint is None:
        if backend == "endpoint":
            raise UserError("--backend endpoint: name the server, as in --endpoint http://localhost:8000/v1#my-model")
        if model is None:
            raise UserError("no MODEL: name a folder or Hub id, or pass --endpoint URL#NAME")
        if backend == "vllm":
            require_vllm()
        return None
    if backend not in (None, "endpoint"):
        raise UserError(f"--backend {backend} does not go with --endpoint: leave one of them out")
    if model is not None or adapter:
        raise UserError("--endpoint evaluates what is served there: leave MODEL and --adapter out")
    return Endpoint.named(endpoint, "--endpoint ")


def require_answers_alone(further: Further, judge: Judge) -> None:
    """Refuse what must compute with the model itself, where another program generates its answers.

    Raises:
        UserError: Perplexity, a task of lm-eval, or the likelihood margin is asked for.
    """
    for option, asked in {
        "--perplexity": bool(further.text),
        "--lm-eval": bool(further.lm_eval),
        f"--judge {LikelihoodMargin.name}": margin_of(judge) is not None,
    }.items():
        if asked:
            raise UserError(f"{option} needs the model itself: leave it out, or --endpoint and --backend")


def conditions_from(
    condition: list[str] | None, harder: bool, settings: EvaluationSettings, harmful: str | None
) -> dict[str, EvaluationSettings]:
    """Return the settings of every condition that the options ask for.

    Raises:
        UserError: There is no such condition, or no harmful prompt to ask under it.
    """
    if settings.prefill is not None and harmful is None:
        raise UserError("--prefill opens answers to harmful prompts: pass --harmful, or leave it out")
    names = [*(HARDER if harder else ()), *(condition or [])]
    if names and harmful is None:
        raise UserError("conditions are for harmful prompts: pass --harmful, or leave --condition and --harder out")
    return all_condition_settings(names, settings)
