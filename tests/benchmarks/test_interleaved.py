from __future__ import annotations

from functools import partial

from benchmarks.interleaved import Check, Work, checks_table, medians, ratio, timed


def test_pieces_take_turns_after_a_round_that_does_not_count() -> None:
    order: list[str] = []
    works = {name: Work(partial(order.append, name)) for name in ("a", "b")}
    seconds = timed(works, repeats=2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(found) for found in seconds.values()] == [2, 2]


def test_what_comes_before_is_done_and_not_timed() -> None:
    done: list[str] = []
    timed({"a": Work(lambda: done.append("run"), lambda: done.append("before"))}, repeats=1)
    assert done == ["before", "run", "before", "run"]


def test_a_ratio_is_that_of_the_same_round() -> None:
    # The machine slowed down tenfold in the second round, and for both.
    seconds = {"above": [2.0, 20.0, 3.0], "below": [1.0, 10.0, 1.0]}
    assert ratio(seconds, "above", "below") == 2.0
    assert medians(seconds)["above"] == {"median": 3.0, "min": 2.0, "max": 20.0}


def test_a_limit_is_held_on_its_own_side() -> None:
    assert Check("a", 1.0, "most", 1.1).holds
    assert not Check("a", 1.2, "most", 1.1).holds
    assert Check("a", 1.2, "least", 1.1).holds
    assert not Check("a", 1.0, "least", 1.1).holds
    assert "**misses**" in checks_table([Check("a", 1.0, "least", 1.1)])
