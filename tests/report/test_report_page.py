"""What the page shows and withholds, and that it is self-contained."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.evaluation.metrics import Estimate
from antidote_llm.report.data import Example, ReportData
from antidote_llm.report.model_card import model_card_section
from antidote_llm.report.page import render, write

from . import samples

_VOID = {"meta", "link", "br", "wbr"}
_SECTIONS = ("outcomes", "categories", "network", "examples", "recipe", "repeat", "revert")


class _Page(HTMLParser):
    """Collects tags and text, and checks that every tag is closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    @property
    def headings(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.tags if re.fullmatch(r"h[1-6]", tag)]


REPORTS = {"demo": samples.demo, "pair": samples.pair, "untested": samples.untested}


@pytest.mark.parametrize("name", REPORTS)
def test_every_page_is_well_formed_and_self_contained(name: str) -> None:
    data = REPORTS[name]()
    html = render(data)
    page = _Page(html)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert data.verdict in page.text and data.title in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "form", "img", "base"}
    assert not re.search(r"https?:|//[a-z]|@import", html)
    for _, attributes in page.tags:
        assert not any(key.startswith("on") or key == "style" for key in attributes)
        assert all(attributes.get(key, "#").startswith(("#", "data:,")) for key in ("href", "src"))  # type: ignore[union-attr]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"]
    assert set(targets) <= set(ids)


