"""The measurement of published chat templates tells right from refused, and shows what stands around an answer."""

from __future__ import annotations

from pathlib import Path

from benchmarks.chat_templates import counted, measured, report
from tests.data.chat_kinds import KINDS


def test_every_template_of_a_folder_is_put_through(tmp_path: Path) -> None:
    (tmp_path / "always.jinja").write_text(KINDS["opens the answer's turn always"].template)
    (tmp_path / "twice.jinja").write_text("{% for m in messages %}{{ m.content ~ m.content }}{% endfor %}")
    rows = list(measured("mine-1.0", str(tmp_path)))
    assert counted(rows) == {"right": 3, "refused": 3}
    assert rows[0]["behind the answer"] == "<|end|>"
    assert "| mine-1.0 | always | `" in report(rows)
    assert "refused: writes an answer more than once" in report(rows)
