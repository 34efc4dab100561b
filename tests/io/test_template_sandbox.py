"""Templates run as transformers runs them, but on a fixed day and without randomness; escapes are refused."""

from __future__ import annotations

import re
import time

import pytest
from jinja2 import TemplateError

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.io.template_sandbox import rendered
from tests import tiny
from tests.data.byte_level import TEMPLATES
from tests.data.chat_kinds import KINDS, kind_tokenizer

RENDERING_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TypeError)
MESSAGES = [
    {"role": "user", "content": "zob <b>'mid' é\n\n"},
    {"role": "assistant", "content": "kad"},
    {"role": "user", "content": "rud"},
]
FEATURES = (
    "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "  {% set ns = namespace(a=1, b='x') %}\n  {% set ns.a = 2 %}\n{{ ns.a }}{{ ns.b }}\n",
    "{% set d = dict(a=1) %}{{ d.a }}{{ dict.fromkeys(['k'], 2) }}",
    "{% generation %}{% set x = 1 %}{{ messages[1].content }}{% endgeneration %}{{ x is defined }}",
    "{% macro f(a, b='c') %}{{ a ~ b }}{% endmacro %}{{ f('z') }}{{ f('z', b='d') | upper }}",
    "{{ messages[0].content | trim }}|{{ messages[0]['content'].strip() }}|{{ tools is none }}{{ documents is none }}",
    "{{ bos_token }}{{ eos_token }}{{ nothing }}{{ add_generation_prompt }}{{ messages[1:] | length }}",
    "{%- for m in messages -%} {{ m.role }} {%- endfor -%}\n\n{# a note #}\n  end\n",
    "{{ range(3) | list }}{{ 'a-b'.split('-') }}{{ messages | map(attribute='role') | join(',') }}",
)
# Which codes there are is the C library's business: these are common ones, alone and together.
FORMATS = ("%d %b %Y", "%-d %B %Y", "%c", "%x", "%X", "%Y-%m-%dT%H:%M:%S%z", "%Z", "%%Y%%", "%j %U %a", "no code", "%F")


@pytest.mark.parametrize("template", [*TEMPLATES.values(), *(kind.template for kind in KINDS.values()), *FEATURES])
@pytest.mark.parametrize("asks", [False, True])
def test_a_template_renders_as_transformers_renders_it(template: str, asks: bool) -> None:
    tokenizer = kind_tokenizer(template)
    try:
        wanted = tokenizer.apply_chat_template(
            MESSAGES, tokenize=False, add_generation_prompt=asks, date_string="26 Jul 2024"
        )
    except RENDERING_ERRORS as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            _rendered(template, asks)
        return
    found = _rendered(template, asks)
    today = time.strftime("%d %b %Y")
    assert found == str(wanted).replace(today, "26 Jul 2024")


def _rendered(template: str, asks: bool = False) -> str:
    named = {"messages": MESSAGES, "tools": None, "documents": None, "add_generation_prompt": asks}
    return rendered(template, {**named, "bos_token": "<s>", "eos_token": "</s>", "date_string": "26 Jul 2024"})


@pytest.mark.parametrize("format", FORMATS)
def test_the_fixed_date_is_given_in_any_format(format: str) -> None:
    wanted = time.strftime(format.replace("%z", "").replace("%Z", ""), (2024, 7, 26, 0, 0, 0, 4, 208, 0))
    for template in (
        f"{{{{ strftime_now('{format}') }}}}",
        f"{{% set f = '{format}' %}}{{{{ strftime_now(f) }}}}",
        f"{{% set now = strftime_now %}}{{{{ now(format='{format}'|trim) }}}}",
        f"{{% macro day() %}}{{{{ strftime_now(['{format}'][0]) }}}}{{% endmacro %}}{{{{ day() }}}}",
        f"{{{{ strftime_now('{format[:3]}' ~ '{format[3:]}') }}}}",
    ):
        assert _rendered(template) == wanted


def test_seconds_are_counted_from_the_epoch_in_every_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert _rendered("{{ strftime_now('%s %%s %H %Z') }}") == "1721952000 %s 00 "
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages | random }}", "draws at random"),
        ("{{ lipsum(n=1) }}", "draws at random"),
        ("{{ messages | map(attribute='role') }}", "an object instead of a text"),
        ("{{ raise_exception }}", "an object instead of a text"),
        ("{{ now() }}", "'now' is undefined"),
        ("{{ strftime_now(5) }}", "strftime|string"),
        ("{% set ns = namespace() %}{% set ns.__init__ = 1 %}", "underscore"),
        ("{{ namespace(_a=1) }}", "underscore"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for a in messages %}" * 30 + "{% endfor %}" * 30, "nested"),
    ],
)
def test_a_template_that_is_not_repeatable_or_escapes_is_refused(template: str, words: str) -> None:
    with pytest.raises(RENDERING_ERRORS, match=words):
        _rendered(template)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template + "{{ messages[0].content }}"
    with pytest.raises(
        UserError, match=rf"^a\.jsonl:1: the tokenizer's chat template cannot render .*({words}).*templ"
    ):
        Renderer(tokenizer).prompts([Record(prompt="zob", origin="a.jsonl:1")])


def test_a_prompt_may_contain_the_text_of_an_object() -> None:
    tokenizer = tiny.tokenizer()
    assert "<f at 0x7f00aa>" in Renderer(tokenizer).prompt_text(Record(prompt="<f at 0x7f00aa>"))
    with pytest.raises(TemplateError):
        rendered("<f at 0x7f00aa>", {})


def test_a_tokenizer_with_its_own_code_for_conversations_is_named() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.__class__ = type("Zorbik", (type(tokenizer),), {"apply_chat_template": lambda *_, **__: "zob"})
    with pytest.raises(UserError, match=r"^the tokenizer's class Zorbik renders conversations with code of its own"):
        Renderer(tokenizer)
    assert Renderer(tokenizer, "plain").prompt_text(Record(prompt="zob")) == "zob"