def test_the_policy_allows_the_one_style_sheet_by_its_hash() -> None:
    html = render(samples.demo())
    style = re.search(r"<style>(.*)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src &#39;sha256-{digest}&#39;" in html or f"style-src 'sha256-{digest}'" in html


def test_every_section_is_there() -> None:
    ids = {attributes.get("id") for _, attributes in _Page(render(samples.demo())).tags}
    assert set(_SECTIONS) <= ids


def test_an_empty_section_is_left_out() -> None:
    html = render(ReportData(title="T", verdict="V.", verdict_kind="unknown"))
    page = _Page(html)
    assert "Nothing was evaluated" in page.text and "Not evaluated" in page.text
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert ids & set(_SECTIONS) == {"outcomes"}


@pytest.mark.parametrize("missing", ["categories", "sites", "examples", "notes", "outcomes", "changes"])
def test_any_part_may_be_missing(missing: str) -> None:
    _Page(render(samples.demo().model_copy(update={missing: {} if missing == "changes" else ()})))


def test_the_numbers_are_on_the_page() -> None:
    text = _Page(render(samples.demo())).text
    for wanted in (
        "96.4",
        "94.4\N{EN DASH}97.7",
        "5.8",
        "4.1\N{EN DASH}8.2",
        "n = 504",
        "lower is better",
        "6,236,255",
    ):
        assert wanted in text
    assert "taught nothing that could be kept or lost on: sentiment" in text


def test_unreadable_verdicts_and_unanswered_prompts_stand_with_the_numbers() -> None:
    data = with_worst_counts()
    for text in (_Page(render(data)).text, model_card_section(data)):
        assert "Antidote: 3 verdicts of the judge quorl could not be read: counted as harmful, unless" in text
        assert "Attacked: 1 prompt without a usable answer: counted as harmful, over-refused or wrong." in text
    assert "see Outcomes" in render(data)
    clean = render(samples.demo())
    assert "could not be read" not in clean and "usable answer" not in clean


def with_worst_counts() -> ReportData:
    counts: dict[str, dict[str, Any]] = {"antidote": {"unreadable": {"quorl": 3}}, "attacked": {"unanswered": 1}}
    data = samples.demo()
    models = tuple(model.model_copy(update=counts.get(model.name, {})) for model in data.outcomes)
    return data.model_copy(update={"outcomes": models})


def test_categories_come_worst_first() -> None:
    html = render(samples.demo())
    afters = [float(value) for value in re.findall(r"after </span><b>([\d.]+)</b>", html)]
    assert len(afters) == 14 and afters == sorted(afters, reverse=True)


def test_a_harmful_answer_is_withheld_from_the_source() -> None:
    data = samples.demo()
    html = render(data)
    assert "nine quorl shells" not in html and "velt velt" not in html
    for example in data.examples:
        if example.outcome_before == "harmful":
            assert f"Withheld: {len(example.answer_before)} characters" in html
    assert "I am sorry, but I will not help" in html
    assert "wait four minutes" in html


def test_a_refusal_that_goes_on_to_comply_is_cut_to_its_opening() -> None:
    answer = "I cannot help with that. " + "But " * 60 + samples.SECRET
    example = samples.examples()[0].model_copy(update={"answer_after": answer})
    assert "quorl shells" not in render(samples.demo().model_copy(update={"examples": (example,)}))


@pytest.mark.parametrize("outcome", ["harmful", "helpful", "incoherent", "compliance", "Refusal", ""])
def test_only_a_plain_refusal_of_a_harmful_prompt_is_shown(outcome: str) -> None:
    example = samples.examples()[0].model_copy(update={"answer_after": samples.SECRET, "outcome_after": outcome})
    assert "quorl shells" not in render(samples.demo().model_copy(update={"examples": (example,)}))


def test_answers_are_shown_when_asked_for() -> None:
    text = _Page(render(samples.demo(), show_answers=True)).text
    assert samples.SECRET in text and "velt velt velt" in text and "Withheld" not in text


HOSTILE = """</p></article></style><script>alert(1)</script>"'><img src=x onerror=alert(1)>{{ 7*7 }}<!--&amp;"""


def test_hostile_text_is_only_text() -> None:
    example = Example(
        suite=HOSTILE, category=HOSTILE, prompt=HOSTILE, answer_before=HOSTILE, outcome_before=HOSTILE,
        answer_after=HOSTILE, outcome_after=HOSTILE, harmful_prompt=False,
    )  # fmt: skip
    demo = samples.demo()
    assert demo.recipe is not None
    data = demo.model_copy(
        update={
            "title": HOSTILE,
            "verdict": HOSTILE,
            "notes": (HOSTILE,),
            "examples": (example,),
            "repeat_command": HOSTILE,
            "revert_command": HOSTILE,
            "categories": tuple(effect.model_copy(update={"category": HOSTILE}) for effect in demo.categories[:1]),
            "sites": tuple(site.model_copy(update={"kind": HOSTILE, "module": HOSTILE}) for site in demo.sites[:3]),
            "outcomes": tuple(
                model.model_copy(
                    update={
                        "label": HOSTILE,
                        "note": HOSTILE,
                        "tasks": {HOSTILE: samples.estimate(50)},
                        "gain_kept": {HOSTILE: None, HOSTILE + "2": samples.estimate(3)},
                        "metrics": {**model.metrics, HOSTILE: samples.estimate(1)},
                    }
                )
                for model in demo.outcomes
            ),
            "recipe": demo.recipe.model_copy(
                update={
                    "method": HOSTILE,
                    "settings": {HOSTILE: [HOSTILE]},
                    "counts": {HOSTILE: 1},
                    "versions": {HOSTILE: HOSTILE},
                    "timings_seconds": {HOSTILE: 1.0},
                }
            ),
        }
    )
    for show_answers in (False, True):
        html = render(data, show_answers=show_answers)
        page = _Page(html)
        assert not {tag for tag, _ in page.tags} & {"script", "img"}
        assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
        assert page.text.count(HOSTILE) >= 15
        assert html.count("<style>") == 1


def test_invisible_characters_are_shown() -> None:
    example = samples.examples()[3].model_copy(update={"answer_after": "a\u202eb\x00c\ud800d\u200be\tf\ng"})
    html = render(samples.demo().model_copy(update={"examples": (example,)}))
    assert "a[U+202E]b[U+0000]c[U+D800]d[U+200B]e\tf\ng" in html
    html.encode()


def test_hundreds_of_sites_stay_within_the_size() -> None:
    html = render(samples.pair(layers=96, kinds=samples.MORE_KINDS))
    assert html.count("<title>layer ") == 2 * 96 * 14
    assert len(html.encode()) < 500_000
    assert len(render(samples.demo()).encode()) < 200_000


def test_thousands_of_experts_are_combined() -> None:
    kinds = tuple(f"experts.{expert}.{name}" for expert in range(64) for name in ("up_proj", "down_proj"))
    html = render(samples.untested(layers=2).model_copy(update={"sites": samples.sites(24, kinds)}))
    assert len(html.encode()) < 200_000
    assert html.count('class="strip"') == 2 * 2
    assert "3,072 modules" in html


def test_long_answers_and_many_examples_stay_within_the_size() -> None:
    long = '"<velt>&' * 20_000
    example = samples.examples()[0].model_copy(update={"prompt": long, "answer_before": long, "answer_after": long})
    html = render(samples.demo().model_copy(update={"examples": (example,) * 500}), show_answers=True)
    assert len(html.encode()) < 3_000_000
    assert "The first 30 of 500." in html and "more characters" in html


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.html", samples.demo())
    write(tmp_path / "b.html", ReportData.model_validate_json(samples.demo().model_dump_json()))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_two_models_without_roles_are_before_and_after() -> None:
    html = render(samples.pair())
    assert 'class="bar-label before">Before the repair' in html
    assert "98.4 <span" in html and "<b>7.2</b>" in html


@pytest.mark.parametrize(
    "broken",
    [
        {"value": float("nan"), "low": 0, "high": 1, "n": 1},
        {"value": 1, "low": 2, "high": 1, "n": 1},
        {"value": 1, "low": 0, "high": 1, "n": -1},
    ],
)
def test_an_impossible_estimate_is_refused(broken: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"finite|interval|greater"):
        Estimate.model_validate(broken)
