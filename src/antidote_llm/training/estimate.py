"""Estimates the steps, memory and time of a training, without weights or values.  Axes: B rows, T tokens."""

from __future__ import annotations

import random
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from antidote_llm.choices import DtypeName, TemplateName
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer, TokenizedRow
from antidote_llm.io.resources import peak_rss_bytes
from antidote_llm.models.config import quiet_transformers
from antidote_llm.models.skeleton import Skeleton
from antidote_llm.models.torch_private import fake_tensors, own_buffers, own_parameters, storage_of
from antidote_llm.training.defense import Defense, StageData
from antidote_llm.training.lora import attach_lora
from antidote_llm.training.settings import TrainingSettings, step_count


def kept_bytes(model: PreTrainedModel | PeftModel, rows: int, tokens: int, training: TrainingSettings) -> int | None:
    """Return the bytes that the forward pass of one batch keeps for the backward pass.

    None where the architecture does not run on tensors without values.

    Args:
        model: A model on the meta device, with its adapters; trained weights require gradients. Its tensors are
            replaced by fake tensors on the CPU.
        rows: Rows of the batch, B.
        tokens: Length of its longest row, T.
        training: Gives the precision, and whether activations are recomputed.
    """
    mode = fake_tensors()
    with mode:
        _without_values(model)
        held = {storage_of(parameter) for parameter in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if (storage := storage_of(tensor)) not in held:
                kept[storage] = tensor.untyped_storage().nbytes()
            return tensor

        input_ids_BT = torch.zeros(rows, tokens, dtype=torch.long)
        precision = torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bfloat16")
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, _same), precision, quiet_transformers():
                logits_BTV = model.train()(input_ids=input_ids_BT, use_cache=False).logits
                loss = ForCausalLMLoss(logits_BTV, input_ids_BT, vocab_size=logits_BTV.shape[-1])
        except (NotImplementedError, RuntimeError):
            return None
        # The graph must exist until here: freed storage could be used again and be counted once.
        del loss
    whole = sum(kept.values())
    return _recomputed(model, whole, rows * tokens, training) if training.gradient_checkpointing else whole


def _recomputed(model: PreTrainedModel | PeftModel, whole: int, tokens: int, training: TrainingSettings) -> int:
    """Return the kept bytes with gradient checkpointing: every layer's input, all of one layer, and the head."""
    config = model.config.get_text_config()
    layers, item = int(config.num_hidden_layers), 2 if training.precision == "bfloat16" else 4
    head = 4 * tokens * int(config.vocab_size)
    return head + layers * tokens * int(config.hidden_size) * item + max(0, whole - head) // layers


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _without_values(model: nn.Module) -> None:
    """Replace tensors on the meta device by empty ones on the CPU; shared tensors stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (own_parameters(module), own_buffers(module)):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]


_SECONDS = 0.5
_MOST_TOKENS = 4096


class Speed(BaseModel):
    """Floating-point operations per second, and where the number comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops_per_second: float = Field(gt=0, description="Floating-point operations per second.")
    source: Literal["given", "measured"] = Field(description="Given, or measured by products of matrices.")
    device: str = Field(description="Where this machine would train: cpu or cuda.")


def training_device() -> str:
    """Return where this machine trains."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def given_speed(flops_per_second: float) -> Speed:
    """Return a speed that the user states."""
    return Speed(flops_per_second=flops_per_second, source="given", device=training_device())


def measured_speed(tokens: int, matrix: tuple[int, int], training: TrainingSettings) -> Speed:
    """Measure the speed of matrix products of the size of the model's layers, for half a second.

    Args:
        tokens: Tokens of a batch.
        matrix: Rows and columns of a layer's weight.
        training: Gives the precision.
    """
    device = training_device()
    dtype = torch.bfloat16 if training.precision == "bfloat16" else torch.float32
    weight_OI = torch.ones(matrix, dtype=dtype, device=device)
    inputs_TI = torch.ones(min(tokens, _MOST_TOKENS), matrix[1], dtype=dtype, device=device)
    _product(inputs_TI, weight_OI)
    start, products = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < _SECONDS:
        _product(inputs_TI, weight_OI)
        products += 1
    flops = 2 * len(inputs_TI) * weight_OI.numel() * products / spent
    return Speed(flops_per_second=flops, source="measured", device=device)


def _product(inputs_TI: torch.Tensor, weight_OI: torch.Tensor) -> None:
    inputs_TI @ weight_OI.T
    if inputs_TI.is_cuda:
        torch.cuda.synchronize()


# As in English text; a plan says when it counts so.
CHARACTERS_PER_TOKEN = 4
_FLOAT32_BYTES, _ADAMW_MOMENTS = 4, 2
# Logits and their gradient, both float32, when the backward pass begins.
_LOGITS_BYTES = 8


class MemoryPlan(BaseModel):
    """The peak memory of a training, in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: int = Field(description="The model's weights, adapters among them.")
    gradients: int = Field(description="Gradients of the trained weights.")
    optimizer: int = Field(description="AdamW's two moments.")
    activations: int | None = Field(
        description="What the longest batch keeps for its backward pass, weights cast to bfloat16 among it; "
        "null where this architecture does not tell."
    )
    logits: int = Field(description="Logits of that batch and their gradient, when the backward pass begins.")
    defense: int = Field(description="Copies of trained weights, and further graphs, that the defense holds.")
    libraries: int = Field(description="Python and its libraries, as they are in this process; 0 on a GPU.")

    @property
    def total(self) -> int:
        """All of it, as far as it is known."""
        return sum(getattr(self, name) or 0 for name in type(self).model_fields)


