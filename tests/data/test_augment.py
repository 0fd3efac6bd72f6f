"""Cutout, shift and flip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.data.augment import Augmentation
from pureebm.errors import InputError


def images(n: int = 64) -> Tensor:
    return torch.randint(0, 256, (n, 10, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_for_draws_nothing_and_changes_nothing() -> None:
    drawn = generator()
    assert Augmentation(pad=0, flip=False).apply(images(), drawn).equal(images())
    assert drawn.get_state().equal(generator().get_state())


@pytest.mark.parametrize("reflect", [False, True])
def test_a_shifted_image_is_a_crop_of_the_padded_one(reflect: bool) -> None:
    out = Augmentation(pad=3, flip=False, reflect=reflect).apply(images(), generator())
    x = images().permute(0, 3, 1, 2).float()
    padded = F.pad(x, (3, 3, 3, 3), mode="reflect" if reflect else "constant").permute(0, 2, 3, 1).to(torch.uint8)
    places = set()
    for new, old in zip(out, padded, strict=True):
        fits = [(t, s) for t in range(7) for s in range(7) if old[t : t + 10, s : s + 8].equal(new)]
        assert len(fits) == 1
        places.add(fits[0])
    assert len(places) > 20


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    out = Augmentation(pad=0).apply(images(400), generator())
    flipped = [new.equal(old.flip(1)) for new, old in zip(out, images(400), strict=True)]
    assert all(f or new.equal(old) for f, new, old in zip(flipped, out, images(400), strict=True))
    assert 150 < sum(flipped) < 250


def test_a_cutout_covers_one_square_in_the_mean_color() -> None:
    out = Augmentation(pad=0, flip=False, cutout=4).apply(images(), generator())
    color = torch.tensor([125, 123, 114], dtype=torch.uint8)
    corners = set()
    for new, old in zip(out, images(), strict=True):
        rows, columns = (new != old).any(dim=2).nonzero().unbind(1)
        top, left = int(rows.min()), int(columns.min())
        expected = old.clone()
        expected[top : top + 4, left : left + 4] = color
        assert new.equal(expected)
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(7)) and {left for _, left in corners} == set(range(5))


def test_what_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(InputError, match="a cutout of 9 pixels is larger than the images, 8 x 10"):
        Augmentation(cutout=9).apply(images(), generator())
    with pytest.raises(InputError, match="cannot be padded by their own 8 mirrored pixels"):
        Augmentation(pad=8, reflect=True).apply(images(), generator())
    with pytest.raises(InputError, match="must be 0 or more"):
        Augmentation(pad=-1)
