"""The report on an adapter, a delta and bare weights, and on updates outside of them."""

from __future__ import annotations

import pytest

from antidote_llm.evaluation.evaluation import JudgeRecord
from antidote_llm.repairs.record import OutsideRecord
from antidote_llm.report.compose import compose, outcome
from antidote_llm.report.data import ReportData
from antidote_llm.report.model_card import model_card_section
from antidote_llm.report.page import render

from . import big


def report(target: str, outside: tuple[OutsideRecord, ...] = (), *, evaluated: bool = False) -> ReportData:
    evaluations = {
        "before": big.evaluation("harmful", "Stir.", rows=40),
        "after": big.evaluation("refusal", "Stir.", rows=40),
        "aligned": big.evaluation("refusal", "Stir.", rows=40),
    }
    record = big.record(big.modules(2), target, outside=outside)
    return compose(record, evaluations if evaluated else {}, revert_command="revert")


def part(name: str, before: float, after: float, tensors: int = 1) -> OutsideRecord:
    return OutsideRecord(name=name, tensors=tensors, entries=8, norm_before=before, norm_after=after)


@pytest.mark.parametrize(
    ("target", "aligned", "norm", "sites", "title"),
    [
        ("adapter", "Without the adapter", "Norm of the update kept", "14 modules", "Repair of attacked"),
        ("delta", "The aligned model", "Norm of the update kept", "14 matrices", "Repair of quorl-405b-chat"),
        ("weight", "The aligned model", "Norm of the weights kept", "14 matrices", "Repair of quorl-405b-chat"),
    ],
)
def test_the_words_fit_the_target(target: str, aligned: str, norm: str, sites: str, title: str) -> None:
    data = report(target, evaluated=True)
    html, card = render(data), model_card_section(data)
    assert data.title == title
    assert [outcome.label for outcome in data.outcomes] == ["Before the repair", "After the repair", aligned]
    assert norm in html and f"were changed in {sites}" in html
    assert f"in {sites} were changed" in card
    assert ("adapter" in card) == (target == "adapter")
    assert ("the norm of their update is left" in card) == (target != "weight")


def test_an_evaluation_s_unreadable_verdicts_and_unanswered_prompts_reach_the_report() -> None:
    after = big.evaluation("refusal", "Stir.", rows=40)
    judges = [
        JudgeRecord(name=name, measures="harmful_score", unreadable=number, metrics={})
        for name, number in (("quorl", 2), ("patterns", 0))
    ]
    found = outcome("after", after.model_copy(update={"judges": tuple(judges), "unanswered": 3}), label="After")
    assert found.unreadable == {"quorl": 2} and found.unanswered == 3


def test_bare_weights_come_with_a_warning() -> None:
    for target in ("adapter", "delta", "weight"):
        data = report(target)
        for text in (render(data), model_card_section(data)):
            assert ("zeroing pre-trained weights costs far more" in text) == (target == "weight")


def test_all_inputs_are_listed() -> None:
    assert list(report("adapter").recipe.inputs)[:3] == ["base", "lower adapter", "adapter"]  # type: ignore[union-attr]
    assert list(report("delta").recipe.inputs)[:2] == ["fine-tuned model", "aligned model"]  # type: ignore[union-attr]
    card = model_card_section(report("delta"))
    assert "- aligned model: `quorl-labs/quorl-405b-aligned`\n  - `config.json`: sha256 `3f9a" in card
    assert "patch bytes as stated before" in render(report("delta"))


def test_an_outside_update_that_stays_is_reported_as_kept() -> None:
    sites = report("delta").sites
    whole = sum(site.norm_before**2 for site in sites)
    data = report("delta", (part("model.norm.weight", whole**0.5, whole**0.5),))
    for text in (render(data).replace("\N{NO-BREAK SPACE}", " "), model_card_section(data)):
        assert "Of the squared norm of the whole update, 50.0 % lay outside the edited matrices, in 1 tensor" in text
        assert "The repair did not touch them." in text


def test_an_outside_update_that_is_removed_is_reported_as_put_back() -> None:
    sentence = "The repair put them back to what they were before the fine-tune."
    assert sentence in render(report("delta", (part("lm_head.weight", 3, 0),)))
    mixed = render(report("delta", (part("lm_head.weight", 3, 0), part("*.norm", 1, 1, 4), part("*.bias", 1, 0.5))))
    assert (
        "The repair put 1 tensor back to what they were before the fine-tune, and did not touch 4 tensors, and "
        "changed 1 tensor." in mixed
    )
    assert "<td>0</td>" in mixed and 'href="#outside"' in mixed


def test_tensors_unchanged_by_the_fine_tune_need_no_table() -> None:
    html = render(report("delta", (part("*.norm", 0, 0, 4),)))
    assert "The fine-tune left 4 tensors outside the edited matrices as they were." in html
    assert "Norm before" not in html


def test_unknown_outside_updates_are_not_shown() -> None:
    assert 'id="outside"' not in render(report("adapter"))


def test_many_names_outside_are_folded_and_the_smallest_only_counted() -> None:
    html = render(report("delta", tuple(part(f"zorb{index}.weight", index, index) for index in range(1, 61))))
    assert "<summary>The tensors, by name</summary>" in html
    assert "zorb60." in html and "zorb20." not in html and "20 more names among them" in html
