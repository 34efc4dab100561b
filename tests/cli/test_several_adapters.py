"""An adapter that was trained on top of others is repaired with those at work, and they stay as they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from antidote_llm.calibration.collect import collect
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.io.files import sha256_file
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.target import resolve_target
from tests import tiny
from tests.cli.command import Command, Place, tree

ADAPTER_FILE = "adapter_model.safetensors"
IDS = torch.arange(5, 25).reshape(2, 10)


@pytest.fixture
def upper(place: Place) -> Path:
    return tiny.write_adapter(
        place.root / "upper", place.base, rank=4, targets=("q_proj", "o_proj", "up_proj"), seed=11
    )


def both(place: Place, upper: Path) -> LoadedModel:
    return load_model(str(place.base), str(upper), lower_adapters=[str(place.adapter)])


def logits(opened: LoadedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = opened.model(IDS).logits
    return found


def merged(base: Path, *adapters: Path) -> Tensor:
    """Return the logits of a model with adapters merged into it, one after another."""
    model = AutoModelForCausalLM.from_pretrained(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        found: Tensor = model.eval()(IDS).logits
    return found


def test_all_of_them_are_at_work(place: Place, upper: Path) -> None:
    opened = both(place, upper)
    together = merged(place.base, place.adapter, upper)
    assert torch.allclose(logits(opened), together, atol=1e-4)
    assert not torch.allclose(merged(place.base, upper), together, atol=1e-2)
    assert opened.adapter is not None and opened.adapter.folder == upper
    assert [adapter.folder for adapter in opened.lower_adapters] == [place.adapter]
    assert {site.kind for site in opened.sites} == {"q_proj", "o_proj", "up_proj"}


def test_the_aligned_model_keeps_the_lower_adapters(place: Place, upper: Path) -> None:
    opened = both(place, upper).with_adapter(upper)
    assert torch.allclose(logits(opened), merged(place.base, place.adapter, upper), atol=1e-4)
    aligned = opened.without_adapter()
    assert torch.allclose(logits(aligned), merged(place.base, place.adapter), atol=1e-4)
    assert aligned.adapter is None and len(aligned.lower_adapters) == 1


def test_statistics_are_collected_with_the_lower_adapters_active(place: Place, upper: Path) -> None:
    opened = both(place, upper)
    rows = Renderer(opened.tokenizer).rows(read_records(place.harmful))
    moments = collect(opened, rows, CalibrationSettings(), cache=False)

    # The lower one merged into the base, the upper one's inputs watched by hand.
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place.base), place.adapter)
    model = PeftModel.from_pretrained(model.merge_and_unload(), upper).eval()
    squares: dict[str, Tensor] = {}
    for site in opened.sites:
        module = getattr(model.get_submodule(f"base_model.model.{site.module}"), site.role)["default"]

        def add(_: object, args: tuple[Tensor, ...], name: str = site.name) -> None:
            found = args[0][0].double().square().sum(dim=0)
            squares[name] = squares.get(name, torch.zeros_like(found)) + found

        module.register_forward_pre_hook(add)
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row.input_ids]))
    for site in opened.sites:
        assert torch.allclose(moments.sites[site.name].sum_squares_I, squares[site.name], rtol=1e-3)
    alone = collect(load_model(str(place.base), str(upper)), rows, CalibrationSettings(), cache=False)
    assert alone.sha256 != moments.sha256
    name = opened.sites[-1].name
    assert not torch.allclose(alone.sites[name].sum_squares_I, squares[name], rtol=1e-2)


def test_the_last_one_is_repaired_and_comes_back(place: Place, upper: Path, antidote: Command) -> None:
    before = tree(place.adapter), tree(upper), tree(place.base)
    given = ["repair", place.base, "--adapter", place.adapter, "--adapter", upper, "--harmful", place.harmful]
    found = antidote.done(*given, "--max-new-tokens", "4", "--out", place.out, "--json").json
    assert (tree(place.adapter), tree(upper), tree(place.base)) == before

    record = found["repair"]
    assert record["adapter"]["sha256"][ADAPTER_FILE] == sha256_file(upper / ADAPTER_FILE)
    assert [lower["sha256"][ADAPTER_FILE] for lower in record["beneath"]] == [sha256_file(place.adapter / ADAPTER_FILE)]
    repaired, original = load_file(place.out / "model" / ADAPTER_FILE), load_file(upper / ADAPTER_FILE)
    changed = sum(int((repaired[key] != original[key]).sum()) for key in original)
    assert changed == record["totals"]["changed"] > 0
    assert {"aligned", "before", "after"} <= found["evaluations"].keys()

    antidote.done("patch", "revert", place.out, "--onto", place.out / "model", "--out", "reverted")
    assert sha256_file(Path("reverted") / ADAPTER_FILE) == sha256_file(upper / ADAPTER_FILE)


def test_a_whole_target_over_adapters_is_refused(place: Place) -> None:
    opened = load_model(str(place.base), None, lower_adapters=[str(place.adapter)])
    with pytest.raises(UserError, match="merge the adapter first"):
        resolve_target(opened, "weight")


def test_an_adapter_with_a_whole_module_over_another(place: Place) -> None:
    upper = tiny.write_adapter(place.root / "upper", place.base, seed=11, modules_to_save=["lm_head"])
    opened = both(place, upper)
    assert torch.allclose(logits(opened), merged(place.base, place.adapter, upper), atol=1e-4)


def test_a_lower_adapter_may_hold_factors_only(place: Place, upper: Path) -> None:
    lower = tiny.write_adapter(place.root / "lower", place.base, modules_to_save=["lm_head"])
    with pytest.raises(UserError, match=r"lower also holds .*lm_head.*: merge it into the base"):
        load_model(str(place.base), str(upper), lower_adapters=[str(lower)])


def test_a_folder_of_several_adapters_names_them(place: Place, upper: Path, antidote: Command) -> None:
    several = place.root / "several"
    for name, folder in {"first": place.adapter, "second": upper}.items():
        shutil.copytree(folder, several / name)
    result = antidote(*replace(place, adapter=several).repair())
    assert result.code == 2
    assert result.errors == [f"error: {several} holds adapters in folders inside it: name one of them: first, second"]


def test_an_adapter_is_given_once(place: Place, upper: Path) -> None:
    again = place.root / "again"
    again.symlink_to(place.adapter)
    for lower in ([place.adapter, again], [upper], [place.adapter, upper]):
        with pytest.raises(UserError, match="is given twice: name every adapter once"):
            load_model(str(place.base), str(upper), lower_adapters=list(map(str, lower)))
