"""What is found inside a folder stays inside it, the Hub's cache apart."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from antidote_llm.artifacts.enclosure import is_plain_name, is_plain_path, require_enclosed, require_inside
from antidote_llm.errors import UserError

HASH = "ab" + "0" * 62


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "inside").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "inside" / "a.jinja").write_text("a")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    return folder


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "absolute": (lambda f: (f / "x.txt").symlink_to(f.parent / "secret"), "x.txt", "out of the folder"),
    "relative": (lambda f: (f / "x.txt").symlink_to("../secret"), "x.txt", "out of the folder"),
    "hidden": (lambda f: (f / ".env").symlink_to("../secret"), ".env", "out of the folder"),
    "nested": (lambda f: (f / "inside" / "x").symlink_to("../../secret"), "inside/x", "out of the folder"),
    "a folder": (lambda f: (f / "more").symlink_to("../elsewhere"), "more", "out of the folder"),
    "its parent": (lambda f: (f / "more").symlink_to(".."), "more", "in itself"),
    "itself": (lambda f: (f / "more").symlink_to("."), "more", "in itself"),
    "the root": (lambda f: (f / "more").symlink_to("/"), "more", "in itself"),
    "a device": (lambda f: (f / "zero.json").symlink_to("/dev/zero"), "zero.json", "out of the folder"),
    "nothing": (lambda f: (f / "x").symlink_to("nowhere"), "x", "where there is nothing"),
    "below a file": (lambda f: (f / "x").symlink_to("config.json/x"), "x", "where there is nothing"),
    "a loop": (lambda f: (f / "x").symlink_to("x"), "x", "cannot be followed"),
    "by way of a link inside": (
        lambda f: ((f / "y").symlink_to("../secret"), (f / "x").symlink_to("y")),
        "x",
        "out of the folder",
    ),
    "a name that begins as the folder's": (
        lambda f: ((f.parent / "model-2").mkdir(), (f / "x").symlink_to("../model-2")),
        "x",
        "out of the folder",
    ),
    "a pipe": (lambda f: os.mkfifo(f / "vocab.json"), "vocab.json", "a pipe"),
    "a pipe inside": (lambda f: os.mkfifo(f / "inside" / "b.jinja"), "b.jinja", "a pipe"),
    "a link to a pipe": (
        lambda f: (os.mkfifo(f / "p"), (f / "a").symlink_to("p")),
        "a",
        "a pipe",
    ),
    "a socket": (lambda f: _socket(f / "s.json"), "s.json", "a socket"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_leads_out_is_named(
    kind: str, through_a_link: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, name, problem = REFUSED[kind]
    make(folder)
    if through_a_link:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    with pytest.raises(UserError, match=problem) as raised:
        require_enclosed(folder)
    assert name in str(raised.value) and str(folder) in str(raised.value)


def test_what_stays_inside_is_left_alone(folder: Path) -> None:
    (folder / "chat_template.jinja").symlink_to("inside/a.jinja")
    (folder / "additional_chat_templates").symlink_to("inside")
    (folder / "inside" / "absolute").symlink_to(folder.resolve() / "config.json")
    require_enclosed(folder)


def test_a_hard_link_cannot_be_told(folder: Path) -> None:
    os.link(folder.parent / "secret", folder / "x.txt")
    require_enclosed(folder)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot in a Hub's cache, with a file of its repository's blobs."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0123"
    for made in (snapshot / "inside", repository / "blobs", tmp_path / "hub" / "blobs" / "ab"):
        made.mkdir(parents=True)
    (repository / "blobs" / "abc").write_text("{}")
    (tmp_path / "hub" / "blobs" / "ab" / HASH).write_text("shared")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "inside" / "a.jinja").symlink_to("../../../blobs/abc")
    return snapshot


@pytest.mark.parametrize("place", ["", "inside"])
def test_the_hubs_own_layout_is_allowed(snapshot: Path, tmp_path: Path, place: str) -> None:
    repository = snapshot.parent.parent
    (repository / "blobs" / "def").symlink_to(f"../../blobs/ab/{HASH}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/def")
    require_enclosed(snapshot / place)
    (tmp_path / "linked").symlink_to(tmp_path / "hub")
    require_enclosed(tmp_path / "linked" / snapshot.relative_to(tmp_path / "hub") / place)


def _blobs_elsewhere(snapshot: Path) -> None:
    blobs = snapshot.parent.parent / "blobs"
    blobs.rename(snapshot.parents[3] / "elsewhere")
    blobs.symlink_to("../../elsewhere")


LOOK_ALIKES: dict[str, Callable[[Path], object]] = {
    "through the blobs": lambda s: (s / "x").symlink_to("../../blobs/../../../secret"),
    "a blob that is a link": lambda s: (
        (s.parent.parent / "blobs" / "d").symlink_to("../../../secret"),
        (s / "x").symlink_to("../../blobs/d"),
    ),
    "blobs that are a link": _blobs_elsewhere,
    "another snapshot": lambda s: (
        (s.parent / "4567").mkdir(),
        (s.parent / "4567" / "f").write_text("f"),
        (s / "x").symlink_to("../4567/f"),
    ),
    "the repository's refs": lambda s: ((s.parent.parent / "refs").write_text(""), (s / "x").symlink_to("../../refs")),
    "all blobs": lambda s: (s / "x").symlink_to("../../blobs"),
    "shared blobs of no hash": lambda s: (
        (s.parents[2] / "blobs" / "ab" / "notes").write_text(""),
        (s / "x").symlink_to("../../../blobs/ab/notes"),
    ),
}


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_a_look_alike_of_the_hubs_layout_is_refused(kind: str, snapshot: Path) -> None:
    LOOK_ALIKES[kind](snapshot)
    with pytest.raises(UserError, match=r"out of the folder|where there is nothing"):
        require_enclosed(snapshot)


def test_the_layout_counts_in_a_repository_alone(snapshot: Path, tmp_path: Path) -> None:
    snapshot.parent.parent.rename(tmp_path / "hub" / "name")
    with pytest.raises(UserError, match="out of the folder"):
        require_enclosed(tmp_path / "hub" / "name" / "snapshots" / "0123")


def test_one_file_of_a_folder_is_looked_at_alone(folder: Path) -> None:
    (folder / "x.txt").symlink_to("../secret")
    assert require_inside(folder, "inside/a.jinja") == folder / "inside" / "a.jinja"
    assert require_inside(folder, "nothing/here") == folder / "nothing" / "here"
    with pytest.raises(UserError, match=r"x\.txt.*out of the folder"):
        require_inside(folder, "x.txt")
    (folder / "record").symlink_to("../elsewhere")
    with pytest.raises(UserError, match=r"record.*out of the folder"):
        require_inside(folder, "record/patch.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "/a",
        "a\\b",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "\udc80",
        "a" * 256,
        "é" * 128,
        "\u202e",
    ],
)
def test_what_is_no_plain_name(name: str) -> None:
    assert not is_plain_name(name)


def test_plain_paths() -> None:
    assert is_plain_name("weights of today.json") and is_plain_path("a/b.json")
    assert not any(map(is_plain_path, ["a//b", "/a", "a/", "../a", "a/../b", "a/.b", ""]))