class StagePlan(BaseModel):
    """What a stage would take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str = Field(description="alignment or finetuning.")
    model: str = Field(description="The model, as the user named it.")
    defense: str = Field(description="The defense's name.")
    rows: int = Field(description="The stage's own rows.")
    companion_rows: int = Field(description="Auxiliary rows that the defense learns from.")
    steps: int = Field(description="Optimiser steps.")
    tokens_per_epoch: int = Field(description="Tokens of the stage's own rows, cut at max_length.")
    tokens: int = Field(description="Tokens of all steps, pads left out.")
    padded_tokens: int = Field(description="Tokens of all steps, pads included: what is computed.")
    longest_row: int = Field(description="Tokens of the longest row.")
    tokens_from: Literal["tokenizer", "characters"] = Field(description="Counted, or estimated from characters.")
    parameters: int = Field(description="Weights of the model, adapters included.")
    trainable_parameters: int = Field(description="Weights that are trained.")
    passes: float = Field(description="The work of a step, in steps of plain fine-tuning.")
    memory: MemoryPlan = Field(description="Memory at the peak, by what it is for.")
    memory_bytes: int = Field(description="All of the memory together.")
    flops: float = Field(description="Floating-point operations.")
    speed: Speed = Field(description="How many of them this machine does in a second.")
    seconds: float = Field(description="Time at that speed.")


class CharacterRenderer(Renderer):
    """Estimates tokens from characters where there is no tokenizer."""

    def rows(self, records: Sequence[Record]) -> list[TokenizedRow]:
        """Return rows of about as many tokens; equal characters give equal tokens."""
        return [self._counted(record) for record in records]

    def _counted(self, record: Record) -> TokenizedRow:
        if record.input_ids is not None:
            return TokenizedRow(list(record.input_ids), record.response_start)
        prompt = [] if record.text is not None else _pieces(self.prompt_text(record))
        # The last one closes the answer.
        return TokenizedRow([*prompt, *_pieces(record.text or record.response or ""), 0], len(prompt))


def renderer_for(skeleton: Skeleton, template: TemplateName, system: str | None) -> Renderer:
    """Return the renderer that counts a plan's tokens: with the model's tokenizer, or by characters without one."""
    if skeleton.tokenizer is not None:
        return Renderer(skeleton.tokenizer, template, system=system)
    return CharacterRenderer(None, "plain" if template == "plain" else "alpaca", system=system)


def plan_stage(
    skeleton: Skeleton,
    data: StageData,
    defense: Defense,
    training: TrainingSettings,
    settings: BaseModel,
    *,
    dtype: DtypeName = "float32",
    speed: Speed | None = None,
) -> StagePlan:
    """Estimate what a stage would take; nothing is trained, and no weights are read.

    Args:
        skeleton: The model that the stage would start from.
        data: What it would learn from.
        defense: How it would be defended.
        training: How it would be trained.
        settings: The defense's settings.
        dtype: The type that weights would be loaded in.
        speed: How fast this machine is; measured where not given.

    Raises:
        UserError: The data do not fit the defense, or the model has no layer of a target's name.
    """
    job = defense.job(data, training, settings)
    lengths = [len(example["input_ids"]) for example in job.examples]
    steps = step_count(job.training, len(lengths))
    epochs = steps / step_count(job.training.model_copy(update={"epochs": 1, "max_steps": None}), len(lengths))
    padded = round(epochs * _padded(lengths, job.training))
    base = skeleton.model().requires_grad_(training.lora is None)
    computing, matrix = matrix_entries(base), commonest_matrix(base)
    trained = base if training.lora is None else attach_lora(base, training.lora, training.seed)
    sizes = {flag: sum(p.numel() for p in trained.parameters() if p.requires_grad == flag) for flag in (True, False)}
    # Adapters are float32, whatever the base is.
    width = _bytes(dtype, skeleton) if training.lora is None else _FLOAT32_BYTES
    held = sizes[True] * width + sizes[False] * _bytes(dtype, skeleton)
    memory = _memory(held, sizes[True] * width, trained, max(lengths), defense, training)
    flops = defense.cost.passes * padded * _flops_a_token(computing, sizes[True], training)
    speed = speed or measured_speed(training.batch_size * max(lengths), matrix, training)
    return StagePlan(
        stage=defense.stage,
        model=skeleton.reference,
        defense=defense.name,
        rows=len(data.rows),
        companion_rows=len(data.auxiliary),
        steps=steps,
        tokens_per_epoch=sum(min(len(row.input_ids), training.max_length) for row in data.rendered),
        tokens=round(epochs * sum(lengths)),
        padded_tokens=padded,
        longest_row=max(lengths),
        tokens_from="characters" if isinstance(data.renderer, CharacterRenderer) else "tokenizer",
        parameters=sum(sizes.values()),
        trainable_parameters=sizes[True],
        passes=defense.cost.passes,
        memory=memory,
        memory_bytes=memory.total,
        flops=flops,
        speed=speed,
        seconds=flops / speed.flops_per_second,
    )


def _flops_a_token(computing: int, trainable: int, training: TrainingSettings) -> int:
    """Return the operations of a token's forward and backward pass; frozen matrices have no gradient."""
    return 6 * computing if training.lora is None else 4 * computing + 6 * trainable


