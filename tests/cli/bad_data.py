"""Data that cannot be used: what a user does, and the words that the one line must hold."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.cli.command import Place

Case = tuple[str, Callable[[Place], list[object]], tuple[str, ...]]
ASKED, TOLD = {"role": "user", "content": "zob"}, {"role": "assistant", "content": "mid"}
GOOD = '{"prompt": "zob", "response": "mid"}\n'
MESSAGES = json.dumps({"messages": [ASKED, TOLD]}) + "\n"
CALL = {"type": "function", "function": {"name": "rux", "arguments": "{}"}}
# A column that cannot be read, and what stands in it.
REFUSED: tuple[tuple[str, object, str], ...] = (
    ("tools", [CALL], "tools.jsonl:2"),
    ("functions", json.dumps([CALL]), "functions.jsonl:2"),
    ("function_call", {"name": "rux"}, "function_call.jsonl:2"),
    ("images", ["zob.png"], "images.jsonl:2"),
    ("audio", "zob.wav", "audio.jsonl:2"),
    ("videos", ["zob.mp4"], "videos.jsonl:2"),
    ("documents", [{"title": "zob"}], "documents.jsonl:2"),
    ("chat_template_kwargs", {"tone": "rux"}, "chat_template_kwargs.jsonl:2"),
    ("ImageFileName", "zob.png", "ImageFileName.jsonl:2"),
)
REFUSED_IN_MESSAGES: tuple[tuple[str, object], ...] = (
    ("tool_calls", [CALL]),
    ("function_call", {"name": "rux"}),
    ("images", ["zob.png"]),
    ("audio", {"id": "zob"}),
    ("refusal", "kad"),
    ("weight", 0),
    ("train", False),
    ("loss", 0.0),
)


def repair_from(place: Place, data: object, *more: object) -> list[object]:
    """Return the arguments of a repair with other harmful rows."""
    return [data if argument is place.harmful else argument for argument in place.repair(*more)]


def harmful(name: str, text: str | bytes, *words: str, mapping: str = "", more: tuple[object, ...] = ()) -> Case:
    """Return the case of a repair with a harmful file of this content."""

    def make(place: Place) -> list[object]:
        path = place.write(name.rsplit("/", 1)[-1], text)
        return repair_from(place, f"{path}{mapping}", *more)

    return name, make, words


def not_utf8(place: Place) -> list[object]:
    path = place.root / "h\udcff.jsonl"
    place.harmful.rename(path)
    return repair_from(place, path)


def parquet(columns: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


def shared_prompts(place: Place) -> list[object]:
    first = json.loads(place.harmful.read_text().splitlines()[3])["prompt"]
    asked = place.write("asked.jsonl", GOOD + json.dumps({"prompt": f"  {first}\n"}) + "\n")
    return place.repair("--evaluate", asked)


def shared_tokens(place: Place) -> list[object]:
    rows = place.write("rows.jsonl", '{"input_ids": [5, 6, 7, 8], "response_start": 2}\n{"input_ids": [9, 9]}\n')
    asked = place.write("asked.jsonl", '{"input_ids": [5, 6]}\n')
    return repair_from(place, rows, "--evaluate", asked)


def shared_by_several(place: Place) -> list[object]:
    rows = place.harmful.read_text().splitlines()
    messages = [{"role": "user", "content": json.loads(rows[5])["prompt"]}]
    asked = place.write("asked.jsonl", f"{rows[3]}\n{GOOD}{json.dumps({'messages': messages})}\n")
    return place.repair("--evaluate", asked)


def shared_with_the_second_file(place: Place) -> list[object]:
    asked = place.write("asked.jsonl", GOOD)
    return place.repair("--harmful", place.write("second.jsonl", GOOD), "--evaluate", asked)


def messages(name: str, *turns: object, words: tuple[str, ...], more: tuple[object, ...] = ()) -> Case:
    """Return the case of a conversation after a good row."""
    return harmful(f"{name}.jsonl", GOOD + json.dumps({"messages": turns}) + "\n", f"{name}.jsonl:2", *words, more=more)


def shared_with(option: str, name: str = "") -> Callable[[Place], list[object]]:
    """Return the case of a row that is asked in another suite than the harmful one."""

    def make(place: Place) -> list[object]:
        asked = place.write("asked.jsonl", GOOD + place.harmful.read_text().splitlines()[3] + "\n")
        return place.repair(option, f"{name}{asked}")

    return make


def shared_with_what_is_left(place: Place) -> list[object]:
    plain = ["repair", place.base, "--adapter", place.adapter, "--harmful", place.harmful]
    return [*plain, "--harmless", place.harmful, "--out", place.out]


def one_prompt(place: Place) -> list[object]:
    rows = place.write("rows.jsonl", GOOD * 4)
    plain = ["repair", place.base, "--adapter", place.adapter, "--harmful", rows]
    return [*plain, "--out", place.out]


def empty_task_answer(place: Place) -> list[object]:
    task = place.write("task.csv", "prompt,response\nzob,mid\nzob,\n")
    return place.repair("--task", f"t={task}")


CASES: list[Case] = [
    ("missing_file", lambda place: repair_from(place, "nowhere.jsonl"), ("nowhere.jsonl", "no such data file")),
    ("folder_as_file", lambda place: repair_from(place, place.base), ("base", "a model's folder", "name a data file")),
    ("hub_id", lambda place: repair_from(place, "org/nowhere#train"), ("org/nowhere", "Hub did not give", "network")),
    ("no_preset", lambda place: repair_from(place, "advbnch"), ("advbnch: no such file", "did you mean advbench")),
    (
        "file_of_a_preset",
        lambda place: repair_from(place, "advbench@nowhere.csv"),
        ("nowhere.csv", "no such data file"),
    ),
    (
        "columns_of_a_preset",
        lambda place: repair_from(place, f"advbench@{place.harmful}"),
        ("harmful.jsonl:1", "no column 'target'", "prompt, response"),
    ),
    harmful("empty.jsonl", "", "empty.jsonl", "no rows"),
    harmful("blank_lines.jsonl", "\n\n  \n", "no rows"),
    harmful("empty.json", "", "empty.json", "not JSON"),
    harmful("empty_list.json", "[]", "no rows"),
    harmful("empty.csv", "", "no rows"),
    harmful("header_only.csv", "prompt,response\n", "no rows"),
    harmful("empty.tsv", "", "no rows"),
    harmful("empty.parquet", b"", "empty.parquet", "parquet"),
    harmful("no_rows.parquet", parquet({"prompt": [], "response": []}), "no rows"),
    harmful("broken.jsonl", GOOD + GOOD + '{"prompt": "zob",\n', "broken.jsonl:3", "not JSON"),
    harmful("two_objects_a_line.jsonl", GOOD + GOOD.strip() + " " + GOOD, "two_objects_a_line.jsonl:2", "not JSON"),
    harmful("pretty_json.jsonl", GOOD + '{\n  "prompt": "zob"\n}\n', "pretty_json.jsonl:2", "not JSON"),
    harmful("cut_off.jsonl", '{\n  "prompt": "zob",\n', "cut_off.jsonl:3", "not JSON"),
    harmful("long_number.jsonl", GOOD + f'{{"input_ids": [{"9" * 5000}]}}\n', "long_number.jsonl:2", "too long"),
    harmful("deep_brackets.jsonl", GOOD + "[" * 100_000, "deep_brackets.jsonl:2", "too deep", "correct"),
    harmful(
        "deep_row.jsonl",
        GOOD + '{"prompt": "zob", "context": ' + "[" * 600 + "]" * 600 + "}",
        "deep_row.jsonl:2",
        "too deep",
    ),
    harmful("list_row.jsonl", GOOD + '["zob", "mid"]\n', "list_row.jsonl:2", "expected an object"),
    harmful("broken.json", '[\n{"prompt": "zob"},\n{"prompt" "mid"}]', "broken.json:3", "not JSON"),
    harmful("two_lists.json", '{"train": [], "test": []}', "two_lists.json", "the lists train, test", "put the one"),
    harmful("by_column.json", '{"prompt": {"0": "zob"}, "response": {"0": "mid"}}', "pandas", "orient='records'"),
    harmful("lists_by_column.json", '{"prompt": ["zob"], "response": ["mid"]}', "a list a column", "one object a line"),
    harmful("a_number.json", "7", "a_number.json", "expected a list of objects, found int"),
    harmful(
        "field_twice.jsonl", GOOD + '{"prompt": "zob", "prompt": "mid"}', "field_twice.jsonl:2", "'prompt'", "rename"
    ),
    harmful(
        "many_fields.jsonl",
        "{" + "".join(f'"{number}": 1, ' for number in range(100_000)) + '"zob": 1, "zob": 2}\n',
        "many_fields.jsonl:1",
        "'zob'",
        "rename",
    ),
    harmful("numbers.json", "[1, 2]", "row 0", "expected an object"),
    harmful("short_row.csv", "prompt,response\nzob,mid\nzob\n", "short_row.csv:3", "columns"),
    harmful("long_row.csv", "prompt,response\nzob,mid\nzob,mid,kad\n", "long_row.csv:3", "columns"),
    harmful("open_quote.csv", 'prompt,response\nzob,mid\n"zob,mid\n', "open_quote.csv:3", "quotes"),
    harmful("second_cell_over_two_lines.csv", 'prompt,response\n"zob\nmid",kad\nzob\n', "lines.csv:4", "columns"),
    harmful("columns_twice.csv", "prompt,prompt\nzob,mid\n", "columns_twice.csv:1", "'prompt'", "rename"),
    harmful(
        "many_columns.csv", ",".join(map(str, range(300_000))) + ",zob,zob\n", "many_columns.csv:1", "'zob'", "rename"
    ),
    harmful("short_row.tsv", "prompt\tresponse\nzob\tmid\nzob\n", "short_row.tsv:3", "columns"),
    harmful("not_a.parquet", "prompt,response\nzob,mid\n", "not_a.parquet", "parquet"),
    harmful("latin_1.jsonl", '{"prompt": "caf\xe9", "response": "mid"}\n'.encode("latin-1"), "latin_1", "UTF-8"),
    harmful("excel.csv", "prompt,response\nzob,mid\n".encode("utf-16"), "excel.csv", "UTF-8"),
    harmful("half_a_pair.jsonl", GOOD + '{"prompt": "\\ud83d", "response": "mid"}\n', "half_a_pair.jsonl:2", "prompt"),
    harmful("workbook.xlsx", b"PK", "workbook.xlsx", "unknown kind", ".csv"),
    harmful("cut_off.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-9], "cut_off.jsonl.gz", "damaged or cut off"),
    harmful("flipped.json.gz", b"\x1f\x8b\x08" + b"zob" * 99, "flipped.json.gz", "gzip, but damaged", "fetch it again"),
    harmful("not_packed.csv.gz", "prompt,response\nzob,mid\n", "not_packed.csv.gz", "not packed with gzip", "rename"),
    harmful("bomb.jsonl.gz", gzip.compress(bytes(1 << 27)), "bomb.jsonl.gz:1", "more than 67,108,864 characters"),
    harmful("line_ends.jsonl.gz", gzip.compress(b"\n" * (1 << 25)), "gz:1000001", "1,000,000 empty lines", "remove"),
    harmful("bomb.json.gz", gzip.compress(b" " * (1 << 27)), "bomb.json.gz", "the same rows over and over"),
    harmful("packed.jsonl.zst", b"(", "packed.jsonl.zst", "unpack it first", "unzstd"),
    harmful("packed.csv.bz2", b"BZ", "packed.csv.bz2", "unpack it first", "bunzip2"),
    harmful("packed.parquet.gz", b"\x1f\x8b", "packed.parquet.gz", "unknown kind of data file"),
    harmful("pointer.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    harmful("pointer.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    harmful("not_an.arrow", "prompt,response\n", "not_an.arrow", "not a readable Arrow file"),
    harmful(
        "late.parquet", parquet({"prompt": ["zob"], "day": pa.array([2**62], pa.timestamp("us"))}), "'day'", "out of"
    ),
    harmful("zone.parquet", parquet({"prompt": ["zob"], "t": pa.array([1], pa.timestamp("us", "No/Zone"))}), "'t'"),
    harmful("rows_of_nothing.parquet", parquet({"prompt": pa.nulls(20_000)}), "20,000 rows in", "over and over"),
    harmful("many.parquet", parquet({"prompt": ["zob"] * 1_000_001}), "1,000,001 rows", "many.parquet:rows=1000000"),
    harmful("no_rows_asked.csv", "prompt\nzob\n", "rows '0' is no whole number", mapping=":rows=0"),
    harmful("rows_of_a_word.csv", "prompt\nzob\n", "rows 'all' is no whole number", mapping=":rows=all"),
    ("name_of_no_text", not_utf8, ("h\\udcff.jsonl", "not UTF-8", "rename the file")),
    ("a_long_name", lambda place: repair_from(place, "z" * 300 + ".jsonl"), ("name too long", "check the name")),
    harmful("no_prompt.jsonl", '{"goal": "zob", "target": "mid"}\n', "no_prompt.jsonl:1", "prompt", "goal, target"),
    harmful("no_column.csv", "a,b\nzob,mid\n", "no_column.csv:2", "'goal'", "a, b", mapping=":prompt=goal,response=b"),
    harmful("no_column.parquet", parquet({"a": ["zob"]}), "row 0", "'goal'", mapping=":prompt=goal"),
    harmful("unknown_field.csv", "a,b\nzob,mid\n", "unknown field 'question'", "prompt", mapping=":question=a"),
    harmful("broken_mapping.csv", "a,b\nzob,mid\n", "broken_mapping.csv:prompt=:", "no mapping", mapping=":prompt="),
    harmful("half_a_mapping.csv", "a,b\nzob,mid\n", "half_a_mapping.csv:a", "no mapping", mapping=":a"),
    harmful("field_twice.csv", "a,b\nzob,mid\n", "'prompt'", "twice", mapping=":prompt=a,prompt=b"),
    harmful("two_kinds.csv", "a,b\nzob,mid\n", "one of prompt, text", mapping=":prompt=a,text=b"),
    harmful("number.jsonl", GOOD + '{"prompt": 7, "response": "mid"}\n', "number.jsonl:2", "must be text, not int"),
    harmful("turns.jsonl", '{"prompt": [{"role": "user"}], "response": "mid"}\n', "turns.jsonl:1", "must be text"),
    harmful("no_turns.jsonl", '{"prompt": [], "response": "mid"}\n', "no_turns.jsonl:1", "'prompt'", "an empty list"),
    harmful("comma.csv", '"a, b",c\nzob,mid\n', "no mapping", "double quotes", mapping=":prompt=a, b,response=c"),
    harmful("equals.csv", "a=b,c\nzob,mid\n", "no mapping", "double quotes", mapping=":prompt=a=b"),
    harmful(
        "nested.jsonl",
        '{"data": {"goal": "zob"}}\n',
        "nested.jsonl:1",
        "no column 'data.ask'",
        mapping=":prompt=data.ask",
    ),
    harmful("mapped_and_ignored.csv", "a,b\nzob,mid\n", "'a' is mapped and ignored", mapping=":prompt=a,ignore=a"),
    harmful("nothing_to_ignore.csv", "prompt\nzob\n", "no row has the column 'tool'", mapping=":ignore=tool"),
    harmful("context_of_messages.jsonl", MESSAGES, "whole conversation", mapping=":messages=messages,context=a"),
    harmful("context_of_text.jsonl", '{"text": "zob"}\n', "takes no context", mapping=":text=text,context=a"),
    *(
        harmful(
            f"{name}.jsonl",
            GOOD + json.dumps({"prompt": "zob", "response": "mid", name: cell}) + "\n",
            where,
            f"ignore={name}",
        )
        for name, cell, where in REFUSED
    ),
    *(
        messages(f"{name}_said", ASKED, {**TOLD, name: cell}, words=("message 2", f"ignore={name}"))
        for name, cell in REFUSED_IN_MESSAGES
    ),
    messages("a_tools_words", ASKED, {"role": "tool", "content": "7"}, words=("role 'tool'", "what tools say")),
    harmful("padded.jsonl", '{"input_ids": [5, 6], "attention_mask": [1, 0]}\n', "padded.jsonl:1", "without padding"),
    harmful("labels.jsonl", '{"input_ids": [5, 6], "labels": [5, -100]}\n', "labels.jsonl:1", "response_start"),
    harmful(
        "pairs.jsonl",
        '{"instruction": "zob", "output": "mid", "history": [["kad"]]}\n',
        "pairs of a prompt and its answer",
        mapping=":prompt=instruction",
    ),
    harmful("number.parquet", parquet({"prompt": ["zob"], "response": [1.5]}), "row 0", "must be text, not float"),
    harmful("null.parquet", parquet({"prompt": ["zob", None], "response": ["mid", "mid"]}), "row 1", "prompt"),
    harmful("null.jsonl", '{"prompt": null, "response": "mid"}\n', "null.jsonl:1", "'prompt' is null", "leave the row"),
    harmful("empty_cell.csv", "prompt,response\nzob,mid\n,mid\n", "empty_cell.csv:3", "'prompt'", "empty"),
    harmful("outside.jsonl", '{"input_ids": [1]}\n{"input_ids": [5, 35]}\n', "outside.jsonl:2", "35", "vocabulary"),
    harmful("negative_id.jsonl", '{"input_ids": [-1]}\n', "negative_id.jsonl:1", "token ids"),
    harmful("no_ids.jsonl", '{"input_ids": []}\n', "no_ids.jsonl:1", "token ids"),
    harmful("ids_as_text.csv", 'input_ids\n"[1, 2]"\n', "ids_as_text.csv:2", "token ids"),
    harmful("ids_of_floats.jsonl", '{"input_ids": [1.0]}\n', "ids_of_floats.jsonl:1", "token ids"),
    harmful("late_start.jsonl", '{"input_ids": [1], "response_start": 2}\n', "late_start.jsonl:1", "response_start"),
    harmful("start_of_truth.jsonl", '{"input_ids": [1], "response_start": true}\n', "truth.jsonl:1", "response_start"),
    harmful("too_long.jsonl", json.dumps({"input_ids": [7] * 129}), "too_long.jsonl:1", "129", "128", "shorten"),
    harmful(
        "no_room_to_answer.jsonl", GOOD + json.dumps({"prompt": "zob " * 126}), "answer.jsonl:2", "129", "leave it"
    ),
    harmful(
        "no_response_tokens.jsonl",
        '{"input_ids": [5, 6], "response_start": 2}\n',
        "response token",
        "--tokens all",
        more=("--tokens", "response"),
    ),
    ("shared_prompts", shared_prompts, ("1 evaluation prompts", "asked.jsonl:2", "remove")),
    ("shared_tokens", shared_tokens, ("1 evaluation prompts", "asked.jsonl:1", "remove")),
    (
        "shared_by_several",
        shared_by_several,
        ("2 evaluation prompts", "asked.jsonl:1", "harmful.jsonl:4", "asked.jsonl:3", "harmful.jsonl:6", "remove"),
    ),
    ("shared_with_the_second_file", shared_with_the_second_file, ("asked.jsonl:1", "second.jsonl:1", "remove")),
    ("shared_with_harmless", shared_with("--harmless"), ("asked.jsonl:2 =", "harmful.jsonl:4", "remove")),
    ("shared_with_a_task", shared_with("--task", "t="), ("asked.jsonl:2 =", "harmful.jsonl:4", "remove")),
    ("shared_with_what_is_left", shared_with_what_is_left, ("10 evaluation prompts", "harmful.jsonl:", "remove")),
    messages("no_messages", words=("messages", "empty list")),
    messages("no_role", {"content": "zob"}, words=("message 1", "no role")),
    messages("no_content", ASKED, {"role": "assistant"}, words=("message 2", "content")),
    messages("another_role", {"role": "wizard", "content": "zob"}, words=("message 1", "wizard", "leave the row out")),
    messages(
        "a_list_for_a_role", {"role": ["user"], "content": "zob"}, words=("message 1", "['user']", "leave the row")
    ),
    messages("no_last_prompt", ASKED, {"role": "system", "content": "mid"}, words=("user's message", "correct")),
    messages("a_text_for_a_turn", "zob", words=("message 1", "role and content")),
    messages(
        "a_picture",
        {"role": "user", "content": [{"type": "image_url", "image_url": "zob.png"}]},
        words=("message 1", "image_url", "only parts of type text"),
    ),
    messages(
        "earlier_turns", ASKED, TOLD, ASKED, TOLD, words=("alpaca", "--template chat"), more=("--template", "alpaca")
    ),
    harmful("text_for_messages.jsonl", '{"messages": "zob"}\n', "text_for_messages.jsonl:1", "list of messages"),
    harmful(
        "two_systems.jsonl",
        json.dumps({"system": "mid", "messages": [{"role": "system", "content": "zob"}, ASKED]}) + "\n",
        "two_systems.jsonl:1",
        "system prompt already",
    ),
    harmful("weight_of_zero.csv", "prompt\nzob\n", "weight", mapping=":weight=0"),
    harmful("weight_of_a_word.csv", "prompt\nzob\n", "weight", mapping=":weight=much"),
    harmful("weight_below_zero.csv", "prompt\nzob\n", "weight", mapping=":weight=-1"),
    ("one_prompt", one_prompt, ("too few", "--evaluate")),
    ("empty_task_answer", empty_task_answer, ("task.csv:3", "'response'", "empty")),
]
