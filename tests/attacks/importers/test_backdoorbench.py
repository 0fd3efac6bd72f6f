from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.attacks.importers.files import picture

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.attacks.importers import import_poisons
from pureebm.errors import InputError

TRAIN_ROWS, TEST_ROWS = [71, 5, 12], [3, 4]


def patched(images: torch.Tensor) -> torch.Tensor:
    images = images.clone()
    images[:, -3:, -3:] = 255
    return images


def state(data: LabeledSet, rows: list[int], root: Path | None, name: str, kept: list[int]) -> dict[str, Any]:
    folder, entries = f"./record/badnet/{name}", {}
    for row, image in zip(rows, patched(data.images[rows]), strict=True):
        original = int(data.labels[row])
        if root is None:
            entries[np.int64(row)] = (picture(image), 0, original)
        else:
            path = f"{folder}/{original}/{row}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            picture(image).save(root / path)
            entries[np.int64(row)] = {"path": path, "other_info": [0, original]}
    indicator = np.zeros(len(data), int)
    indicator[rows] = 1
    container = {"save_folder_path": folder if root else None, "data_dict": entries, "save_file_format": ".png"}
    return {
        "bd_data_container": container,
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.array(kept),
        "poison_indicator": indicator,
        "save_folder_path": container["save_folder_path"],
    }


def record(base: LabeledSet, test: LabeledSet, root: Path | None) -> dict[str, Any]:
    return {
        "model_name": "preactresnet18",
        "num_classes": 10,
        "model": torch.nn.Linear(2, 2).state_dict(),
        "data_path": "./data/cifar10",
        "img_size": (8, 8, 3),
        "clean_data": "cifar10",
        "bd_train": state(base, TRAIN_ROWS, root, "bd_train_dataset", list(range(100))),
        "bd_test": state(test, [*TEST_ROWS, 10], root, "bd_test_dataset", TEST_ROWS),
    }


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_record_gives_poisons_and_triggered_test_images(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet, on_disk: bool
) -> None:
    root = tmp_path if on_disk else None
    torch.save(record(base, test_set, root), tmp_path / "attack_result.pt")
    found = import_poisons("backdoorbench", tmp_path / "attack_result.pt", root=root, base=base)
    assert found.rows.tolist() == [5, 12, 71] and found.images.equal(patched(base.images[found.rows]))
    assert found.labels.tolist() == [0, 0, 0] and found.record["relabeled"] == 3
    assert found.split == "train of cifar10" and found.record["max_change"] > 0
    assert isinstance(found.goal, TargetGoal) and found.goal.images.equal(patched(test_set.images[TEST_ROWS]))
    assert found.goal.true_classes.tolist() == [3, 4] and found.goal.intended_classes.tolist() == [0, 0]
    assert found.poisoned().apply(base).labels[[5, 12, 71]].tolist() == [0, 0, 0]


def test_a_record_without_poisoned_training_set_has_no_poisons(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet
) -> None:
    torch.save(record(base, test_set, None) | {"bd_train": None}, tmp_path / "attack_result.pt")
    found = import_poisons("backdoorbench", tmp_path / "attack_result.pt")
    assert len(found.rows) == 0 and found.images.shape == (0, 8, 8, 3) and len(found.goal.images) == 2


@pytest.mark.parametrize("path", ["../secret.png", "./record/../../secret.png", "{absolute}", "link/secret.png"])
def test_no_file_outside_of_the_folder_is_opened(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet, path: str
) -> None:
    root = tmp_path / "bench"
    root.mkdir()
    picture(base.images[0]).save(tmp_path / "secret.png")
    (root / "link").symlink_to(tmp_path)
    value = record(base, test_set, root)
    value["bd_train"]["bd_data_container"]["data_dict"][12]["path"] = path.format(absolute=tmp_path / "secret.png")
    torch.save(value, root / "attack_result.pt")
    with pytest.raises(InputError, match="bd_train: image 12: its path .* leads out of"):
        import_poisons("backdoorbench", root / "attack_result.pt", root=root)


def test_images_on_disk_need_the_folder(tmp_path: Path, base: LabeledSet, test_set: LabeledSet) -> None:
    torch.save(record(base, test_set, tmp_path), tmp_path / "attack_result.pt")
    with pytest.raises(InputError, match=r"give BackdoorBench's folder \(root\)"):
        import_poisons("backdoorbench", tmp_path / "attack_result.pt")
    (tmp_path / "record/badnet/bd_train_dataset/2/12.png").unlink()
    with pytest.raises(InputError, match="image 12: .*No such file"):
        import_poisons("backdoorbench", tmp_path / "attack_result.pt", root=tmp_path)


def change(value: dict[str, Any], key: str) -> None:
    train = value["bd_train"]
    match key:
        case "no poisoned image for":
            del train["bd_data_container"]["data_dict"][12]
        case "labels must be 0 .. 9":
            image, _, original = train["bd_data_container"]["data_dict"][12]
            train["bd_data_container"]["data_dict"][12] = (image, 10, original)
        case "leaves the 100 images":
            train["original_index_array"] = np.array([100])
        case "img_size says":
            value["img_size"] = (9, 8, 3)
        case "not a data set's state":
            del train["poison_indicator"]
        case "not a record":
            del value["num_classes"]
        case "neither":
            train["bd_data_container"]["data_dict"][12] = "12.png"


@pytest.mark.parametrize(
    "wrong",
    [
        "no poisoned image for",
        "labels must be 0 .. 9",
        "leaves the 100 images",
        "img_size says",
        "not a data set's state",
        "not a record",
        "neither",
    ],
)
def test_records_that_contradict_themselves_are_refused(
    tmp_path: Path, base: LabeledSet, test_set: LabeledSet, wrong: str
) -> None:
    value = record(base, test_set, None)
    change(value, wrong)
    torch.save(value, tmp_path / "attack_result.pt")
    with pytest.raises(InputError, match=wrong):
        import_poisons("backdoorbench", tmp_path / "attack_result.pt")
