from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attacks.importers.files import dump, moved, picture

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.attacks.importers import import_poisons
from pureebm.errors import InputError

ROWS = [53, 3, 33]
STD = torch.tensor([0.24703, 0.24349, 0.26159])[:, None, None]
NAMES = [f"class{label}" for label in range(10)]


def packed(path: Path, base: LabeledSet, poisons: torch.Tensor) -> Path:
    delta = (poisons.float() - base.images[ROWS].float()).permute(0, 3, 1, 2) / 255 / STD
    torch.save([delta, torch.tensor(ROWS)], path)
    return path


def test_a_packed_export_is_the_base_plus_its_normalized_perturbation(tmp_path: Path, base: LabeledSet) -> None:
    poisons = moved(base, ROWS, 8)
    path = packed(tmp_path / "poisons_packed_2020.pth", base, poisons)
    found = import_poisons("gradient-matching", path, base=base, eps=8)
    assert found.rows.tolist() == [3, 33, 53] and found.images.equal(poisons[[1, 2, 0]])
    assert found.labels.tolist() == [3, 3, 3]
    assert found.record["max_change"] == 8 and found.record["largest_perturbation"] == pytest.approx(8, abs=1e-3)
    with pytest.raises(InputError, match="does not say its target"):
        found.poisoned()
    with pytest.raises(InputError, match=r"give the clean training set \(SOURCE, base\)"):
        import_poisons("gradient-matching", path)
    with pytest.raises(InputError, match="more than eps = 7"):
        import_poisons("gradient-matching", path, base=base, eps=7)


def test_fractions_of_a_step_are_rounded_not_truncated(tmp_path: Path, base: LabeledSet) -> None:
    base.images[ROWS] = 100
    delta = torch.stack([torch.full((3, 8, 8), share) for share in (0.51, -0.49, -0.51)]) / 255 / STD
    torch.save([delta, torch.tensor(ROWS)], tmp_path / "a.pth")
    found = import_poisons("gradient-matching", tmp_path / "a.pth", base=base)
    assert [int(image.unique()) for image in found.images] == [100, 99, 101]


def test_the_standard_deviations_are_those_of_the_data_set(tmp_path: Path, base: LabeledSet) -> None:
    path = packed(tmp_path / "a.pth", base, moved(base, ROWS, 20))
    right = import_poisons("gradient-matching", path, base=base)
    other = import_poisons("gradient-matching", path, base=base, dataset="tinyimagenet")
    assert other.record["max_change"] > right.record["max_change"] == 20
    with pytest.raises(InputError, match="unknown data set"):
        import_poisons("gradient-matching", path, base=base, dataset="mnist")


def save_pictures(folder: Path, rows: list[int], images: torch.Tensor, labels: list[int]) -> None:
    for name in NAMES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for row, image, label in zip(rows, images, labels, strict=True):
        picture(image).save(folder / NAMES[label] / f"{row}.png")


def test_a_limited_export_is_its_pictures(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    poisons = moved(base, ROWS, 8)
    save_pictures(tmp_path / "train", ROWS, poisons, [3] * 3)
    save_pictures(tmp_path / "targets", [16], test_set.images[16:17], [3])
    found = import_poisons("gradient-matching", tmp_path, base=base, test=test_set, eps=8)
    assert found.rows.tolist() == [3, 33, 53] and found.images.equal(poisons[[1, 2, 0]])
    assert found.labels.tolist() == [3] * 3 and found.record["format"] == "gradient-matching limited"
    assert isinstance(found.goal, TargetGoal) and found.goal.images.equal(test_set.images[16:17])
    assert found.goal.true_classes.tolist() == [6] and found.goal.intended_classes.tolist() == [3]
    assert import_poisons("gradient-matching", tmp_path).goal is None
    with pytest.raises(InputError, match="not the images of the test set"):
        import_poisons("gradient-matching", tmp_path, test=base)


def test_of_a_full_export_the_changed_pictures_are_the_poisons(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet
) -> None:
    images = base.images.clone()
    images[ROWS] = moved(base, ROWS, 8)
    save_pictures(tmp_path / "train", list(range(100)), images, base.labels.tolist())
    save_pictures(tmp_path / "test", [0], test_set.images[:1], [0])
    save_pictures(tmp_path / "targets", [16], test_set.images[16:17], [3])
    found = import_poisons("gradient-matching", tmp_path, base=base, test=test_set, eps=8)
    assert found.rows.tolist() == [3, 33, 53] and found.images.equal(images[found.rows])
    assert found.record["format"] == "gradient-matching full" and found.record["files"][0]["files"] == 100
    with pytest.raises(InputError, match="give the clean set"):
        import_poisons("gradient-matching", tmp_path)
    with pytest.raises(InputError, match="labels are not those"):
        import_poisons("gradient-matching", tmp_path, base=LabeledSet(base.images, base.labels.roll(1), 10))


def test_of_a_numpy_export_the_changed_images_are_the_poisons(tmp_path: Path, base: LabeledSet) -> None:
    images = base.images.clone()
    images[ROWS] = moved(base, ROWS, 8)
    np.save(tmp_path / "poisoned_training_data.npy", images.numpy().astype(np.float64))
    np.save(tmp_path / "poisoned_training_labels.npy", base.labels.numpy().astype(np.float64))
    found = import_poisons("gradient-matching", tmp_path, base=base, eps=8)
    assert found.rows.tolist() == [3, 33, 53] and found.images.equal(images[found.rows])
    assert found.labels.tolist() == [3] * 3
    np.save(tmp_path / "poisoned_training_data.npy", images.numpy() / 255)
    with pytest.raises(InputError, match="whole numbers 0 .. 255"):
        import_poisons("gradient-matching", tmp_path, base=base)


def test_a_benchmark_export_is_a_poison_folder(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    poisons = moved(base, ROWS, 8)
    folder = tmp_path / "bm_base_ResNet18" / "7"
    dump(folder / "poisons.pickle", [(picture(image), 3) for image in poisons], 5)
    dump(folder / "base_indices.pickle", torch.tensor(ROWS), 5)
    dump(folder / "target.pickle", (picture(test_set.images[16]), 6), 5)
    (found,) = import_poisons("gradient-matching", folder.parent, base=base, eps=8)
    assert found.images.equal(poisons[[1, 2, 0]])
    with pytest.raises(InputError, match="neither poisons.pickle"):
        import_poisons("gradient-matching", tmp_path)
