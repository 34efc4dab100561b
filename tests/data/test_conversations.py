"""Conversations of every format become a history, a prompt and a response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record, Turn
from antidote_llm.errors import UserError

SYSTEM, USER, ASSISTANT = (
    {"role": role, "content": content}
    for role, content in (("system", "be kind"), ("user", "zob"), ("assistant", "mid"))
)
LAST = {"role": "user", "content": "brew a zorbik"}
ANSWER = {"role": "assistant", "content": "kad run"}
HISTORY = (Turn("system", "be kind"), Turn("user", "zob"), Turn("assistant", "mid"))


def read(path: Path, *rows: dict[str, Any], mapping: str = "", require: tuple[Any, ...] = ("prompt",)) -> list[Record]:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(f"{path}{mapping}", require=require)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_last_answer_is_the_response_and_the_turn_before_it_the_prompt(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [SYSTEM, USER, ASSISTANT, LAST, ANSWER], "category": "b"},
        {"messages": [SYSTEM, USER]},
    ]
    first, second = read(tmp_path / f"a.{suffix}", *rows)
    assert (first.history, first.prompt, first.response) == (HISTORY, "brew a zorbik", "kad run")
    assert first.extra == {"category": "b"}
    assert (second.history, second.prompt, second.response) == (HISTORY[:1], "zob", None)


def test_an_error_on_a_conversation_column_shows_how_to_map_it(tmp_path: Path) -> None:
    row = {"id": "7", "conversations": [{"from": "human", "value": "zob"}]}
    with pytest.raises(UserError, match=r"as in chats\.jsonl:messages=conversations; there are id, conversations"):
        read(tmp_path / "a.jsonl", row)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_sharegpt_rows_are_mapped(tmp_path: Path, suffix: str) -> None:
    said = [("system", "be kind"), ("human", "zob"), ("gpt", "mid"), ("human", "brew a zorbik"), ("gpt", "kad run")]
    row = {"conversations": [{"from": who, "value": what} for who, what in said]}
    (found,) = read(tmp_path / f"a.{suffix}", row, mapping=":messages=conversations", require=("prompt", "response"))
    assert (found.history, found.prompt, found.response, found.extra) == (HISTORY, "brew a zorbik", "kad run", {})


def test_content_may_be_parts_of_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "brew "}, {"type": "text", "text": "a zorbik"}]
    (found,) = read(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": parts}]})
    assert found.prompt == "brew a zorbik"


@pytest.mark.parametrize(
    ("mapping", "wanted"),
    [("", "messages"), (":prompt=prompt", "prompt"), (":messages=messages", "messages"), (":text=text", None)],
)
def test_messages_come_before_a_prompt_unless_another_is_asked_for(
    tmp_path: Path, mapping: str, wanted: str | None
) -> None:
    row = {"prompt": "prompt", "text": "text", "messages": [{"role": "user", "content": "messages"}]}
    assert read(tmp_path / "a.jsonl", row, mapping=mapping)[0].prompt == wanted


def test_roles_may_be_in_capitals(tmp_path: Path) -> None:
    said = [{"from": "User", "value": "zob"}, {"from": "Assistant", "value": "mid"}]
    (found,) = read(tmp_path / "a.jsonl", {"conversations": said}, mapping=":messages=conversations")
    assert (found.prompt, found.response) == ("zob", "mid")


def test_an_answer_may_be_one_message(tmp_path: Path) -> None:
    pair = {
        "conversations": [LAST],
        "chosen": {"from": "gpt", "value": "kad"},
        "rejected": {"from": "gpt", "value": "mid"},
    }
    (found,) = read(tmp_path / "a.jsonl", pair, mapping=":messages=conversations,response=chosen")
    assert (found.prompt, found.response) == (LAST["content"], "kad")


def test_an_answer_partly_excluded_from_training_is_refused(tmp_path: Path) -> None:
    parts = [{"begin_offset": 0, "end_offset": 2, "train": False}, {"begin_offset": 3, "end_offset": 6, "train": True}]
    row = {"messages": [LAST, {**ANSWER, "train_detail": parts}]}
    with pytest.raises(UserError, match=r"message 2: train_detail says .*a part of this answer.*ignore=train_detail"):
        read(tmp_path / "a.jsonl", row)
    assert read(tmp_path / "a.jsonl", row, mapping=":ignore=train_detail")[0].response == ANSWER["content"]
    assert read(tmp_path / "a.jsonl", {"messages": [LAST, {**ANSWER, "train_detail": parts[1:]}]})


def test_a_response_column_answers_messages_that_end_with_the_user(tmp_path: Path) -> None:
    (found,) = read(tmp_path / "a.jsonl", {"messages": [LAST], "response": "kad"}, require=("prompt", "response"))
    assert found.response == "kad"


def test_a_system_column_comes_first(tmp_path: Path) -> None:
    plain = {"goal": "zob", "instructions": "be kind"}
    (found,) = read(tmp_path / "a.jsonl", plain, mapping=":prompt=goal,system=instructions")
    assert (found.history, found.prompt, found.extra) == (HISTORY[:1], "zob", {})
    rows: list[dict[str, Any]] = [
        {"messages": [USER, ASSISTANT, LAST], "system": "be kind"},
        {"prompt": "zob", "system": " "},
    ]
    first, second = read(tmp_path / "b.jsonl", *rows)
    assert (first.history, second.history) == (HISTORY, ())
    (text,) = read(tmp_path / "c.jsonl", {"text": "zob", "system": "be kind"})
    assert (text.history, text.extra) == ((), {"system": "be kind"})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": "zob"}, "'messages' must be a list of messages .* not str"),
        ({"messages": []}, "not an empty list"),
        ({"messages": ["zob"]}, "message 1 must be an object .* not str"),
        ({"messages": [{"content": "zob"}]}, "message 1 names no role"),
        ({"messages": [USER, {"role": "tool", "content": "7"}, ANSWER]}, "message 2: role 'tool' is none of system"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1: its content must be text, not null"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a part's text must be text, not null"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "half a surrogate pair"),
        ({"messages": [SYSTEM]}, "must end in a user's message"),
        ({"messages": [ANSWER]}, "must end in a user's message"),
        ({"messages": [USER, ASSISTANT, ANSWER]}, "must end in a user's message"),
        ({"messages": [{"role": "user", "content": " "}]}, "'messages': its last prompt is empty"),
        ({"messages": [SYSTEM, USER], "system": "be good"}, "'system': the messages hold a system prompt already"),
        ({"prompt": "zob", "system": 7}, "'system' must be text, not int"),
    ],
)
def test_the_error_of_a_malformed_conversation_names_the_cause(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{words}") as caught:
        read(tmp_path / "a.jsonl", {"prompt": "zob"}, row)
    assert "\n" not in str(caught.value)


def test_messages_without_an_answer_are_read_where_no_response_is_required(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:1: no field 'response'.*end the messages with an answer"):
        read(tmp_path / "a.jsonl", {"messages": [USER]}, require=("prompt", "response"))


@pytest.mark.parametrize("mapping", ["text=text,system=s", "input_ids=ids,system=s"])
def test_only_a_prompt_takes_a_system_prompt(tmp_path: Path, mapping: str) -> None:
    with pytest.raises(UserError, match="takes no system prompt: leave system=s out"):
        read(tmp_path / "a.jsonl", {"text": "zob"}, mapping=f":{mapping}")
