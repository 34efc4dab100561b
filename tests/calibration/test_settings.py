from __future__ import annotations

import torch

from antidote_llm.calibration.settings import CalibrationSettings


def test_a_micro_batch_is_larger_on_a_gpu_unless_its_size_was_given() -> None:
    on_cpu = CalibrationSettings().on(torch.device("cpu"))
    on_gpu = CalibrationSettings(tokens="response").on(torch.device("cuda"))
    assert on_cpu == CalibrationSettings()
    assert on_gpu.batch_tokens > on_cpu.batch_tokens
    assert on_gpu.tokens == "response"
    assert CalibrationSettings(batch_tokens=77).on(torch.device("cuda")).batch_tokens == 77
