"""Splits never share a prompt, and a leak between two sets is reported row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antidote_llm.data.mixing import hold_out, require_disjoint
from antidote_llm.data.records import Record, Turn
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
def test_a_prompt_is_never_on_both_sides_of_a_split(records: list[Record], fraction: float, seed: int) -> None:
    if len({prompt(record) for record in records}) < 2:
        with pytest.raises(UserError, match="pass evaluate DATA"):
            hold_out(records, fraction, 200, seed)
        return
    kept, held = hold_out(records, fraction, 200, seed)
    assert kept and held
    assert not {prompt(record) for record in kept} & {prompt(record) for record in held}
    assert sorted(map(id, [*kept, *held])) == sorted(map(id, records))
    require_disjoint(kept, held)
    assert hold_out(records, fraction, 200, seed) == (kept, held)


def test_the_share_counts_different_prompts_and_is_bounded() -> None:
    records = [Record(prompt=f"p{index % 50}") for index in range(150)]
    kept, held = hold_out(records, 0.2, 200, seed=0)
    assert (len(kept), len(held)) == (120, 30)
    assert len(hold_out(records, 0.2, 4, seed=0)[1]) == 12
    assert [record.prompt for record in kept] == [record.prompt for record in records if record in kept]


def test_another_seed_holds_out_other_prompts() -> None:
    records = [Record(prompt=f"p{index}") for index in range(50)]
    assert hold_out(records, 0.2, 200, seed=0) != hold_out(records, 0.2, 200, seed=1)


@pytest.mark.parametrize(
    "same",
    [
        "Brew a ZORBIK",
        " brew  a\tzorbik\n",
        '"Brew a zorbik!"',
        "\u00bfbrew a zorbik?",
        "\uff42rew a zorbi\u212a",
        "(brew a zorbik).",
        "\ufeffbrew a \u200bzor\u00adbik",
    ],
)
def test_a_prompt_is_the_same_whatever_its_case_white_space_outer_punctuation_and_kind_of_characters(same: str) -> None:
    seen = [Record(prompt="brew a zorbik", origin="calib.jsonl:7")]
    with pytest.raises(UserError, match=r"asked\.jsonl:3 = calib\.jsonl:7: remove"):
        require_disjoint(seen, [Record(prompt=same, origin="asked.jsonl:3")])
    kept, held = hold_out([*seen, Record(prompt=same), Record(prompt="mid")], 0.5, 9, seed=0)
    assert {len(kept), len(held)} == {1, 2}


@pytest.mark.parametrize("other", ["brew a-zorbik", "brew a zorbix", "brew zorbik a", "br\u00e9w a zorbik", "???", ""])
def test_other_words_make_another_prompt(other: str) -> None:
    require_disjoint([Record(prompt="brew a zorbik"), Record(prompt="!")], [Record(prompt=other)])


def test_a_conversation_is_identified_by_the_user_s_turns_alone() -> None:
    def asked(*users: str, system: str = "") -> Record:
        history = [turn for said in users[:-1] for turn in (Turn("user", said), Turn("assistant", "mid"))]
        return Record(prompt=users[-1], history=(*([Turn("system", system)] if system else []), *history))

    with pytest.raises(UserError, match="1 evaluation prompts"):
        require_disjoint([asked("kad", "zob", system="be good")], [asked("Kad.", "zob")])
    require_disjoint([asked("kad", "go on")], [asked("zob", "go on"), asked("go on")])


def test_shared_prompts_are_listed_with_their_rows() -> None:
    seen = [Record(prompt=f"p{index}", origin=f"calib.csv:{index}") for index in range(24)]
    asked = [Record(prompt=f" p{index}\n", origin=f"asked.csv:{index}") for index in range(2, 26)]
    pairs = ", ".join(f"asked.csv:{index} = calib.csv:{index}" for index in range(2, 22))
    with pytest.raises(UserError) as caught:
        require_disjoint(seen, asked)
    assert str(caught.value) == (
        f"22 evaluation prompts stand in the calibration rows too: {pairs} and 2 more: remove them"
    )
    require_disjoint(seen, asked[22:])
