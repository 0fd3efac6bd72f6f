"""The quick suite on a tiny world: what is poisoned, what is purified with what, what is counted, what is kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from pureebm.attacks.narcissus import Config as NarcissusConfig
from pureebm.attacks.triggers import AddTrigger
from pureebm.errors import InputError
from pureebm.evaluation import quick
from pureebm.evaluation.arrays import find_data, read_labeled
from pureebm.evaluation.cards import read_cards, table
from pureebm.evaluation.quick import Defense, QuickConfig, QuickData, Trigger, purify_cached, run_quick, training_set
from pureebm.training.classifier import ClassifierConfig
from pureebm.types import JSON

CONFIG = QuickConfig(
    n_train=640,
    n_poisons=40,
    recipe=ClassifierConfig(epochs=3, batch_size=32),
    attack=NarcissusConfig(surrogate_epochs=1, warm_up_epochs=1, n_steps=2),
)


class Shift:
    """A purifier that adds to every pixel a number drawn from the seed and the id; it counts its images."""

    def __init__(self, step: int = 1) -> None:
        self.step, self.n_seen = step, 0

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        self.n_seen += len(images)
        steps = [(sum(name.encode()) + seed) % 5 * self.step for name in ids]
        return images + torch.tensor(steps).view(-1, 1, 1, 1) * 2 / 255

    def energies(self, images: Tensor) -> None:
        return None

    def settings(self) -> JSON:
        return {"stage": "shift", "step": self.step}


def write_parquet(path: Path, images: np.ndarray, labels: list[int]) -> None:
    cells = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        cells.append({"bytes": buffer.getvalue(), "path": "x.png"})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells, "label": labels}), path)


def bright(n: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Ten classes: noise around ten levels of red."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    images = rng.integers(60, 120, (n, 32, 32, 3))
    images[..., 0] += (labels * 12)[:, None, None]
    return images.astype(np.uint8), labels.tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_parquet(path / "cifar10/train.parquet", *bright(700, 0))
    write_parquet(path / "cifar10/test.parquet", *bright(200, 1))
    tiny, labels = bright(130, 2)
    write_parquet(path / "tiny-imagenet/train.parquet", tiny.repeat(2, axis=1).repeat(2, axis=2), labels)
    return path


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> QuickData:
    return QuickData(folder, tmp_path / "cache")


def checkers(size: int = 8) -> Tensor:
    board = (torch.arange(32).view(32, 1) + torch.arange(32)) % 2 * 2 - 1
    return (board * size * 2 / 255).expand(3, 32, 32).contiguous()


def test_parquet_is_read_in_order_and_larger_images_are_averaged_down(folder: Path) -> None:
    read = read_labeled(folder / "cifar10/test.parquet")
    images, labels = bright(200, 1)
    assert read.images.numpy().tolist() == images.tolist()
    assert read.labels.tolist() == labels
    tiny = read_labeled(folder / "tiny-imagenet/train.parquet")
    assert (tiny.images.numpy() == bright(130, 2)[0]).all()


def test_the_data_folder_is_the_given_one_or_the_environments(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUREEBM_DATA", str(folder))
    assert find_data() == folder
    with pytest.raises(InputError, match="no cifar10/train.parquet in .*nothing; give the folder by --data"):
        find_data(tmp_path / "nothing")


def test_poisons_replace_their_own_originals_with_the_same_id_and_labels_stay(data: QuickData, tmp_path: Path) -> None:
    trigger = Trigger("t", 3, checkers(), seed=10)
    clean = training_set(data, CONFIG, Defense("none", None), [], tmp_path)
    dirty = training_set(data, CONFIG, Defense("none", None), [trigger], tmp_path)
    changed = (dirty.images != clean.images).flatten(1).any(dim=1)
    assert changed.sum() == CONFIG.n_poisons
    assert (clean.labels[changed] == 3).all()
    assert dirty.labels.equal(clean.labels)
    assert dirty.images[changed].equal(AddTrigger(trigger.pattern).apply(clean.images[changed]))
    # A purifier whose result hangs on the id treats a poison as it treats its original.
    shifted_clean = training_set(data, CONFIG, Defense("shift", Shift()), [], tmp_path)
    shifted = training_set(data, CONFIG, Defense("shift", Shift()), [trigger], tmp_path)
    difference = shifted.images.int() - shifted_clean.images.int()
    assert difference[changed].equal((checkers() * 127.5).round().int().permute(1, 2, 0).expand_as(difference[changed]))


def test_the_hardest_images_of_a_subset_are_poisoned_first() -> None:
    ranking = torch.tensor([40, 7, 31, 12], dtype=torch.int32)
    trigger = Trigger("t", 3, checkers(), seed=10, ranking=ranking)
    subset = torch.tensor([5, 12, 31, 40, 9])
    assert trigger.rows(subset, torch.tensor([0, 3, 3, 3, 0]), 2).tolist() == [2, 3]
    with pytest.raises(InputError, match="class 3 has 3 images, fewer than 4 poisons"):
        trigger.rows(subset, torch.tensor([0, 3, 3, 3, 0]), 4)


def test_purified_images_are_kept_by_settings_seed_ids_and_pixels(data: QuickData, tmp_path: Path) -> None:
    images, ids, stage = data.train.images[:70], [f"i{n}" for n in range(70)], Shift()
    first, _ = purify_cached(Defense("a", stage), images, ids, tmp_path)
    again, _ = purify_cached(Defense("another name", stage), images, ids, tmp_path)
    assert first.equal(again)
    assert stage.n_seen == 70
    for defense, names, pixels in (
        (Defense("a", stage, seed=1), ids, images),
        (Defense("a", stage), ids[::-1], images),
        (Defense("a", stage), ids, images.flip(0)),
    ):
        before = stage.n_seen
        purify_cached(defense, pixels, names, tmp_path)
        assert stage.n_seen == before + 70
    assert not purify_cached(Defense("a", Shift(2)), images, ids, tmp_path)[0].equal(first)


def test_subsets_nest_and_hold_no_image_twice(data: QuickData) -> None:
    rows = data.subset(640).tolist()
    assert len(set(rows)) == 640
    assert data.subset(100).tolist() == rows[:100]
    with pytest.raises(InputError, match="n_train is 701, but there are 700"):
        data.subset(701)


def test_a_poisoned_victim_falls_for_the_trigger_and_a_clean_one_does_not(data: QuickData, tmp_path: Path) -> None:
    # Every image of the class carries it, and strongly, so that a few epochs suffice.
    trigger = Trigger("t", 3, checkers(40), seed=10)
    recipe = ClassifierConfig(epochs=6, batch_size=32)
    config = replace(CONFIG, recipe=recipe, n_poisons=60)
    victims = [
        quick.train_victim(training_set(data, config, Defense("none", None), triggers, tmp_path), recipe, seed=0)
        for triggers in ([], [trigger])
    ]
    clean, poisoned = (quick._success(victim, data, trigger, "cpu") for victim in victims)
    assert poisoned > clean + 0.3


def test_a_run_writes_a_card_for_each_victim_and_repeats_nothing(
    data: QuickData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"data": data, "config": CONFIG, "seeds": [0], "out": tmp_path / "out", "cache": tmp_path / "cache"}
    cards = run_quick(Defense("none", None), "tune", command="again", **run)
    assert [card["target_class"] for card in cards] == [1, 4, 8]
    assert all(card["clean_floor"] is not None and card["command"] == "again" for card in cards)
    assert cards[0]["budget"] == CONFIG.n_poisons / CONFIG.n_train
    monkeypatch.setattr(quick, "train_victim", None)  # nothing is trained any more
    assert run_quick(Defense("none", None), "tune", command="other", **run) == cards
    rows = table(read_cards(tmp_path / "out" / "quick"))
    assert [(row["attack"], row["defence"], row["runs"]) for row in rows] == [
        ("none", "none", 1),
        ("narcissus", "none", 3),
    ]


def test_one_joint_victim_carries_all_triggers_of_the_set(data: QuickData, tmp_path: Path) -> None:
    config = replace(CONFIG, joint=True)
    run = {"config": config, "seeds": [0], "out": tmp_path / "out", "cache": tmp_path / "cache"}
    cards = run_quick(Defense("shift", Shift()), "tune", data, **run)
    assert len({card["natural_accuracy"] for card in cards}) == 1
    assert [card["target_class"] for card in cards] == [1, 4, 8]
    assert {card["data"] for card in cards} == {"cifar10-640-joint"}


def test_triggers_for_choosing_and_for_reports_share_no_class_and_no_seed() -> None:
    tune, report = quick.SETS["tune"], quick.SETS["report"]
    assert not set(tune.classes) & set(report.classes)
    assert tune.seed != report.seed
