"""A data set whose images are purified once: same samples, same order, same bytes however they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from pureebm import Purifier
from pureebm.errors import InputError
from pureebm.integrations.torch_dataset import PurifiedDataset
from pureebm.sampling.noise import CounterNoise
from pureebm.types import JSON


class Add:
    """Adds an image's own noise, a tenth of it; counts batches."""

    def __init__(self, amount: float = 0.1) -> None:
        self.amount, self.batches = amount, list[int]()

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        self.batches.append(len(images))
        return images + self.amount * CounterNoise(seed, ids)(1, images)

    def energies(self, images: Tensor) -> None:
        return None

    def settings(self) -> JSON:
        return {"stage": "add", "amount": self.amount}


def pixels_of(sample: dict[str, Any]) -> Tensor:
    return sample["pixels"]


def pictures(n: int, mode: str = "RGB") -> list[tuple[Image.Image, int]]:
    rng = np.random.default_rng(0)
    sizes = [(20, 16) if index % 3 else (16, 16) for index in range(n)]
    arrays = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    return [(Image.fromarray(array).convert(mode), index % 10) for index, array in enumerate(arrays)]


def tensors(n: int) -> list[dict[str, Any]]:
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return [{"pixels": image, "label": index} for index, image in enumerate(images)]


def test_images_are_those_of_the_purifier_and_the_rest_of_a_sample_stays(tmp_path) -> None:
    plain = pictures(7)
    made = PurifiedDataset(plain, Purifier(Add()), tmp_path, seed=5)
    expected = Purifier(Add())([image for image, _ in plain], seed=5)
    assert len(made) == 7 and [label for _, label in made] == [label for _, label in plain]
    for (image, _), like in zip(made, expected, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(like)) and image.mode == "RGB"


def test_each_image_is_computed_once_in_blocks_whatever_the_order(tmp_path) -> None:
    stage = Add()
    made = PurifiedDataset(tensors(10), Purifier(stage), tmp_path, image="pixels", block=4)
    stage.batches.clear()
    first = [made[index]["pixels"] for index in (9, 0, 5, 1, 8, 3, 2, 4, 7, 6)]
    assert stage.batches == [2, 4, 4]
    again = PurifiedDataset(tensors(10), Purifier(Add()), tmp_path, image="pixels", block=4)
    assert again.fill() == 0
    assert all(torch.equal(again[index]["pixels"], first[place]) for place, index in enumerate((9, 0, 5)))


def test_a_fill_that_was_cut_off_goes_on_and_gives_the_same(tmp_path) -> None:
    class Cut(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise Cut

    made = PurifiedDataset(tensors(10), Purifier(Add()), tmp_path / "cut", image="pixels", block=4)
    with pytest.raises(Cut):
        made.fill(stop)
    assert made.fill() == 6
    whole = PurifiedDataset(tensors(10), Purifier(Add()), tmp_path / "whole", image="pixels", block=4)
    assert whole.fill() == 10
    names = [sorted(path.name for path in (tmp_path / name).rglob("*.npy")) for name in ("cut", "whole")]
    assert names[0] == names[1] and len(names[0]) == 10
    for one, other in zip(made, whole, strict=True):
        assert torch.equal(one["pixels"], other["pixels"])


@pytest.mark.parametrize("change", ["seed", "amount", "id", "pixel"])
def test_what_changes_the_result_changes_the_place_in_the_cache(tmp_path, change: str) -> None:
    samples = tensors(3)
    PurifiedDataset(samples, Purifier(Add()), tmp_path, image="pixels").fill()
    if change == "pixel":
        samples[1]["pixels"][0, 0, 0] = 1 - samples[1]["pixels"][0, 0, 0]
    stage = Add(0.2) if change == "amount" else Add()
    ids = ["0", "other", "2"] if change == "id" else None
    seed = int(change == "seed")
    other = PurifiedDataset(samples, Purifier(stage), tmp_path, image="pixels", ids=ids, seed=seed)
    assert other.fill() == (3 if change in ("seed", "amount") else 1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA"])
def test_modes_come_back_from_the_cache_as_the_purifier_gives_them(tmp_path, mode: str) -> None:
    made = PurifiedDataset(pictures(2, mode), Purifier(Add()), tmp_path)
    for (image, _), like in zip(made, Purifier(Add())([image for image, _ in pictures(2, mode)]), strict=True):
        assert image.mode == like.mode and image.tobytes() == like.tobytes()


def test_a_worker_of_a_data_loader_reads_the_same_cache(tmp_path) -> None:
    made = PurifiedDataset(tensors(8), Purifier(Add()), tmp_path, image="pixels", block=4, transform=pixels_of)
    loaded = torch.cat(list(DataLoader(made, batch_size=3, num_workers=1, multiprocessing_context="spawn")))
    assert torch.equal(loaded, torch.stack([made[index] for index in range(8)]))


def test_what_cannot_be_is_refused(tmp_path) -> None:
    purifier = Purifier(Add())
    with pytest.raises(InputError, match="PIL image or a tensor, got int; image=1"):
        PurifiedDataset(pictures(2), purifier, tmp_path, image=1)
    with pytest.raises(InputError, match="ids must name each of 2 samples, got 1"):
        PurifiedDataset(pictures(2), purifier, tmp_path, ids=["a"])
    with pytest.raises(IndexError):
        PurifiedDataset(pictures(2), purifier, tmp_path)[2]
