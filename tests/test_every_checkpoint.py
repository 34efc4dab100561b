"""Every architecture, target, type and layout of files, through the real command: what it edits, and its way back."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from antidote_llm.calibration.settings import CalibrationSettings
from antidote_llm.data.data_spec import DataSpec
from antidote_llm.data.reading import read_records
from antidote_llm.data.rendering import Renderer
from antidote_llm.io.files import sha256_file
from antidote_llm.models.load import load_model
from antidote_llm.models.target import resolve_target
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import HarmfulData, PlanOptions, plan_repair
from tests import tiny
from tests.architectures import ARCHITECTURES, write_checkpoint
from tests.cli.command import Command, tree
from tests.repairs import brute_force
from tests.repairs.brute_force import Scored
from tests.repairs.chosen import whole_plan

Scope = Literal["row", "matrix", "layer", "global"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How far a score may move, relative to its row's threshold, when rows are batched: a few roundings of the type.
TOLERANCES = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 4e-3}
BITS = {2: torch.int16, 4: torch.int32}
ALPHA = 0.2
ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"1.*": 4}, "alpha_pattern": {"0.*": 3}},
    "several": {},
    "fan-in": {"fan_in_fan_out": True},
}


@dataclass(frozen=True)
class Case:
    """What is repaired: ``target`` is a kind of adapter, ``delta`` or ``weight``."""

    architecture: str
    target: str
    dtype: str
    sharded: bool

    def __str__(self) -> str:
        return "-".join([self.architecture, self.target, self.dtype, *(["sharded"] if self.sharded else [])])


@dataclass(frozen=True)
class Inputs:
    """The folders of a case; ``edited`` is the one that a repair is of."""

    model: Path
    adapters: tuple[Path, ...]
    aligned: Path | None

    @property
    def edited(self) -> Path:
        return self.adapters[-1] if self.adapters else self.model

    @property
    def options(self) -> list[object]:
        """The arguments that name them."""
        adapters = [part for adapter in self.adapters for part in ("--adapter", adapter)]
        target = "adapter" if self.adapters else "delta" if self.aligned else "weight"
        return [self.model, *adapters, *(["--aligned", self.aligned] if self.aligned else []), "--target", target]

    def with_edited(self, folder: Path) -> Inputs:
        """Put another folder in the edited one's place."""
        if self.adapters:
            return Inputs(self.model, (*self.adapters[:-1], folder), None)
        return Inputs(folder, (), self.aligned)


