from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from antidote_llm.alignment.repnoise import repnoise, squared_discrepancy
from antidote_llm.data.records import Record
from antidote_llm.data.rendering import Renderer
from antidote_llm.errors import UserError
from antidote_llm.training.batches import IGNORED, Batch
from antidote_llm.training.defense import StageData, TrainingJob, run_stage
from antidote_llm.training.objective import Objective
from antidote_llm.training.settings import LoraSettings, TrainingSettings
from antidote_llm.training.trainer import train
from tests import tiny
from tests.alignment.one_step import DATA, HARMFUL, REFUSALS, assert_same, small_model, step_gradients
from tests.architectures import write_checkpoint

TRAINING = TrainingSettings(
    learning_rate=1e-2, max_steps=4, batch_size=4, weight_decay=0, warmup=0, batching="ordered", lora=None
)
STRONG: dict[str, Any] = {"alpha": 0.7, "beta": 3.0}


def _job(training: TrainingSettings = TRAINING, data: StageData = DATA, **given: Any) -> TrainingJob:
    return repnoise.job(data, training, repnoise.configure(given))


def _trained(training: TrainingSettings = TRAINING, **given: Any) -> tuple[Any, tuple[float, ...]]:
    result = run_stage(small_model(), DATA, repnoise, training, repnoise.configure(given))
    return result.model, result.training.losses


def _ids(record: Record) -> list[int]:
    return DATA.renderer.rows([record])[0].input_ids


def _carried(job: TrainingJob) -> list[Record]:
    """Return which harmful row each row carries."""
    by_ids = {tuple(_ids(record)): record for record in HARMFUL}
    return [by_ids[tuple(example["harmful"]["input_ids"])] for example in job.examples]


def _different(harmful: Record) -> list[int]:
    """Return the positions at which a harmful row's tokens differ from the refusal of its prompt."""
    (refusal,) = [record for record in REFUSALS if record.prompt == harmful.prompt]
    ids, others = _ids(harmful), _ids(refusal)
    return [place for place, token in enumerate(ids) if place >= len(others) or token != others[place]]


class _Formula:
    """The loss of the paper's formula, row by row and layer by layer."""

    def __init__(self, model: Any, harmful: Sequence[Record], noise: Sequence[Tensor], by_token: bool) -> None:
        self.model, self.harmful, self.by_token = model, harmful, by_token
        self.noise = [list(of_layer) for of_layer in noise]

    def cross_entropies(self, hidden_TD: Tensor, record: Record, wrap: Any) -> list[Tensor]:
        logits_TV = self.model.lm_head(wrap(hidden_TD))
        return [-logits_TV[place - 1].log_softmax(0)[_ids(record)[place]] for place in _different(record)]

    def terms(self) -> tuple[Tensor, Tensor]:
        layers = self.model.model.layers
        longest = max(len(_ids(record)) for record in self.harmful)
        losses: list[list[Tensor]] = [[] for _ in range(len(layers) + 1)]
        samples: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in layers]
        for record in self.harmful:
            fed: list[Tensor] = []
            hooks = [layer.mlp.register_forward_hook(lambda _m, _i, out, fed=fed: fed.append(out)) for layer in layers]
            states: list[Tensor] = []
            hooks += [layer.register_forward_hook(lambda _m, _i, out, s=states: s.append(out)) for layer in layers]
            self.model(input_ids=torch.tensor([_ids(record)]))
            for hook in hooks:
                hook.remove()
            losses[0] += self.cross_entropies(states[-1][0], record, self.model.model.norm)
            for index in range(len(layers)):
                losses[index + 1] += self.cross_entropies(states[index][0], record, self.model.model.norm)
                self._sample(samples[index], fed[index][0], record, longest, self.noise[index])
        distances = [self.discrepancy(*pair) for pair in samples]
        means = [sum(of_one[1:], of_one[0]) / len(of_one) for of_one in losses]
        ascent = sum(means[1:], means[0]) / len(layers)
        return sum(distances[1:], distances[0]) / len(distances), ascent

    def _sample(self, into: Any, fed_TD: Tensor, record: Record, longest: int, noise: list[Tensor]) -> None:
        found, drawn = torch.zeros(longest, 16).double(), torch.zeros(longest, 16).double()
        for place in _different(record):
            found, drawn = found.clone(), drawn.clone()
            found[place], drawn[place] = fed_TD[place], noise.pop(0)
        if self.by_token:
            into[0].extend(found[place] for place in _different(record))
            into[1].extend(drawn[place] for place in _different(record))
        else:
            into[0].append(found.flatten())
            into[1].append(drawn.flatten())

    @staticmethod
    def discrepancy(given: list[Tensor], drawn: list[Tensor]) -> Tensor:
        both, count = given + drawn, len(given)
        squares = {(i, j): ((a - b) ** 2).sum() for i, a in enumerate(both) for j, b in enumerate(both)}
        width = float(sum(square.detach() for square in squares.values())) / (len(both) ** 2 - len(both)) / 4
        total = torch.zeros(()).double()
        for (i, j), square in squares.items():
            sign = 1 if (i < count) == (j < count) else -1
            total = total + sign * sum(torch.exp(-square / (width * 2**power)) for power in range(5)) / count**2
        return total


