"""DoRA: the factors are sites as in plain LoRA, their statistics are those of the tokens, the magnitudes stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from antidote_llm.calibration.collect import collect
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.models.load import LoadedModel, load_model
from tests import tiny
from tests.architectures import ARCHITECTURES, write_checkpoint
from tests.cli.command import Command, Place, inputs
from tests.conftest import Folders

WIDTH = 32
# As many tokens as the modules have inputs: an identity matrix that is sent through the factors has that shape too.
ROWS = [[5 + index % 30 for index in range(WIDTH)], [7, 9, 30, 11], list(range(34, 10, -1))]


@pytest.fixture(scope="module")
def dora(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dora(tmp_path_factory.mktemp("dora") / "adapter", folders.base)


def write_dora(folder: Path, base: Path, **config: Any) -> Path:
    """Write a DoRA adapter whose magnitudes have moved too."""
    tiny.write_adapter(folder, base, use_dora=True, **config)
    return folder


def plain_inputs(base: Path, adapter: Path) -> dict[str, Tensor]:
    """Return the sums of squares of every factor's inputs, one row at a time, from the modules' own inputs."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def look(module: Any, args: tuple[Tensor, ...]) -> None:
            x_TI = args[0][0]
            for role, seen in (("lora_A", x_TI), ("lora_B", x_TI @ module.lora_A["default"].weight.T)):
                key = f"{name.removeprefix('base_model.model.')}.{role}"
                sums[key] = sums.get(key, torch.zeros(())) + seen.double().square().sum(dim=0)

        return look

    for name, module in model.named_modules():
        if name.endswith("_proj") and hasattr(module, "lora_A"):
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    return sums


def test_statistics_are_those_of_the_tokens_alone(folders: Folders, dora: Path) -> None:
    opened = load_model(str(folders.base), str(dora))
    moments = collect(opened, [TokenizedRow(row, 0) for row in ROWS], cache=False)
    wanted = plain_inputs(folders.base, dora)
    assert wanted.keys() == moments.sites.keys() == {site.name for site in opened.sites}
    for name, sum_squares_I in wanted.items():
        torch.testing.assert_close(moments.sites[name].sum_squares_I, sum_squares_I, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_model_computes_what_it_computes_in_peft(tmp_path: Path, name: str, dtype: str) -> None:
    base = write_checkpoint(tmp_path / "base", name, dtype=getattr(torch, dtype))
    adapter = write_dora(tmp_path / "adapter", base, targets=ARCHITECTURES[name].linears[:2])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        assert torch.equal(load_model(str(base), str(adapter)).model(ids).logits, plain(ids).logits)


@pytest.fixture
def place(folders: Folders, dora: Path, tmp_path: Path) -> Place:
    return inputs(tmp_path, Folders(folders.base, dora, folders.harmful))


def test_a_repair_edits_the_factors_alone(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    Command(capsys).done(*place.repair("--alpha", 0.3))
    before, after = (load_file(each / "adapter_model.safetensors") for each in (place.adapter, place.out / "model"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]) == ("magnitude" in key)
        assert "magnitude" in key or set(after[key].flatten().tolist()) <= {0.0, *tensor.flatten().tolist()}
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.base), place.out / "model")


def test_magnitudes_are_no_sites_and_are_restored_to_the_row_norms(
    capsys: pytest.CaptureFixture[str], place: Place
) -> None:
    Command(capsys).done(*place.repair("--alpha", 1, "--restore-outside"))
    record = json.loads((place.out / "record" / "repair.json").read_text())
    (norms,) = (
        part for part in record["outside"] if part["name"].endswith("layers.*.self_attn.q_proj.lora_magnitude_vector")
    )
    stored, weights = (load_file(next(each.glob("*.safetensors"))) for each in (place.adapter, place.base))
    moved = [
        stored[f"base_model.model.{module}.lora_magnitude_vector"] - weights[f"{module}.weight"].norm(dim=1)
        for module in (f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))
    ]
    assert norms["norm_before"] == pytest.approx(float(torch.cat(moved).norm()), rel=1e-5)
    assert norms["norm_after"] == 0
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        repaired = load_model(str(place.base), str(place.out / "model")).model(ids).logits
        assert torch.equal(repaired, load_model(str(place.base)).model(ids).logits)
    Command(capsys).done("patch", "revert", place.out, "--onto", place.out / "model", "--out", place.root / "again")
    name = "adapter_model.safetensors"
    assert (place.root / "again" / name).read_bytes() == (place.adapter / name).read_bytes()


def test_it_can_be_replaced_removed_and_used_as_a_lower_adapter(folders: Folders, dora: Path, tmp_path: Path) -> None:
    ids = torch.tensor([ROWS[1]])

    def logits(opened: LoadedModel) -> Tensor:
        with torch.no_grad():
            found: Tensor = opened.model(ids).logits
        return found

    bare, adapted = logits(load_model(str(folders.base))), logits(load_model(str(folders.base), str(dora)))
    opened = load_model(str(folders.base), str(folders.adapter)).with_adapter(dora)
    assert torch.equal(logits(opened), adapted)
    assert torch.equal(logits(opened.without_adapter()), bare)
    both = load_model(str(folders.base), str(folders.adapter), lower_adapters=[str(dora)])
    collect(both, [TokenizedRow(row, 0) for row in ROWS], cache=False)
    assert torch.equal(logits(both.without_adapter()), adapted)
