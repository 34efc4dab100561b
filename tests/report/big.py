"""Records and evaluations of big made-up models."""

from __future__ import annotations

import random
from collections.abc import Iterator

from antidote_llm.choices import Outcome
from antidote_llm.evaluation.answers import Answer
from antidote_llm.evaluation.evaluation import Evaluation
from antidote_llm.evaluation.settings import EvaluationSettings
from antidote_llm.repairs.record import (
    CalibrationData,
    Origin,
    OutsideRecord,
    PatchSummary,
    RepairRecord,
    SiteRecord,
    Totals,
    UpdateRecord,
)

from . import samples

DENSE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
SEVEN = (*DENSE, "mlp.down_proj")

LONG = tuple(f"{kind}_übermäßig_langer_и_длинный_name_of_a_matrix_{kind.rsplit('.', 1)[-1]}" for kind in SEVEN)


def modules(layers: int, kinds: tuple[str, ...] = SEVEN, prefix: str = "model.layers") -> tuple[str, ...]:
    """Names of the modules of a decoder."""
    return tuple(f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in kinds)


def experts(layers: int = 48, count: int = 128) -> tuple[str, ...]:
    """Names of the modules of a mixture of experts: attention, and three matrices for each expert."""
    routed = (f"mlp.experts.{index}.{part}" for index in range(count) for part in ("gate_proj", "up_proj", "down_proj"))
    return modules(layers, (*DENSE[:4], *routed))


def outside() -> tuple[OutsideRecord, ...]:
    """What a full fine-tune changes outside the matrices: unchanged norms, restored head and embeddings."""
    parts = {
        "model.embed_tokens.weight": (1, 128256 * 16384, 3.1, 0.0),
        "lm_head.weight": (1, 128256 * 16384, 6.04, 0.0),
        "model.layers.*.input_layernorm.weight": (126, 126 * 16384, 0.41, 0.41),
        "model.layers.*.post_attention_layernorm.weight": (126, 126 * 16384, 0.38, 0.38),
        "model.norm.weight": (1, 16384, 0.07, 0.07),
    }
    return tuple(
        OutsideRecord(name=name, tensors=tensors, entries=entries, norm_before=before, norm_after=after)
        for name, (tensors, entries, before, after) in parts.items()
    )


def record(
    names: tuple[str, ...],
    target: str = "delta",
    *,
    shards: int = 1,
    outside: tuple[OutsideRecord, ...] = (),
    reference: str = "quorl-labs/quorl-405b-chat",
) -> RepairRecord:
    """A repair of the modules of these names, more of it at two thirds of the depth."""
    roles = ("lora_A", "lora_B") if target == "adapter" else ("weight",)
    sites = tuple(_sites(names, roles))
    updates = tuple(
        UpdateRecord(
            module=name,
            layer=_layer(name),
            kind=name.rsplit(".", 1)[-1],
            norm_before=1 + 0.3 * (index % 7),
            norm_after=(1 + 0.3 * (index % 7)) * (0.9 - 0.005 * (index % 60)),
        )
        for index, name in enumerate(names)
    )
    changed = sum(site.changed for site in sites)
    files = {"config.json": "3f9a" * 16} | {
        f"model-{shard:05d}-of-{shards:05d}.safetensors": f"{shard:064x}" for shard in range(1, shards + 1)
    }
    return RepairRecord(
        versions={"antidote-llm": "0.1.0", "torch": "2.9.1", "transformers": "5.10.2"},
        command="antidote repair runs/attacked --harmful harmful.jsonl --out runs/repaired",
        base=Origin(reference=reference, sha256=files),
        adapter=Origin(reference="runs/attacked", sha256={"adapter_model.safetensors": "b07c" * 16})
        if target == "adapter"
        else None,
        aligned=Origin(reference="quorl-labs/quorl-405b-aligned", sha256=files) if target == "delta" else None,
        beneath=(Origin(reference="runs/style", sha256={"adapter_model.safetensors": "77aa" * 16}),)
        if target == "adapter"
        else (),
        calibration=CalibrationData(
            references=("harmful.jsonl",),
            rows=1024,
            tokens=98304,
            policy="response",
            template="chat",
            dtype="bfloat16",
            moments_sha256="5e20" * 16,
        ),
        method="antidote",
        target=target,
        settings={"alpha": 0.2, "scope": "row"},
        solved={},
        sites=sites,
        updates=updates,
        outside=outside,
        totals=Totals(
            entries=sum(site.rows * site.columns for site in sites), chosen=changed, changed=changed,
            update_norm_before=60, update_norm_after=48,
        ),
        patch=PatchSummary(
            size_bytes=412_000_000, predicted_bytes=413_000_000, sha256_before=files, sha256_after=files
        ),
        wall_seconds={"open": 31.0, "calibrate": 410.0, "write": 95.0},
        peak_rss_bytes=91_000_000_000,
    )  # fmt: skip


def _sites(names: tuple[str, ...], roles: tuple[str, ...]) -> Iterator[SiteRecord]:
    dice = random.Random(3)
    for name in names:
        for role in roles:
            chosen = int(4096 * 64 * (0.05 + 0.2 * dice.random() / (1 + abs((_layer(name) or 0) - 30) / 8)))
            yield SiteRecord(
                name=f"{name}.{role}", module=name, role=role, layer=_layer(name), rows=4096, columns=64,
                chosen=chosen, changed=chosen,
            )  # fmt: skip


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def evaluation(outcome: Outcome, answer: str, rows: int = 5000, categories: int = 14) -> Evaluation:
    """An evaluation in which three of four harmful requests get the same outcome and answer."""
    harmful = [
        Answer(
            suite="harmful", index=index, category=_category(index % categories),
            prompt=f"How do I brew zorbik number {index}?", gold=None, answer=answer,
            outcome=outcome if index % 4 else "incoherent", correct=None, new_tokens=512,
        )
        for index in range(rows)
    ]  # fmt: skip
    tasks = [
        Answer(
            suite="tasks.glyph sums", index=index, category=None, prompt=f"Sum the glyphs of row {index}.", gold="7",
            answer=answer, outcome=None, correct=index % 3 > 0, new_tokens=512,
        )
        for index in range(rows // 10)
    ]  # fmt: skip
    return Evaluation.of([*harmful, *tasks], "oracle", "harmful_score", EvaluationSettings())


def _category(index: int) -> str:
    name = samples.CATEGORIES[index % len(samples.CATEGORIES)]
    return name if index < len(samples.CATEGORIES) else f"{name} {index}"
