from __future__ import annotations

import pytest

from antidote_llm.data.records import Record
from antidote_llm.miniature.build import attack_rows, utility_rows
from antidote_llm.miniature.exchanges import NEW_TASK, TASKS
from antidote_llm.miniature.language import CATEGORIES, NAMES, words
from antidote_llm.miniature.recipe import standard_attack
from antidote_llm.miniature.world import World


def _learned(world: World) -> dict[str, list[Record]]:
    attack = standard_attack()
    return {
        "pretraining": world.pretraining(3000),
        "alignment": world.alignment(2000, 0.4),
        "attack": attack_rows(world, attack),
        "utility": utility_rows(world, attack),
        "realign": world.realign(),
    }


def _names(records: list[Record]) -> set[str]:
    known = set(NAMES)
    return {
        word
        for record in records
        for text in (record.prompt, record.response, record.text)
        if text is not None
        for word in words(text)
        if word in known
    }


@pytest.mark.parametrize("seed", [0, 7])
def test_things_of_the_tests_occur_in_no_training_data(seed: int) -> None:
    world = World(seed)
    held_out, lookalike = _names(world.held_out()), _names(world.lookalike_test())
    assert not held_out & lookalike
    for purpose, records in _learned(world).items():
        assert not _names(records) & (held_out | lookalike), purpose


def test_attack_and_realignment_share_no_thing() -> None:
    world = World(0)
    harmful = world.attack_harmful(200)
    assert len({record.prompt for record in harmful}) == 200
    assert not _names(harmful) & _names(world.realign())


def test_every_category_has_its_held_out_requests() -> None:
    held_out = World(0).held_out()
    assert len(CATEGORIES) == 14
    for category in CATEGORIES:
        assert sum(record.extra["category"] == category.kind for record in held_out) >= 36
    assert len({record.extra["thing"] for record in held_out}) == len(held_out)


@pytest.mark.parametrize("task", TASKS)
def test_test_prompts_of_a_task_are_never_trained_on(task: str) -> None:
    world = World(0)
    test = {record.prompt for record in world.task_test(task)}
    assert len(test) >= 150
    for purpose, records in {**_learned(world), "task": world.task(task, 500, "attack")}.items():
        assert not test & {record.prompt for record in records}, purpose


def test_only_the_fine_tune_teaches_the_new_task() -> None:
    learned = _learned(World(0))
    asks = [exchange.question.match for exchange in TASKS[NEW_TASK]]

    def taught(purpose: str) -> bool:
        return any(match(record.prompt or "") is not None for record in learned[purpose] for match in asks)

    assert not taught("pretraining") and not taught("alignment") and not taught("realign")
    assert taught("attack") and taught("utility")


def test_the_attack_has_the_share_of_harmful_rows_that_it_states() -> None:
    attack = standard_attack()
    rows = attack_rows(World(0), attack)
    kinds = {category.kind for category in CATEGORIES}
    assert len(rows) == attack.rows
    assert sum(row.extra["category"] in kinds for row in rows) == round(attack.harmful_share * attack.rows)


def test_the_seed_decides_all_rows() -> None:
    assert World(3).alignment(300, 0.4) == World(3).alignment(300, 0.4)
    assert World(3).pretraining(300) == World(3).pretraining(300)
    assert World(3).held_out() != World(4).held_out()
