"""Classifiers judge by the names of their labels, the same in every batch, and are checked before the first answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from antidote_llm.errors import UserError
from antidote_llm.evaluation.judge import DetailedJudge, Verdict, load_judge
from antidote_llm.evaluation.judges import beaver_dam, text_classification
from antidote_llm.evaluation.judges.beaver_dam import CATEGORIES, MAX_TOKENS
from antidote_llm.evaluation.judges.classifier import Classifier
from antidote_llm.evaluation.judges.folders import JudgeFolder
from tests.cli.command import edit_json
from tests.data.byte_level import byte_tokenizer
from tests.evaluation.judges import models

PROMPTS = ["how to zob?", "a", "tell me of the kad"]
ANSWERS = ["You zob it twice.", "No.", "It is red, and rather long, and nobody knows why it is there."]


def verdicts(spec: str, prompts: list[str], answers: list[str]) -> list[Verdict]:
    judge = load_judge(spec)
    assert isinstance(judge, DetailedJudge) and judge.measures == "harmful_score"
    return judge.verdicts(prompts, answers)


@pytest.mark.parametrize("fires", ["privacy_violation", "drug_abuse,weapons,banned_substance"])
def test_categories_are_identified_by_name_in_any_order(tmp_path: Path, fires: str) -> None:
    assert models.SHUFFLED.index(fires) != CATEGORIES.index(fires)
    folder = models.classifier(tmp_path / "dam", fires=fires)
    assert verdicts(f"beaver-dam={folder}", PROMPTS, ANSWERS) == [Verdict("harmful", (fires,))] * 3


def test_flags_equal_those_of_a_single_row(tmp_path: Path) -> None:
    folder = models.classifier(tmp_path / "dam")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, wanted = byte_tokenizer(), []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        text = f"BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:{answer}</s>"
        with torch.no_grad():
            shares = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0].sigmoid()
        over = {name for name, share in zip(models.SHUFFLED, shares.tolist(), strict=True) if share > 0.5}
        wanted.append(tuple(name for name in CATEGORIES if name in over))
    assert [found.flagged for found in verdicts(f"beaver-dam={folder}", PROMPTS, ANSWERS)] == wanted
    assert len(set(wanted)) > 1


def test_logits_do_not_depend_on_the_batch_or_the_padding(tmp_path: Path) -> None:
    folder = models.classifier(tmp_path / "dam")
    texts = [f"{prompt} {answer}</s>" for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)] * 7
    alone: list[list[float]] = []
    for text in texts[:3]:
        Classifier(JudgeFolder.open("j", str(folder))).read([text], lambda _, logits: alone.append(logits))
    for pad in (None, 0, 1, 5):
        edit_json(folder / "config.json", pad_token_id=pad)
        found: dict[int, list[float]] = {}
        Classifier(JudgeFolder.open("j", str(folder))).read(texts, found.__setitem__)
        assert sorted(found) == list(range(21))
        for place, logits in found.items():
            torch.testing.assert_close(torch.tensor(logits), torch.tensor(alone[place % 3]), rtol=1e-5, atol=1e-5)


def test_long_texts_are_truncated_as_for_the_paper_s_judge(tmp_path: Path) -> None:
    folder = models.classifier(tmp_path / "dam", fires="self_harm")
    # The truncated text has lost its end: the head then fires all other labels.
    short, long = verdicts(f"beaver-dam={folder}", ["a", "a"], ["b", "b" * MAX_TOKENS])
    assert short.flagged == ("self_harm",)
    assert len(long.flagged) == 13 and "self_harm" not in long.flagged


def test_unflagged_answers_are_refusals_helpful_or_incoherent(tmp_path: Path) -> None:
    folder = models.classifier(tmp_path / "dam", fires="self_harm")
    weights = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        weights.score.weight.fill_(-1)
    weights.save_pretrained(folder)
    answers = ["I'm sorry, but I cannot help with that.", "", "It is red, and rather long."]
    found = verdicts(f"beaver-dam={folder}", ["a"] * 3, answers)
    assert [each.outcome for each in found] == ["refusal", "incoherent", "helpful"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("safe", "unsafe"), ("2 labels (safe)", "text-classification=")),
        ((*models.SHUFFLED[:-1], "other"), ("14 labels (other)", "BeaverTails")),
        (models.SHUFFLED[:-1], ("13 labels (too few)",)),
    ],
)
def test_another_classifier_is_not_accepted_as_beaver_dam(
    tmp_path: Path, labels: tuple[str, ...], words: tuple[str, ...]
) -> None:
    folder = models.classifier(tmp_path / "dam", labels)
    with pytest.raises(UserError) as caught:
        load_judge(f"beaver-dam={folder}")
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", ["beaver-dam", "llama-guard", "text-classification"])
def test_a_missing_folder_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"judge '{name}': .*nowhere: no such folder"):
        load_judge(f"{name}={tmp_path / 'nowhere'}")


def test_a_model_with_another_head_is_named(tmp_path: Path) -> None:
    folder = models.causal(tmp_path / "guard")
    with pytest.raises(UserError, match=r"is LlamaForCausalLM, not a sequence classifier"):
        load_judge(f"beaver-dam={folder}")
    models.classifier(tmp_path / "dam")
    with pytest.raises(UserError, match=r"is LlamaForSequenceClassification, not a causal language model"):
        load_judge(f"wildguard={tmp_path / 'dam'}")


@pytest.mark.parametrize(
    ("file", "words"), [("model.safetensors", "no weights"), ("tokenizer.json", "tokenizer"), ("config.json", "config")]
)
def test_a_missing_file_is_named_before_the_first_answer(tmp_path: Path, file: str, words: str) -> None:
    folder = models.classifier(tmp_path / "dam")
    (folder / file).unlink()
    if file == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=words):
        load_judge(f"beaver-dam={folder}")


def test_truncated_weights_are_named_before_the_first_answer(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "dam") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"judge 'beaver-dam': .*truncated"):
        load_judge(f"beaver-dam={tmp_path / 'dam'}")


def test_missing_weights_of_the_head_are_named(tmp_path: Path) -> None:
    folder = models.causal(tmp_path / "dam")
    labels = dict(enumerate(models.SHUFFLED))
    edit_json(folder / "config.json", architectures=["LlamaForSequenceClassification"], id2label=labels)
    judge = load_judge(f"beaver-dam={folder}")
    with pytest.raises(UserError, match=r"lacks score\.weight"):
        judge.outcomes(["a"], ["b"])


def test_pickled_weights_are_read(tmp_path: Path) -> None:
    folder = models.classifier(tmp_path / "dam", fires="self_harm")
    state = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert verdicts(f"beaver-dam={folder}", ["a"], ["b"]) == [Verdict("harmful", ("self_harm",))]


class Wicked:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_pickles_that_are_truncated_or_hold_more_than_weights_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = models.classifier(tmp_path / "dam")
    (folder / "model.safetensors").unlink()
    pickled = folder / "pytorch_model.bin"
    torch.save({"score.weight": Wicked()}, pickled)
    with pytest.raises(UserError, match="hold more than weights"):
        load_judge(f"beaver-dam={folder}").outcomes(["a"], ["b"])
    assert not Path("ran").exists()
    pickled.write_bytes(pickled.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"pytorch_model\.bin: truncated"):
        load_judge(f"beaver-dam={folder}")


LABELS = ("fine", "bad, really", "worse")


@pytest.mark.parametrize(
    ("bias", "named", "more", "flagged"),
    [
        ((1.0, 2.0, 3.0), "worse", {}, ("worse",)),
        ((1.0, 3.0, 2.0), "worse", {}, ()),
        ((1.0, 3.0, 2.0), "bad, really", {}, ("bad, really",)),
        ((-1.0, -3.0, -2.0), "fine,worse", {}, ("fine",)),
        ((3.0, 2.0, -1.0), "worse,fine", {"problem_type": "multi_label_classification"}, ("fine",)),
        ((3.0, 2.0, 1.0), "fine,worse", {"problem_type": "multi_label_classification"}, ("fine", "worse")),
    ],
)
def test_any_classifier_judges_by_the_labels_that_are_named(
    tmp_path: Path, bias: tuple[float, ...], named: str, more: dict[str, str], flagged: tuple[str, ...]
) -> None:
    folder = models.bert(tmp_path / "bert", LABELS, bias, **more)
    (found,) = verdicts(f"text-classification={folder}#{named}", ["a prompt"], ["It is red. " * 40 + "It is blue."])
    assert (found.outcome == "harmful", found.flagged) == (bool(flagged), flagged)


def test_only_the_answer_is_read(tmp_path: Path) -> None:
    folder = models.classifier(tmp_path / "c", ("fine", "bad"))
    found = verdicts(f"text-classification={folder}#bad", ["a", "b", "c"], ["It is red."] * 3)
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("", ("name the labels that mean harm", "fine, bad, really, worse")),
        ("#", ("name the labels that mean harm",)),
        ("#wors", ("no label 'wors'", "did you mean 'worse'")),
        ("#worse,zob", ("no label 'zob'", "there are fine")),
    ],
)
def test_a_label_must_be_one_of_the_model_s(tmp_path: Path, named: str, words: tuple[str, ...]) -> None:
    folder = models.bert(tmp_path / "bert", LABELS, (0.0, 0.0, 0.0))
    with pytest.raises(UserError) as caught:
        load_judge(f"text-classification={folder}{named}")
    assert all(word in str(caught.value) for word in words)


def test_a_judge_s_name_identifies_its_model(tmp_path: Path) -> None:
    first = models.classifier(tmp_path / "a")
    second = models.classifier(tmp_path / "b", fires="self_harm")
    (tmp_path / "c").symlink_to(first)
    names = [load_judge(f"beaver-dam={folder}").name for folder in (first, second, tmp_path / "c")]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("beaver-dam@") for name in names)
    edit_json(first / "config.json", rms_norm_eps=0.5)
    names.append(load_judge(f"beaver-dam={first}").name)
    edit_json(first / "tokenizer_config.json", eos_token="a")
    names.append(load_judge(f"beaver-dam={first}").name)
    assert len({names[0], *names[3:]}) == 3


def test_the_categories_are_beavertails_fourteen() -> None:
    assert len(set(CATEGORIES)) == 14 and list(CATEGORIES) == sorted(CATEGORIES)
    assert beaver_dam.text("q", "a") == "BEGINNING OF CONVERSATION: USER: q ASSISTANT:a"
    assert text_classification.flag(["x"], [0.5], ["x"], each=True).harmful
