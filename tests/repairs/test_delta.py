"""Entries of a full fine-tune go back to the aligned model: exactly those chosen, to exactly its bits."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.target import resolve_target
from antidote_llm.repairs.edits import planned_norm
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import HarmfulData, PlannedRepair, plan_repair
from tests import tiny
from tests.conftest import Folders
from tests.fine_tunes import config_of, rewrite, tensors_of, write_fine_tune, write_random
from tests.repairs.chosen import whole_plan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Pair:
    """An aligned model, a fine-tune of it, and harmful rows."""

    aligned: Path
    tuned: Path
    harmful: Path

    def repaired(self, name: str, /, **given: object) -> PlannedRepair:
        """Plan a repair of the delta."""
        opened = load_model(str(self.tuned))
        method = method_named(name)
        data = HarmfulData(("rows",), read_records(self.harmful), Renderer(opened.tokenizer))
        target = resolve_target(opened, aligned=str(self.aligned))
        return plan_repair(opened, method, method.configure(given), data, target=target)


@pytest.fixture(scope="module")
def pair(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("delta")
    return Pair(folders.base, write_fine_tune(root / "tuned", folders.base), folders.harmful)


def norm_of_delta(pair: Pair) -> float:
    tuned, aligned = tensors_of(pair.tuned), tensors_of(pair.aligned)
    return math.sqrt(
        sum(float((tuned[key].double() - aligned[key].double()).square().sum()) for key in tuned if "proj" in key)
    )


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


@pytest.mark.parametrize("name", ["antidote", "random", "magnitude", "interpolate"])
def test_alpha_0_changes_nothing_and_alpha_1_gives_the_aligned_weights(pair: Pair, name: str) -> None:
    nothing, everything = pair.repaired(name, alpha=0.0), pair.repaired(name, alpha=1.0)
    tuned, aligned = tensors_of(pair.tuned), tensors_of(pair.aligned)
    assert len(nothing.target.sites) == 14
    for site in nothing.target.sites:
        assert torch.equal(bits(whole_plan(nothing).edit(site).after_OI), bits(tuned[site.key]))
        assert torch.equal(bits(whole_plan(everything).edit(site).after_OI), bits(aligned[site.key]))


def test_keeping_all_of_a_large_update_changes_no_bit(folders: Folders, tmp_path: Path) -> None:
    tuned = tiny.write_model(tmp_path / "tuned", seed=9)
    repair = Pair(folders.base, tuned, folders.harmful).repaired("interpolate", keep=1.0)
    for site in repair.target.sites:
        edit = whole_plan(repair).edit(site)
        assert torch.equal(bits(edit.after_OI), bits(edit.before_OI))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("aligned_dtype", DTYPES, ids=str)
def test_chosen_entries_have_the_aligned_bits(
    folders: Folders, tmp_path: Path, dtype: torch.dtype, aligned_dtype: torch.dtype
) -> None:
    aligned = write_fine_tune(tmp_path / "aligned", folders.base, only="nothing", dtype=aligned_dtype)
    tuned = write_fine_tune(tmp_path / "tuned", folders.base, dtype=dtype)
    repair = Pair(aligned, tuned, folders.harmful).repaired("antidote", alpha=0.2)
    before, wanted = tensors_of(tuned), {key: value.to(dtype) for key, value in tensors_of(aligned).items()}
    for site in repair.target.sites:
        edit = whole_plan(repair).edit(site)
        assert edit.chosen_OI is not None
        assert edit.after_OI.dtype == dtype
        # Every row loses exactly a fifth.
        assert edit.chosen_OI.sum(dim=1).tolist() == [round(0.2 * site.shape[1])] * site.shape[0]
        expected = torch.where(edit.chosen_OI, wanted[site.key], before[site.key])
        assert torch.equal(bits(edit.after_OI), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strength_halves_the_chosen(folders: Folders, tmp_path: Path, dtype: torch.dtype) -> None:
    aligned = write_fine_tune(tmp_path / "aligned", folders.base, only="nothing", dtype=dtype)
    tuned = write_fine_tune(tmp_path / "tuned", folders.base, dtype=dtype)
    repair = Pair(aligned, tuned, folders.harmful).repaired("antidote", alpha=0.3, strength=0.5)
    for site in repair.target.sites:
        edit = whole_plan(repair).edit(site)
        assert edit.chosen_OI is not None and edit.reference_OI is not None
        before, after, mask = edit.before_OI.double(), edit.after_OI.double(), edit.chosen_OI
        middle = (before + edit.reference_OI.double()) / 2
        assert torch.allclose(after[mask], middle[mask], rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        assert torch.equal(bits(edit.after_OI[~mask]), bits(edit.before_OI[~mask]))
        assert not torch.equal(after[mask], before[mask])


@pytest.mark.parametrize("keep", [0.0, 0.25, 1.0])
def test_interpolate_keeps_its_share_of_the_norm(pair: Pair, keep: float) -> None:
    repair = pair.repaired("interpolate", keep=keep)
    assert planned_norm(whole_plan(repair)) == pytest.approx(keep * norm_of_delta(pair), rel=1e-5)


def with_minus_zeros(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Put a minus zero at the beginning of every matrix of a folder."""
    for key in (key for key in tensors if "proj" in key):
        tensors[key][0, 0] = -0.0
    return rewrite(folder, tensors)


