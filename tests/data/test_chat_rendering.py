"""Chat templates are rendered as transformers does, and those without an end are refused."""

from __future__ import annotations

from typing import Any

import pytest

from antidote_llm.artifacts.bounded import Budget
from antidote_llm.data import chat_rendering
from antidote_llm.data.chat_rendering import ChatRenderer, RenderingError
from antidote_llm.errors import UserError
from tests import tiny

TEMPLATES = (
    tiny.CHAT_TEMPLATE,
    "{{ bos_token }}{% for m in messages %}\n  {{ m.role|upper }}: {{ m['content'] | trim }}\n{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ tools | tojson }}{{ eos_token }}{{ pad_token }}{{ zorbik }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
    "{% set n = namespace(n=0) %}{% for m in messages %}{% set n.n = n.n + 1 %}{% endfor %}{{ n.n }}{{ dict(a=1).a }}",
)
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "bé \U0001f9ea \u2028 <b> & 'q' \"q\"", "name": None},
    {"role": "user", "content": " zorb\nmid ", "tool_calls": [{"function": {"name": "ru", "arguments": {"x": 1.5}}}]},
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("opens", [False, True])
def test_the_text_is_that_of_transformers(template: str, opens: bool) -> None:
    tokenizer = tiny.tokenizer()
    told: dict[str, Any] = {"add_generation_prompt": opens, "zorbik": "told", "tools": [{"type": "function"}]}
    wanted = tokenizer.apply_chat_template(TURNS, tokenize=False, chat_template=template, **told)
    assert ChatRenderer(tokenizer, template).render(TURNS, **told) == wanted


def test_what_a_template_refuses_is_said_in_its_words() -> None:
    with pytest.raises(RenderingError, match=r"^no zorbik here$"):
        ChatRenderer(tiny.tokenizer(), "{{ raise_exception('no zorbik here') }}").render(TURNS)


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
        ("{% for i in range(90000) %}{{ 'zorbikzorb' * 100 }}{% endfor %}", "more than 64 million characters"),
    ],
)
def test_a_template_without_an_end_is_refused(template: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_rendering, "_BUDGET", Budget(seconds=1.0))
    with pytest.raises(UserError, match=rf"chat template.*{message}.*use --template"):
        ChatRenderer(tiny.tokenizer(), template).render(TURNS)


def test_a_template_that_is_slow_at_every_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_rendering, "_BUDGET", Budget(seconds=0.1))
    monkeypatch.setattr(chat_rendering, "_SECONDS_EACH", 0.0)
    loops = "{% for a in range(99) %}{% for b in range(999) %}{% endfor %}{% endfor %}"
    renderer = ChatRenderer(tiny.tokenizer(), loops)
    with pytest.raises(UserError, match="takes too long, row for row"):
        for _ in range(1000):
            renderer.render(TURNS)
