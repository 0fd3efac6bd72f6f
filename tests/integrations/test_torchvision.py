"""The v2 transform, on the real library: images change, everything else does not."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pureebm import Purifier

try:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except (ImportError, RuntimeError) as error:  # RuntimeError: its compiled part is not of this torch
    pytest.skip(f"needs torchvision: {error}", allow_module_level=True)
from pureebm.integrations.torchvision import Purify


@pytest.fixture
def purify(tiny_model) -> Purify:
    return Purify(Purifier.from_pretrained(tiny_model, precision="float32"))


def sample() -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": tv_tensors.Image(torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8, generator=generator)),
        "mask": tv_tensors.Mask(torch.randint(0, 2, (3, 20, 24), generator=generator)),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 8, 9]]), format="XYXY", canvas_size=(20, 24)),
        "feature": torch.rand(3, 20, 24, generator=generator),
        "label": 7,
    }


def test_only_the_image_of_a_sample_changes(purify: Purify) -> None:
    before = sample()
    after = purify(copy.deepcopy(before))
    assert list(after) == list(before)
    assert type(after["image"]) is tv_tensors.Image and after["image"].dtype == torch.uint8
    assert (after["image"] != before["image"]).any()
    for name in ("mask", "boxes", "feature"):
        assert type(after[name]) is type(before[name]) and torch.equal(after[name], before[name])
    assert after["label"] == 7


def test_an_image_has_one_result_alone_in_a_batch_and_as_a_frame(purify: Purify) -> None:
    frames = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    video = purify(tv_tensors.Video(frames))
    assert type(video) is tv_tensors.Video and video.shape == (4, 3, 16, 16)
    alone = torch.stack([purify(frame) for frame in frames])
    torch.testing.assert_close(video.as_subclass(torch.Tensor), alone, atol=1e-5, rtol=0)
    assert torch.equal(purify(frames[2]), alone[2])


def test_pictures_and_tensors_of_equal_pixels_have_equal_results(purify: Purify) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    picture, label = purify(Image.fromarray(pixels), "cat")
    assert label == "cat" and picture.size == (20, 16) and (np.asarray(picture) != pixels).any()


def test_it_stands_in_a_chain_and_travels_to_workers(purify: Purify) -> None:
    chain = v2.Compose([purify, v2.ToDtype(torch.float32, scale=True)])
    image = sample()["image"]
    there = pickle.loads(pickle.dumps(chain))
    assert torch.equal(chain(image), there(image))