def test_interpolating_to_nothing_gives_the_aligned_bits(folders: Folders, tmp_path: Path) -> None:
    aligned = Path(shutil.copytree(folders.base, tmp_path / "aligned"))
    with_minus_zeros(aligned, tensors_of(aligned))
    tuned = write_fine_tune(tmp_path / "tuned", folders.base)
    repair = Pair(aligned, tuned, folders.harmful).repaired("interpolate", keep=0.0)
    for site in repair.target.sites:
        assert torch.equal(bits(whole_plan(repair).edit(site).after_OI), bits(tensors_of(aligned)[site.key]))


def test_interpolating_leaves_what_did_not_move(folders: Folders, tmp_path: Path) -> None:
    tuned = write_fine_tune(tmp_path / "tuned", folders.base)
    aligned = Path(shutil.copytree(folders.base, tmp_path / "aligned"))
    with_minus_zeros(tuned, tensors_of(tuned))
    with_minus_zeros(aligned, tensors_of(aligned))
    repair = Pair(aligned, tuned, folders.harmful).repaired("interpolate", keep=0.25)
    for site in repair.target.sites:
        edit = whole_plan(repair).edit(site)
        assert torch.equal(bits(edit.after_OI[0, :1]), bits(torch.tensor([-0.0])))
        assert not torch.equal(edit.after_OI, edit.before_OI)


@pytest.mark.parametrize("scope", ["row", "matrix", "layer", "global"])
def test_random_removes_as_many_as_antidote(pair: Pair, scope: str) -> None:
    totals = []
    for name in ("antidote", "random"):
        repair = pair.repaired(name, scope=scope, alpha=0.2)
        edits = [whole_plan(repair).edit(site) for site in repair.target.sites]
        totals.append([int((edit.before_OI != edit.after_OI).sum()) for edit in edits])
    assert sum(totals[0]) == sum(totals[1]) > 0
    if scope in ("row", "matrix"):
        assert totals[0] == totals[1]


@pytest.mark.parametrize("scope", ["row", "global"])
@pytest.mark.parametrize("name", ["random", "interpolate"])
def test_controls_match_the_norm_of_the_delta(pair: Pair, name: str, scope: str) -> None:
    wanted = planned_norm(whole_plan(pair.repaired("antidote", alpha=0.2, scope=scope)))
    assert 0 < wanted < norm_of_delta(pair)
    given = {"match": "update-norm"} if name == "random" else {}
    found = planned_norm(whole_plan(pair.repaired(name, alpha=0.2, scope=scope, **given)))
    assert found == pytest.approx(wanted, rel=2e-3 if name == "random" else 1e-6)


