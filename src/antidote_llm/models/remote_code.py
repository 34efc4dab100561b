"""Code that comes with a checkpoint: it is the checkpoint's own, and not that of another folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from antidote_llm.artifacts.enclosure import is_plain_path
from antidote_llm.artifacts.json_reading import loose_json
from antidote_llm.errors import UserError

_CONFIGURATIONS = "*config.json"
_REPOSITORY = "--"


def require_own_code(folder: Path) -> None:
    """Refuse a checkpoint whose configuration names code by a path that leads out of its folder.

    Code of another repository on the Hub may be named, by its id.

    Raises:
        UserError: Names the configuration and what it names.
    """
    for path in sorted(folder.glob(_CONFIGURATIONS)):
        for named in _named_code(path):
            repository, _, module = named.rpartition(_REPOSITORY)
            elsewhere = repository and (not _is_hub_id(repository) or Path(repository).exists())
            if elsewhere or not is_plain_path(module):
                raise UserError(
                    f"{path}: auto_map names code outside the folder, {named!a}: put it into the folder, and name "
                    "it there as FILE.CLASS"
                )


def _named_code(path: Path) -> Iterator[str]:
    # What reads a broken one says what is wrong with it.
    config = loose_json(path)
    auto_map = config.get("auto_map") if isinstance(config, dict) else None
    for value in auto_map.values() if isinstance(auto_map, dict) else [auto_map]:
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def _is_hub_id(name: str) -> bool:
    return is_plain_path(name) and name.count("/") <= 1
