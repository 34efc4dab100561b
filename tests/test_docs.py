"""The pages say what is: commands and Python run, figures and lists are up to date, sentences are short."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import antidote_llm
from antidote_llm.cli.main import run
from benchmarks import figures
from tests import house_map, tiny
from tests.conftest import Folders

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Tables that scripts write.
WRITTEN = {*(DOCS / "results").glob("*_*.md"), DOCS / "results" / "streaming.md"}
PAGES = [ROOT / "README.md", *sorted(set(DOCS.rglob("*.md")) - WRITTEN)]
PROSE = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
# These are whole programs of minutes, or not ours; `antidote demo` has a test of its own.
NOT_RUN = ("make ", "pip ", "source ", "python -m benchmarks", "antidote demo", "antidote miniature build", "torchrun ")
LONGEST_LINE, LONGEST_PARAGRAPH = 120, 90
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(block: str) -> list[str]:
    lines = block.replace("\\\n", " ").splitlines()
    found = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in found if not line.startswith(NOT_RUN)]


def steps(page: Path) -> list[tuple[str, str]]:
    """Return the commands and pieces of Python of a page, in order."""
    found: list[tuple[str, str]] = []
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            found.append(("python", block))
        elif language == "console":
            found += [("command", command) for command in commands(block)]
    return found


@pytest.fixture
def workplace(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the pages name."""
    shutil.copytree(folders.base, tmp_path / "my-model")
    shutil.copytree(folders.adapter, tmp_path / "my-adapter")
    tiny.write_model(tmp_path / "my-tuned-model", seed=1)
    config = json.loads((tmp_path / "my-adapter" / "adapter_config.json").read_text())
    (tmp_path / "my-adapter" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "my-model"})
    )
    tiny.write_rows(tmp_path / "harmful.jsonl", seed=1)
    tiny.write_rows(tmp_path / "heldout.jsonl", seed=2)
    write_sentiments(tmp_path / "sst2.jsonl")
    (tmp_path / "sst2.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"{tiny.words(4, n)}\t{n % 2}\n" for n in range(8))
    )
    for number, name in enumerate(("refusals", "user", "worse", "realign")):
        tiny.write_rows(tmp_path / f"{name}.jsonl", seed=10 + number)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": tiny.words(40, n)}) + "\n" for n in range(5)))
    rows = [json.loads(line) for line in (tmp_path / "harmful.jsonl").read_text().splitlines()]
    write_csv(tmp_path / "harmful.csv", [{"goal": row["prompt"], "target": row["response"]} for row in rows])
    write_csv(tmp_path / "xstest.csv", [{"prompt": tiny.words(5, 99 + index)} for index in range(4)])
    write_mini(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_mini(folder: Path) -> None:
    """Write folders and files as `antidote miniature build` names them, with models that need no training."""
    mini = folder / "mini"
    shutil.copytree(folder / "my-model", mini / "aligned")
    shutil.copytree(folder / "my-adapter", mini / "attacked")
    (mini / "data" / "tasks").mkdir(parents=True)
    for number, name in enumerate(("realign", "heldout", "lookalike")):
        tiny.write_rows(mini / "data" / f"{name}.jsonl", seed=20 + number)
    write_sentiments(mini / "data" / "tasks" / "arithmetic.test.jsonl")


def write_sentiments(path: Path) -> None:
    rows = [{"prompt": tiny.words(4, index), "response": ("negative", "positive")[index % 2]} for index in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)], ids=name_of)
