"""The safetensors codec reads headers strictly, naming what contradicts itself, and writes those that others read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from antidote_llm.errors import DefectError, UserError
from antidote_llm.io.safetensors_files import FLOAT_BYTES, TensorEntry, encode_header, open_tensor_file
from antidote_llm.io.torch_tensors import DTYPE_NAMES, DTYPES, FLOAT_DTYPES, tensor_bytes

Header = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.tensor(7.0)}, path, {"k": "v"})
    return path


def with_header(path: Path, change: Callable[[Header], object]) -> None:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    raw = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])


def entry(name: str, **changes: object) -> Callable[[Header], Header]:
    return lambda header: {**header, name: {**header[name], **changes}}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES.values())
def test_tensors_are_read_in_their_own_type(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"w": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype), "e": torch.zeros(0, 4)}
    save_file({"w": tensors["w"], "e": tensors["e"].to(dtype)}, tmp_path / "w.safetensors")
    file = open_tensor_file(tmp_path / "w.safetensors")
    assert torch.equal(file.read("w"), tensors["w"]) and file.read("w").dtype == dtype
    assert file.read("e").shape == (0, 4)
    assert bytes(file.read_bytes("w")) == tensors["w"].view(torch.uint8).numpy().tobytes()


def test_scalars_metadata_and_size_are_read(path: Path) -> None:
    file = open_tensor_file(path)
    assert file.read("c").item() == 7
    assert (file.metadata, file.size_bytes) == ({"k": "v"}, path.stat().st_size)
    assert file.entries["a"].shape == (2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entry("a", shape=[2, 4]), "malformed"),
        (entry("a", dtype="F64"), "malformed"),
        (entry("a", dtype="Z9"), "malformed"),
        (entry("a", data_offsets=[4, 28]), "malformed.*offset"),
        (entry("c", data_offsets=[0, 4]), "malformed.*offset"),
        (entry("a", data_offsets=[0, 24.0]), "malformed.*floating point"),
        (entry("a", data_offsets=["0", "24"]), "malformed.*string"),
        (entry("a", data_offsets=[False, 24]), "malformed.*boolean"),
        (entry("a", data_offsets=[-24, 0]), "malformed.*-24"),
        (entry("a", data_offsets=[0, float("inf")]), "malformed"),
        (entry("a", data_offsets=[0, float("nan")]), "malformed"),
        (entry("a", data_offsets=[0, 10**30]), "malformed"),
        (entry("a", shape=[2.0, 3.0]), "malformed.*floating point"),
        (entry("a", shape=[True, 6]), "malformed.*boolean"),
        (entry("a", shape=[-2, -3]), "malformed"),
        (entry("a", shape=[10**30]), "malformed"),
        (entry("a", shape=[2**63, 2, 0]), "malformed.*overflow"),
        (entry("a", shape=None), "malformed"),
        (entry("a", shape="six"), "malformed"),
        (entry("a", data_offsets=[1]), "malformed"),
        (lambda header: {**header, "__metadata__": [1]}, "malformed"),
        (lambda header: {**header, "__metadata__": {"k": 1}}, "malformed"),
        (lambda header: {**header, "__metadata__": {"k": "\ud800"}}, "malformed"),
        (lambda header: {("\ud800" if key == "a" else key): each for key, each in header.items()}, "malformed"),
        (lambda header: {("a" * 20_000 if key == "a" else key): each for key, each in header.items()}, "no name"),
        (lambda header: {("" if key == "a" else key): each for key, each in header.items()}, "no name"),
        (lambda header: {"a": 1}, "malformed"),
        (lambda header: [1], "malformed"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    path: Path, change: Callable[[Header], object], message: str
) -> None:
    with_header(path, change)
    with pytest.raises(UserError, match=rf"w\.safetensors: .*{message}") as caught:
        open_tensor_file(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed.*recursion"),
        (b'{"\xff":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', "malformed.*UTF-8"),
        (b"null", "malformed"),
        (b"{}\0\0\0\0\0\0", "malformed"),
        (b'{"a":%s,"a":%s}' % ((b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}',) * 2), "name twice"),
        (b'{"__metadata__":{"k":"1","k":"2"}}', "name twice"),
    ],
)
def test_a_header_that_is_no_plain_object_is_refused(path: Path, raw: bytes, message: str) -> None:
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(UserError, match=rf"w\.safetensors: .*{message}") as caught:
        open_tensor_file(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [0, 1, 1 << 62, (1 << 64) - 1])
def test_a_header_of_an_absurd_length_is_refused(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(UserError, match=r"w\.safetensors: truncated or not a safetensors file"):
        open_tensor_file(path)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F8_E4M3FNUZ", "C64"])
def test_other_types_are_listed_with_their_bytes(path: Path, dtype: str) -> None:
    size = 8 if dtype == "C64" else 1
    raw = json.dumps({"a": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(range(3 * size)))
    file = open_tensor_file(path)
    assert bytes(file.read_bytes("a")) == bytes(range(3 * size))


def test_a_pipe_is_refused_without_waiting(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"w\.safetensors: not a file"):
        open_tensor_file(path)
    with pytest.raises(UserError, match="not a file"):
        open_tensor_file(path.parent)


def test_a_header_that_changes_while_it_is_read_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antidote_llm.io.safetensors_files.safe_open", lambda path, framework: nullcontext())
    with_header(path, entry("a", data_offsets=["x", 24]))
    with pytest.raises(UserError, match="changed while it was read"):
        open_tensor_file(path)


def test_a_file_cut_at_any_byte_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"w\.safetensors: .*fetch"):
            open_tensor_file(path)


def test_a_file_that_shrinks_after_its_header_was_read_is_noticed(path: Path) -> None:
    file = open_tensor_file(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"w\.safetensors changed while it was read"):
        file.read("a")
        file.read("c")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    save_file({"w": torch.tensor([1.0, value])}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="'w' holds NaN or infinite"):
        open_tensor_file(tmp_path / "w.safetensors").read("w")


def test_integers_are_listed_but_not_read_as_weights(tmp_path: Path) -> None:
    save_file({"i": torch.tensor([1, 2])}, tmp_path / "w.safetensors")
    file = open_tensor_file(tmp_path / "w.safetensors")
    assert file.entries["i"].dtype == "I64"
    with pytest.raises(UserError, match="only floating-point"):
        file.read("i")


def test_tensors_are_compared_bit_for_bit_and_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antidote_llm.io.safetensors_files.BLOCK_ENTRIES", 3)
    values = torch.arange(8.0)
    held = {"a": values, "last": torch.cat([values[:-1], values[:1]]), "-0": torch.cat([-values[:1], values[1:]])}
    held |= {"shape": values.clone().reshape(2, 4), "type": values.to(torch.int32), "twin": values.clone()}
    save_file(held, tmp_path / "w.safetensors")
    file = open_tensor_file(tmp_path / "w.safetensors")
    read: list[int] = []
    read_range = type(file)._read_range

    def watched(self: Any, entry: Any) -> bytearray:
        read.append(entry.end - entry.begin)
        return read_range(self, entry)

    monkeypatch.setattr(type(file), "_read_range", watched)
    assert [key for key in file.entries if file.holds_the_same("a", file, key)] == ["a", "twin"]
    assert max(read) == 3 * 4


def parts(path: Path) -> tuple[list[TensorEntry], dict[str, str], bytes]:
    """Return what a header says, ranges counted from the start of the data, and the data."""
    file, data = open_tensor_file(path), path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    entries = [
        TensorEntry(entry.key, entry.dtype, entry.shape, entry.begin - start, entry.end - start)
        for entry in file.entries.values()
    ]
    return entries, dict(file.metadata), data[start:]


def test_a_header_has_the_bytes_of_the_formats_own_writer(path: Path) -> None:
    entries, metadata, data = parts(path)
    assert encode_header(entries, metadata) + data == path.read_bytes()


@pytest.mark.parametrize("compact", [True, False])
def test_every_type_can_be_written_and_read_by_the_formats_own_package(tmp_path: Path, compact: bool) -> None:
    tensors = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    entries, data = [], b""
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
        begin, data = len(data), data + bytes(tensor_bytes(tensors[name]))
        entries.append(TensorEntry(name, DTYPE_NAMES[tensors[name].dtype], (2, 3), begin, len(data)))
    written = encode_header(entries, {"k": "v"}, compact=compact) + data
    (tmp_path / "w.safetensors").write_bytes(written)
    found, file = load(written), open_tensor_file(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys() and file.metadata == {"k": "v"}
    for name, values in tensors.items():
        assert torch.equal(found[name], values) and found[name].dtype == values.dtype
        assert bytes(file.read_bytes(name)) == bytes(tensor_bytes(values))
    assert {name: dtype.itemsize for name, dtype in FLOAT_DTYPES.items()} == FLOAT_BYTES


def test_a_header_fills_the_room_that_was_kept_free_or_is_refused(path: Path) -> None:
    entries, metadata, data = parts(path)
    least = len(encode_header(entries, metadata))
    wider = encode_header(entries, metadata, size_bytes=least + 24)
    path.write_bytes(wider + data)
    assert len(wider) == least + 24 and parts(path) == (entries, metadata, data)
    with pytest.raises(DefectError, match="were kept free"):
        encode_header(entries, metadata, size_bytes=least - 1)
