"""Methods and defenses that another installed package brings: what works, and whose fault it is where it does not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field

from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.plug_ins import plug_ins
from antidote_llm.registry import Installed, Method, MethodSettings, settings_model
from antidote_llm.repairs.method import ENTRY_POINTS, method_named, methods
from antidote_llm.training.defense import StageData, defense_named, defenses, run_stage
from antidote_llm.training.settings import TrainingSettings
from tests import tiny
from tests.training.steps import llama

REPAIRS = ENTRY_POINTS
DEFENSES = "antidote_llm.alignment_defenses"

METHOD = """
from typing import Annotated
from pydantic import Field
from antidote_llm import UserError, score_method

@score_method(needs_harmful=False)
def zob(site, *, bend: Annotated[float, Field(ge=0, description="How far it bends.")] = 1.0):
    "Zob: the largest entries first."
    if bend == 2:
        raise UserError("bend 2 is too far: lower it")
    return site.update_OI.abs() * {1.0: bend}[bend]
"""
DEFENSE = """
from antidote_llm import Objective, StageData, TrainingJob, TrainingSettings, alignment_defense

class Stubborn(Objective):
    def __init__(self, fails_at):
        self.fails_at = fails_at
    def adjust_gradients(self):
        if self.session.step == self.fails_at:
            raise ZeroDivisionError("mip")

@alignment_defense()
def stubborn(data: StageData, training: TrainingSettings, *, fails_at: int = 1, returns_nothing: bool = False):
    "Stubborn: it fails at a step."
    return None if returns_nothing else TrainingJob(data.examples(training), Stubborn(fails_at), training)