class Shelf:
    """Writes every tiny checkpoint once, and the rows and the tokenizer that all of them share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.harmful = tiny.write_rows(root / "harmful.jsonl", count=6)
        # Named, because transformers opens whatever lies beside a Qwen2 model as Qwen2's own kind of tokenizer.
        self.tokenizer = root / "tokenizer"
        tiny.tokenizer().save_pretrained(self.tokenizer)
        self.model, self.adapter = cache(self._model), cache(self._adapter)

    def inputs(self, case: Case) -> Inputs:
        """Return the folders of a case."""
        aligned = self.model(case.architecture, False, case.dtype, case.sharded)
        if case.target in ADAPTERS:
            lower = [self.adapter(case, 7)] if case.target == "several" else []
            return Inputs(aligned, (*lower, self.adapter(case, 1)), None)
        tuned = self.model(case.architecture, True, case.dtype, case.sharded)
        return Inputs(tuned, (), aligned if case.target == "delta" else None)

    def _model(self, name: str, tuned: bool, dtype: str, sharded: bool) -> Path:
        folder = self._root / f"{name}-{'tuned' if tuned else 'aligned'}-{dtype}-{sharded}"
        return write_checkpoint(folder, name, tuned=tuned, dtype=DTYPES[dtype], sharded=sharded)

    def _adapter(self, case: Case, seed: int) -> Path:
        base = self.model(case.architecture, False, case.dtype, case.sharded)
        return tiny.write_adapter(
            self._root / f"{case}-{seed}",
            base,
            targets=ARCHITECTURES[case.architecture].linears,
            seed=seed,
            dtype=DTYPES[case.dtype],
            **ADAPTERS[case.target],
        )


def cases() -> Iterator[Case]:
    for parts in itertools.product(ARCHITECTURES, ("lora", "delta", "weight"), DTYPES, (False, True)):
        yield Case(*parts)
    for name, kinds in {
        "llama": ("rslora", "patterns", "several"),
        "gpt2": ("rslora", "several", "fan-in"),
        "gpt_neox": ("patterns",),
        "opt": ("several",),
    }.items():
        for kind, dtype in itertools.product(kinds, DTYPES):
            yield Case(name, kind, dtype, False)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def antidote(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_repair_load_generate_and_revert(case: Case, shelf: Shelf, antidote: Command, tmp_path: Path) -> None:
    inputs, out = shelf.inputs(case), tmp_path / "out"
    given = {folder: tree(folder) for folder in (inputs.model, *inputs.adapters, inputs.aligned) if folder}
    data = ["--harmful", shelf.harmful, "--tokenizer", shelf.tokenizer, "--evaluate", "none"]
    antidote.done("repair", *inputs.options, *data, "--out", out)
    assert_answers_otherwise(inputs, inputs.with_edited(out / "model"), DTYPES[case.dtype])

    scored = brute_force_scores(inputs, shelf.harmful)
    wanted = brute_force.masks(scored, ALPHA)
    planned = planned_masks(inputs, shelf.harmful)
    assert planned.keys() == wanted.keys()
    assert all(torch.equal(planned[key], wanted[key]) for key in wanted)
    assert_only_these_entries_changed(inputs, out / "model", scored, wanted, TOLERANCES[case.dtype])

    antidote.done("patch", "revert", out, "--onto", out / "model", "--out", tmp_path / "reverted")
    antidote.done("patch", "apply", out, "--onto", inputs.edited, "--out", tmp_path / "applied")
    assert hashes(tmp_path / "reverted") == hashes(inputs.edited)
    assert hashes(tmp_path / "applied") == hashes(out / "model") != hashes(inputs.edited)
    assert {folder: tree(folder) for folder in given} == given


def assert_answers_otherwise(before: Inputs, after: Inputs, dtype: torch.dtype) -> None:
    tokens = torch.arange(5, 15).reshape(1, 10)
    logits = []
    for inputs in (before, after):
        model = brute_force.with_adapters(inputs.model, inputs.adapters)
        assert model.dtype == dtype
        with torch.no_grad():
            logits.append(model(tokens).logits)
    assert torch.isfinite(logits[1]).all() and not torch.equal(*logits)
    # With the prompt's mask, and whatever the tiny model's wish to stop.
    said = model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=3, min_new_tokens=3, do_sample=False
    )
    assert said.shape == (1, 13)


def rendered_rows(harmful: Path) -> list[list[int]]:
    """Return the rows as tokens, the shorter first, in which order they are summed."""
    records = read_records(DataSpec.parse(str(harmful)))
    return sorted((row.input_ids for row in Renderer(tiny.tokenizer()).rows(records)), key=len)


def brute_force_scores(inputs: Inputs, harmful: Path) -> dict[str, Scored]:
    rows = rendered_rows(harmful)
    if inputs.adapters:
        return brute_force.adapter_scores(inputs.model, inputs.adapters, rows)
    return brute_force.weight_scores(inputs.model, inputs.aligned, rows)


def planned_masks(inputs: Inputs, harmful: Path, **settings: object) -> dict[str, Tensor]:
    """Return what the package chooses when it, too, takes one row at a time."""
    adapters = [str(adapter) for adapter in inputs.adapters]
    opened = load_model(str(inputs.model), adapters[-1] if adapters else None, lower_adapters=adapters[:-1])
    aligned = str(inputs.aligned) if inputs.aligned else None
    target = resolve_target(opened, "auto" if adapters or aligned else "weight", aligned)
    method = method_named("antidote")
    planned = plan_repair(
        opened,
        method,
        method.configure(settings),
        HarmfulData(("rows",), read_records(DataSpec.parse(str(harmful))), Renderer(tiny.tokenizer())),
        CalibrationSettings(batch_rows=1),
        target=target,
        options=PlanOptions(cache=False),
    )
    found = {named(site.key, site.part): whole_plan(planned).edit(site).chosen_OI for site in target.sites}
    return {key: chosen for key, chosen in found.items() if chosen is not None}


def named(key: str, part: int | None) -> str:
    """Return a site's key in a file, and which slice of the tensor there it is."""
    return key if part is None else f"{key}[{part}]"


