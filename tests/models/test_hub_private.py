"""What models/hub_private.py assumes of huggingface_hub: a failing test names what a new version has changed."""

from __future__ import annotations

import pytest

from antidote_llm.models.hub_private import is_hub_id


@pytest.mark.parametrize("name", ["gpt2", "owner/model-7B_v1.0"])
def test_ids_of_the_hub_are_known(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "owner/mo del", "-model", "owner/model..x"])
def test_what_the_hub_refuses_is_no_id(name: str) -> None:
    assert not is_hub_id(name)