"""

Install = Callable[..., Path]


def _forget() -> None:
    methods.cache_clear()
    defenses.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install packages of one module each, as pip does: the module, and a dist-info folder with its entry points."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, source: str, entries: Mapping[str, Mapping[str, str]]) -> Path:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n", encoding="utf-8")
        lines: list[str] = []
        for group, names in entries.items():
            lines += [f"[{group}]", *(f"{entry} = {value}" for entry, value in names.items())]
        (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        importlib.invalidate_caches()
        _forget()
        return tmp_path

    yield make
    _forget()
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


def _data() -> StageData:
    rows = [Record(prompt=tiny.words(3, index), response=tiny.words(2, 50 + index)) for index in range(4)]
    return StageData(Renderer(tiny.tokenizer()), rows)


TRAINING = TrainingSettings(learning_rate=1e-2, max_steps=3, batch_size=2)


def test_a_package_adds_a_method_by_public_names_and_its_entry_point_names_it(install: Install) -> None:
    install("zobkit", METHOD, {REPAIRS: {"zob-bent": "zobkit:zob"}})
    method = method_named("zob-bent")
    assert method.name == "zob-bent"
    assert method.plug_in is not None and method.plug_in.package == "zobkit"
    assert method.configure({}).model_dump()["bend"] == 1.0
    assert "zob" not in methods()


def test_every_method_of_this_package_can_be_used() -> None:
    for known in (methods(), defenses("alignment"), defenses("finetuning")):
        assert {method.plug_in for method in known.values()} == {None}
        assert known and isinstance(known, Installed) and not known.unusable


def test_what_a_method_raises_names_its_package(install: Install) -> None:
    install("zobkit", METHOD, {REPAIRS: {"zob": "zobkit:zob"}})
    method = method_named("zob")

    class Site:
        update_OI = torch.tensor([[-2.0, 1.0]])

    assert torch.equal(method.run(method.configure({}), Site()), torch.tensor([[2.0, 1.0]]))
    with pytest.raises(
        UserError, match=r"^repair method 'zob' of the package zobkit failed: KeyError: 3\.0: update zobkit"
    ):
        method.run(method.configure({"bend": 3}), Site())
    with pytest.raises(UserError, match=r"^bend 2 is too far: lower it$"):
        method.run(method.configure({"bend": 2}), Site())


def test_memory_that_runs_out_is_no_fault_of_a_method(install: Install) -> None:
    install("zobkit", METHOD, {REPAIRS: {"zob": "zobkit:zob"}})
    with pytest.raises(MemoryError), method_named("zob").attributed_errors():
        raise MemoryError


def test_what_this_package_raises_stays_as_it_is() -> None:
    with pytest.raises(KeyError), method_named("antidote").attributed_errors():
        raise KeyError("ours")


def test_a_defense_of_another_package_trains(install: Install) -> None:
    install("zobkit", DEFENSE, {DEFENSES: {"stubborn": "zobkit:stubborn"}})
    defense = defense_named("alignment", "stubborn")
    result = run_stage(llama(), _data(), defense, TRAINING, defense.configure({"fails_at": 9}))
    assert result.training.steps == 3


def test_what_a_defense_raises_while_it_trains_names_its_package(install: Install) -> None:
    install("zobkit", DEFENSE, {DEFENSES: {"stubborn": "zobkit:stubborn"}})
    defense = defense_named("alignment", "stubborn")
    with pytest.raises(
        UserError, match=r"^alignment defense 'stubborn' of the package zobkit failed: ZeroDivisionError: mip"
    ):
        run_stage(llama(), _data(), defense, TRAINING)
    with pytest.raises(UserError, match=r"package zobkit failed: TypeError: it must return a TrainingJob"):
        defense.job(_data(), TRAINING, defense.configure({"returns_nothing": True}))


BROKEN = {
    "import": ("import zob_that_is_nowhere", "ModuleNotFoundError: No module named 'zob_that_is_nowhere'"),
    "crash": ("raise ValueError('mip. mop.')", "ValueError: mip. mop"),
    "exit": ("raise SystemExit('mip')", "SystemExit: mip"),
    "missing": ("", "AttributeError: module 'zobkit' has no attribute 'zob'"),
    "undecorated": ("def zob(site): ...", "zobkit:zob is not a repair method: its function lacks"),
    "setting": (METHOD.replace("[float,", "[dict,"), "setting 'bend' of zob cannot become an option"),
    "type": (METHOD.replace("bend: Annotated[float, Field(ge=0,", "norm_power: Annotated[str, Field("), "is str, but"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_method_that_cannot_be_used_is_named_with_its_package(
    case: str, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    source, reason = BROKEN[case]
    install("zobkit", source, {REPAIRS: {"zob": "zobkit:zob"}})
    assert method_named("antidote").name == "antidote"
    (warning,) = caplog.messages
    with pytest.raises(UserError) as raised:
        method_named("zob")
    assert str(raised.value) == warning
    assert warning.startswith("repair method 'zob' of the package zobkit") and reason in warning
    assert "\n" not in warning


def test_two_packages_with_one_name_are_both_named(install: Install) -> None:
    install("zobkit", METHOD, {REPAIRS: {"zob": "zobkit:zob", "magnitude": "zobkit:zob"}})
    install("mopkit", METHOD, {REPAIRS: {"zob": "mopkit:zob"}})
    with pytest.raises(UserError, match=r"^mopkit and zobkit each have a repair method 'zob': uninstall one"):
        method_named("zob")
    with pytest.raises(UserError, match=r"^antidote-llm and zobkit each have a repair method 'magnitude'"):
        method_named("magnitude")
    assert method_named("antidote").name == "antidote"


def test_what_is_installed_is_listed_without_importing_it(install: Install) -> None:
    install("zobkit", "raise ValueError", {REPAIRS: {"zob": "zobkit:zob"}})
    (found,) = plug_ins(REPAIRS, "repair method")["zob"]
    assert (found.package, found.is_own) == ("zobkit", False)
    assert "zobkit" not in sys.modules


def _settings(hint: Any) -> Any:
    def mip(site: Any, *, bend: Any = None) -> None: ...

    mip.__annotations__["bend"] = hint
    return settings_model(mip, MethodSettings)


@pytest.mark.parametrize(
    "hint",
    [
        bool,
        int,
        float,
        str,
        Path,
        Literal["a", "b"],
        int | None,
        Annotated[float | None, Field(gt=0)],
        Literal["a"] | None,
    ],
)
def test_settings_that_can_become_options_are_taken(hint: Any) -> None:
    assert "bend" in _settings(hint).model_fields


@pytest.mark.parametrize(
    "hint",
    [
        dict,
        dict[str, int],
        Callable[[], None],
        int | str,
        int | str | None,
        list[int],
        Literal[1, 2],
        Any,
        None,
        Annotated[list[str], Field(description="names")],
        "Nowhere",
    ],
)
def test_a_setting_that_cannot_become_an_option_is_refused_when_it_is_declared(hint: Any) -> None:
    with pytest.raises(UserError, match=r"^setting 'bend' of mip cannot become an option \(.*declare it as bool, int"):
        _settings(hint)


def test_parameters_that_are_no_settings_are_refused_when_they_are_declared() -> None:
    def positional(site: Any, bend: float = 1.0) -> None: ...

    def anything(site: Any, **bends: float) -> None: ...

    def untyped(site: Any, *, bend: float = 1.0) -> None: ...

    del untyped.__annotations__["bend"]
    for function, words in (
        (positional, r"setting 'bend' of positional is positional: put a \* before the settings"),
        (anything, "parameter 'bends' of anything takes any arguments"),
        (untyped, r"setting 'bend' of untyped cannot become an option \(it has no type\)"),
    ):
        with pytest.raises(UserError, match=words):
            settings_model(function, MethodSettings)


def test_types_that_only_checkers_import_are_not_looked_up() -> None:
    def mip(site: Any, *, bend: float = 1.0) -> None: ...

    mip.__annotations__["site"] = "NowhereAtAll"
    assert list(settings_model(mip, MethodSettings).model_fields) == ["bend"]


def test_a_setting_without_a_default_must_be_passed() -> None:
    def mip(site: Any, *, bend: float) -> None: ...

    with pytest.raises(UserError, match=r"^mip needs a value of bend: pass it$"):
        Method("mip", mip, settings_model(mip, MethodSettings)).configure({})


COMMANDS = """
import sys
from antidote_llm.cli.main import run
for arguments in (["align", "--help"], ["align", "m", "--data", "d", "--out", "o", "--defense", "mop"]):
    print("CODE", run(arguments), flush=True)
"""


def test_a_broken_plugin_breaks_no_command_that_does_not_use_it(install: Install) -> None:
    install("zobkit", DEFENSE.replace("fails_at", "out"), {DEFENSES: {"stubborn": "zobkit:stubborn"}})
    folder = install("mopkit", "raise ValueError('mip')", {DEFENSES: {"mop": "mopkit:mop"}})
    ran = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    broken = "alignment defense 'mop' of the package mopkit cannot be loaded: ValueError: mip: reinstall mopkit"
    assert "CODE 0" in ran.stdout and "CODE 2" in ran.stdout, ran.stderr
    assert "--returns-nothing" in ran.stdout
    lines = ran.stderr.splitlines()
    assert {f"warning: {broken} and what it needs", f"error: {broken} and what it needs"} < set(lines)
    assert any(
        line.startswith("warning: the setting 'out' of alignment defense 'stubborn' of the package zobkit")
        for line in lines
    )
