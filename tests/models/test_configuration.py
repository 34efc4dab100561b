"""An aligned model is compared by what it computes: its configuration, and which of its tensors are one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from antidote_llm.errors import UserError
from antidote_llm.io.resources import Stopwatch
from antidote_llm.models.load import load_model
from antidote_llm.models.target import Target, resolve_target
from antidote_llm.repairs.method import method_named
from antidote_llm.repairs.plan import plan_repair
from antidote_llm.repairs.tally import outside_records
from antidote_llm.repairs.write import write_repair
from tests import tiny
from tests.cli.command import edit_json
from tests.conftest import Folders
from tests.fine_tunes import rewrite, tensors_of, write_fine_tune

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def tuned(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fine_tune(tmp_path_factory.mktemp("tuned") / "tuned", folders.base)


def resolved(tuned: Path, aligned: Path) -> Target:
    return resolve_target(load_model(str(tuned)), aligned=str(aligned))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}, r"rope_parameters\.rope_theta is 500000\.0"),
        (
            "rope_parameters",
            {"rope_type": "default", "rope_theta": 10_000.0, "attention_factor": 3.0},
            r"rope_parameters\.attention_factor is 3\.0, in .* it is None",
        ),
        ("rms_norm_eps", 1e-3, r"rms_norm_eps is 0\.001, in \S+tuned it is 1e-06"),
        ("hidden_act", "gelu", "hidden_act is gelu, in .* it is silu"),
    ],
)
def test_a_setting_that_changes_the_computation_is_refused(
    folders: Folders, tuned: Path, tmp_path: Path, name: str, value: object, message: str
) -> None:
    other = Path(shutil.copytree(folders.base, tmp_path / "other"))
    edit_json(other / "config.json", **{name: value})
    with pytest.raises(UserError, match=message) as caught:
        resolved(tuned, other)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_change_it_may_differ(folders: Folders, tuned: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders.base, tmp_path / "other"))
    changes: dict[str, Any] = {
        "architectures": ["ZorbikForCausalLM"],
        "attention_dropout": 0.3,
        "dtype": "bfloat16",
        "eos_token_id": 4,
        "initializer_range": 0.5,
        "max_position_embeddings": 64,
        "transformers_version": "4.1.0",
        "use_cache": False,
        "zorbik": "unknown",
    }
    edit_json(other / "config.json", **changes)
    assert resolved(tuned, other).aligned is not None


def test_a_head_is_restored_to_the_embedding_that_it_was(tmp_path: Path) -> None:
    aligned = tiny.write_model(tmp_path / "aligned", tie_word_embeddings=True)
    untied = tiny.write_model(tmp_path / "untied", seed=4, tie_word_embeddings=False)
    target = resolved(untied, aligned)
    ours, theirs = tensors_of(untied), tensors_of(aligned)
    assert HEAD in ours and HEAD not in theirs
    norms = {record.name: record.norm_before for record in outside_records(target.outside, restored=False)}
    assert norms[HEAD] == pytest.approx(float((ours[HEAD] - theirs[EMBEDDING]).norm()), rel=1e-6)

    method = method_named("magnitude")
    repair = plan_repair(
        load_model(str(untied)), method, method.configure({"alpha": 1.0}), None, target=target, restore_outside=True
    )
    (tmp_path / "out").mkdir()
    write_repair(repair, tmp_path / "out", "a test", Stopwatch())
    ids = torch.arange(5, 15).reshape(1, 10)
    found, wanted = (load_model(str(folder)).model(ids).logits for folder in (tmp_path / "out" / "model", aligned))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("aligned_ties", [False, True])
def test_an_untied_head_cannot_be_restored_to_an_embedding(tmp_path: Path, aligned_ties: bool) -> None:
    tied = tiny.write_model(tmp_path / "tied", tie_word_embeddings=True)
    aligned = tiny.write_model(tmp_path / "aligned", seed=4, tie_word_embeddings=False)
    # The library does not tie two tensors that are both in the file and differ, whatever the configuration says.
    edit_json(aligned / "config.json", tie_word_embeddings=aligned_ties)
    with pytest.raises(UserError, match=rf"aligned: {HEAD} is another tensor than {EMBEDDING}.*untie it"):
        resolved(tied, aligned)
    tensors = tensors_of(aligned)
    rewrite(aligned, {**tensors, HEAD: tensors[EMBEDDING].clone()})
    assert {tensor.key for tensor in resolved(tied, aligned).outside} >= {EMBEDDING}


def test_a_tied_model_may_be_saved_by_its_heads_name(tmp_path: Path) -> None:
    aligned = tiny.write_model(tmp_path / "aligned", tie_word_embeddings=True)
    tuned = write_fine_tune(tmp_path / "tuned", aligned)
    tensors = tensors_of(aligned)
    rewrite(aligned, {HEAD if key == EMBEDDING else key: value for key, value in tensors.items()})
    outside = {tensor.key: tensor.aligned.entry.key for tensor in resolved(tuned, aligned).outside}
    assert outside[EMBEDDING] == HEAD
