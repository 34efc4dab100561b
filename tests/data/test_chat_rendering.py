"""Chat templates render in batches, with the same results and errors as row by row; endless ones are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from jinja2 import TemplateError

from antidote_llm.data import chat_rendering
from antidote_llm.data.chat_rendering import TemplateRenderer
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.io.bounded_calls import bounded_calls
from tests.data.byte_level import TEMPLATES, byte_tokenizer, chat_tokenizer

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
VARIABLES: dict[str, Any] = {"messages": [{"role": "user", "content": "zorb"}]}


def test_a_template_s_own_error_message_is_passed_on() -> None:
    with pytest.raises(TemplateError, match=r"^no zorbik here$"):
        TemplateRenderer("{{ raise_exception('no zorbik here') }}").render(VARIABLES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, "takes too long"),
        ("{{ 10 ** (10 ** 9) }}", "takes too long"),
        ("{{ 'a' * 10 ** 10 }}", "more than 1000 MB of memory"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "(of memory|takes too long)",
        ),
        ("{% for i in range(90000) %}{{ 'zorbikzorb' * 100 }}{% endfor %}", "more than 200,[0-9]{3} characters"),
    ],
)
def test_a_template_that_takes_too_much_is_refused(
    template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_rendering, "_BUDGET", replace(chat_rendering._BUDGET, seconds=1.0))
    with pytest.raises(UserError, match=rf"chat template.*{message}.*use template"):
        TemplateRenderer(template).render(VARIABLES)


def test_a_template_that_is_slow_at_every_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_rendering, "_BUDGET", replace(chat_rendering._BUDGET, seconds=0.1, seconds_each=0.0))
    loops = "{% for a in range(99) %}{% for b in range(999) %}{% endfor %}{% endfor %}"
    renderer = TemplateRenderer(loops)
    # One rendering takes milliseconds: only the time of all of them together can be too long.
    with pytest.raises(UserError, match="takes too long"):
        for _ in range(1000):
            renderer.render(VARIABLES)
    renderer = TemplateRenderer(loops)
    *rendered, last = renderer.render_many([VARIABLES] * 1000)
    assert len(rendered) < 999 and all(isinstance(text, str) for text in rendered)
    assert isinstance(last, UserError) and "takes too long" in str(last)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_batch_gives_the_same_tokens_as_row_by_row_in_few_exchanges(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = (Turn("user", "kad"), Turn("assistant", "run"))
    records = [Record(prompt=f"zob {place % 150}", response=f"mid {place}") for place in range(200)]
    records += [Record(prompt="zob"), Record(text="zob mid"), Record(input_ids=(5, 6), response_start=1)]
    records += [Record(prompt=f"zob {place}", response="mid", history=earlier) for place in range(3)]
    one_by_one, batched = Renderer(chat_tokenizer(name)), Renderer(chat_tokenizer(name))
    rows = [row for record in records for row in one_by_one.rows([record])]
    prompts = [ids for record in records for ids in one_by_one.prompts([record])]
    exchanges: list[int] = []

    def counted(function: str, calls: Any, *limits: Any, **more: Any) -> Any:
        exchanges.append(len(calls))
        return bounded_calls(function, calls, *limits, **more)

    monkeypatch.setattr(chat_rendering, "bounded_calls", counted)
    assert batched.rows(records) == rows and batched.prompts(records) == prompts
    # Two batches of rows, two of prompts, and the probes that find the text around answers.
    assert len(exchanges) < 40 and max(exchanges) > 128


@pytest.mark.parametrize("response", [None, "kad"])
@pytest.mark.parametrize(
    ("bad", "words"), [(ENDLESS, "takes too long"), ("{{ raise_exception('no zorbik here') }}", "no zorbik here")]
)
def test_an_error_in_a_batch_names_the_row_that_causes_it(
    bad: str, words: str, response: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_rendering, "_BUDGET", replace(chat_rendering._BUDGET, seconds=0.2))
    tokenizer = byte_tokenizer(f"{{% for m in messages %}}{{% if 'mid' in m.content %}}{bad}{{% endif %}}")
    tokenizer.chat_template += "{{ m.content }}{% endfor %}"
    records = [Record(prompt=said, response=response, origin=f"a.jsonl:{said}") for said in ("zob", "rud", "mid", "ab")]
    with pytest.raises(UserError, match=rf"^a\.jsonl:mid: .*{words}"):
        Renderer(tokenizer).rows(records)
    with pytest.raises(UserError, match=rf"^a\.jsonl:mid: .*{words}"):
        Renderer(tokenizer).prompts(records)
    assert len(Renderer(tokenizer).rows([*records[:2], records[3]])) == 3
