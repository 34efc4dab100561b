"""What models/torch_private.py assumes of torch: a failing test names what a new version has changed."""

from __future__ import annotations

import torch
from torch import nn

from antidote_llm.models import torch_private as private


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("saved", torch.ones(2))
        self.register_buffer("computed", torch.ones(2), persistent=False)


def test_a_module_reads_what_is_put_into_its_parameters_and_buffers() -> None:
    layer = Layer()
    private.own_parameters(layer)["weight"] = nn.Parameter(torch.zeros(3))
    private.own_buffers(layer)["saved"] = torch.zeros(4)
    assert layer.weight.shape == (3,) and layer.get_buffer("saved").shape == (4,)
    assert layer.state_dict().keys() == {"weight", "saved"} and list(private.computed_buffers(layer)) == ["computed"]


def test_memory_is_known_by_a_number_with_and_without_values() -> None:
    for made in (torch.ones(2, 3), torch.ones(2, 3, device="meta")):
        assert private.storage_of(made) == private.storage_of(made.T)
        assert private.storage_of(made) != private.storage_of(made.clone())
    with private.fake_tensors():
        made = torch.ones(2, 3, device="cpu") @ torch.ones(3, 4, device="cpu")
        assert made.shape == (2, 4) and type(made) is not torch.Tensor
        assert private.storage_of(made) == private.storage_of(made.T)


def test_scaled_differences_are_added_in_place() -> None:
    targets, generator = [torch.ones(3), torch.ones(2, 2)], torch.Generator().manual_seed(0)
    first, second = ([torch.randn(each.shape, generator=generator) for each in targets] for _ in range(2))
    wanted = [each + 0.5 * (one - other) for each, one, other in zip(targets, first, second, strict=True)]
    private.add_scaled_differences(targets, first, second, 0.5)
    assert all(torch.allclose(each, want) for each, want in zip(targets, wanted, strict=True))
