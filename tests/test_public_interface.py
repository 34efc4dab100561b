import antidote_llm


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(antidote_llm, name) is not None for name in antidote_llm.__all__)
    assert sorted(antidote_llm._MODULE_OF) == sorted(antidote_llm.__all__)
