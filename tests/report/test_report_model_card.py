"""The section of a model card."""

from __future__ import annotations

import pytest

from antidote_llm.report.data import Input
from antidote_llm.report.model_card import model_card_section

from . import samples


def test_the_model_card_says_what_was_done_with_counts_and_measurements() -> None:
    card = model_card_section(samples.demo())
    assert card.startswith("## Safety repair\n")
    row = "| Harmful requests: harmful score | 96.4 (94.4-97.7) | 5.8 (4.1-8.2) | 504 |"
    assert row in card.replace("\N{EN DASH}", "-")
    assert "method `antidote` (`alpha=0.2`" in card
    assert "6,236,255 of 58,720,256 entries (10.6 %) in 224 modules" in card
    assert f"sha256 `{'b07c' * 16}`" in card
    assert "antidote patch revert" in card
    assert "Gain kept: glyph sums" in card and "Gain kept: sentiment" not in card


def test_the_model_card_holds_no_prompt_and_no_answer() -> None:
    data = samples.demo()
    card = model_card_section(data)
    for example in data.examples:
        assert example.prompt not in card
        assert example.answer_before not in card and example.answer_after not in card


def test_without_an_evaluation_the_model_card_says_so() -> None:
    assert "Nothing was evaluated." in model_card_section(samples.untested())


def test_markdown_in_texts_is_escaped() -> None:
    data = samples.demo().model_copy(update={"verdict": "a <script> | `b`\n# c", "notes": ("[d](e)",)})
    card = model_card_section(data)
    assert "a \\<script\\> \\| \\`b\\` \\# c" in card
    assert "\\[d\\](e)" in card


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("/home/somebody/secret/quorl", "`quorl`"),
        ("C:\\Users\\somebody\\quorl", "`quorl`"),
        ("~/secret/quorl/", "`quorl`"),
        ("../somebody/quorl.csv:prompt=goal", "`quorl.csv:prompt=goal`"),
        ("quorl-labs/quorl-7b", "`quorl-labs/quorl-7b`"),
        ("/data/`x`.jsonl", "`` `x`.jsonl ``"),
    ],
)
def test_the_model_card_holds_no_absolute_path(reference: str, shown: str) -> None:
    data = samples.untested()
    assert data.recipe is not None
    recipe = data.recipe.model_copy(update={"inputs": {"model": Input(reference=reference)}})
    card = model_card_section(data.model_copy(update={"recipe": recipe}))
    assert f"- model: {shown}" in card and "somebody" not in card
