"""RepNoise: alignment that moves the representations of harmful answers towards noise.

Source: Rosati et al., "Representation noising", arXiv 2405.14577.  Axes: B rows, T tokens, D hidden, V vocabulary,
M harmful tokens that are learned from, N samples of a discrepancy.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field

from antidote_llm.errors import UserError, listed, setting
from antidote_llm.training.batches import IGNORED, Batch, Example, carrying, model_inputs
from antidote_llm.training.defense import Cost, StageData, TrainingJob, alignment_defense
from antidote_llm.training.objective import Objective, Session, at_least_float32, module_outputs
from antidote_llm.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

Samples: TypeAlias = Literal["rows", "tokens"]

_MOST_LISTED = 5
_KERNELS = 5
KEPT_LOGITS_BYTES = 1 << 28


@alignment_defense(
    needs_harmful=True,
    cost=Cost(passes=2, graphs=2),
    presets={
        "paper": {"alpha": 1.0, "beta": 0.001, "layerwise": True, "ascent_offset": 1.0},
        "official-code": {"alpha": 0.1, "beta": 0.001, "layerwise": False, "ascent_offset": 0.0},
    },
)
def repnoise(
    data: StageData,
    training: TrainingSettings,
    *,
    alpha: Annotated[float, Field(ge=0, description="How strongly harmful answers are unlearned.")] = 1.0,
    beta: Annotated[float, Field(ge=0, description="How strongly their representations are drawn to noise.")] = 0.001,
    layerwise: Annotated[bool, Field(description="Unlearn harmful answers as read from every layer too.")] = True,
    ascent_offset: Annotated[
        float, Field(ge=0, description="Added to the unlearned loss before its logarithm; 1 keeps that above 0.")
    ] = 1.0,
    samples: Annotated[
        Samples, Field(description="What is compared with noise: whole rows, or tokens one by one.")
    ] = "rows",
) -> TrainingJob:
    """RepNoise (arXiv 2405.14577): refusals are learned, and harmful answers are unlearned in every layer.

    L = l_stab + beta l_noise - alpha log l_ascent (arXiv 2405.14577, eq. 3 to 5). l_stab is the cross-entropy of the
    alignment data. Every row carries a pair: a harmful row and the refusal of the same prompt; where their tokens
    differ, l_noise is the squared maximum mean discrepancy between what the feed-forward parts give for the harmful
    row and Gaussian noise, averaged over layers, and l_ascent is the mean of the harmful row's cross-entropies, read
    from the end and from every layer, plus 1. Noise and logarithm are of one forward pass over all processes, and a
    step's are averaged over its forward passes: 4 passes of 1 row are not 1 pass of 4.

    Raises:
        UserError: A harmful row has no refusal of the same prompt, or a batch holds one row only.
    """
    if samples == "rows" and beta > 0 and training.batch_size == 1:
        batch_size = setting("batch_size")
        raise UserError(
            f"{batch_size} 1: RepNoise compares rows: pass {batch_size} 2 or more, or {setting('samples')} tokens"
        )
    own = data.examples(training)
    harmful = _pairs(data, own, training)
    examples = carrying(own, "harmful", harmful, training.seed)
    return TrainingJob(
        examples, _RepNoise(_Strengths(alpha, beta, layerwise, ascent_offset, samples), training.seed), training
    )


@dataclass(frozen=True)
class _Strengths:
    alpha: float
    beta: float
    layerwise: bool
    ascent_offset: float
    samples: Samples


class _RepNoise(Objective):
    def __init__(self, strengths: _Strengths, seed: int) -> None:
        self._strengths, self._seed = strengths, seed
        self._passes, self._pass = 1, 0

    def attach(self, session: Session) -> None:
        from antidote_llm.models.decoder import find_decoder

        super().attach(session)
        self._decoder = find_decoder(session.inner)

    def before_step(self, window: Sequence[Batch]) -> None:
        self._passes, self._pass = len(window), 0

    def loss(self, batch: Batch) -> Tensor:
        stability, harmful = super().loss(batch), batch["harmful"]
        layers = self._decoder.layers if self._strengths.layerwise else ()
        with module_outputs(self._decoder.feed_forward) as feed_forward, module_outputs(layers) as hidden:
            outputs: Any = self.session.inner(**model_inputs(harmful))
        noise = self._noise(list(feed_forward.values()), harmful["labels"] != IGNORED)
        ascent = self._ascent(outputs.logits, list(hidden.values()), harmful["labels"])
        own = (self._strengths.beta * noise - self._strengths.alpha * ascent.log()) / self._passes
        self._pass += 1
        # Every process has the whole value but its own rows' gradient, and gradients are averaged over processes.
        return stability + own + (self.session.processes - 1) * (own - own.detach())

    def _noise(self, feed_forward: Sequence[Tensor], own_harmful_BT: Tensor) -> Tensor:
        import torch

        harmful_BT = self.session.gather_over_processes(own_harmful_BT.long()).bool()
        generator = torch.Generator(harmful_BT.device).manual_seed(self._noise_seed())
        discrepancies = []
        for output in feed_forward:
            # OPT may run the feed-forward part on all rows as one.
            own_BTD = at_least_float32(output).reshape(*own_harmful_BT.shape, -1) * own_harmful_BT[..., None]
            given_BTD = self.session.gather_over_processes(own_BTD)
            noise_BTD = torch.zeros_like(given_BTD)
            # Drawn for the harmful tokens only, in their order: the number of pads does not change it.
            noise_BTD[harmful_BT] = torch.randn(
                int(harmful_BT.sum()),
                given_BTD.shape[-1],
                generator=generator,
                device=given_BTD.device,
                dtype=given_BTD.dtype,
            )
            chosen = harmful_BT if self._strengths.samples == "tokens" else harmful_BT.any(1)
            discrepancies.append(squared_discrepancy(given_BTD[chosen].flatten(1), noise_BTD[chosen].flatten(1)))
        return torch.stack(discrepancies).mean()

    def _noise_seed(self) -> int:
        return random.Random(f"{self._seed} {self.session.step} {self._pass}").getrandbits(63)

    def _ascent(self, logits_BTV: Tensor, hidden: Sequence[Tensor], labels_BT: Tensor) -> Tensor:
        learned_BT = labels_BT[:, 1:] != IGNORED
        labels_M = labels_BT[:, 1:][learned_BT]
        summed = _cross_entropy(logits_BTV[:, :-1][learned_BT], labels_M)
        with self.session.autocast():
            bytes_of_all = 4 * len(hidden) * len(labels_M) * logits_BTV.shape[-1]
            # Few logits are kept for the backward pass; many are recomputed in it.
            read = self._read if bytes_of_all <= KEPT_LOGITS_BYTES else self._read_again
            for hidden_BTD in hidden:
                summed = summed + read(hidden_BTD[:, :-1][learned_BT], labels_M)
        tokens = self.session.sum_over_processes(labels_M.new_tensor(len(labels_M)))
        whole = summed + (self.session.sum_over_processes(summed.detach()) - summed.detach())
        return whole / (tokens * max(1, len(hidden))) + self._strengths.ascent_offset

    def _read_again(self, hidden_MD: Tensor, labels_M: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        summed: Tensor = checkpoint(self._read, hidden_MD, labels_M, use_reentrant=False)
        return summed

    def _read(self, hidden_MD: Tensor, labels_M: Tensor) -> Tensor:
        return _cross_entropy(self._decoder.logits(hidden_MD), labels_M)


def squared_discrepancy(first_ND: Tensor, second_ND: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of two sets of samples, with five Gaussian kernels.

    Every pair counts, a sample and itself too. The narrowest kernel's width is a quarter of the mean squared distance
    between different samples of both sets together (as the published code of arXiv 2405.14577 has it).

    Args:
        first_ND: Samples, shape [N, D].
        second_ND: As many others.
    """
    import torch

    with torch.autocast(first_ND.device.type, enabled=False):
        both = torch.cat([first_ND, second_ND])
        squares = both.square().sum(1)
        distances = (squares[:, None] + squares[None] - 2 * both @ both.T).clamp_min(0)
        distances = distances - torch.diag(distances.diagonal())
        width = distances.detach().sum() / (len(both) ** 2 - len(both)) / 4
        width = width.clamp_min(torch.finfo(width.dtype).eps)
        kernel = torch.stack([(-distances / (width * 2**power)).exp() for power in range(_KERNELS)]).sum(0)
        count = len(first_ND)
        return kernel[:count, :count].mean() + kernel[count:, count:].mean() - 2 * kernel[:count, count:].mean()


