"""No column or message field that is part of the prompt is dropped silently."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record, Turn
from antidote_llm.errors import UserError

ASKED, TOLD = {"role": "user", "content": "zob"}, {"role": "assistant", "content": "mid"}
ALPACA = {"instruction": "zob", "input": "kad", "output": "mid"}
HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
    'tell of the zob above,contextual,x,context,"A kad, a mid\nand a rux.",id1\n'
    "tell of a zob,standard,x,,,id2\n"
)


def read(
    tmp_path: Path, *rows: dict[str, Any], mapping: str = "", require: tuple[Any, ...] = ("prompt",)
) -> list[Record]:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(f"{tmp_path}/a.jsonl{mapping}", require=require)


@pytest.mark.parametrize(
    ("row", "mapping", "prompt"),
    [
        (ALPACA, ":prompt=instruction", "zob\nkad"),
        (ALPACA, ":prompt=instruction,input=input", "zob\nkad"),
        (ALPACA, ":prompt=instruction,ignore=input", "zob"),
        (ALPACA | {"input": ""}, ":prompt=instruction", "zob"),
        ({"instruction": "zob", "context": "kad"}, ":prompt=instruction", "zob\nkad"),
        ({"instruction": "zob", "context": "kad"}, ":prompt=instruction,context=context", "kad\n\n---\n\nzob"),
        ({"prompt": "zob", "more": "kad"}, ":prompt=prompt,input=more", "zob\nkad"),
        ({"data": {"goal": "zob"}}, ":prompt=data.goal", "zob"),
        ({"a.b": "zob", "a": {"b": "kad"}}, ":prompt=a.b", "zob"),
    ],
)
def test_columns_that_a_format_adds_to_the_prompt_are_in_it(
    tmp_path: Path, row: dict[str, Any], mapping: str, prompt: str
) -> None:
    assert read(tmp_path, row, mapping=mapping)[0].prompt == prompt


def test_a_mapped_behaviour_gives_the_same_prompt_as_the_preset(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text(HARMBENCH)
    asked = [
        [record.prompt for record in read_records(spec)]
        for spec in (
            f"harmbench@{tmp_path}/h.csv",
            f"{tmp_path}/h.csv:prompt=Behavior",
            f"{tmp_path}/h.csv:prompt=Behavior,context=ContextString",
        )
    ]
    assert asked[0] == asked[1] == asked[2]
    assert asked[0][0] == "A kad, a mid\nand a rux.\n\n---\n\ntell of the zob above"
    assert read_records(f"{tmp_path}/h.csv:prompt=Behavior,ignore=ContextString")[0].prompt == "tell of the zob above"


@pytest.mark.parametrize(
    "history", [[["kad", "rux"]], [{"role": "user", "content": "kad"}, {"role": "assistant", "content": "rux"}]]
)
def test_earlier_turns_come_before_the_prompt(tmp_path: Path, history: list[Any]) -> None:
    (found,) = read(tmp_path, {**ALPACA, "history": history, "system": "tex"}, mapping=":prompt=instruction")
    assert found.history == (Turn("system", "tex"), Turn("user", "kad"), Turn("assistant", "rux"))
    (mapped,) = read(tmp_path, {"prompt": "zob", "past": history}, mapping=":prompt=prompt,history=past")
    assert mapped.history == found.history[1:]


@pytest.mark.parametrize(
    ("row", "named", "mapping"),
    [
        ({"prompt": "zob", "context": "kad"}, "context", "context=context"),
        ({"prompt": "zob", "input": "kad"}, "input", "input=input"),
        ({"prompt": "zob", "ContextString": "kad"}, "ContextString", "context=ContextString"),
        ({"prompt": "zob", "System Prompt": "kad"}, "System Prompt", "system=System Prompt"),
        ({"prompt": "zob", "system_message": "kad"}, "system_message", "system=system_message"),
        ({"prompt": "zob", "history": [["kad", "rux"]]}, "history", "history=history"),
        ({"prompt": "zob", "choices": ["kad", "rux"]}, "choices", "input=choices"),
        ({"prompt": "zob", "tool_choice": "auto"}, "tool_choice", ""),
        ({"prompt": "zob", "context_string": "kad"}, "context_string", "context=context_string"),
        ({"prompt": "zob", "systemInstruction": "kad"}, "systemInstruction", "system=systemInstruction"),
        ({"prompt": "zob", "B": "kad"}, "B", ""),
        ({"prompt": "zob", "option_b": "kad"}, "option_b", "input=option_b"),
        ({"prompt": "zob", "opc": "kad"}, "opc", ""),
        ({"prompt": "zob", "Complex_CoT": "kad"}, "Complex_CoT", ""),
        ({"input": "zob", "instruction": "kad", "prompt": "zob"}, "instruction", ""),
        ({"messages": [ASKED, TOLD], "context": "kad"}, "context", ""),
        ({"messages": [ASKED, TOLD], "response": "kad"}, "response", ""),
        ({"messages": [{**ASKED, "name": "kad"}, TOLD]}, "name", ""),
        ({"prompt": "zob", "completion": "mid", "label": False}, "label", ""),
    ],
)
def test_an_unread_column_that_may_matter_is_warned_of_once_per_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], named: str, mapping: str
) -> None:
    plain = {"prompt": "zob"}
    with caplog.at_level(logging.WARNING):
        read(tmp_path, row, plain, row)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"2 of 3 rows have '{named}'" in said and f"ignore={named}" in said
    assert mapping in said
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read(tmp_path, row, plain, mapping=f":ignore={named}")
    assert caplog.records == []


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "zob", "id": "7", "category": "kad", "source": "rux", "difficulty": 3},
        {"prompt": "Given kad: zob", "context": "kad", "question": "zob"},
        {"prompt": "zob", "context": "", "input": None, "tools": "[]", "images": [], "history": []},
        {"prompt": "zob", "chat_template_kwargs": {"enable_thinking": False}},
        {"text": "zob", "context": "kad", "tools": [{"name": "rux"}]},
        {"messages": [{**ASKED, "name": None, "tool_calls": None}, {**TOLD, "weight": 1, "train": True}]},
        {**ALPACA, "prompt": "zob\nkad"},
    ],
)
def test_other_unread_columns_cause_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING):
        read(tmp_path, row)
    assert caplog.records == []


@pytest.mark.parametrize("name", ["tools", "Functions", "image", "image_url", "chat_template", "tool_calls"])
def test_a_column_that_changes_the_meaning_of_a_row_is_refused_unless_ignored(tmp_path: Path, name: str) -> None:
    row = {"prompt": "zob", "response": "mid", name: [{"name": "rux"}]}
    with pytest.raises(UserError, match=rf"a\.jsonl:2: column '{name}' cannot be read.*out.*ignore={name}"):
        read(tmp_path, {"prompt": "zob"}, row)
    (found,) = read(tmp_path, row, mapping=f":ignore={name}")
    assert (found.prompt, found.response, found.extra) == ("zob", "mid", {})


def test_values_next_to_a_mapped_path_are_checked_as_columns_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = {"input": {"messages": [ASKED], "tools": [{"name": "rux"}]}, "preferred_output": [TOLD]}
    mapping = ":messages=input.messages,response=preferred_output"
    with pytest.raises(UserError, match=r"a\.jsonl:1: column 'input\.tools' cannot be read.*ignore=input\.tools"):
        read(tmp_path, pair, mapping=mapping)
    (found,) = read(tmp_path, pair, mapping=f"{mapping},ignore=input.tools")
    assert (found.prompt, found.response) == ("zob", "mid")
    deep = {"a": {"b": {"goal": "zob", "context": "kad", "id": 7}, "said": "rux"}}
    with caplog.at_level(logging.WARNING):
        read(tmp_path, deep, mapping=":prompt=a.b.goal")
        read(tmp_path, deep, mapping=":prompt=a.b.goal,context=a.b.context,response=a.said")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "'a.b.context', which is not read: map it, as in context=a.b.context" in said


def test_a_tool_call_in_a_message_with_text_is_refused_unless_ignored(tmp_path: Path) -> None:
    row = {"messages": [ASKED, {**TOLD, "tool_calls": [{"function": {"name": "rux"}}]}, ASKED, TOLD]}
    with pytest.raises(UserError, match=r"message 2: its 'tool_calls' cannot be read: leave the row out"):
        read(tmp_path, row)
    assert read(tmp_path, row, mapping=":ignore=tool_calls")[0].history[1] == Turn("assistant", "mid")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_separate_field_is_put_before_the_reply(tmp_path: Path, field: str) -> None:
    (found,) = read(tmp_path, {"messages": [ASKED, {**TOLD, field: "kad"}]})
    assert found.response == "<think>\nkad\n</think>\n\nmid"
    (without,) = read(tmp_path, {"messages": [ASKED, {**TOLD, field: "kad"}]}, mapping=f":ignore={field}")
    assert without.response == "mid"


def test_a_refusal_in_place_of_content_is_the_content(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"messages": [ASKED, {"role": "assistant", "content": None, "refusal": "I will not."}]})
    assert found.response == "I will not."


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"prompt": [ASKED], "completion": [TOLD]}, ""),
        ({"prompt": [ASKED], "completion": [TOLD]}, ":response=completion"),
        ({"prompt": [ASKED], "completion": [TOLD]}, ":messages=prompt,response=completion"),
        ({"prompt": [ASKED], "completion": "mid"}, ""),
        ({"prompt": "zob", "completion": [TOLD]}, ""),
        ({"prompt": "zob", "completion": "mid"}, ""),
        ({"prompt": [ASKED], "chosen": [TOLD], "rejected": [ASKED]}, ":prompt=prompt,response=chosen"),
        ({"prompt": "zob", "chosen": [ASKED, TOLD]}, ":prompt=prompt,response=chosen"),
        ({"chosen": [ASKED, TOLD], "rejected": [ASKED, TOLD]}, ":messages=chosen"),
        ({"messages": [{"role": "prompter", "content": "zob"}, {"role": "bot", "content": "mid"}]}, ""),
    ],
)
def test_prompt_and_completion_may_be_messages(tmp_path: Path, row: dict[str, Any], mapping: str) -> None:
    (found,) = read(tmp_path, row, mapping=mapping, require=("prompt", "response"))
    assert (found.history, found.prompt, found.response) == ((), "zob", "mid")


def test_a_completion_of_several_messages_continues_the_prompt(tmp_path: Path) -> None:
    said = {"prompt": [{"role": "developer", "content": "tex"}, ASKED], "completion": [TOLD, ASKED, TOLD]}
    (found,) = read(tmp_path, said)
    assert found.history == (Turn("system", "tex"), Turn("user", "zob"), Turn("assistant", "mid"))
    assert (found.prompt, found.response) == ("zob", "mid")


def test_the_response_start_is_read_from_labels(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"input_ids": [5, 6, 7], "labels": [-100, -100, 7], "attention_mask": [1, 1, 1]})
    assert found.response_start == 2
    (all_of_it,) = read(tmp_path, {"input_ids": [5, 6], "labels": [-100, 6]}, mapping=":ignore=labels")
    assert all_of_it.response_start == 0


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "loss_mask"])
def test_the_response_start_is_read_from_a_loss_mask(tmp_path: Path, name: str) -> None:
    ids = {"input_ids": [5, 6, 7, 8]}
    masks = ([0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], None)
    assert [row.response_start for row in read(tmp_path, *({**ids, name: mask} for mask in masks))] == [2, 0, 4, 0]
    for mask in ([0, 1, 0, 1], [0, 1], "0011"):
        with pytest.raises(UserError, match=rf"a\.jsonl:1: {name} is not 0 up to .*ignore={name}"):
            read(tmp_path, {**ids, name: mask})
        assert read(tmp_path, {**ids, name: mask}, mapping=f":ignore={name}")[0].response_start == 0


@pytest.mark.parametrize(
    ("name", "packed", "single"),
    [("seq_lengths", [2, 2], [4]), ("position_ids", [0, 1, 0, 1], [0, 1, 2, 3])],
)
def test_several_texts_packed_into_one_row_are_refused(
    tmp_path: Path, name: str, packed: list[int], single: list[int]
) -> None:
    ids = {"input_ids": [5, 6, 7, 8]}
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {name} says that several texts are packed.*ignore={name}"):
        read(tmp_path, {**ids, name: single}, {**ids, name: packed})
    assert len(read(tmp_path, {**ids, name: packed}, mapping=f":ignore={name}")) == 1


def test_columns_with_any_name_are_mapped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"a, b","c=d","e ""f""",g:h\nzob,mid,kad,rux\n')
    for mapping, wanted in (
        ('prompt="a, b",response="c=d"', ("zob", "mid")),
        ('prompt="e ""f""",response=g:h', ("kad", "rux")),
        ('response="a, b",prompt=g:h,ignore="c=d"', ("rux", "zob")),
    ):
        (found,) = read_records(f"{tmp_path}/a.csv:{mapping}")
        assert (found.prompt, found.response) == wanted


@pytest.mark.parametrize("path", ["C:\\data\\x.csv", "C:/x.csv.gz", "x.ndjson"])
def test_a_mapping_after_any_path_is_found(path: str) -> None:
    assert str(DataSpec.parse(f"{path}:prompt=a,rows=7").path) == path
    assert DataSpec.parse(f"{path}:prompt=a,rows=7").rows == 7


def test_an_error_on_alpaca_rows_shows_how_to_map_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"as in file\.csv:prompt=instruction,response=output; there are"):
        read(tmp_path, {**ALPACA, "history": [["a", "b"]]})
