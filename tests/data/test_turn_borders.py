"""A response is the answer and what ends its turn, under chat templates of every kind; or the template is refused."""

from __future__ import annotations

import pytest

from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from tests import tiny
from tests.data.byte_level import EOS, TEMPLATES, byte_tokenizer, chat_tokenizer
from tests.data.chat_kinds import KINDS, Kind, kind_tokenizer

# Words of templates and of the prompt, white space, and an empty text.
ANSWERS = (
    "user",
    "assistant",
    "<|end|>",
    "<|end|>\n<|turn|>assistant\n",
    "zob",
    "o",
    "\n",
    "",
    "kad ",
    "zorbik",
    "[1]",
)


def texts(kind: Kind, answer: str, *, thinking: bool = False) -> tuple[str, str]:
    """Return prompt and response as texts, having checked that the prompt equals the one for generation."""
    tokenizer = kind_tokenizer(kind.template)
    renderer = Renderer(tokenizer, thinking=thinking)
    record = Record(prompt="zob", response=answer, history=kind.history)
    (row,), (asked,) = renderer.rows([record]), renderer.prompts([record])
    assert row.input_ids[: row.response_start] == asked
    return tokenizer.decode(asked), tokenizer.decode(row.input_ids[row.response_start :])


@pytest.mark.parametrize("name", KINDS)
def test_a_response_is_the_answer_and_what_ends_its_turn(name: str) -> None:
    kind = KINDS[name]
    assert texts(kind, "kad") == (kind.prompt, kind.answer)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.history])
def test_earlier_turns_do_not_change_the_response(name: str) -> None:
    kind = KINDS[name]
    if name == "takes one question and one answer":
        return
    before = (Turn("user", "rud"), Turn("assistant", "tex"))
    prompt, response = texts(Kind(kind.template, "", "", before), "kad")
    assert response == kind.answer
    assert prompt.endswith(kind.prompt[-3:]) and "tex" in prompt


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", KINDS)
def test_an_answer_may_contain_the_template_s_own_words(name: str, answer: str) -> None:
    kind = KINDS[name]
    assert texts(kind, answer) == (kind.prompt, kind.answer.replace("kad", answer))


@pytest.mark.parametrize("name", KINDS)
def test_the_token_that_ends_an_answer_stops_generation(name: str) -> None:
    kind = KINDS[name]
    tokenizer = kind_tokenizer(kind.template)
    end = tokenizer.decode(Renderer(tokenizer).closing_ids())
    assert end == kind.answer.partition("kad")[2]


def test_a_template_that_trims_answers_does_so_in_rows() -> None:
    kind = Kind(KINDS["has no generation prompt"].template.replace("m.content", "m.content|trim"), "", "")
    assert texts(kind, " kad\n")[1] == "kad<|end|>\n"


def test_a_prompt_that_opens_a_thought_in_other_marks_keeps_it_with_thinking() -> None:
    kind = KINDS["opens a thought where it is asked, and answers behind another mark"]
    assert texts(kind, "kad", thinking=True) == ("<|turn|>userzob<|end|><|turn|>assistant<|muse|>", "kad<|end|>")


def test_a_template_that_writes_an_answer_twice_is_refused() -> None:
    kind = Kind("{% for m in messages %}{{ m.content }}|{{ m.content }}<|end|>{% endfor %}", "", "")
    with pytest.raises(
        UserError, match=r"^the tokenizer's chat template writes an answer more than once: use template"
    ):
        texts(kind, "kad")


def test_a_template_that_writes_a_prompt_after_its_answer_is_refused() -> None:
    kind = Kind("{% for m in messages|reverse %}{{ m.role + m.content }}<|end|>{% endfor %}assistant", "", "")
    with pytest.raises(UserError, match=r"^the tokenizer's chat template writes what was said before an answer behind"):
        texts(kind, "kad")


@pytest.mark.parametrize("lead", [" ", "\n", "zorb: "])
def test_text_before_an_answer_also_precedes_one_with_a_thought(lead: str) -> None:
    said = "{% for m in messages %}{{ m.role + ':' + (lead if m.role == 'assistant' else '') + m.content }}<|end|>"
    asked = "{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
    answer = "<think>\nrud\n</think>\n\nkad"
    kind = Kind(f"{{% set lead = {lead!r} %}}{said}{asked}", "", "")
    assert texts(kind, answer) == ("user:zob<|end|>assistant:", f"{lead}{answer}<|end|>")


def test_a_template_whose_answers_have_no_findable_end_is_refused() -> None:
    kind = Kind("mid a {% for m in messages %}{{ m.role ~ ' ' ~ m.content ~ ' a ' }}{% endfor %}assistant ", "", "")
    with pytest.raises(UserError, match=r"^the tokenizer's chat template opens another turn behind every answer, and "):
        texts(kind, "kad")


def test_a_dropped_turn_is_noticed_even_where_its_words_occur_elsewhere() -> None:
    tokenizer = byte_tokenizer("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    record = Record(prompt="zob mid", history=(Turn("system", "mid"),), origin="a.jsonl:3")
    with pytest.raises(UserError, match=r"^a\.jsonl:3: .*leaves out a system turn"):
        Renderer(tokenizer).prompts([record])


def test_contents_printed_as_a_list_do_not_count_as_text() -> None:
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.content ~ '' if m.content is not string }}{% endfor %}")
    with pytest.raises(UserError, match="leaves out the prompt"):
        Renderer(tokenizer).prompt_text(Record(prompt="zob"))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("thinking", [False, True])
def test_answers_of_known_families_hold_only_the_answer_and_its_end(name: str, thinking: bool) -> None:
    tokenizer = chat_tokenizer(name)
    renderer = Renderer(tokenizer, thinking=thinking)
    ends = tokenizer.decode(renderer.closing_ids())
    for answer in ("kad", "user", "<|im_end|>", ""):
        (row,) = renderer.rows([Record(prompt="zob", response=answer)])
        response = tokenizer.decode(row.input_ids[row.response_start :])
        assert response.rpartition("</think>")[2].lstrip() == (answer + ends).lstrip()


def test_a_chat_template_without_a_token_for_its_end_ends_in_text() -> None:
    tokenizer = byte_tokenizer(KINDS["has no generation prompt"].template)
    (row,) = Renderer(tokenizer).rows([Record(prompt="zob", response="kad")])
    assert tokenizer.decode(row.input_ids) == "<|turn|>user\nzob<|end|>\n<|turn|>assistant\nkad<|end|>\n"
    assert tokenizer.decode(row.input_ids[row.response_start :]) == "kad<|end|>\n"


def test_the_labels_of_a_template_that_opens_turns_always_are_the_answer_and_its_end() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{% if add_generation_prompt %}", "").replace(
        "{% endif %}", ""
    )
    (row,) = Renderer(tokenizer).rows([Record(prompt="zob mid", response="kad")])
    assert tokenizer.convert_ids_to_tokens(row.input_ids[row.response_start :]) == ["kad", "<|end|>"]


@pytest.mark.parametrize("closes", [False, True])
def test_a_tokenizer_s_own_marks_are_not_added_to_a_template_s(closes: bool) -> None:
    template = "{{ bos_token }}" + KINDS["puts a line end behind an answer"].template
    tokenizer = byte_tokenizer(template, closes=closes)
    (row,) = Renderer(tokenizer).rows([Record(prompt="zob", response="kad")])
    assert tokenizer.decode(row.input_ids) == f"<s>user: zob\nassistant: kad\n{EOS}"
