"""An adapter on a base of packed weights: repaired as on any other, and the base itself never edited."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from antidote_llm.calibration.collect import collect
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.errors import UserError
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from tests import tiny
from tests.cli.command import Command, Place, edit_json, inputs, tree
from tests.conftest import Folders
from tests.repairs.brute_force import adapter_scores, masks

PACKED: Mapping[str, BitsAndBytesConfig] = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
IDS = torch.arange(5, 25).reshape(2, 10)
ROWS = [[5 + (seed * index) % 30 for index in range(4 + 3 * seed)] for seed in range(1, 6)]
FACTORS = "adapter_model.safetensors"


@pytest.fixture(scope="module", params=PACKED)
def packed(request: pytest.FixtureRequest, folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The tiny base with its weights packed, and an adapter on every linear layer of it."""
    root = tmp_path_factory.mktemp(request.param)
    base = tiny.write_model(root / "base", hidden_size=64, intermediate_size=128)
    adapter = tiny.write_adapter(root / "adapter", base, rank=4, targets=("q_proj", "v_proj", "down_proj"))
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=PACKED[request.param], dtype=torch.float32)
    model.save_pretrained(root / "packed")
    tiny.tokenizer().save_pretrained(root / "packed")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(root / "packed"))
    return Folders(root / "packed", adapter, folders.harmful)


@pytest.fixture
def place(packed: Folders, tmp_path: Path) -> Place:
    return inputs(tmp_path, packed)


