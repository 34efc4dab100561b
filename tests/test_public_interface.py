from importlib.util import find_spec

import antidote_llm


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(antidote_llm, name) is not None for name in antidote_llm.__all__)
    assert sorted(antidote_llm._MODULE_OF) == sorted(antidote_llm.__all__)


def test_no_module_takes_the_place_of_a_public_name() -> None:
    assert [name for name in antidote_llm.__all__ if find_spec(f"antidote_llm.{name}")] == []
    assert antidote_llm.methods().keys() == antidote_llm.methods().keys() != set()
