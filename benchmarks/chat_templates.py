"""What published chat templates put around an answer, and what becomes of it: one row of data through each of them.

    python -m benchmarks.chat_templates trl-1.16.0=FOLDER --out docs/results/chat_templates.json

Reads the ``.jinja`` files of folders that the user names; none is kept. The tokenizer is made on the spot: bytes, and
one token for whatever in a template looks like a special token. The row goes in alone, after an earlier turn, and
with a system prompt. ``right`` means: the response's tokens read as the answer and an end, and nothing of a header;
the same text goes on where a following user turn is rendered, or ends in the tokenizer's end of sequence.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from antidote_llm.data.chat_template import ChatTemplate
from antidote_llm.data.records import Record, Turn
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.io.files import write_json, write_text

BOS, EOS = "<bos>", "<eos>"
ANSWER = "kad vol"
RECORD = Record(prompt="zob mid", response=ANSWER)
EARLIER = (Turn("user", "rud"), Turn("assistant", "tex"))
CONVERSATIONS = {
    "alone": (),
    "after an earlier turn": EARLIER,
    "with a system prompt": (Turn("system", "vop run"),),
}
# What stands for one token: in bars, in brackets, or in angle brackets without a space.
_BAR = "|\N{FULLWIDTH VERTICAL LINE}"
SPECIAL = re.compile(
    rf"<[{_BAR}][^<>{_BAR}]{{1,40}}[{_BAR}]>|<[/A-Za-z_][^<>\s'\"]{{0,30}}>|\[/?[A-Z_]{{2,30}}\]|\]?<\]?[^<>\s'\"]{{2,20}}\[?>\[?"
)
# Tokens that published tokenizers keep in what they decode.
THOUGHTS = ("<think>", "</think>")
SHOWN = 40


def main() -> None:
    """Go through every template of every folder, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row for source in arguments.sources for row in measured(*source.split("=", 1))]
    write_json(arguments.out, rows)
    write_text(arguments.out.with_suffix(".md"), report(rows))
    print(*(f"{count} {verdict}" for verdict, count in counted(rows).most_common()), sep="\n")


def measured(source: str, folder: str) -> Iterator[dict[str, str]]:
    """Put a row through every template of a folder."""
    for path in sorted(Path(folder).rglob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for name, history in CONVERSATIONS.items():
            row = {"source": source, "template": path.stem, "conversation": name}
            yield {**row, **judged(tokenizer_with(template), Record(RECORD.prompt, ANSWER, history=history))}


def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer of bytes that knows a template's marks as special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate([BOS, EOS, *alphabet])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, eos_token=EOS)
    marks = sorted(set(SPECIAL.findall(template)))
    made.add_tokens([AddedToken(mark, special=mark not in THOUGHTS) for mark in marks])
    made.chat_template = template
    return made


def judged(tokenizer: PreTrainedTokenizerBase, record: Record) -> dict[str, str]:
    """Render a row and say whether its response is the answer and an end."""
    renderer = Renderer(tokenizer)
    try:
        (row,) = renderer.rows([record])
    except UserError as error:
        return {
            "verdict": "refused",
            "prompt ends": "",
            "before the answer": "",
            "behind the answer": "",
            "why": str(error),
        }
    prompt = text_of(tokenizer, row.input_ids[: row.response_start])
    response = text_of(tokenizer, row.input_ids[row.response_start :])
    before, found, end = response.partition(ANSWER)
    why = wrong(tokenizer, record, end) if found else "the answer is not there"
    return {
        "verdict": "wrong" if why else "right",
        "prompt ends": prompt[-SHOWN:],
        "before the answer": before,
        "behind the answer": end,
        "why": why,
    }


def wrong(tokenizer: PreTrainedTokenizerBase, record: Record, end: str) -> str:
    """Return what is wrong with an end of an answer, judged by how the conversation goes on."""
    if not end.strip():
        return "the answer has no end"
    chat = ChatTemplate(tokenizer, thinking=False)
    turns = [*record.conversation(), Turn("assistant", ANSWER), Turn("user", "nib")]
    try:
        later = chat.render(turns).rpartition(ANSWER)[2].partition("nib")[0]
    except TemplateError:
        later = end
    if later.startswith(end.rstrip()) or end.endswith(EOS):
        return ""
    # An end that only the last answer has.
    return "" if len(SPECIAL.findall(end)) == 1 else "no conversation goes on like that"


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return tokens as the text that they were made from."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def counted(rows: list[dict[str, str]]) -> Counter[str]:
    """Count verdicts."""
    return Counter(row["verdict"] for row in rows)


def report(rows: list[dict[str, str]]) -> str:
    """Return the table as a page."""
    by_template: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        by_template.setdefault((row["source"], row["template"]), []).append(row)
    lines = [
        "| source | template | prompt ends | before the answer | behind it | alone | after a turn | with a system |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (source, template), found in by_template.items():
        first = next((row for row in found if row["verdict"] != "refused"), found[0])
        verdicts = [
            f"refused: {reason(row['why'])}" if row["verdict"] == "refused" else row["verdict"] for row in found
        ]
        ends = [code(first["prompt ends"][-24:]), code(first["before the answer"]), code(first["behind the answer"])]
        lines.append("| " + " | ".join([source, template, *ends, *verdicts]) + " |")
    return "\n".join(lines) + "\n"


def reason(why: str) -> str:
    """Return the cause out of an error's line."""
    return why.partition("chat template ")[2].partition(": use")[0].partition(": put")[0].partition(": leave")[0]


def code(text: str) -> str:
    """Return a text as code in a cell of a table."""
    shown = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return f"`{shown}`".replace("|", "\\|") if text else ""


if __name__ == "__main__":
    main()
