"""How many tokens ``--calibration auto`` needs, and whether the agreement that it promises is there.

    python -m benchmarks.calibration_auto --models DIR --data DIR --work DIR --out docs/results/calibration_auto.json

Four attacked models: of the miniature and of real English (the folders of :mod:`benchmarks.real_text_targets`), each as
an adapter and as the delta of a full fine-tune. The sums of each of 2,000 rows are collected once; after that a draw,
which is an order of the rows, is arithmetic. The agreement is that of the masks that the repair itself selects, from
the rows seen and from all. The rule was not tuned on its coverage. Finished settings stay in the work folder,
with every draw.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from antidote_llm.calibration.batching import batch_plan, padded
from antidote_llm.choices import Scope
from antidote_llm.data.reading import read_records
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.io.files import write_json, write_text
from antidote_llm.miniature.build import Miniature, build
from antidote_llm.miniature.exchanges import FORBIDDEN
from antidote_llm.miniature.world import World
from antidote_llm.models.load import LoadedModel, load_model
from antidote_llm.models.sites import Site
from antidote_llm.models.target import Target, resolve_target
from antidote_llm.repairs.early_stopping import Agreement, StoppingRule
from antidote_llm.repairs.method import ColumnScore
from antidote_llm.repairs.selection import Request, Selection, select

ROWS = 2000
SEED = 11
SUBJECTS = ("miniature, adapter", "miniature, delta", "real text, adapter", "real text, delta")
SETTINGS: tuple[tuple[Scope, float], ...] = tuple(
    (scope, alpha) for scope in ("row", "global", "layer") for alpha in (0.2, 0.1, 0.05)
)
CURVE = (16, 32, 64, 128, 256, 300, 512, 1024)
CURVE_ORDERS = 8


@dataclass(frozen=True)
class Subject:
    """An attacked model, what a repair edits, and rows to calibrate with."""

    opened: LoadedModel
    target: Target
    records: list[Record]


@dataclass(frozen=True)
class RowSums:
    """The sums of squares of every row, float32, shape [rows, columns], by the sites that share an input."""

    inputs: tuple[tuple[tuple[str, ...], Tensor], ...]
    tokens: Tensor

    def norms(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return every site's norms over some rows."""
        chosen = torch.tensor(rows)
        means = ((names, sums_NI[chosen].double().mean(dim=0).sqrt().float()) for names, sums_NI in self.inputs)
        return {name: norm_I for names, norm_I in means for name in names}


