from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attacks.importers.files import dump, moved, picture

from pureebm.attacks.base import AvailabilityGoal, LabeledSet, TriggerGoal
from pureebm.attacks.importers import OTHERS, import_poisons, import_sets
from pureebm.errors import InputError

ROWS = [43, 13, 3]


def output(path: Path, poisons: torch.Tensor, rows: object, target: object, *, zip_format: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = [(picture(image), torch.tensor(3)) for image in poisons]
    torch.save((pairs, rows, target), path, _use_new_zipfile_serialization=zip_format)
    return path


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("wrap", [list, torch.tensor, np.array])
def test_purified_poisons_are_read_pixel_by_pixel(
    tmp_path: Path, base: LabeledSet, zip_format: bool, wrap: object
) -> None:
    poisons = moved(base, ROWS, 30)
    folder = tmp_path / "Poisons" / "scratch" / "GradientMatching" / "EBM[Steps[150]]"
    path = output(folder / "7.pth", poisons, wrap(ROWS), 3, zip_format=zip_format)
    found = import_poisons("puregen", path, base=base)
    assert found.rows.tolist() == [3, 13, 43] and found.images.equal(poisons.flip(0))
    assert found.labels.tolist() == [3] * 3 and found.split == "train"
    assert found.record["data_key"] == "EBM[Steps[150]]" and found.record["intended_class"] == 3
    assert found.record["max_change"] == 30
    with pytest.raises(InputError, match="target.pickle"):
        found.poisoned()


def test_purified_poisons_of_a_trigger_hold_the_trigger(tmp_path: Path, base: LabeledSet) -> None:
    noise = np.random.default_rng(0).uniform(-16 / 255, 16 / 255, (1, 3, 8, 8)).astype(np.float32)
    path = output(tmp_path / "Narcissus" / "Baseline" / "3.pth", moved(base, ROWS, 8), ROWS, noise)
    found = import_poisons("puregen", path)
    assert isinstance(found.goal, TriggerGoal) and found.goal.target_class == 3
    assert np.array_equal(found.goal.trigger.pattern.numpy(), noise[0])
    assert found.poisoned().goal is found.goal


def test_outputs_of_bullseye_polytope_count_in_the_others(tmp_path: Path, base: LabeledSet) -> None:
    path = output(tmp_path / "BullseyePolytope" / "imgs=50" / "JPEG[75]" / "0.pth", moved(base, ROWS, 8), ROWS, 8)
    assert import_poisons("puregen", path).split == OTHERS
    path = output(tmp_path / "BullseyePolytopeBench" / "imgs=25" / "JPEG[75]" / "0.pth", moved(base, ROWS, 8), ROWS, 8)
    assert import_poisons("puregen", path).split == "train"
    assert import_poisons("puregen", path, split=OTHERS).split == OTHERS


def test_a_purified_set_keeps_its_order(tmp_path: Path, base: LabeledSet) -> None:
    pairs = [(picture(image), label) for image, label in zip(base.images, base.labels.clone(), strict=True)]
    torch.save(pairs, tmp_path / "EBM[Steps[150]].pt")
    (found,) = import_sets(tmp_path / "EBM[Steps[150]].pt").values()
    assert found.images.equal(base.images) and found.labels.equal(base.labels) and found.n_classes == 10


def test_inputs_are_recognized_by_what_they_are(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    poisons = moved(base, ROWS, 8)
    bench = tmp_path / "GradientMatching" / "cifar10" / "5"
    dump(bench / "poisons.pickle", [(picture(image), 3) for image in poisons], 5)
    dump(bench / "base_indices.pickle", ROWS)
    dump(bench / "target.pickle", (picture(test_set.images[16]), 6))
    assert import_poisons("puregen", bench, base=base, eps=8).images.equal(poisons.flip(0))
    assert len(import_poisons("puregen", bench.parent, index=5)) == 1

    trigger = tmp_path / "Narcissus" / "cifar10" / "size=32_eps=8" / "best_noise_lab4.npy"
    trigger.parent.mkdir(parents=True)
    np.save(trigger, np.full((1, 3, 8, 8), 16 / 255, np.float32))
    found = import_poisons("puregen", trigger, base=base)
    assert found.rows.tolist() == [94] and found.record["max_change"] == 8

    torch.save({"poison": [(torch.zeros(3, 8, 8), 8)], "idx": [9]}, tmp_path / "poison_00799.pth")
    found = import_poisons("puregen", tmp_path / "poison_00799.pth")
    assert found.images[0, 0, 0].tolist() == [125, 123, 114]  # the mean color: .4914 .4822 .4465


def ntga(folder: Path, base: LabeledSet, poisons: torch.Tensor) -> Path:
    np.save(folder / "x_train_cifar10_ntga_cnn_best.npy", poisons.numpy().astype(np.float32) / 255)
    np.save(folder / "y_train_cifar10.npy", np.eye(10)[base.labels.numpy()])
    return folder / "x_train_cifar10_ntga_cnn_best.npy"


@pytest.mark.parametrize("format", ["ntga", "puregen"])
def test_ntga_is_a_whole_set_of_poisons(tmp_path: Path, base: LabeledSet, format: str) -> None:
    poisons = moved(base, list(range(100)), 8)
    found = import_poisons(format, ntga(tmp_path, base, poisons), base=base, eps=8)
    assert found.images.equal(poisons) and found.labels.equal(base.labels) and found.rows.tolist() == list(range(100))
    assert isinstance(found.goal, AvailabilityGoal) and found.record["max_change"] == 8


def test_ntga_in_another_range_is_refused(tmp_path: Path, base: LabeledSet) -> None:
    path = ntga(tmp_path, base, base.images)
    np.save(path, base.images.numpy().astype(np.float32))
    with pytest.raises(InputError, match="pixels must be 0 .. 1"):
        import_poisons("ntga", path)


@pytest.mark.parametrize("value", [(1, 2), ([], [], 3), ([(1, 2)], [0], 3), 5])
def test_other_files_are_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(InputError, match="a.pth: "):
        import_poisons("puregen", tmp_path / "a.pth")