def assert_only_these_entries_changed(
    inputs: Inputs, repaired: Path, scored: Mapping[str, Scored], wanted: Mapping[str, Tensor], tolerance: float
) -> None:
    assert_same_files_but_for_values(inputs.edited, repaired)
    before, after = brute_force.matrices(inputs.edited), brute_force.matrices(repaired)
    aligned = brute_force.matrices(inputs.aligned) if inputs.aligned else None
    for key, was in before.items():
        changed = bits(was) != bits(after[key])
        if key not in scored:
            assert not changed.any(), key
            continue
        goal = torch.zeros_like(was) if aligned is None else aligned[key]
        assert torch.equal(bits(after[key])[changed], bits(goal)[changed])
        changed_OI = changed.T if scored[key].transposed else changed
        score_OI = scored[key].score_OI
        lowest_O1 = score_OI.masked_fill(~wanted[key], torch.inf).amin(dim=1, keepdim=True)
        near_OI = (score_OI / lowest_O1 - 1).abs() < tolerance
        assert not ((changed_OI ^ wanted[key]) & ~near_OI).any(), key
        assert torch.equal(changed_OI.sum(dim=1), wanted[key].sum(dim=1))
        # An expert that no row was sent to has nothing to be chosen by.
        assert changed.any() or not score_OI.any()


def assert_same_files_but_for_values(before: Path, after: Path) -> None:
    assert {path.name for path in before.iterdir()} == {path.name for path in after.iterdir()}
    for path in before.iterdir():
        old, new = path.read_bytes(), (after / path.name).read_bytes()
        header = 8 + int.from_bytes(old[:8], "little") if path.suffix == ".safetensors" else len(old)
        assert old[:header] == new[:header] and len(old) == len(new), path.name


def bits(values: Tensor) -> Tensor:
    return values.contiguous().view(BITS[values.element_size()])


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_list_holds_every_matrix_of_the_decoder_layers(
    name: str, sharded: bool, shelf: Shelf, antidote: Command
) -> None:
    folder = shelf.model(name, True, "bf16", sharded)
    listed = antidote.done("repair", folder, "--target", "weight", "--list-sites", "--json").json
    stored = brute_force.matrices(folder)
    layered = {key for key, tensor in stored.items() if tensor.dim() == 2 and re.search(r"(?:^|\.)\d+\.", key)}
    wanted = {key for key in layered if not re.search(r"\.(gate|router)\.weight$|_bias$", key)}
    found = {named(site["key"], site.get("part")): site["rows"] * site["columns"] for site in listed["sites"]}
    assert len(listed["sites"]) == len(found) and found.keys() == wanted
    assert found == {key: stored[key].numel() for key in wanted}
    assert listed["entries"] == sum(found.values())
    assert not any("embed" in key or "wte" in key or "head" in key for key in found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_list_holds_every_factor_of_an_adapter(name: str, shelf: Shelf, antidote: Command) -> None:
    inputs = shelf.inputs(Case(name, "lora", "bf16", False))
    listed = antidote.done("repair", *inputs.options, "--list-sites", "--json").json
    factors = brute_force.tensors(inputs.edited)
    assert {site["key"]: (site["rows"], site["columns"]) for site in listed["sites"]} == {
        key: tuple(tensor.shape) for key, tensor in factors.items()
    }


@pytest.mark.parametrize("scope", ["row", "matrix", "layer", "global"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("target", ["patterns", "delta", "weight"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_every_scope_chooses_as_a_sort_does(name: str, target: str, dtype: str, scope: Scope, shelf: Shelf) -> None:
    inputs = shelf.inputs(Case(name, target, dtype, False))
    wanted = brute_force.masks(brute_force_scores(inputs, shelf.harmful), ALPHA, scope)
    found = planned_masks(inputs, shelf.harmful, scope=scope, alpha=ALPHA)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("target", ["delta", "weight"])
@pytest.mark.parametrize(
    ("name", "named", "mend"),
    [
        ("llama4_text", "model.layers.0.feed_forward.experts.gate_up_proj", "--sites attention"),
        ("mamba", "backbone.layers.0.mixer.dt_proj", "leave it out of --sites"),
    ],
)
def test_what_cannot_be_repaired_whole_is_refused_by_name(
    name: str, named: str, mend: str, target: str, shelf: Shelf, antidote: Command, tmp_path: Path
) -> None:
    inputs, out = shelf.inputs(Case(name, target, "fp32", False)), tmp_path / "out"
    data = ["--harmful", shelf.harmful, "--tokenizer", shelf.tokenizer, "--evaluate", "none"]
    result = antidote("repair", *inputs.options, *data, "--out", out)
    assert result.code == 2 and len(result.errors) == 1
    assert named in result.errors[0] and mend in result.errors[0]
    assert not out.exists()
