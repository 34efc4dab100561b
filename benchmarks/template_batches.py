"""What a rendering of a chat template costs row by row, and in the batches that rows of data are sent in.

    python -m benchmarks.template_batches --out docs/results/template_batches.json

Each rendering runs in a second process with its limits; a batch makes one exchange for 128 rows. The two ways take
turns on the same rows and must give the same texts and the same token ids. ``texts`` renders prompts and whole
conversations alone; ``rows`` tokenizes them too. The template is in the style of Qwen3, the tokenizer is made of bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from antidote_llm.data.chat_rendering import TemplateRenderer
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, rendered_sha256
from antidote_llm.io.files import sha256_json, write_json
from benchmarks.chat_templates import tokenizer_with
from benchmarks.interleaved import Work, load_average, medians, ratio, timed

BATCH = 128
TEMPLATE = (
    "{%- for m in messages -%}{%- set content = m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' "
    "else m.content -%}{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}{%- endif -%}"
)


def main() -> None:
    """Time both ways in turns, compare their results, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    records = [
        Record(f"Invert {index} twice: {'zob mid rud tex ' * 8}", f"{'kad vol nib ' * 20}{index}")
        for index in range(arguments.rows)
    ]
    variables = [each for record in records for each in renderings(record)]
    tokenizer = tokenizer_with(TEMPLATE)
    found: dict[str, Any] = {}

    def keep(name: str, value: str) -> None:
        found[name] = value

    works = {
        "texts, one by one": lambda: keep("texts, one by one", sha256_json(one_by_one(variables))),
        "texts, in batches": lambda: keep("texts, in batches", sha256_json(in_batches(variables))),
        "rows, one by one": lambda: keep("rows, one by one", row_by_row(Renderer(tokenizer), records)),
        "rows, in batches": lambda: keep("rows, in batches", rendered_sha256(Renderer(tokenizer).rows(records))),
    }
    seconds = timed({name: Work(run) for name, run in works.items()}, arguments.repeats, "chat template")
    for what in ("texts", "rows"):
        if found[f"{what}, one by one"] != found[f"{what}, in batches"]:
            raise SystemExit(f"{what}: the two ways give different results")
    result = {
        "rows": arguments.rows,
        "renderings": len(variables),
        "seconds": medians(seconds),
        "milliseconds_a_rendering": {
            name: 1000 * figures["median"] / len(variables)
            for name, figures in medians(seconds).items()
            if name.startswith("texts")
        },
        "times_faster": {
            what: ratio(seconds, f"{what}, one by one", f"{what}, in batches") for what in ("texts", "rows")
        },
        "sha256": found,
        "load_average": load_average(),
    }
    write_json(arguments.out, result)
    print(result["milliseconds_a_rendering"], result["times_faster"])


def renderings(record: Record) -> list[dict[str, Any]]:
    """Return the variables of the two renderings that a row takes: its prompt, and the whole of it."""
    asked = [{"role": "user", "content": record.prompt}]
    whole = [*asked, {"role": "assistant", "content": record.response}]
    return [
        {"messages": asked, "add_generation_prompt": True, "enable_thinking": False},
        {"messages": whole, "add_generation_prompt": False, "enable_thinking": False},
    ]


def one_by_one(variables: list[dict[str, Any]]) -> list[str]:
    """Render with one exchange for each rendering."""
    renderer = TemplateRenderer(TEMPLATE)
    return [renderer.render(each) for each in variables]


def in_batches(variables: list[dict[str, Any]]) -> list[str]:
    """Render with one exchange for each batch."""
    renderer = TemplateRenderer(TEMPLATE)
    starts = range(0, len(variables), BATCH)
    return [str(text) for start in starts for text in renderer.render_many(variables[start : start + BATCH])]


def row_by_row(renderer: Renderer, records: list[Record]) -> str:
    """Render and tokenize rows with exchanges for each row."""
    return rendered_sha256([row for record in records for row in renderer.rows([record])])


if __name__ == "__main__":
    main()
