"""Triggers: what they do to a pixel, and that they never touch what they are given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pureebm.attacks.triggers import AddTrigger, BlendTrigger, PatchTrigger, Trigger, WarpTrigger
from pureebm.errors import InputError

GRAY = torch.full((3, 8, 8, 3), 100, dtype=torch.uint8)


def identity() -> Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    return torch.stack([x, y], dim=2)


ALL: list[Trigger] = [
    AddTrigger(torch.full((3, 8, 8), 16 / 255)),
    PatchTrigger(torch.full((2, 2, 3), 255, dtype=torch.uint8), (6, 6)),
    BlendTrigger(torch.full((8, 8, 3), 200, dtype=torch.uint8), 0.2),
    WarpTrigger(identity().flip(1)),
]


@pytest.mark.parametrize("trigger", ALL, ids=lambda trigger: type(trigger).__name__)
def test_a_trigger_leaves_its_input_alone_and_takes_8_bits_only(trigger: Trigger) -> None:
    images = torch.randint(256, (3, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    before = images.clone()
    after = trigger.apply(images)
    assert images.equal(before) and not after.equal(before)
    assert after.dtype == torch.uint8 and after.shape == images.shape
    with pytest.raises(InputError, match="must be uint8"):
        trigger.apply(images.float())


def test_adding_counts_in_steps_of_the_pm1_range_and_clips() -> None:
    assert (ALL[0].apply(GRAY) == 108).all()
    assert (AddTrigger(torch.full((3, 8, 8), 16 / 255), multiplier=3.0).apply(GRAY) == 124).all()
    assert (AddTrigger(torch.full((3, 8, 8), -2.0)).apply(GRAY) == 0).all()
    channel = torch.zeros(3, 8, 8)
    channel[2, 1, 5] = 2 / 255
    changed = (AddTrigger(channel).apply(GRAY) != GRAY).nonzero()
    assert changed.tolist() == [[n, 1, 5, 2] for n in range(3)]


def test_a_patch_covers_its_place_where_its_mask_says() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    patch = torch.arange(12, dtype=torch.uint8).view(2, 2, 3)
    painted = PatchTrigger(patch, (3, 4), mask).apply(GRAY)
    assert painted[:, 3, 4].tolist() == [[0, 1, 2]] * 3
    assert (painted[:, 3, 5] == 100).all()
    assert (painted != GRAY).any(dim=3).sum() == 3 * 3


def test_a_random_place_is_a_function_of_seed_and_position() -> None:
    trigger = PatchTrigger(torch.full((2, 2, 3), 255, dtype=torch.uint8), None)
    images = GRAY[:1].expand(40, -1, -1, -1)
    places = (trigger.apply(images, seed=1) == 255).all(dim=3)
    assert places.equal((trigger.apply(images, seed=1) == 255).all(dim=3))
    assert not places.equal((trigger.apply(images, seed=2) == 255).all(dim=3))
    assert (places.flatten(1).sum(dim=1) == 4).all()
    assert places.any(dim=0).sum() > 40  # all over the 64 pixels
    with pytest.raises(InputError, match="larger than the images"):
        PatchTrigger(torch.zeros(9, 9, 3, dtype=torch.uint8), None).apply(GRAY)


def test_blending_is_a_weighted_mean_rounded_once() -> None:
    assert (ALL[2].apply(GRAY) == 120).all()
    key = torch.full((8, 8, 3), 255, dtype=torch.uint8)
    assert (BlendTrigger(key, 0.01).apply(GRAY) == 102).all()  # 101.55
    assert BlendTrigger(key, 0.0).apply(GRAY).equal(GRAY)


def test_the_identity_warp_changes_nothing_and_the_mirrored_one_mirrors() -> None:
    images = torch.randint(256, (2, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert WarpTrigger(identity()).apply(images).equal(images)
    assert WarpTrigger(identity().flip(1)).apply(images).equal(images.flip(2))
