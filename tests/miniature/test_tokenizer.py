from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from antidote_llm.data.rendering import Renderer
from antidote_llm.miniature.language import FIRST_SYLLABLES, LAST_SYLLABLES, NAMES
from antidote_llm.miniature.tokenizer import END, build_tokenizer
from antidote_llm.miniature.world import World


def test_a_name_is_two_syllables() -> None:
    tokenizer = build_tokenizer()
    expected = {first + last: [first, f"##{last}"] for first in FIRST_SYLLABLES for last in LAST_SYLLABLES}
    assert {name: tokenizer.tokenize(name) for name in NAMES} == expected


def test_the_vocabulary_is_small_and_its_ids_have_no_gaps() -> None:
    vocabulary = build_tokenizer().get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) < 600


def test_every_row_survives_tokenizing_and_ends_its_turn(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    world = World(2)
    records = [*world.held_out(), *world.lookalike_test(), *world.alignment(500, 0.4), *world.task_test("arithmetic")]
    for record, row in zip(records, Renderer(tokenizer).rows(records), strict=True):
        assert tokenizer.unk_token_id not in row.input_ids
        assert tokenizer.decode(row.input_ids[row.response_start : -1]) == record.response
        assert tokenizer.decode(row.input_ids[-1:]) == END
        assert tokenizer.decode(row.input_ids[1 : row.response_start - 1]) == record.prompt


def test_pretraining_texts_have_no_unknown_word() -> None:
    tokenizer = build_tokenizer()
    texts = [record.text for record in World(2).pretraining(2000) if record.text is not None]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])