def test_the_commands_and_the_python_of_a_page_run_in_order(
    page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {"__name__": "documented"}
    for kind, step in steps(page):
        if kind == "python":
            exec(compile(step, page.name, "exec"), names)
            continue
        words = shlex.split(step, comments=True)
        assert words[0] == "antidote", f"no test knows how to run: {step}"
        # These models were never aligned: what a comparison says of them is bad or not.
        allowed = (0, 1) if words[1] == "compare" else (0,)
        assert run(words[1:]) in allowed, f"{step}\n{capsys.readouterr().err}"


def test_the_extensions_of_the_pages_work_as_a_package_of_their_own(workplace: Path) -> None:
    write_extensions(workplace)
    repair = ["repair", "my-model", "--adapter", "my-adapter", "--harmful", "harmful.jsonl", "--out", "extended"]
    completed = antidote(workplace, *repair, "--method", "relative", "--power", "0.5", "--judge", "keywords")
    assert completed.returncode == 0, completed.stderr
    record = json.loads((workplace / "extended" / "record" / "repair.json").read_text())
    assert (record["method"], record["settings"]["power"]) == ("relative", 0.5)
    assert json.loads((workplace / "extended/record/after/evaluation.json").read_text())["judge"] == "keywords"
    finetune = ["finetune", "my-model", "--data", "user.jsonl", "--epochs", "1", "--rank", "4", "--out", "pulled"]
    completed = antidote(workplace, *finetune, "--defense", "pulled")
    assert completed.returncode == 0, completed.stderr


def write_extensions(folder: Path) -> None:
    """Write the Python of the pages on extensions as an installed package, with the entry points that they name."""
    entries = ""
    for page in ("add-a-method", "add-a-judge", "add-a-defense"):
        blocks = BLOCK.findall((DOCS / "how-to" / f"{page}.md").read_text(encoding="utf-8"))
        code = "\n".join(block for language, block in blocks if language == "python")
        toml = next(block for language, block in blocks if language == "toml")
        found = re.search(
            r'^\[project\.entry-points\."(.+?)"\]\n(\w+) = "(my_package\.(\w+):\w+)"$', toml, re.MULTILINE
        )
        assert found, f"{page}: no entry point"
        group, name, reference, module = found.groups()
        (folder / "my_package").mkdir(exist_ok=True)
        (folder / "my_package" / f"{module}.py").write_text(code, encoding="utf-8")
        entries += f"[{group}]\n{name} = {reference}\n"
    installed = folder / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(entries)


def antidote(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which sees the packages of the folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "antidote_llm", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_readme_shows_commands_and_python() -> None:
    kinds = [kind for kind, _ in steps(ROOT / "README.md")]
    assert kinds.count("command") >= 3
    assert "python" in kinds


def test_the_page_of_the_commands_has_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    shown = {place.strip() for place in re.findall(r"^<!-- help:(.*?)-->$", page, re.MULTILINE)}
    assert known_commands((), capsys) <= shown | {"miniature"}


def known_commands(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> set[str]:
    assert run([*words, "--help"]) == 0
    _, found, listing = capsys.readouterr().out.partition("Commands:\n")
    below = re.findall(r"^  (\w+) ", listing, re.MULTILINE) if found else []
    return {" ".join(words)}.union(*(known_commands((*words, name), capsys) for name in below))


def test_the_page_of_the_api_has_every_public_name() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: antidote_llm\.(\w+)$", page, re.MULTILINE)) == set(antidote_llm.__all__)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_figure_is_what_its_script_draws(name: str) -> None:
    drawn = figures.FIGURES[name]()
    assert (figures.FOLDER / name).read_text(encoding="utf-8") == drawn, "run: python -m benchmarks.figures"


def test_a_figure_needs_no_network() -> None:
    for draw in figures.FIGURES.values():
        assert re.findall(r"https?://[^']*", draw()) == ["http://www.w3.org/2000/svg"]


def test_the_figure_of_the_layers_is_the_contract_of_the_linter() -> None:
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\nlayers = [\n")[2].partition("]")[0]
    layers = [tuple(words.split(" | ")) for words in re.findall(r'"(.*?)"', contract)]
    rooms = [tuple(name for name in layer if (house_map.PACKAGE / name).is_dir()) for layer in layers]
    assert [layer for layer in rooms if layer] == list(figures.LAYERS)


def test_the_map_of_the_house_has_every_file() -> None:
    files = {file for file in house_map.files() if not file.endswith("__init__.py")}
    mapped = house_map.mapped()
    assert len(mapped) == len(set(mapped))
    assert {"missing": files - set(mapped), "gone": set(mapped) - files} == {"missing": set(), "gone": set()}, (
        "run: python -m tests.house_map"
    )


@pytest.mark.parametrize("page", PROSE, ids=name_of)
def test_lines_and_paragraphs_are_short(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > LONGEST_LINE] == []
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:- |\d+\. ))", "\n".join(lines))
    assert [words for words in paragraphs if len(words.split()) > LONGEST_PARAGRAPH] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=name_of)
def test_links_to_files_of_the_repository_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PROSE, ids=name_of)
def test_files_of_the_code_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`([\w/]+/\w+\.(?:py|yaml))`", page.read_text(encoding="utf-8"))
    assert [file for file in named if not any((base / file).exists() for base in (ROOT, house_map.PACKAGE))] == []
