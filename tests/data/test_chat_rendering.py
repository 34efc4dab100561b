"""Chat templates without an end, or that take too much, are refused."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError

from antidote_llm.data import chat_rendering
from antidote_llm.data.chat_rendering import TemplateRenderer
from antidote_llm.errors import UserError
from antidote_llm.io.bounded_calls import Budget

VARIABLES: dict[str, Any] = {"messages": [{"role": "user", "content": "zorb"}]}


def test_what_a_template_refuses_is_said_in_its_words() -> None:
    with pytest.raises(TemplateError, match=r"^no zorbik here$"):
        TemplateRenderer("{{ raise_exception('no zorbik here') }}").render(VARIABLES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
        ("{{ 10 ** (10 ** 9) }}", "takes too long"),
        ("{{ 'a' * 10 ** 10 }}", "more than 1000 MB of memory"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "(of memory|takes too long)",
        ),
        ("{% for i in range(90000) %}{{ 'zorbikzorb' * 100 }}{% endfor %}", "more than 200,[0-9]{3} characters"),
    ],
)
def test_a_template_without_an_end_is_refused(template: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_rendering, "_BUDGET", Budget(seconds=1.0))
    with pytest.raises(UserError, match=rf"chat template.*{message}.*use --template"):
        TemplateRenderer(template).render(VARIABLES)


def test_a_template_that_is_slow_at_every_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_rendering, "_BUDGET", Budget(seconds=0.1))
    monkeypatch.setattr(chat_rendering, "_SECONDS_EACH", 0.0)
    loops = "{% for a in range(99) %}{% for b in range(999) %}{% endfor %}{% endfor %}"
    renderer = TemplateRenderer(loops)
    with pytest.raises(UserError, match="takes too long, row for row"):
        for _ in range(1000):
            renderer.render(VARIABLES)
