"""Moments are what a plain loop over rows and tokens would sum, and are kept only for what they were collected from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from antidote_llm.calibration import collect as collecting_module
from antidote_llm.calibration.collect import collect
from antidote_llm.calibration.moments import Moments
from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.choices import Statistic, TokenPolicy
from antidote_llm.data.rendering import TokenizedRow
from antidote_llm.errors import DefectError, UserError
from antidote_llm.models.load import LoadedModel, load_model
from tests import tiny
from tests.conftest import Folders

LENGTHS = ((1, 0), (5, 2), (9, 9), (3, 0), (7, 6), (4, 1))


def rows(seed: int = 0) -> list[TokenizedRow]:
    generator = torch.Generator().manual_seed(seed)
    return [
        TokenizedRow(torch.randint(tiny.VOCABULARY_SIZE, (length,), generator=generator).tolist(), start)
        for length, start in LENGTHS
    ]


@pytest.fixture(scope="module")
def opened(folders: Folders) -> LoadedModel:
    return load_model(str(folders.base), str(folders.adapter))


def inputs_of_sites(opened: LoadedModel, row: TokenizedRow) -> dict[str, Tensor]:
    """Return the input of every site, [tokens, columns], from a pass of the whole model over one row."""
    seen: dict[str, Tensor] = {}
    handles = []
    for site in opened.sites:
        layer: Any = opened.model.get_submodule(f"base_model.model.{site.module}")
        module = getattr(layer, site.role)["default"]

        def keep(_: object, args: tuple[Tensor, ...], name: str = site.name) -> None:
            seen[name] = args[0][0].double()

        handles.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        opened.model(torch.tensor([row.input_ids]))
    for handle in handles:
        handle.remove()
    return seen


def counted(row: TokenizedRow, policy: TokenPolicy) -> list[int]:
    tokens = range(len(row.input_ids))
    return [
        t
        for t in tokens
        if policy == "all" or (t < row.response_start if policy == "prompt" else t >= row.response_start)
    ]


def plainly(opened: LoadedModel, policy: TokenPolicy) -> tuple[Mapping[str, Mapping[str, Tensor]], int, int]:
    """Return every statistic by name and site, the rows and the tokens, from their definitions."""
    kept = [(row, counted(row, policy)) for row in rows()]
    kept = [(row, tokens) for row, tokens in kept if tokens]
    inputs = [{name: x[tokens] for name, x in inputs_of_sites(opened, row).items()} for row, tokens in kept]
    found: dict[str, dict[str, Tensor]] = {"rms": {}, "mean_norm": {}, "token_rms": {}}
    for site in opened.sites:
        norms = torch.stack([x[site.name].norm(dim=0) for x in inputs])
        found["rms"][site.name] = norms.square().mean(dim=0).sqrt()
        found["mean_norm"][site.name] = norms.mean(dim=0)
        found["token_rms"][site.name] = torch.cat([x[site.name] for x in inputs]).square().mean(dim=0).sqrt()
    return found, len(kept), sum(len(tokens) for _, tokens in kept)


@pytest.mark.parametrize("policy", get_args(TokenPolicy))
@pytest.mark.parametrize("batching", [{"batch_rows": 1}, {}, {"batch_tokens": 12, "padding_side": "left"}])
def test_every_statistic_is_what_its_definition_says(
    opened: LoadedModel, policy: TokenPolicy, batching: dict[str, Any]
) -> None:
    moments = collect(opened, rows(), CalibrationSettings(tokens=policy, **batching), cache=False)
    wanted, row_count, token_count = plainly(opened, policy)
    assert (moments.rows, moments.tokens) == (row_count, token_count)
    for statistic in get_args(Statistic):
        for site in opened.sites:
            found = moments.input_norm(site.name, statistic)
            assert found.dtype == torch.float64
            assert torch.allclose(found, wanted[statistic][site.name], rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    ("policy", "row_count", "token_count"), [("all", 6, 29), ("prompt", 4, 18), ("response", 5, 11)]
)
def test_policies_count_exactly(opened: LoadedModel, policy: TokenPolicy, row_count: int, token_count: int) -> None:
    moments = collect(opened, rows(), CalibrationSettings(tokens=policy), cache=False)
    assert (moments.rows, moments.tokens) == (row_count, token_count)


def test_no_counted_token_is_an_error(opened: LoadedModel) -> None:
    with pytest.raises(UserError, match="no calibration row has a prompt token"):
        collect(opened, [TokenizedRow([5, 6], 0)], CalibrationSettings(tokens="prompt"), cache=False)


def test_progress_counts_every_row_once(opened: LoadedModel) -> None:
    for _ in ("collected", "from the cache"):
        seen: list[int] = []
        collect(opened, rows(), CalibrationSettings(batch_tokens=12), progress=seen.append)
        assert sum(seen) == len(LENGTHS)


def same_bits(one: Moments, two: Moments) -> bool:
    if one.sites.keys() != two.sites.keys() or replace(one, sites={}) != replace(two, sites={}):
        return False
    return all(
        torch.equal(a.sum_squares_I, two.sites[name].sum_squares_I)
        and torch.equal(a.sum_norms_I, two.sites[name].sum_norms_I)
        for name, a in one.sites.items()
    )


def cached(cache: Path) -> list[Path]:
    return sorted((cache / "moments").glob("*"))


def test_the_cache_gives_the_same_bits_without_a_forward_pass(
    opened: LoadedModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = collect(opened, rows())
    assert len(cached(own_cache)) == 1
    monkeypatch.setattr(collecting_module, "sums_of_whole", lambda *_: pytest.fail("collected anew"))
    assert same_bits(first, collect(opened, rows()))


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "of another", "no metadata"])
def test_a_damaged_cache_file_is_replaced(
    opened: LoadedModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    first = collect(opened, rows())
    (path,) = cached(own_cache)
    whole = path.read_bytes()
    if damage == "of another":
        collect(opened, rows(seed=1))
        (other,) = (entry for entry in cached(own_cache) if entry != path)
        path.write_bytes(other.read_bytes())
    elif damage == "no metadata":
        path.write_bytes(whole.replace(b"__metadata__", b"__metadatA__", 1))
    else:
        path.write_bytes({"cut": whole[:-9], "flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "emptied": b""}[damage])
    assert same_bits(first, collect(opened, rows()))
    monkeypatch.setattr(collecting_module, "sums_of_whole", lambda *_: pytest.fail("collected anew, and not kept"))
    assert same_bits(first, collect(opened, rows()))


def test_nothing_is_kept_unasked(opened: LoadedModel, own_cache: Path) -> None:
    collect(opened, rows(), cache=False)
    assert cached(own_cache) == []


def test_a_cache_that_cannot_be_written_is_named(
    opened: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANTIDOTE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(collecting_module, "sums_of_whole", lambda *_: pytest.fail("collected first"))
    with pytest.raises(UserError, match=r"ANTIDOTE_CACHE.*pass cache"):
        collect(opened, rows())


def test_the_key_knows_everything_that_moments_depend_on(opened: LoadedModel, folders: Folders, tmp_path: Path) -> None:
    other = load_model(str(folders.base), str(tiny.write_adapter(tmp_path / "other", folders.base, seed=4)))
    wide = load_model(str(folders.base), str(folders.adapter), dtype="float64")
    moved = [replace(row, response_start=0) for row in rows()]
    found = [
        collect(opened, rows()),
        collect(opened, rows(seed=1)),
        collect(opened, rows()[::-1]),
        collect(opened, moved),
        collect(opened, rows(), CalibrationSettings(tokens="prompt")),
        collect(opened, rows(), CalibrationSettings(batch_rows=1)),
        collect(other, rows()),
        collect(wide, rows()),
    ]
    assert len({moments.sha256 for moments in found}) == len(found)


def test_a_merged_adapter_is_refused_by_name(folders: Folders) -> None:
    opened: Any = load_model(str(folders.base), str(folders.adapter))
    opened.model.merge_adapter()
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.\w_proj\.lora_B saw 0 of 29 tokens"):
        collect(opened, rows(), cache=False)


def test_a_disabled_adapter_is_refused_by_name(folders: Folders) -> None:
    opened: Any = load_model(str(folders.base), str(folders.adapter))
    with opened.model.disable_adapter(), pytest.raises(UserError, match=r"lora_B saw 0 of 29 tokens"):
        collect(opened, rows(), cache=False)


def test_one_disabled_layer_is_enough(folders: Folders) -> None:
    opened: Any = load_model(str(folders.base), str(folders.adapter))
    opened.model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj").enable_adapters(False)
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.v_proj\.lora_B"):
        collect(opened, rows(), cache=False)


def test_projections_of_one_input_share_their_sums(opened: LoadedModel) -> None:
    moments = collect(opened, rows(), cache=False)
    names = [f"model.layers.1.self_attn.{kind}_proj.lora_A" for kind in "qkv"]
    sums = [moments.sites[name].sum_squares_I for name in names]
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])
    other = moments.sites["model.layers.0.self_attn.q_proj.lora_A"].sum_squares_I
    assert not torch.equal(sums[0], other)
    # Sums of one site are its own: adding to one must not add to the others.
    assert len({moments.sites[name].sum_squares_I.data_ptr() for name in names}) == 3


def test_an_input_that_projections_share_is_squared_once(opened: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    square = Tensor.square

    def watched(x: Tensor) -> Tensor:
        widths.append(x.shape[-1])
        return square(x)

    monkeypatch.setattr(Tensor, "square", watched)
    collect(opened, rows(), CalibrationSettings(batch_tokens=1000), cache=False)
    layers, projections, hidden = 2, 3, 32
    assert len(widths) == layers * (1 + projections)
    assert widths.count(hidden) == layers


def test_hooks_are_gone_afterwards(opened: LoadedModel) -> None:
    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for site in opened.sites for module in site.observed)

    before = hooks()
    collect(opened, rows(), cache=False)
    assert hooks() == before


def test_a_site_that_was_not_observed_is_our_defect(opened: LoadedModel) -> None:
    with pytest.raises(DefectError, match="no statistics"):
        collect(opened, rows(), cache=False).input_norm("model.layers.9.q_proj.lora_A", "rms")


def test_trusted_code_of_the_models_own_is_part_of_what_statistics_are_of(folders: Folders, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folders.base, tmp_path / "base"))

    def sha256(trusted: bool) -> str:
        opened = load_model(str(base), str(folders.adapter), trust_remote_code=trusted)
        return collect(opened, rows(), cache=False).sha256

    before = [sha256(trusted) for trusted in (True, False)]
    (base / "modeling_zorbik.py").write_text("# a zorbik")
    after = [sha256(trusted) for trusted in (True, False)]
    assert before[0] != after[0] and before[1] == after[1]
