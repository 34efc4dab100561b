"""Links that lead out of a folder are refused, except those of the Hub's cache."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from antidote_llm.errors import UserError
from antidote_llm.io.safe_paths import is_plain_name, is_plain_path, require_enclosed, require_inside

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


def lay(folder: Path, entries: Mapping[str, str]) -> None:
    """Make links (``-> TARGET``), pipes (``|``), sockets (``=``), folders (``/``) and files of any other text."""
    for name, kind in entries.items():
        path = folder / name
        if kind.startswith("-> "):
            path.symlink_to(kind.removeprefix("-> "))
        elif kind == "|":
            os.mkfifo(path)
        elif kind == "=":
            with socket.socket(socket.AF_UNIX) as made:
                # The name of a socket may not be long.
                made.bind(os.path.relpath(path))
        elif kind == "/":
            path.mkdir()
        else:
            path.write_text(kind)


OUT = "out of the folder"
REFUSED: dict[str, tuple[dict[str, str], str, str]] = {
    "relative": ({"x.txt": "-> ../secret"}, "x.txt", OUT),
    "absolute": ({"x.txt": "-> /etc/hosts"}, "x.txt", OUT),
    "hidden": ({".env": "-> ../secret"}, ".env", OUT),
    "nested": ({"inside/x": "-> ../../secret"}, "inside/x", OUT),
    "a folder": ({"more": "-> ../elsewhere"}, "more", OUT),
    "its parent": ({"more": "-> .."}, "more", "in itself"),
    "itself": ({"more": "-> ."}, "more", "in itself"),
    "the root": ({"more": "-> /"}, "more", "in itself"),
    "a device": ({"zero.json": "-> /dev/zero"}, "zero.json", OUT),
    "nothing": ({"x": "-> nowhere"}, "x", "where there is nothing"),
    "below a file": ({"x": "-> config.json/x"}, "x", "where there is nothing"),
    "a loop": ({"x": "-> x"}, "x", "cannot be followed"),
    "by way of a link inside": ({"y": "-> ../secret", "x": "-> y"}, "x", OUT),
    "a name that begins as the folder's": ({"../model-2": "/", "x": "-> ../model-2"}, "x", OUT),
    "a pipe": ({"vocab.json": "|"}, "vocab.json", "a pipe"),
    "a pipe inside": ({"inside/b.jinja": "|"}, "inside/b.jinja", "a pipe"),
    "a link to a pipe": ({"p": "|", "a": "-> p"}, "a", "a pipe"),
    "a socket": ({"s.json": "="}, "s.json", "a socket"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_link_that_leads_out_is_named(
    kind: str, through_a_link: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entries, name, problem = REFUSED[kind]
    lay(folder, entries)
    if through_a_link:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    with pytest.raises(UserError, match=problem) as raised:
        require_enclosed(folder)
    assert name in str(raised.value) and str(folder) in str(raised.value)


def test_links_inside_the_folder_are_allowed(folder: Path) -> None:
    (folder / "chat_template.jinja").symlink_to("inside/a.jinja")
    (folder / "additional_chat_templates").symlink_to("inside")
    (folder / "inside" / "absolute").symlink_to(folder.resolve() / "config.json")
    require_enclosed(folder)


def test_a_hard_link_is_not_noticed(folder: Path) -> None:
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


LOOK_ALIKES: dict[str, dict[str, str]] = {
    "through the blobs": {"x": "-> ../../blobs/../../../secret"},
    "a blob that is a link": {"../../blobs/d": "-> ../../../secret", "x": "-> ../../blobs/d"},
    "another snapshot": {"../4567": "/", "../4567/f": "f", "x": "-> ../4567/f"},
    "the repository's refs": {"../../refs": "0123", "x": "-> ../../refs"},
    "all blobs": {"x": "-> ../../blobs"},
    "shared blobs of no hash": {"../../../blobs/ab/notes": "n", "x": "-> ../../../blobs/ab/notes"},
    "blobs of another repository": {
        "../../../models--org--other": "/",
        "../../../models--org--other/blobs": "/",
        "../../../models--org--other/blobs/a": "a",
        "x": "-> ../../../models--org--other/blobs/a",
    },
}


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_a_look_alike_of_the_hubs_layout_is_refused(kind: str, snapshot: Path) -> None:
    lay(snapshot, LOOK_ALIKES[kind])
    with pytest.raises(UserError, match=r"/x: a link that leads out of the folder"):
        require_enclosed(snapshot)


def test_blobs_that_are_a_link_themselves_are_refused(snapshot: Path, tmp_path: Path) -> None:
    blobs = (snapshot.parent.parent / "blobs").rename(tmp_path / "elsewhere")
    (snapshot.parent.parent / "blobs").symlink_to(blobs)
    with pytest.raises(UserError, match=r"out of the folder, to .*elsewhere"):
        require_enclosed(snapshot)


def test_the_layout_counts_only_in_a_repository(snapshot: Path, tmp_path: Path) -> None:
    snapshot.parent.parent.rename(tmp_path / "hub" / "name")
    with pytest.raises(UserError, match="out of the folder"):
        require_enclosed(tmp_path / "hub" / "name" / "snapshots" / "0123")


def test_one_file_of_a_folder_is_checked_alone(folder: Path) -> None:
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
def test_names_that_are_not_plain(name: str) -> None:
    assert not is_plain_name(name)


def test_plain_paths() -> None:
    assert is_plain_name("weights of today.json") and is_plain_path("a/b.json")
    assert not any(map(is_plain_path, ["a//b", "/a", "a/", "../a", "a/../b", "a/.b", ""]))
