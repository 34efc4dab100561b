import pkgutil

import antidote_llm


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(antidote_llm, name) is not None for name in antidote_llm.__all__)
    assert sorted(antidote_llm._MODULE_OF) == sorted(antidote_llm.__all__)


def test_no_public_name_is_hidden_by_a_module_of_the_same_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(antidote_llm.__path__)}
    assert not modules & set(antidote_llm.__all__)