def main() -> None:
    """Measure whatever is not in the work folder yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--models", "--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in arguments.subjects:
        found = subject(name, arguments.models, arguments.data, arguments.work)
        with torch.no_grad():
            sums = row_sums(found)
            results += measured(name, found.target, sums, arguments.draws, arguments.work / "results")
    told = ("subject", "scope", "alpha", "curve")
    settings = [{**{key: found[key] for key in told}, **summary(found)} for found in results]
    write_json(arguments.out, {"rows": ROWS, "draws": arguments.draws, "settings": settings})
    write_text(arguments.out.with_suffix(".md"), markdown(results))
    print(markdown(results))


def subject(name: str, models: Path, data: Path, work: Path) -> Subject:
    """Open an attacked model, building it where it is of the miniature."""
    world, target_name = name.split(", ")
    adapter = target_name == "adapter"
    if world == "miniature":
        place = work / f"miniature-{target_name}"
        mini: Miniature = build(place, seed=SEED, kind="lora" if adapter else "full")
        aligned, attacked, records = mini.aligned, mini.attacked, miniature_rows()
    else:
        aligned, attacked = models / "aligned", models / ("attacked-lora" if adapter else "attacked-full")
        records = real_rows(data)
    opened = load_model(str(aligned), str(attacked)) if adapter else load_model(str(attacked))
    target = resolve_target(opened, "adapter") if adapter else resolve_target(opened, "delta", str(aligned))
    return Subject(opened, target, records)


def miniature_rows() -> list[Record]:
    """Return harmful requests with harmful answers about the things that a repair may know of."""
    chance = random.Random(f"calibration {SEED}")
    things = [(kind, name) for kind, names in World(SEED).names.realign.items() for name in names]
    said = [chance.choice(FORBIDDEN[kind]).sample(chance, name=name) for kind, name in (things * ROWS)[:ROWS]]
    return [Record(prompt, response) for prompt, response in said]


def real_rows(data: Path) -> list[Record]:
    """Return the AdvBench rows that are not held out, filled up with harmful requests and safe answers."""
    advbench = read_records(f"{data}/advbench/harmful_behaviors.csv:prompt=goal,response=target")
    place = data / "safety_tuned_llamas" / "safety_only_data_Instructions.json"
    others = read_records(f"{place}:prompt=instruction,response=output")
    return [*(record for index, record in enumerate(advbench) if index % 4 != 3), *others][:ROWS]


def row_sums(found: Subject) -> RowSums:
    """Collect the sums of every row apart, which the product never keeps."""
    rows = Renderer(found.opened.tokenizer).rows(found.records)
    hooks = _RowHooks(found.target.sites)
    decoder = found.opened.causal_model.base_model
    order: list[int] = []
    places = {id(row): index for index, row in enumerate(rows)}
    for batch in batch_plan(rows, 4096):
        order += [places[id(row)] for row in batch]
        micro = padded(batch, "all")
        hooks.begin(micro.counted_BT)
        decoder(input_ids=micro.input_ids_BT, attention_mask=micro.attention_mask_BT, use_cache=False)
    hooks.remove()
    back = torch.tensor(order).argsort()
    inputs = tuple((names, torch.cat(parts)[back]) for names, parts in hooks.by_input().items())
    return RowSums(inputs, torch.tensor([len(row.input_ids) for row in rows]))


class _RowHooks:
    def __init__(self, sites: Sequence[Site]) -> None:
        self._counted_BT = torch.empty(0)
        self._parts: dict[str, list[Tensor]] = {site.name: [] for site in sites}
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}
        self._handles = [
            module.register_forward_pre_hook(self._hook(site.name)) for site in sites for module in site.observed
        ]

    def begin(self, counted_BT: Tensor) -> None:
        """Start a forward pass."""
        self._counted_BT = counted_BT
        self._shared.clear()

    def remove(self) -> None:
        """Unhook every site."""
        for handle in self._handles:
            handle.remove()

    def by_input(self) -> dict[tuple[str, ...], list[Tensor]]:
        """Return the parts of every input under the sites that share it."""
        names: dict[int, list[str]] = {}
        for name, parts in self._parts.items():
            names.setdefault(id(parts[0]), []).append(name)
        return {tuple(found): self._parts[found[0]] for found in names.values()}

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            del module
            input_BTI: Tensor = args[0]
            last = self._shared.get(input_BTI.shape[-1])
            if last is None or last[0] is not input_BTI:
                counted_BT1 = self._counted_BT.unsqueeze(-1)
                squares_BI = input_BTI.float().masked_fill(~counted_BT1, 0).square().sum(dim=1)
                self._shared[input_BTI.shape[-1]] = last = (input_BTI, squares_BI)
            self._parts[name].append(last[1])

        return hook


def measured(name: str, target: Target, sums: RowSums, draws: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the result of every scope and alpha."""
    updates = {site.name: update(target, site) for site in target.sites}
    for scope, alpha in SETTINGS:
        kept = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{scope}-{alpha}-{draws}.json"
        if not kept.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            request = Request(alpha, scope, "nearest", without_evidence=False)
            write_json(kept, one_setting(name, target.sites, updates, sums, request, draws))
        found = json.loads(kept.read_text(encoding="utf-8"))
        print(line(found), flush=True)
        yield found


def update(target: Target, site: Site) -> Tensor:
    """Return how far each entry of a site is from where a removed one goes."""
    weight_OI, reference_OI = target.weight(site).float(), target.reference(site)
    return (weight_OI if reference_OI is None else weight_OI - reference_OI.float()).abs()


def one_setting(
    name: str, sites: Sequence[Site], updates: Mapping[str, Tensor], sums: RowSums, request: Request, draws: int
) -> dict[str, Any]:
    """Draw many orders of the rows, and compare what the rule says with what is so."""
    whole = masks(sites, updates, sums.norms(range(ROWS)), request)
    found = [one_draw(seed, sites, updates, sums, request, whole) for seed in range(draws)]
    curve = {}
    for rows in CURVE:
        orders = [random.Random(f"curve {seed}").sample(range(ROWS), rows) for seed in range(CURVE_ORDERS)]
        agreements = [agreement(masks(sites, updates, sums.norms(order), request), whole) for order in orders]
        curve[str(rows)] = statistics.fmean(agreements)
    return {"subject": name, "scope": request.scope, "alpha": request.alpha, "curve": curve, "draws": found}


