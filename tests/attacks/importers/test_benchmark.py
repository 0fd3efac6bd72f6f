from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attacks.importers.files import dump, moved, picture

from pureebm.attacks.base import LabeledSet, TargetGoal, TriggerGoal
from pureebm.attacks.importers import import_poisons
from pureebm.attacks.triggers import PatchTrigger
from pureebm.errors import InputError

ROWS = [43, 13, 3]


def write_folder(
    folder: Path, base: LabeledSet, test: LabeledSet, *, eps: int = 8, patch: object = None, protocol: int = 4
) -> torch.Tensor:
    poisons = moved(base, ROWS, eps)
    dump(folder / "poisons.pickle", [(picture(image), 3) for image in poisons], protocol)
    dump(folder / "base_indices.pickle", torch.tensor(ROWS), protocol)
    target = (picture(test.images[16]), 6) if patch is None else (picture(test.images[16]), 6, patch, [2, 1])
    dump(folder / "target.pickle", target, protocol)
    return poisons


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_folder_is_read_pixel_by_pixel(tmp_path: Path, base: LabeledSet, test_set: LabeledSet, protocol: int) -> None:
    poisons = write_folder(tmp_path, base, test_set, protocol=protocol)
    found = import_poisons("benchmark", tmp_path, base=base, eps=8)
    assert found.rows.tolist() == [3, 13, 43] and found.labels.tolist() == [3, 3, 3]
    assert found.images.equal(poisons.flip(0))
    assert isinstance(found.goal, TargetGoal) and found.goal.images.equal(test_set.images[16:17])
    assert found.goal.true_classes.tolist() == [6] and found.goal.intended_classes.tolist() == [3]
    assert found.split == "train" and found.record["max_change"] == 8
    first = found.record["files"][0]
    assert first["sha256"] == hashlib.sha256((tmp_path / "poisons.pickle").read_bytes()).hexdigest()
    poisoned = found.poisoned().apply(base)
    assert (poisoned.images != base.images).flatten(1).any(1).nonzero().flatten().tolist() == [3, 13, 43]
    assert poisoned.labels.equal(base.labels)


@pytest.mark.parametrize("wrap", [torch.tensor, np.array, lambda patch: patch])
def test_a_patch_becomes_a_trigger_at_its_place(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet, wrap: object
) -> None:
    # [2, 1] is column 2, row 1; the patch is channels first, 0..1, and 100/255 must not become 99.
    values = np.zeros((3, 2, 3), np.float32)
    values[0, 1, 2], values[2, 0, 0] = np.float32(100 / 255), 1.0
    write_folder(tmp_path, base, test_set, patch=wrap(values))
    found = import_poisons("benchmark", tmp_path)
    assert isinstance(found.goal, TriggerGoal) and isinstance(found.goal.trigger, PatchTrigger)
    assert (found.goal.target_class, found.goal.source_class) == (3, 6)
    expected = test_set.images[16].clone()
    expected[1:3, 2:5] = 0
    expected[2, 4, 0], expected[1, 2, 2] = 100, 255
    assert found.judged.images[0].equal(expected) and found.judged.intended_classes.tolist() == [3]
    assert found.record["max_change"] is None


