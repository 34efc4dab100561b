"""Reports of big models: the page stays small; many items are combined, folded or counted."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.repairs.record import RepairRecord
from antidote_llm.report.compose import compose
from antidote_llm.report.data import OutsideChange, ReportData
from antidote_llm.report.formatting import clip_name
from antidote_llm.report.page import render

from . import big, samples

MAX_BYTES = 3_000_000
ANSWER = ("Take the zorbik & stir it <b>well</b>. " * 60)[:2000]
UNICODE = ("грибы 薬草 المزيج 🌿 & <b> \u202e" * 200)[:2000]
# One character that is written in nine bytes, and one in five.
WORST = ("\U000e0041&" * 5000)[:9000]


def report(record: RepairRecord, evaluations: Mapping[str, Evaluation] | None = None) -> ReportData:
    return compose(record, evaluations or {}, revert_command="antidote patch revert runs/repaired --out restored")


def evaluations(answer: str, categories: int = 14) -> dict[str, Evaluation]:
    return {
        "before": big.evaluation("harmful", answer, categories=categories),
        "after": big.evaluation("refusal", answer, categories=categories),
    }


CASES = {
    "126 layers": lambda: report(big.record(big.modules(126), "weight", shards=191)),
    "126 layers, delta": lambda: report(big.record(big.modules(126), shards=191, outside=big.outside())),
    "80 layers, LoRA": lambda: report(big.record(big.modules(80), "adapter")),
    "128 experts": lambda: report(big.record(big.experts(), shards=60)),
    "long names": lambda: report(big.record(big.modules(160, big.LONG), reference="слой/" * 60)),
    "unrelated names": lambda: report(big.record(big.modules(300, tuple(f"mlp.zorb{i}x" for i in range(60))))),
    "5000 answers": lambda: report(big.record(big.modules(32)), evaluations(ANSWER)),
    "5000 answers, not Latin": lambda: report(big.record(big.modules(32)), evaluations(UNICODE)),
    "5000 categories": lambda: report(big.record(big.modules(32)), evaluations(ANSWER, categories=5000)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_page_stays_small(name: str) -> None:
    data = CASES[name]()
    for show_answers in (False, True):
        assert len(render(data, show_answers=show_answers).encode()) < 700_000


def test_the_page_stays_small_where_everything_is_at_its_worst() -> None:
    kinds = tuple(f"mlp.{name}{WORST[:200]}" for name in map(chr, range(0x4E00, 0x4E00 + 60)))
    sites = [samples.sites(layers, kinds) for layers in (50, 400)]
    example = samples.examples()[0].model_copy(
        update={"prompt": WORST, "answer_before": WORST, "answer_after": WORST, "category": WORST, "suite": WORST}
    )
    effects = tuple(samples.categories()[0].model_copy(update={"category": WORST}) for _ in range(500))
    beyond = tuple(
        OutsideChange(name=f"{index}{WORST}", tensors=1, entries=1, norm_before=1, norm_after=1) for index in range(500)
    )
    for found in sites:
        data = samples.demo().model_copy(
            update={"sites": found, "examples": (example,) * 500, "categories": effects, "outside": beyond}
        )
        assert len(render(data, show_answers=True).encode()) < MAX_BYTES


def test_no_more_than_a_few_categories_are_listed_the_worst_first() -> None:
    html = render(CASES["5000 categories"]())
    assert html.count('role="rowheader"') == 40
    assert "The first 40 of 5,000." in html


def test_experts_of_a_layer_share_a_cell_and_are_counted() -> None:
    html = render(CASES["128 experts"]())
    assert html.count('<rect class="s') - 2 * 9 == 2 * 48 * 7, "a map of seven rows, and its legend"
    counts = re.findall(r'<span class="times">\W([\d,]+)</span>', html)
    assert counts == ["128"] * 2 * 3
    assert "18,624 matrices" in html


def test_kinds_beyond_the_limit_share_the_last_row() -> None:
    html = render(CASES["unrelated names"]())
    assert html.count('class="strip') == 2 * 40
    assert "other kinds" in html and "up to 2 neighbouring layers" in html
    assert html.count("18,000 matrices") == 1, "none is left out of the sum"


def test_long_names_differ_after_they_are_cut() -> None:
    html = render(CASES["long names"]())
    rows = set(re.findall(r'<th scope="row">([^<]*(?:<wbr>[^<]*)*)</th><td class="figure"><svg class="strip', html))
    assert len(rows) == 7 and all("…" in row for row in rows)


def test_the_hashes_of_many_files_are_folded() -> None:
    html = render(CASES["126 layers, delta"]())
    assert html.count("<details><summary>sha256 of its 192 files</summary>") == 2
    assert "model-00191-of-00191.safetensors" in html


def test_a_long_answer_is_folded_after_its_beginning() -> None:
    html = render(CASES["5000 answers"](), show_answers=True)
    assert "<summary>1,400 more characters</summary>" in html
    shown = render(CASES["5000 answers"]())
    assert "Withheld: 2,000 characters" in shown


def test_a_long_name_keeps_both_ends() -> None:
    assert clip_name("q_proj" + "x" * 50 + "weight", 13) == "q_proj…weight"
    assert clip_name("q_proj", 6) == "q_proj"
    assert clip_name("a\u202eb") == "a[U+202E]b"
