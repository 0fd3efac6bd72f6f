"""Data sets by name: which images, in which order, with which ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pureebm.errors import InputError
from pureebm.evaluation import arrays
from pureebm.evaluation.arrays import Shelf, save_arrays, textures


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """CIFAR-10 with 12 images of each class, of which extractors may see 8; every image holds its own row."""
    monkeypatch.setattr(arrays, "N_CLEAN", 8)
    for split, n in (("train", 120), ("test", 20)):
        rows = torch.arange(n, dtype=torch.uint8)
        images = rows.view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
        save_arrays(tmp_path / f"cifar10-{split}.npz", images=images, labels=(torch.arange(n) * 7) % 10)
    return Shelf(tmp_path / "no-folder-is-needed", tmp_path)


def rows(shelf: Shelf, name: str) -> list[int]:
    data = shelf.load(name)
    found = data.train.images[:, 0, 0, 0].tolist()
    assert data.ids == [f"cifar10/train/{row}" for row in found]
    assert data.train.labels.tolist() == [row * 7 % 10 for row in found]
    return found


def test_random_subsets_nest_and_the_whole_set_keeps_its_order(shelf: Shelf) -> None:
    assert rows(shelf, "cifar10") == list(range(120))
    large = rows(shelf, "cifar10-100")
    assert len(set(large)) == 100 and rows(shelf, "cifar10-30") == large[:30]
    assert len(shelf.load("cifar10-30").test) == 20


def test_what_extractors_see_and_what_is_fine_tuned_on_share_no_image(shelf: Shelf) -> None:
    clean, others = rows(shelf, "cifar10-clean-80"), rows(shelf, "cifar10-others-20")
    assert not set(clean) & set(others)
    labels = torch.tensor([row * 7 % 10 for row in others])
    assert labels.bincount().tolist() == [2] * 10
    assert rows(shelf, "cifar10-others") == sorted(set(range(120)) - set(clean))
    with pytest.raises(InputError, match="asks for 200 images, equally many of each class; 40 can be had"):
        shelf.load("cifar10-others-200")


def test_a_part_of_the_classes_is_evenly_spaced_and_the_others_are_public(shelf: Shelf) -> None:
    data = shelf.load("cifar10-4classes")
    found = data.train.images[:, 0, 0, 0].tolist()
    wanted = [row for row in range(120) if row * 7 % 10 in (0, 2, 5, 7)]
    assert found == wanted and data.ids == [f"cifar10/train/{row}" for row in wanted]
    assert data.train.labels.tolist() == [(0, 2, 5, 7).index(row * 7 % 10) for row in wanted]
    assert data.train.n_classes == data.test.n_classes == 4 and len(data.test) == 8
    part = shelf.load("cifar10-4classes-20")
    assert set(part.ids) < set(data.ids) and len(part.train) == 20
    public = shelf.public("cifar10-4classes")
    assert public is not None and public.n_classes == 6
    assert sorted(public.images[:, 0, 0, 0].tolist()) == sorted(set(range(120)) - set(wanted))
    assert set(public.labels.tolist()) == set(range(6))
    with pytest.raises(InputError, match="2 or more and not all"):
        shelf.load("cifar10-10classes")


@pytest.mark.parametrize("name", ["cinic10", "cifar10-", "cifar10-20k", "tiny"])
def test_an_unknown_name_is_refused(shelf: Shelf, name: str) -> None:
    with pytest.raises(InputError, match=f"no data set {name!r} here; known: cifar10, tiny-imagenet and synthetic"):
        shelf.load(name)


def test_stripes_are_a_function_of_their_seed_and_need_no_file(shelf: Shelf) -> None:
    data = shelf.load("synthetic-24px-50")
    assert data.train.images.shape == (50, 24, 24, 3) and data.train.n_classes == 4
    assert data.train.images.equal(textures(50, 24, seed=0).images)
    assert not data.test.images[:50].equal(data.train.images)
    public = shelf.public("synthetic-24px-50")
    assert public is not None and not public.images.equal(data.train.images)


def test_attackers_on_larger_images_than_the_public_ones_have_none(shelf: Shelf) -> None:
    assert shelf.public("tiny-imagenet-64px") is None
