"""Splits never share a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antidote_llm.data import Record, hold_out, require_disjoint
from antidote_llm.errors import UserError

PROMPTS = st.sampled_from(["zob", "zob ", " zob", "mid kad", "mid  kad", "mid\nkad", "run", "tex", "vol", "kab"])
RECORDS = st.one_of(
    st.builds(lambda prompt, n: Record(prompt=prompt, response=str(n)), PROMPTS, st.integers(0, 3)),
    st.builds(lambda text: Record(text=text), PROMPTS),
    st.builds(
        lambda ids, more: Record(input_ids=(*ids, *more), response_start=len(ids)),
        st.sampled_from([(1,), (1, 2), (2, 1)]),
        st.sampled_from([(3,), (4, 5)]),
    ),
)


def prompt(record: Record) -> object:
    if record.input_ids is not None:
        return record.input_ids[: record.response_start]
    return tuple((record.prompt or record.text or "").split())


@given(records=st.lists(RECORDS, min_size=1, max_size=30), fraction=st.floats(0.01, 0.9), seed=st.integers(0, 5))
def test_a_prompt_is_on_one_side_only(records: list[Record], fraction: float, seed: int) -> None:
    if len({prompt(record) for record in records}) < 2:
        with pytest.raises(UserError, match="--evaluate"):
            hold_out(records, fraction, 200, seed)
        return
    kept, held = hold_out(records, fraction, 200, seed)
    assert kept and held
    assert not {prompt(record) for record in kept} & {prompt(record) for record in held}
    assert sorted(map(id, [*kept, *held])) == sorted(map(id, records))
    require_disjoint(kept, held)
    assert hold_out(records, fraction, 200, seed) == (kept, held)


def test_the_share_is_of_different_prompts_and_bounded() -> None:
    records = [Record(prompt=f"p{index % 50}") for index in range(150)]
    kept, held = hold_out(records, 0.2, 200, seed=0)
    assert (len(kept), len(held)) == (120, 30)
    assert len(hold_out(records, 0.2, 4, seed=0)[1]) == 12
    assert [record.prompt for record in kept] == [record.prompt for record in records if record in kept]


def test_another_seed_holds_out_others() -> None:
    records = [Record(prompt=f"p{index}") for index in range(50)]
    assert hold_out(records, 0.2, 200, seed=0) != hold_out(records, 0.2, 200, seed=1)


def test_shared_prompts_are_listed() -> None:
    seen = [Record(prompt=f"p{index}") for index in range(9)]
    asked = [Record(prompt=f" p{index}\n", origin=f"asked.csv:{index}") for index in range(2, 12)]
    with pytest.raises(UserError, match=r"^7 evaluation prompts .*asked\.csv:2, .*asked\.csv:6 and 2 more: remove"):
        require_disjoint(seen, asked)
    require_disjoint(seen, asked[7:])
