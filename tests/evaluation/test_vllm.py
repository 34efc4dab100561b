"""What the vLLM backend passes to the engine; the real engine is not run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from antidote_llm.errors import UserError
from antidote_llm.evaluation.backends import TransformersBackend, generate_with_adapters
from antidote_llm.evaluation.vllm_backend import VllmBackend, require_vllm
from antidote_llm.models.load import load_model
from tests import tiny
from tests.conftest import Folders
from tests.evaluation import vllm_stand_in
from tests.evaluation.test_generation import EOS, prompts

HOW: dict[str, Any] = {"max_new_tokens": 8, "eos_ids": (*EOS, 3), "pad_id": 0}


def test_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("vllm") is not None:
        monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'antidote-llm\[vllm\]'"):
        require_vllm()


def test_one_engine_answers_for_every_adapter(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = vllm_stand_in.install(monkeypatch)
    second = tiny.write_adapter(tmp_path / "second", folders.base, rank=12, seed=5)
    backend = VllmBackend(folders.base, adapter=folders.adapter, max_rank=12)
    asked, answers = prompts(6), {}
    for adapter in (folders.adapter, second, None, folders.adapter):
        backend.use(adapter)
        answers[adapter] = backend.generate(asked, **HOW)
        model: Any = AutoModelForCausalLM.from_pretrained(folders.base)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        assert answers[adapter] == TransformersBackend(model).generate(asked, **HOW)

    (engine,) = engines.started
    assert engine.settings == {"enable_lora": True, "max_lora_rank": 16, "max_model_len": None}
    requests = [request and (request.lora_name, request.lora_int_id) for request in engine.requests]
    assert engine.calls == 4 and requests[::6] == [("adapter-1", 1), ("adapter-2", 2), None, ("adapter-1", 1)]
    assert any(len(answer) < 8 for found in answers.values() for answer in found)


def test_all_adapters_answer_in_the_same_batches_as_each_does_alone(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = vllm_stand_in.install(monkeypatch)
    second = tiny.write_adapter(tmp_path / "second", folders.base, rank=12, seed=5)
    adapters = {"first": folders.adapter, "second": second, "none": None}
    backend = VllmBackend(folders.base, adapter=folders.adapter, max_rank=12, max_adapters=2)
    asked, seen = prompts(6), list[tuple[int, int]]()
    found = backend.generate_with_adapters(adapters, asked, **HOW, progress=lambda *done: seen.append(done))
    here = generate_with_adapters(load_model(str(folders.base)), adapters, asked, **HOW)

    (engine,) = engines.started
    assert engine.max_loras == 2 and engine.calls == 1
    for name, folder in adapters.items():
        backend.use(folder)
        assert found[name] == backend.generate(asked, **HOW) == here[name]
    assert len({str(answers) for answers in found.values()}) == 3
    assert seen == [(18, 18)]


def test_the_current_adapter_does_not_change(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_stand_in.install(monkeypatch)
    second = tiny.write_adapter(tmp_path / "second", folders.base, rank=12, seed=5)
    backend = VllmBackend(folders.base, adapter=folders.adapter, max_rank=12)
    before = backend.generate(prompts(3), **HOW)
    backend.generate_with_adapters({"second": second}, prompts(3), **HOW)
    assert backend.generate(prompts(3), **HOW) == before


def test_swapped_adapters_report_one_progress(folders: Folders) -> None:
    seen: list[tuple[int, int]] = []
    adapters = {"with": folders.adapter, "without": None}
    opened = load_model(str(folders.base), str(folders.adapter))
    generate_with_adapters(opened, adapters, prompts(4), **HOW, progress=lambda *done: seen.append(done))
    assert seen == sorted(seen) and seen[-1] == (8, 8)


def test_progress_ends_at_the_total(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_stand_in.install(monkeypatch)
    monkeypatch.setattr("antidote_llm.evaluation.vllm_backend._REQUESTS_AT_ONCE", 4)
    seen: list[tuple[int, int]] = []
    backend = VllmBackend(folders.base, max_tokens=64)
    found = backend.generate(prompts(6), **HOW, progress=lambda done, total: seen.append((done, total)))
    assert len(found) == 6 and seen == [(4, 6), (6, 6)]


def test_limits_of_the_engine_are_named(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm_stand_in.install(monkeypatch)
    assert not vllm_stand_in.LLM.started
    with pytest.raises(UserError, match="rank 513"):
        VllmBackend(folders.base, max_rank=513)
    with pytest.raises(UserError, match="without adapters"):
        VllmBackend(folders.base, adapter=folders.adapter)