def test_scores_are_how_far_an_entry_moved_times_the_norm_of_its_input(pair: Pair) -> None:
    repair = pair.repaired("antidote", scope="matrix", alpha=0.2)
    inputs = inputs_by_hand(load_model(str(pair.tuned)), pair.harmful)
    tuned, aligned = tensors_of(pair.tuned), tensors_of(pair.aligned)
    for site in repair.target.sites:
        rows = inputs[site.module]
        norm_I = torch.stack([row.square().sum(dim=0) for row in rows]).mean(dim=0).sqrt()
        score = (tuned[site.key].double() - aligned[site.key].double()).abs() * norm_I
        mask = whole_plan(repair).edit(site).chosen_OI
        assert mask is not None
        assert int(mask.sum()) == round(0.2 * mask.numel())
        assert score[mask].min() >= score[~mask].max() * (1 - 1e-4)


def inputs_by_hand(opened: LoadedModel, harmful: Path) -> dict[str, list[Tensor]]:
    """Return every linear layer's input, one tensor [tokens, columns] for each row."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in opened.model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def keep(_: object, args: tuple[Tensor, ...], name: str = name) -> None:
                seen.setdefault(name, []).append(args[0][0].double())

            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        for row in Renderer(opened.tokenizer).rows(read_records(harmful)):
            opened.model(torch.tensor([row.input_ids]))
    return seen


def test_entries_that_did_not_move_are_not_chosen(folders: Folders, tmp_path: Path) -> None:
    tuned = write_fine_tune(tmp_path / "tuned", folders.base, only="layers.1.")
    repair = Pair(folders.base, tuned, folders.harmful).repaired("antidote", alpha=0.5)
    for site in repair.target.sites:
        chosen = whole_plan(repair).edit(site).chosen_OI
        assert chosen is not None and bool(chosen.any()) == (site.layer == 1)


def test_an_aligned_model_of_the_same_weights_is_refused(folders: Folders, tmp_path: Path) -> None:
    same = write_fine_tune(tmp_path / "same", folders.base, only="nothing", max_shard_size="20KB")
    assert len(list(same.glob("*.safetensors"))) > 1
    with pytest.raises(UserError, match="there is no update"):
        Pair(folders.base, same, folders.harmful).repaired("magnitude")


def test_bare_weights_go_to_zero(folders: Folders) -> None:
    opened = load_model(str(folders.base))
    method = method_named("magnitude")
    target = resolve_target(opened, "weight", pattern="mlp")
    repair = plan_repair(opened, method, method.configure({"alpha": 0.25}), None, target=target)
    for site in repair.target.sites:
        edit = whole_plan(repair).edit(site)
        assert edit.reference_OI is None and edit.chosen_OI is not None
        assert not edit.after_OI[edit.chosen_OI].any()
        assert torch.equal(edit.after_OI == 0, edit.chosen_OI)
    with pytest.raises(UserError, match="restore_outside needs"):
        plan_repair(opened, method, method.configure({}), None, target=target, restore_outside=True)


def test_gpt2_keeps_its_matrices_turned(tmp_path: Path) -> None:
    config = config_of(
        "gpt2", vocab_size=tiny.VOCABULARY_SIZE, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0,
        eos_token_id=3,
    )  # fmt: skip
    aligned = write_random(tmp_path / "aligned", config)
    tuned = write_fine_tune(tmp_path / "tuned", aligned)
    rows = tiny.write_rows(tmp_path / "rows.jsonl")
    tiny.tokenizer().save_pretrained(tuned)
    repair = Pair(aligned, tuned, rows).repaired("antidote", alpha=0.25)
    before, wanted = tensors_of(tuned), tensors_of(aligned)
    for site in repair.target.sites:
        assert site.transposed
        # The file holds inputs as rows; a row of a site is one output.
        assert site.shape == tuple(before[site.key].shape)[::-1]
        edit = whole_plan(repair).edit(site)
        assert edit.chosen_OI is not None
        assert edit.chosen_OI.sum(dim=1).tolist() == [round(0.25 * site.shape[1])] * site.shape[0]
        expected = torch.where(edit.chosen_OI.T, wanted[site.key], before[site.key])
        assert torch.equal(site.turned(edit.after_OI), expected)
