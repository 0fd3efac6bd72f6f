from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attacks.importers.files import moved, picture

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.attacks.importers import OTHERS, import_poisons, import_sets
from pureebm.errors import InputError

MEAN = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
STD = torch.tensor([0.2023, 0.1994, 0.2010])[:, None, None]
ROWS = [18, 8, 28]


@pytest.fixture
def others() -> LabeledSet:
    """600 images: image i is of class i % 10, so frog number k is image 6 + 10 k."""
    images = torch.randint(0, 256, (600, 8, 8, 3), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    return LabeledSet(images, torch.arange(600) % 10, 10)


def normalized(images: torch.Tensor) -> torch.Tensor:
    return (images.float().div(255).permute(0, 3, 1, 2) - MEAN) / STD


def write(path: Path, images: torch.Tensor, rows: object, *, zip_format: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "poison": [(image, 8) for image in normalized(images)],
        "idx": rows,
        "target_loss": [0.5, 0.25],
        "total_loss": [torch.tensor(0.5)],
        "coeff_list": [np.full(3, 1 / 3)],
        "coeff_list_in_victim": [],
        "coeffs_time": 0.0,
        "poisons_time": 12.5,
    }
    torch.save(values, path, _use_new_zipfile_serialization=zip_format)
    return path


@pytest.mark.parametrize("zip_format", [True, False])
def test_normalized_poisons_come_back_as_their_pixels(tmp_path: Path, zip_format: bool) -> None:
    # All 256 values in every channel, as (N, 8, 8, 3): the way to normalized floats and back is exact.
    images = torch.arange(256).repeat(3, 1).T.reshape(4, 8, 8, 3).to(torch.uint8)
    path = write(tmp_path / "poison_00799.pth", images, [0, 1, 2, 3], zip_format=zip_format)
    found = import_poisons("bullseye-polytope", path)
    assert found.images.equal(images) and found.labels.tolist() == [8] * 4
    assert found.split == OTHERS and found.goal is None


def test_floats_between_steps_are_rounded_and_clamped(tmp_path: Path) -> None:
    steps = torch.tensor([100.49, 100.51, -3.0, 300.0])
    tensors = ((steps / 255)[:, None, None, None].expand(4, 3, 8, 8) - MEAN) / STD
    torch.save({"poison": [(t.contiguous(), 8) for t in tensors], "idx": [0, 1, 2, 3]}, tmp_path / "a.pth")
    found = import_poisons("bullseye-polytope", tmp_path / "a.pth")
    assert [image.unique().tolist() for image in found.images] == [[100], [101], [0], [255]]


def split_file(path: Path, others: LabeledSet) -> Path:
    pairs = [(picture(image), label) for image, label in zip(others.images, others.labels.tolist(), strict=True)]
    torch.save({"clean_train": pairs[:20], "others": pairs}, path)
    return path


def test_the_split_gives_bases_and_target(tmp_path: Path, others: LabeledSet) -> None:
    poisons = moved(others, ROWS, 25)
    path = write(tmp_path / "mean" / "800" / "4" / "poison_00799.pth", poisons, ROWS)
    split = split_file(tmp_path / "CIFAR10_TRAIN_Split.pth", others)
    found = import_poisons("bullseye-polytope", path, split_file=split, eps=25.5)
    assert found.rows.tolist() == [8, 18, 28] and found.images.equal(poisons[[1, 0, 2]])
    assert found.record["max_change"] == 25 and found.record["target"] == 4
    assert isinstance(found.goal, TargetGoal) and found.goal.images[0].equal(others.images[6 + 10 * 54])
    assert found.goal.true_classes.tolist() == [6] and found.goal.intended_classes.tolist() == [8]
    other = import_poisons("bullseye-polytope", path, base=others, target=0)
    assert other.goal.images[0].equal(others.images[6 + 10 * 50])
    with pytest.raises(InputError, match="target must be 0 .. 9"):
        import_poisons("bullseye-polytope", path, base=others, target=10)
    with pytest.raises(InputError, match="more than eps = 8"):
        import_poisons("bullseye-polytope", path, base=others, eps=8)


def test_a_budget_of_25_and_a_half_steps_allows_26_after_rounding(tmp_path: Path, others: LabeledSet) -> None:
    path = write(tmp_path / "poison_00799.pth", moved(others, ROWS, 26), ROWS)
    assert import_poisons("bullseye-polytope", path, base=others, eps=25.5).record["max_change"] == 26


def test_the_split_is_read_as_two_sets(tmp_path: Path, others: LabeledSet) -> None:
    sets = import_sets(split_file(tmp_path / "CIFAR10_TRAIN_Split.pth", others))
    assert sets["others"].images.equal(others.images) and sets["others"].labels.equal(others.labels)
    assert sets["clean_train"].images.equal(others.images[:20])


@pytest.mark.parametrize(
    "value", [[1], {"poison": []}, {"poison": [1], "idx": [0]}, {"poison": [(torch.zeros(8, 8), 8)], "idx": [0]}]
)
def test_other_files_are_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "poison_00799.pth")
    with pytest.raises(InputError, match="poison_00799.pth: "):
        import_poisons("bullseye-polytope", tmp_path / "poison_00799.pth")
