"""A result folder is complete or missing, and is never mistaken for another."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from antidote_llm.errors import UserError
from antidote_llm.io import result_folder as folders
from antidote_llm.io.files import atomic_writer, lock, write_bytes
from antidote_llm.io.result_folder import ResultFolder

MANIFEST = {"what": "a test", "from": {"a": 1}}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def made(path: Path, manifest: dict[str, object] | None = None) -> ResultFolder:
    result = ResultFolder(path, manifest or MANIFEST)
    with result as staging:
        (staging / "answer").write_text("42")
    return result


def test_the_result_appears_at_the_end_with_its_manifest(tmp_path: Path) -> None:
    result = ResultFolder(tmp_path / "out", MANIFEST, manifest_at="record/manifest.json")
    assert not result.finished
    with result as staging:
        (staging / "answer").write_text("42")
        assert not (tmp_path / "out").exists()
    assert result.finished
    assert names(tmp_path) == ["out", "out/answer", "out/record", "out/record/manifest.json"]
    assert json.loads((tmp_path / "out" / "record" / "manifest.json").read_text()) == MANIFEST


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_not_even_parents(tmp_path: Path, problem: type[BaseException]) -> None:
    with pytest.raises(problem), ResultFolder(tmp_path / "deep" / "down" / "out", MANIFEST) as staging:
        (staging / "answer").write_text("42")
        raise problem
    assert names(tmp_path) == []


def test_an_error_leaves_parents_that_were_there_or_that_others_use(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError), ResultFolder(tmp_path / "mine" / "new" / "out", MANIFEST):
        (tmp_path / "mine" / "new" / "other").write_text("")
        raise ValueError
    assert names(tmp_path) == ["mine", "mine/new", "mine/new/other"]


@pytest.mark.parametrize("step", ["write_json", "fsync_tree"])
def test_an_error_while_finishing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, step, full)
    with pytest.raises(UserError, match=r"out: No space left.*another out"):
        made(tmp_path / "out")
    assert names(tmp_path) == []


def test_something_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"), ResultFolder(tmp_path / "out", MANIFEST):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "other").write_text("theirs")
    assert names(tmp_path) == ["out", "out/other"]


def test_a_finished_result_is_not_started_again(tmp_path: Path) -> None:
    result = made(tmp_path / "out")
    with pytest.raises(UserError, match="already finished"), result:
        pytest.fail("begun")
    assert (tmp_path / "out" / "answer").read_text() == "42"


def test_the_order_of_a_manifest_does_not_matter(tmp_path: Path) -> None:
    made(tmp_path / "out")
    assert ResultFolder(tmp_path / "out", dict(reversed(MANIFEST.items()))).finished


def test_another_result_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "out")
    with pytest.raises(UserError, match="other inputs or settings"):
        _ = ResultFolder(tmp_path / "out", {**MANIFEST, "from": {"a": 2}}).finished


@pytest.mark.parametrize("text", ["{", "NaN", "null", '{"what": NaN}', "\xff"])
def test_a_manifest_that_cannot_be_read_is_another_result(tmp_path: Path, text: str) -> None:
    made(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="other inputs or settings"):
        _ = ResultFolder(tmp_path / "out", MANIFEST).finished


def test_files_that_are_no_result_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("")
    for name in ("folder", "folder/mine"):
        with pytest.raises(UserError, match="not a result"):
            _ = ResultFolder(tmp_path / name, MANIFEST).finished


def test_an_empty_folder_is_filled_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "empty")
    assert made(tmp_path / "out").finished
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "empty" / "answer").read_text() == "42"


def test_a_mount_point_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    with pytest.raises(UserError, match="mount point: name a new folder inside"):
        _ = ResultFolder(tmp_path / "out", MANIFEST).finished


def killed_while_writing(path: Path, manifest: dict[str, object]) -> Path:
    """Leave what a process leaves that was killed: no clean-up, and the lock gone with it."""
    script = (
        "import json, os, pathlib, sys\n"
        "from antidote_llm.io.result_folder import ResultFolder\n"
        "result = ResultFolder(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))\n"
        "(result.__enter__() / 'half').write_text('4')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path), json.dumps(manifest)]).returncode == -9
    return ResultFolder(path, manifest).staging


@pytest.mark.parametrize("manifest", [MANIFEST, {**MANIFEST, "what": "another"}])
def test_remains_of_a_killed_process_are_removed(tmp_path: Path, manifest: dict[str, object]) -> None:
    assert (killed_while_writing(tmp_path / "out", manifest) / "half").is_file()
    made(tmp_path / "out")
    assert names(tmp_path) == ["out", "out/answer", "out/manifest.json"]


@pytest.mark.parametrize("manifest", [MANIFEST, {**MANIFEST, "what": "another"}])
def test_a_second_writer_is_refused(tmp_path: Path, manifest: dict[str, object]) -> None:
    with ResultFolder(tmp_path / "out", MANIFEST) as staging:
        (staging / "answer").write_text("42")
        with pytest.raises(UserError, match="being written by another process"):
            made(tmp_path / "out", manifest)
    assert names(tmp_path) == ["out", "out/answer", "out/manifest.json"]


def test_remains_of_a_killed_write_are_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from antidote_llm.io.files import atomic_writer\n"
        "with atomic_writer(pathlib.Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'half')\n"
        "    stream.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "a[1].json")]).returncode == -9
    assert len(names(tmp_path)) == 1
    with atomic_writer(tmp_path / "a[1].json") as mine:
        mine.write(b"one")
        write_bytes(tmp_path / "a[1].json", b"another")
    assert names(tmp_path) == ["a[1].json"]
    assert (tmp_path / "a[1].json").read_bytes() == b"one"


def test_a_result_whose_name_has_the_same_start_is_no_second_writer(tmp_path: Path) -> None:
    with ResultFolder(tmp_path / "out.alpha0.3", MANIFEST) as staging:
        (staging / "answer").write_text("42")
        made(tmp_path / "out")
    assert names(tmp_path / "out.alpha0.3") == names(tmp_path / "out") == ["answer", "manifest.json"]


def test_a_folder_that_another_process_removes_in_between_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def removed_once(path: Path) -> int | None:
        calls.append(path)
        if len(calls) == 1:
            path.rmdir()
        return lock(path)

    monkeypatch.setattr(folders, "lock", removed_once)
    made(tmp_path / "deep" / "out")
    assert len(calls) == 2
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/answer", "deep/out/manifest.json"]


def _at_work(path: Path, manifest: dict[str, Any], problem: type[BaseException] | None) -> ResultFolder:
    """Keep something to go on from, and end."""
    result = ResultFolder(path, manifest)
    with suppress(UserError, KeyboardInterrupt), result as staging:
        result.work.mkdir(parents=True, exist_ok=True)
        (result.work / "checkpoint").write_text("7")
        (staging / "answer").write_text("42")
        if problem is not None:
            raise problem
    return result


def test_work_to_resume_from_survives_an_interrupt_but_not_a_user_error(tmp_path: Path) -> None:
    interrupted = _at_work(tmp_path / "deep" / "out", MANIFEST, KeyboardInterrupt)
    assert (interrupted.work / "checkpoint").read_text() == "7"
    assert names(tmp_path) == ["deep", f"deep/{interrupted.work.name}", f"deep/{interrupted.work.name}/checkpoint"]
    _at_work(tmp_path / "deep" / "out", MANIFEST, UserError)
    assert names(tmp_path) == ["deep"]


def test_a_result_removes_work_to_resume_from_also_of_other_settings(tmp_path: Path) -> None:
    for manifest in ({"what": "another"}, MANIFEST):
        assert _at_work(tmp_path / "out", manifest, KeyboardInterrupt).work.is_dir()
    elsewhere = _at_work(tmp_path / "outer", MANIFEST, KeyboardInterrupt).work
    made(tmp_path / "out")
    assert names(tmp_path) == [elsewhere.name, f"{elsewhere.name}/checkpoint", "out", "out/answer", "out/manifest.json"]


def test_work_left_by_a_kill_after_the_last_step_is_removed_when_the_result_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def killed_behind(self: Path, target: Path) -> Path:
        rename(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", killed_behind)
        result = _at_work(tmp_path / "out", MANIFEST, None)
    # Until then the work to resume from is kept, so that no kill loses both.
    assert result.work.exists() and result.finished
    assert names(tmp_path) == ["out", "out/answer", "out/manifest.json"]


def test_an_interrupt_at_the_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "lock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "deep" / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_of_a_failing_disk_says_what_is_kept(tmp_path: Path, number: int) -> None:
    result = ResultFolder(tmp_path / "out", MANIFEST)
    way = f"same command again, which goes on from {result.work}, or remove"
    with pytest.raises(UserError, match=way) as said, result:
        result.work.mkdir()
        (result.work / "checkpoint").write_text("7")
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(said.value) and names(tmp_path)[0] == result.work.name


def test_work_that_no_run_can_resume_from_is_not_kept(tmp_path: Path) -> None:
    result = ResultFolder(tmp_path / "deep" / "out", MANIFEST, resumable=lambda work: False)
    with pytest.raises(UserError, match="No space left on device: choose another out"), result:
        result.work.mkdir()
        (result.work / "half").write_text("7")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_rename_that_does_not_reach_the_disk_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as broken, pytest.raises(UserError, match="Input/output error"):
        broken.setattr(folders, "fsync_folder", failing)
        made(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert made(tmp_path / "out").finished


def test_a_sealed_result_counts_as_finished_only_if_unchanged(tmp_path: Path) -> None:
    def sealed() -> ResultFolder:
        return ResultFolder(tmp_path / "out", MANIFEST, sealed=("*",))

    with sealed() as staging:
        (staging / "answer").write_text("42")
        (staging / "README.md").write_text("ours")
    (tmp_path / "out" / "README.md").write_text("mine")
    assert sealed().finished
    (tmp_path / "out" / "answer").write_text("43")
    with pytest.raises(UserError, match=r"changed since it was finished \(answer\)"):
        _ = sealed().finished