def _memory(
    weights: int, trained_bytes: int, model: PreTrainedModel, longest: int, defense: Defense, training: TrainingSettings
) -> MemoryPlan:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    kept = kept_bytes(model, training.batch_size, longest, training)
    graphs = (defense.cost.graphs - 1) * (kept or 0)
    return MemoryPlan(
        weights=weights,
        gradients=trained_bytes,
        optimizer=_ADAMW_MOMENTS * trained_bytes,
        activations=kept,
        logits=_LOGITS_BYTES * training.batch_size * longest * vocabulary,
        defense=round(defense.cost.copies * trained_bytes + graphs),
        libraries=0 if torch.cuda.is_available() else peak_rss_bytes(),
    )


def _padded(lengths: Sequence[int], training: TrainingSettings) -> int:
    """Return how many tokens, pads included, one pass over the rows computes."""
    order = list(lengths)
    if training.batching == "shuffled":
        random.Random(training.seed).shuffle(order)
    if training.batching == "grouped":
        order.sort()
    size = training.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return sum(len(batch) * max(batch) for batch in batches)


def matrix_entries(model: PreTrainedModel) -> int:
    """Return how many weights a token is multiplied with: those of all matrices but looked-up embeddings."""
    tied = model.get_output_embeddings() is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    looked_up: int = 0 if tied else model.get_input_embeddings().weight.numel()
    matrices = sum(int(parameter.numel()) for parameter in model.parameters() if parameter.dim() > 1)
    return matrices - looked_up


def commonest_matrix(model: PreTrainedModel) -> tuple[int, int]:
    """Return the commonest shape of the layers' matrices, by entries."""
    outside = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part}
    entries: Counter[tuple[int, int]] = Counter()
    for parameter in model.parameters():
        if parameter.dim() == 2 and id(parameter) not in outside:
            entries[tuple(parameter.shape)] += parameter.numel()
    return entries.most_common(1)[0][0]


def _bytes(dtype: DtypeName, skeleton: Skeleton) -> int:
    found: torch.dtype = skeleton.stored_dtype if dtype == "auto" else getattr(torch, dtype)
    return found.itemsize


def _pieces(text: str) -> list[int]:
    size = CHARACTERS_PER_TOKEN
    return [zlib.crc32(text[start : start + size].encode()) for start in range(0, len(text), size)]