def test_numbered_folders_are_read_in_order_or_singly(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    written = {number: write_folder(tmp_path / str(number), base, test_set, eps=4 + number) for number in (0, 2, 10)}
    found = import_poisons("benchmark", tmp_path, base=base)
    assert [one.record["max_change"] for one in found] == [4, 6, 14]
    (only,) = import_poisons("benchmark", tmp_path, index=10)
    assert only.images.equal(written[10].flip(0))
    with pytest.raises(InputError, match="no folder 5"):
        import_poisons("benchmark", tmp_path, index=5)


def test_the_budget_has_the_benchmarks_slack_of_one_step(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet
) -> None:
    write_folder(tmp_path, base, test_set, eps=9)
    assert import_poisons("benchmark", tmp_path, base=base, eps=8).record["max_change"] == 9
    write_folder(tmp_path, base, test_set, eps=10)
    with pytest.raises(InputError, match="by 10 steps of 1/255, more than eps = 8"):
        import_poisons("benchmark", tmp_path, base=base, eps=8)


def test_bases_of_another_class_show_another_order(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    write_folder(tmp_path, base, test_set)
    with pytest.raises(InputError, match="another data set or order"):
        import_poisons("benchmark", tmp_path, base=LabeledSet(base.images, base.labels.roll(1), 10))


def test_stated_norms_are_recorded_in_steps(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    write_folder(tmp_path, base, test_set)
    dump(tmp_path / "perturbation_norms.pickle", np.array([7 / 255, 8 / 255, 1 / 255]))
    assert import_poisons("benchmark", tmp_path).record["stated_max_change"] == 8


@pytest.mark.parametrize(
    ("file", "value", "wrong"),
    [
        ("base_indices.pickle", [1, 2], "3 poisons, but 2 indices"),
        ("base_indices.pickle", [1, 2, 2], "each once"),
        ("base_indices.pickle", [1, 2, -3], "0 or more"),
        ("base_indices.pickle", [1, 2, 100], "beyond the 100 images"),
        ("base_indices.pickle", [1, 2, 0.5], "whole numbers"),
        ("base_indices.pickle", [1, 2, float("nan")], "whole numbers"),
        ("base_indices.pickle", "abc", "whole numbers"),
        ("poisons.pickle", [], "holds no images"),
        ("poisons.pickle", {"a": 1}, "list of"),
        ("poisons.pickle", [(np.zeros((8, 8, 3)), 3)], "8-bit RGB"),
        ("target.pickle", [1, 2, 3], "must be"),
    ],
)
def test_files_that_are_not_of_the_format_are_refused(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet, file: str, value: object, wrong: str
) -> None:
    write_folder(tmp_path, base, test_set)
    dump(tmp_path / file, value)
    with pytest.raises(InputError, match=f"pickle.*{wrong}"):
        import_poisons("benchmark", tmp_path, base=base)


def test_poisons_of_two_labels_or_sizes_are_refused(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    write_folder(tmp_path, base, test_set)
    image = picture(base.images[0])
    dump(tmp_path / "poisons.pickle", [(image, 3), (image, 3), (image, 4)])
    with pytest.raises(InputError, match="one label"):
        import_poisons("benchmark", tmp_path)
    dump(tmp_path / "poisons.pickle", [(image, 3), (image, 3), (image.resize((4, 4)), 3)])
    with pytest.raises(InputError, match="all of one size"):
        import_poisons("benchmark", tmp_path)


def test_a_patch_that_leaves_the_image_is_refused(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    write_folder(tmp_path, base, test_set, patch=torch.zeros(3, 7, 7))
    with pytest.raises(InputError, match="row 1, column 2 leaves the image"):
        import_poisons("benchmark", tmp_path)


def setups_file(path: Path) -> Path:
    def setup(target: int, true: int, poison: int) -> dict[str, object]:
        rows = np.arange(poison, 100, 10)
        return {
            "target class": np.int64(true),
            "target index": np.int64(target),
            "base class": poison,
            "base indices": rows,
        }

    return dump(path, [setup(16, 6, 3), setup(21, 1, 9)])


def test_setups_are_the_untouched_bases_and_their_target(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet
) -> None:
    path = setups_file(tmp_path / "a.pickle")
    found = import_poisons("benchmark-setups", path, base=base, test=test_set)
    assert [one.rows.tolist() for one in found] == [list(range(3, 100, 10)), list(range(9, 100, 10))]
    assert found[0].images.equal(base.images[3::10]) and found[0].record["max_change"] == 0
    assert found[1].goal.images.equal(test_set.images[21:22])
    assert found[1].goal.true_classes.tolist() == [1] and found[1].goal.intended_classes.tolist() == [9]
    (second,) = import_poisons("benchmark-setups", path, base=base, test=test_set, index=1)
    assert second.record["setup"] == 1 and second.record["target_index"] == 21


def test_setups_notice_another_order_of_the_set(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    path = setups_file(tmp_path / "a.pickle")
    shifted = LabeledSet(base.images, base.labels.roll(1), 10)
    with pytest.raises(InputError, match="other classes"):
        import_poisons("benchmark-setups", path, base=shifted, test=test_set)
    with pytest.raises(InputError, match="give the training set"):
        import_poisons("benchmark-setups", path)
    with pytest.raises(InputError, match="other classes"):
        import_poisons(
            "benchmark-setups", path, base=base, test=LabeledSet(test_set.images, test_set.labels.flip(0), 10)
        )