def logits(base: Path, adapter: Path) -> Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def test_the_same_entries_are_zeroed_as_by_a_plain_loop(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    # Eight bits are computed with the outlying columns of a whole micro-batch apart: rows change each other's numbers.
    ids = ROWS[-1:] if 'load_in_8bit": true' in (place.base / "config.json").read_text() else ROWS
    rows = place.write("ids.jsonl", "".join(f'{{"input_ids": {row}}}\n' for row in ids))
    before = tree(place.base) | tree(place.adapter)
    command = ["repair", place.base, "--adapter", place.adapter, "--harmful", rows]
    Command(capsys).done(*command, "--alpha", 0.3, "--evaluate", "none", "--out", place.out)
    assert tree(place.base) | tree(place.adapter) == before
    tuned, repaired = load_file(place.adapter / FACTORS), load_file(place.out / "model" / FACTORS)
    wanted = masks(adapter_scores(place.base, [place.adapter], ids), 0.3)
    assert wanted.keys() == tuned.keys() == repaired.keys()
    for key, mask in wanted.items():
        assert torch.equal(repaired[key], tuned[key].masked_fill(mask, 0))
    assert torch.isfinite(logits(place.base, place.out / "model")).all()


def test_the_adapter_alone_opens_its_packed_base(packed: Folders) -> None:
    opened = load_model(str(packed.adapter))
    assert opened.base.folder == packed.base
    with torch.no_grad():
        assert torch.equal(opened.model(IDS).logits, logits(packed.base, packed.adapter))
    assert not any(parameter.requires_grad for parameter in opened.model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_that_of_what_is_not_packed(packed: Folders, dtype: str) -> None:
    wanted: torch.dtype = getattr(torch, dtype)
    opened = load_model(str(packed.base), str(packed.adapter), dtype=dtype)  # type: ignore[arg-type]
    assert opened.dtype == wanted
    with torch.no_grad():
        found = opened.model(IDS).logits
    assert found.dtype == wanted
    same = logits(packed.base, packed.adapter)
    assert torch.equal(found, same) if dtype == "float32" else torch.allclose(found.float(), same, atol=1.0)


def test_repaired_and_evaluated(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    held_out = tiny.write_rows(place.root / "held-out.jsonl", count=4, seed=9)
    asked = ["--evaluate", held_out, "--max-new-tokens", 3, "--json"]
    Command(capsys).done(*place.repair("--alpha", 0.5), *asked)
    asked = ["--harmful", place.harmful, "--max-new-tokens", 3, "--json"]
    said = Command(capsys).done("evaluate", place.base, "--adapter", place.out / "model", *asked)
    assert said.json["metrics"]["compliance_rate"]["n"] == 12
    assert "MatMul8bitLt" not in said.err


@pytest.mark.parametrize("kind", ["weight", "delta", "align"])
def test_packed_weights_themselves_are_not_edited(
    capsys: pytest.CaptureFixture[str], folders: Folders, place: Place, kind: str
) -> None:
    command: list[object] = ["repair", place.base, "--harmful", place.harmful, "--evaluate", "none", "--out", place.out]
    rest: dict[str, list[object]] = {"weight": ["--target", "weight"], "delta": ["--aligned", folders.base]}
    if kind == "align":
        rows = place.write("rows.jsonl", '{"prompt": "zob", "response": "mid"}\n')
        command, rest["align"] = ["align", place.base, "--data", rows, "--out", place.out], []
    result = Command(capsys)(*command, *rest[kind])
    assert result.code == 2
    (line,) = result.errors
    assert "base: quantised weights (bitsandbytes) cannot be" in line and "before quantisation" in line
    assert not place.out.exists()


def test_a_scale_that_is_nan_is_named(packed: Folders, tmp_path: Path) -> None:
    base = Path(shutil.copytree(packed.base, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    key = next(key for key in sorted(tensors) if key.endswith(("q_proj.weight.absmax", "q_proj.SCB", "nested_absmax")))
    tensors[key] = tensors[key].float()
    tensors[key][0] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{key}.*NaN"):
        load_model(str(base))


def test_dora_on_a_packed_base(packed: Folders, folders: Folders, tmp_path: Path) -> None:
    plain = tiny.write_model(tmp_path / "plain", hidden_size=64, intermediate_size=128)
    adapter = tiny.write_adapter(tmp_path / "adapter", plain, use_dora=True)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(packed.base))
    if getattr(load_model(str(packed.base)).model, "is_loaded_in_8bit", False):
        with pytest.raises(UserError, match="DoRA on a base of 8 bits"):
            load_model(str(adapter))
        return
    opened = load_model(str(adapter))
    moments = collect(opened, [TokenizedRow(row, 0) for row in ROWS], cache=False)
    assert moments.sites.keys() == {site.name for site in opened.sites}
    with torch.no_grad():
        assert torch.equal(opened.model(IDS).logits, logits(packed.base, adapter))
    moved = [(tuned - first).norm() for part in resolve_target(opened).outside for tuned, first in part.blocks()]
    assert len(moved) == len(opened.sites) / 2 and all(moved)


def test_a_base_of_fp8_is_unpacked_without_a_gpu(folders: Folders, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folders.base, tmp_path / "base"))
    tensors, packed = load_file(base / "model.safetensors"), {}
    for key, tensor in tensors.items():
        if key.endswith("_proj.weight"):
            scale = tensor.abs().max() / 448
            packed[f"{key}_scale_inv"] = scale.reshape(1, 1)
            packed[key] = (tensor / scale).to(torch.float8_e4m3fn)
    save_file({**tensors, **packed}, base / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    edit_json(base / "config.json", quantization_config=settings)
    adapter = Path(shutil.copytree(folders.adapter, tmp_path / "adapter"))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    opened = load_model(str(adapter), device="cpu", dtype="float32")
    name = "model.layers.1.self_attn.q_proj"
    weight = opened.causal_model.get_submodule(name).base_layer.weight
    key = f"{name}.weight"
    assert torch.allclose(weight, packed[key].float() * packed[f"{key}_scale_inv"], rtol=1e-2)
    assert collect(opened, [TokenizedRow(row, 0) for row in ROWS], cache=False).rows == len(ROWS)


def test_weights_that_are_not_packed_are_named(folders: Folders, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folders.base, tmp_path / "base"))
    edit_json(base / "config.json", quantization_config=PACKED["nf4"].to_dict())
    with pytest.raises(UserError, match=r"q_proj\.weight is not quantised, though"):
        load_model(str(base), str(folders.adapter))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "compressed-tensors"),
        ({"quant_method": "unheard-of"}, "unheard-of"),
    ],
)
def test_the_missing_library_of_other_methods_is_named(
    capsys: pytest.CaptureFixture[str], folders: Folders, tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    place = inputs(tmp_path, folders)
    edit_json(place.base / "config.json", quantization_config=settings)
    result = Command(capsys)(*place.repair())
    assert result.code == 2
    (line,) = result.errors
    assert f"quantised by {settings['quant_method']}" in line and words in line and "before quantisation" in line