def _cross_entropy(logits_MV: Tensor, labels_M: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.cross_entropy(at_least_float32(logits_MV), labels_M, reduction="sum")


def _pairs(data: StageData, own: Sequence[Example], training: TrainingSettings) -> list[Example]:
    """Return the harmful rows, with labels where their tokens differ from the refusal of the same prompt."""
    from antidote_llm.data.mixing import prompt_key

    partners: dict[object, list[Example]] = defaultdict(list)
    for record, example in zip(data.rows, own, strict=True):
        partners[prompt_key(record)].append(example)
    unpaired = [record for record in data.auxiliary if prompt_key(record) not in partners]
    if unpaired:
        named = listed([record.origin or f"'{record.prompt}'" for record in unpaired], _MOST_LISTED)
        raise UserError(
            f"{len(unpaired)} of {len(data.auxiliary)} harmful rows have no row of the same prompt in the alignment "
            f"data: {named}: leave them out, or add their refusals"
        )
    pairs, met = [], defaultdict[object, int](int)
    for record, example in zip(data.auxiliary, data.auxiliary_examples(training), strict=True):
        same_prompt = partners[key := prompt_key(record)]
        pairs.append(_where_different(example, same_prompt[met[key] % len(same_prompt)], record.origin))
        met[key] += 1
    return pairs


def _where_different(harmful: Example, harmless: Example, origin: str) -> Example:
    ids, others = harmful["input_ids"], harmless["input_ids"]
    labels = [
        label if token != other else IGNORED
        for label, token, other in zip_longest(harmful["labels"], ids, others[: len(ids)])
    ]
    if all(label == IGNORED for label in labels[1:]):
        raise UserError(f"{origin or 'a harmful row'}: is the refusal of its prompt: remove it from one of the two")
    return {"input_ids": ids, "labels": labels}
