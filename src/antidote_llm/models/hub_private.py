"""What is used of huggingface_hub beyond its documented interface.

What is assumed of it is tested in ``tests/models/test_hub_private.py``; the versions are bounded in ``pyproject.toml``.
"""

from __future__ import annotations

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id


def is_hub_id(name: str) -> bool:
    """Whether a repository on the Hub could have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