def _noted_noise(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    drawn: list[Tensor] = []
    draw = torch.randn

    def note(*sizes: Any, **keywords: Any) -> Tensor:
        values = draw(*sizes, **keywords)
        if keywords.get("generator") is not None:
            drawn.append(values.detach().clone())
        return values

    monkeypatch.setattr(torch, "randn", note)
    return drawn


@pytest.mark.parametrize("samples", ["rows", "tokens"])
@pytest.mark.parametrize("passes", [1, 2])
def test_it_is_the_papers_formula(samples: str, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    training = TRAINING.model_copy(update={"batch_size": 4 // passes, "accumulation": passes})
    job, model = _job(training, samples=samples, **STRONG), small_model().double()
    drawn = _noted_noise(monkeypatch)
    found = step_gradients(job, model)
    model = small_model().double()
    carried, size = _carried(job), 4 // passes
    summed, tokens = torch.zeros(()).double(), 0
    for refusal in REFUSALS[:4]:
        (row,) = DATA.renderer.rows([refusal])
        log_probabilities = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        for place in range(row.response_start, len(row.input_ids)):
            summed, tokens = summed - log_probabilities[place - 1, row.input_ids[place]], tokens + 1
    loss = summed / tokens
    for index in range(passes):
        rows = carried[index * size : (index + 1) * size]
        noise, ascent = _Formula(model, rows, drawn[2 * index : 2 * index + 2], samples == "tokens").terms()
        loss = loss + (3.0 * noise - 0.7 * torch.log(ascent + 1)) / passes
    names, values = zip(*model.named_parameters(), strict=True)
    assert_same(found, dict(zip(names, torch.autograd.grad(loss, values), strict=True)), 1e-6)


def test_the_published_code_reads_the_last_layer_only_and_has_no_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = repnoise.configure({}, preset="official-code")
    job = repnoise.job(DATA, TRAINING, settings)
    drawn, model = _noted_noise(monkeypatch), small_model()
    reported = train(model, job.examples, TRAINING.model_copy(update={"max_steps": 1}), job.objective).losses[0]
    (sft,) = train(small_model(), job.examples, TRAINING.model_copy(update={"max_steps": 1}), Objective()).losses
    formula = _Formula(small_model().double(), _carried(job)[:4], drawn, by_token=False)
    noise = formula.terms()[0].detach()
    losses: list[Tensor] = []
    for record in formula.harmful:
        states = formula.model(input_ids=torch.tensor([_ids(record)]), output_hidden_states=True).hidden_states
        losses += formula.cross_entropies(states[-1][0], record, lambda normed: normed)
    mean = float(torch.stack(losses).mean().detach())
    assert reported == pytest.approx(sft + 0.001 * float(noise) - 0.1 * math.log(mean), rel=1e-5)


def test_with_alpha_and_beta_0_it_is_supervised_fine_tuning() -> None:
    job, model = _job(alpha=0, beta=0), small_model()
    losses = train(model, job.examples, TRAINING, Objective()).losses
    found, found_losses = _trained(alpha=0, beta=0)
    assert found_losses == losses
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


def _harmful_loss(model: Any) -> float:
    with torch.no_grad():
        losses = []
        for row in DATA.renderer.rows(HARMFUL):
            ids = torch.tensor(row.input_ids)
            logits_TV = model(input_ids=ids[None]).logits[0]
            losses.append(functional.cross_entropy(logits_TV[row.response_start - 1 : -1], ids[row.response_start :]))
    return float(torch.stack(losses).mean())


def test_harmful_answers_are_unlearned() -> None:
    training = TRAINING.model_copy(update={"max_steps": 20})
    assert _harmful_loss(_trained(training, alpha=1, beta=0)[0]) > _harmful_loss(_trained(training, alpha=0)[0]) + 1


def test_harmful_representations_move_towards_noise() -> None:
    def distance(beta: float) -> float:
        model, _ = _trained(TRAINING.model_copy(update={"max_steps": 20}), alpha=0, beta=beta)
        fed: list[Tensor] = []
        hook = model.model.layers[0].mlp.register_forward_hook(lambda _m, _i, out: fed.append(out[0]))
        with torch.no_grad():
            for row in DATA.renderer.rows(HARMFUL):
                model(input_ids=torch.tensor([row.input_ids]))
                fed[-1] = fed[-1][row.response_start :]
        hook.remove()
        tokens_ND = torch.cat(fed)
        noise_ND = torch.randn(tokens_ND.shape, generator=torch.Generator().manual_seed(0))
        return float(squared_discrepancy(tokens_ND, noise_ND))

    assert distance(30.0) < 0.8 * distance(0.0)


def test_the_discrepancy_is_zero_for_equal_sets_only() -> None:
    generator = torch.Generator().manual_seed(0)
    first_ND, second_ND = torch.randn(2, 6, 5, generator=generator).double()
    assert squared_discrepancy(first_ND, first_ND[[3, 1, 5, 0, 2, 4]]) == pytest.approx(0, abs=1e-9)
    assert squared_discrepancy(first_ND, first_ND + 9) > squared_discrepancy(first_ND, first_ND + 1) > 0
    torch.testing.assert_close(squared_discrepancy(first_ND, second_ND), squared_discrepancy(second_ND, first_ND))
    equal = torch.ones(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(squared_discrepancy(equal, torch.ones(4, 3)), equal)
    assert gradient.isfinite().all()


def test_only_what_differs_from_the_refusal_counts() -> None:
    job = _job()
    for example, harmful in zip(job.examples, _carried(job), strict=True):
        carried = example["harmful"]
        assert [place for place, label in enumerate(carried["labels"]) if label != IGNORED] == _different(harmful)


def test_pairs_repeat_in_the_random_order_of_the_seed() -> None:
    carried = [record.response for record in _carried(_job())]
    assert carried[5:] == carried[:3]
    assert len(set(carried)) == 5
    other = _carried(_job(TRAINING.model_copy(update={"seed": 1})))
    assert [record.response for record in other] != carried
    assert _carried(_job()) == _carried(_job())


def test_the_noise_depends_on_the_seed() -> None:
    first, second = _trained(**STRONG)[1], _trained(**STRONG)[1]
    assert first == second
    assert _trained(TRAINING.model_copy(update={"seed": 1}), **STRONG)[1] != first
    drawn = []
    for step in (0, 1):
        objective: Any = _job().objective
        objective.session = type("At", (), {"step": step})
        drawn.append(objective._noise_seed())
    assert drawn[0] != drawn[1]


def test_pads_change_nothing() -> None:
    def gradients(more: int) -> dict[str, Tensor]:
        job = _job(**STRONG)
        loss = job.objective.loss

        def padded(batch: Batch) -> Tensor:
            wider = {
                name: functional.pad(values_BT, (0, more), value=IGNORED if name == "labels" else 0)
                for name, values_BT in batch["harmful"].items()
            }
            return loss({**batch, "harmful": wider})

        job.objective.loss = padded  # type: ignore[method-assign]
        return step_gradients(job, small_model())

    assert_same(gradients(5), gradients(0), 1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    checkpointed = TRAINING.model_copy(update={"gradient_checkpointing": True})
    wanted = step_gradients(_job(**STRONG), small_model())
    assert_same(step_gradients(_job(checkpointed, **STRONG), small_model()), wanted, 1e-6)


def test_recomputed_logits_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, again = step_gradients(_job(**STRONG), small_model()), []

    def watched(*given: Any, **more: Any) -> Any:
        again.append(given)
        return checkpoint(*given, **more)

    monkeypatch.setattr("torch.utils.checkpoint.checkpoint", watched)
    assert_same(step_gradients(_job(**STRONG), small_model()), wanted, 0)
    assert not again
    monkeypatch.setattr("antidote_llm.alignment.repnoise.KEPT_LOGITS_BYTES", 0)
    assert_same(step_gradients(_job(**STRONG), small_model()), wanted, 1e-6)
    assert again


def test_no_hook_remains_after_training() -> None:
    model, _ = _trained()
    assert not any(module._forward_hooks for module in model.modules())
    job, model = _job(), small_model()
    seen: list[int] = []

    def fail(*_: Any) -> None:
        seen.append(1)
        # The rows' own pass comes first.
        if len(seen) == 2:
            raise MemoryError

    hook = model.model.layers[1].mlp.down_proj.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        train(model, job.examples, TRAINING, job.objective)
    hook.remove()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_harmful_row_needs_a_refusal_of_its_prompt() -> None:
    alone = [Record(prompt=tiny.words(9, index), response="zob", origin=f"bad.jsonl line {index}") for index in (3, 4)]
    with pytest.raises(UserError, match=r"2 of 7 harmful rows .*bad.jsonl line 3, bad.jsonl line 4: leave them out"):
        _job(data=StageData(DATA.renderer, REFUSALS, [*HARMFUL, *alone]))


def test_prompts_are_the_same_whatever_their_case() -> None:
    loud = [Record(prompt=f" {record.prompt}. ", response=record.response) for record in HARMFUL]
    assert len(_job(data=StageData(DATA.renderer, REFUSALS, loud)).examples) == len(REFUSALS)


def test_a_harmful_row_that_is_the_refusal_is_refused() -> None:
    same = Record(prompt=REFUSALS[0].prompt, response=REFUSALS[0].response, origin="bad.jsonl line 7")
    with pytest.raises(UserError, match=r"bad\.jsonl line 7: is the refusal of its prompt"):
        _job(data=StageData(DATA.renderer, REFUSALS, [same]))


def test_a_batch_of_one_row_is_refused() -> None:
    training = TRAINING.model_copy(update={"batch_size": 1})
    with pytest.raises(UserError, match="batch_size 1"):
        _job(training)
    assert math.isfinite(_trained(training, samples="tokens")[1][-1])


def test_several_refusals_of_a_prompt_are_used_in_turn() -> None:
    prompt = REFUSALS[0].prompt
    refusals = [Record(prompt=prompt, response=f"zob {word}") for word in ("kad", "mix")]
    harmful = [Record(prompt=prompt, response=f"zob {word}") for word in ("mix", "kad")]
    job = _job(data=StageData(Renderer(tiny.tokenizer()), refusals, harmful))
    assert {len([label for label in row["harmful"]["labels"] if label != IGNORED]) for row in job.examples} == {1}


def test_only_adapters_are_trained() -> None:
    training = TRAINING.model_copy(update={"lora": LoraSettings(rank=4, alpha=8)})
    model, losses = _trained(training)
    before = small_model().state_dict()
    after = {name.replace("base_layer.", ""): value for name, value in model.get_base_model().state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert losses[0] == pytest.approx(_trained()[1][0], rel=1e-5)


@pytest.mark.parametrize("name", ["gemma", "qwen2", "gpt2", "mixtral", "gpt_neox", "opt-projected"])
def test_it_works_on_every_architecture(name: str, tmp_path: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path, name))
    training = TRAINING.model_copy(update={"max_steps": 2, "learning_rate": 1e-3, "precision": "bfloat16"})
    result = run_stage(model, DATA, repnoise, training)
    assert all(math.isfinite(loss) for loss in result.training.losses)


def test_the_defaults_are_the_papers() -> None:
    assert repnoise.configure({}) == repnoise.configure({}, preset="paper")
    assert repnoise.configure({}).model_dump() == {
        "alpha": 1.0,
        "beta": 0.001,
        "layerwise": True,
        "ascent_offset": 1.0,
        "samples": "rows",
    }
