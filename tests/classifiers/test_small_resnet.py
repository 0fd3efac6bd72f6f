"""The small victim."""

from __future__ import annotations

import pytest
import torch

from pureebm.classifiers.base import MEAN, STD
from pureebm.classifiers.small_resnet import SmallResNet
from pureebm.errors import InputError


def test_logits_of_an_image_do_not_depend_on_its_batch_in_eval_mode() -> None:
    network, images = SmallResNet(7).eval(), torch.rand(4, 3, 32, 32) * 2 - 1
    logits = network(images)
    assert logits.shape == (4, 7)
    torch.testing.assert_close(network(images[2:3]), logits[2:3], atol=1e-5, rtol=1e-4)


def test_it_normalizes_by_the_mean_and_spread_of_the_0_1_range() -> None:
    # Constant images of the mean color must look like zeros to the first convolution, and those one spread
    # above like ones; the network sees [-1, 1].
    network = SmallResNet().eval()
    seen: list[torch.Tensor] = []
    network.stem[0].conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    for color in (mean, mean + std):
        network((color * 2 - 1).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 32, 32), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[1], torch.ones(1, 3, 32, 32), atol=1e-6, rtol=0)


def test_widths_must_be_three() -> None:
    with pytest.raises(InputError, match=r"three numbers, got \[8, 8\]"):
        SmallResNet(widths=(8, 8))
