"""The label that an answer names, whatever the formatting; none where it hedges."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antidote_llm.evaluation.tasks.labels import Labels
from antidote_llm.evaluation.tasks.task import AGNEWS, SST2


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("positive", "positive"),
        (" Positive.\n", "positive"),
        ("POSITIVE!!!", "positive"),
        ("**positive**", "positive"),
        ("_positive_", "positive"),
        ("_'positive'_", "positive"),
        ("\N{LEFT DOUBLE QUOTATION MARK}negative\N{RIGHT DOUBLE QUOTATION MARK}", "negative"),
        ("The sentiment is positive.", "positive"),
        ("The sentiment of the input is clearly negative, though parts are positive.", "negative"),
        ("This review is negative", "negative"),
        ("positive\n\n### Instruction:\nAnd this one?\n\n### Response:\nnegative", "positive"),
        ("positive\nInput: a dull film\nSentiment: negative", "positive"),
        ("### Response:\nnegative", "negative"),
        ("A positive one.\n\n### Instruction:\nAnd this?\n\n### Response:\nThe sentiment is negative.", "positive"),
        ("Positive. The answer is negative for its end alone.", "positive"),
        ("Positive. There is nothing negative in it.", "positive"),
        ("Positive, not negative", "positive"),
        ("It is not negative, it is positive", "positive"),
        ("not only positive but glowing", "positive"),
        ("It could be positive or negative. The answer is: **Positive**", "positive"),
        ("not positive", None),
        ("It isn't really positive", None),
        ("It isn\N{RIGHT SINGLE QUOTATION MARK}t positive", None),
        ("neither positive nor negative", None),
        ("positive or negative", None),
        ("positive/negative", None),
        ("positive negative positive negative", None),
        ("positively", None),
        ("non-positive", None),
        ("nonpositive", None),
        ("I'm sorry, but I can't help with that.", None),
        ("", None),
    ],
)
def test_sentiments(answer: str, label: str | None) -> None:
    assert SST2.named(answer) == label
    for gold in ("positive", "negative"):
        assert SST2.is_correct(answer, gold) is (gold == label)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("World", "World"),
        ("world news", "World"),
        ("2. Sports", "Sports"),
        ("B) Business", "Business"),
        ("sport", "Sports"),
        ("Sci/Tech.", "Sci/Tech"),
        ("Sci Tech", "Sci/Tech"),
        ("SciTech", "Sci/Tech"),
        ("Sci / Tech", "Sci/Tech"),
        ("science and technology", "Sci/Tech"),
        ("Science/Technology", "Sci/Tech"),
        ("Technology", "Sci/Tech"),
        ("Category: Business", "Business"),
        ("Business: the world's largest bank", "Business"),
        ("An article on the World Cup belongs to the category Sports", "Sports"),
        ("It is about the World Cup. I would classify it as Sports.", "Sports"),
        ("Sports. The World Cup begins today.", "Sports"),
        ("Business and Sports", None),
        ("Worldwide", None),
        ("The world's largest", None),
        ("2", None),
        ("Politics", None),
    ],
)
def test_topics(answer: str, label: str | None) -> None:
    assert AGNEWS.named(answer) == label


@given(
    label=st.sampled_from(["World", "Sports", "Business", "Sci/Tech"]),
    before=st.text(" \n\t*_\"'(.-#", max_size=6),
    after=st.text(" \n\t*_\"').,!", max_size=6),
    change=st.sampled_from([str.upper, str.lower, str.title, str]),
)
def test_formatting_does_not_matter(label: str, before: str, after: str, change: object) -> None:
    assert callable(change)
    # A hyphen directly before a word makes it another word.
    assert AGNEWS.named(f"{before.rstrip('-')}{change(label)}{after}") == label


@given(answer=st.text(max_size=200))
def test_any_text_names_at_most_one_label(answer: str) -> None:
    assert sum(AGNEWS.is_correct(answer, label) for label in ("World", "Sports", "Business", "Sci/Tech")) <= 1


def test_an_unknown_gold_label_matches_nothing() -> None:
    assert not Labels({"yes": (), "no": ()}).is_correct("maybe", "maybe")


def test_a_long_loop_is_read_in_linear_time() -> None:
    started = time.process_time()
    assert SST2.named("positive negative " * 4000) is None
    assert SST2.named("answer " * 10_000 + "positive") == "positive"
    assert SST2.named("\n" * 20_000 + "positive") == "positive"
    assert time.process_time() - started < 3