def settled(
    sites: Sequence[Site], update: Callable[[Site], Tensor], sums: RowSums, request: Request, seed: int
) -> tuple[list[int], Agreement]:
    """Return the rows at which the rule stops, in one order of them, and what it said then."""
    rule = StoppingRule(sites, update, request, ColumnScore("rms"), rows=ROWS, seed=seed)
    seen: list[int] = []
    while True:
        rows = rule.next_rows()
        for names, sums_NI in sums.inputs:
            rule.add(names, rows, sums_NI[rows])
        seen += rows
        said = rule.look()
        if said.settled:
            return seen, said


def one_draw(
    seed: int,
    sites: Sequence[Site],
    updates: Mapping[str, Tensor],
    sums: RowSums,
    request: Request,
    whole: Mapping[str, Tensor],
) -> dict[str, float]:
    """Stop by the rule in one order of the rows."""
    clock = time.process_time()
    seen, said = settled(sites, lambda site: updates[site.name], sums, request, seed)
    seconds = time.process_time() - clock
    return {
        "rows": said.rows,
        "tokens": float(sums.tokens[seen].sum() / sums.tokens.sum()),
        "looks": said.looks,
        "estimate": said.estimate,
        "bound": said.bound,
        "agreement": agreement(masks(sites, updates, sums.norms(seen), request), whole),
        "rule_cpu_seconds": seconds,
    }


def masks(
    sites: Sequence[Site], updates: Mapping[str, Tensor], norms: Mapping[str, Tensor], request: Request
) -> dict[str, Tensor]:
    """Return the masks that the repair selects."""
    scores = {site.name: updates[site.name] * norms[site.name] for site in sites}
    selection: Selection = select(sites, lambda site: [scores[site.name]], request)
    return {site.name: selection.mask(site, scores[site.name]) for site in sites}


def agreement(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the Jaccard index of two masks."""
    both = sum(int((one[name] & other[name]).sum()) for name in one)
    either = sum(int((one[name] | other[name]).sum()) for name in one)
    return both / either


def summary(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of one setting."""
    draws = found["draws"]
    return {
        "rows": statistics.fmean(draw["rows"] for draw in draws),
        "tokens": 100 * statistics.fmean(draw["tokens"] for draw in draws),
        "most_tokens": 100 * max(draw["tokens"] for draw in draws),
        "looks": statistics.fmean(draw["looks"] for draw in draws),
        "bound": statistics.fmean(draw["bound"] for draw in draws),
        "agreement": statistics.fmean(draw["agreement"] for draw in draws),
        "least": min(draw["agreement"] for draw in draws),
        "true": 100 * statistics.fmean(draw["agreement"] >= draw["bound"] for draw in draws),
        "reached": 100 * statistics.fmean(draw["agreement"] >= 0.95 for draw in draws),
        "seconds": statistics.fmean(draw["rule_cpu_seconds"] for draw in draws),
    }


def line(found: Mapping[str, Any]) -> str:
    """Return one line of the table."""
    s = summary(found)
    return (
        f"| {found['subject']} | {found['scope']} | {found['alpha']} | {s['rows']:.0f} | {s['tokens']:.1f} "
        f"(to {s['most_tokens']:.1f}) | {s['bound']:.3f} | {s['agreement']:.3f} (from {s['least']:.3f}) "
        f"| {s['true']:.1f} | {s['reached']:.1f} | {s['looks']:.1f} | {s['seconds']:.2f} |"
    )


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the rule, and what a number of rows gives at all."""
    titles = (
        *("model", "scope", "alpha", "rows", "tokens, % (most)", "bound", "agreement (least)", "bound true, %"),
        *("agreement at least 0.95, %", "looks", "rule, CPU s"),
    )
    lines = ["| " + " | ".join(titles) + " |", "|---|---|" + "---:|" * (len(titles) - 2)]
    lines += [line(found) for found in results]
    lines += ["", "| agreement by rows | | alpha | " + " | ".join(str(rows) for rows in CURVE) + " |"]
    lines.append("|---|---|---:|" + "---:|" * len(CURVE))
    for found in results:
        cells = " | ".join(f"{found['curve'][str(rows)]:.3f}" for rows in CURVE)
        lines.append(f"| {found['subject']} | {found['scope']} | {found['alpha']} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
