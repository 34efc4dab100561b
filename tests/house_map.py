"""Writes the map of the house into CONTRIBUTING.md: every file of the package, with the first line of its docstring.

python -m tests.house_map
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "antidote_llm"
PAGE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- map: begin -->", "<!-- map: end -->"


def files() -> list[str]:
    """Return the files of the package as paths below it, room by room."""
    found = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    return [path.as_posix() for path in sorted(found, key=lambda path: (path.parts[:-1], path.name))]


def first_line(file: str) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    words = ast.get_docstring(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))) or ""
    return words.partition("\n")[0].rstrip(".").replace("``", "`")


def house_map() -> str:
    """Return the map: a heading for each room, and a line for each of its files."""
    lines: list[str] = []
    for file in files():
        room, _, name = file.rpartition("/")
        if name == "__init__.py":
            lines += ["", *_wrapped(f"**`{room or 'antidote_llm'}/`** {first_line(file)}", ""), ""]
        else:
            lines += _wrapped(f"- `{file}`: {first_line(file)}", "  ")
    return "\n".join(lines).strip()


def _wrapped(words: str, indent: str) -> list[str]:
    return textwrap.wrap(words, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def mapped() -> list[str]:
    """Return the files that the map in CONTRIBUTING.md names."""
    page = PAGE.read_text(encoding="utf-8")
    lines = page[page.index(START) : page.index(END)].splitlines()
    return [line.split("`")[1] for line in lines if line.startswith("- `")]


def main() -> None:
    """Replace the map in CONTRIBUTING.md."""
    page = PAGE.read_text(encoding="utf-8")
    before, after = page[: page.index(START)], page[page.index(END) :]
    PAGE.write_text(f"{before}{START}\n\n{house_map()}\n\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
