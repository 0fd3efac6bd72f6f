"""The public class: the same type out, the same noise for the same id, and nothing silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pureebm import LangevinConfig, Purifier
from pureebm.energy.networks import SNGANEnergy
from pureebm.errors import InputError


def blur_energy(images: Tensor) -> Tensor:
    """Penalizes differences of neighbors: purifying smooths."""
    across = (images[..., 1:] - images[..., :-1]).square().sum(dim=(1, 2, 3))
    down = (images[..., 1:, :] - images[..., :-1, :]).square().sum(dim=(1, 2, 3))
    return 0.05 * (across + down)


@pytest.fixture
def purifier() -> Purifier:
    return Purifier.from_energy(blur_energy, LangevinConfig(n_steps=3, step_size=0.05, temperature=1e-3))


def images(count: int = 3, size: int = 20) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_all_types_give_the_same_pixels(purifier: Purifier) -> None:
    batch = images()
    out = purifier(batch)
    assert out.dtype == torch.uint8 and out.shape == batch.shape and not torch.equal(out, batch)
    array = purifier(batch.permute(0, 2, 3, 1).numpy())
    assert isinstance(array, np.ndarray) and np.array_equal(array, out.permute(0, 2, 3, 1).numpy())
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch]
    for new, expected in zip(purifier(pictures), out, strict=True):
        assert np.array_equal(np.asarray(new), expected.permute(1, 2, 0).numpy())
    floats = purifier(batch.float() / 255)
    assert floats.dtype == torch.float32 and (floats * 255 - out.float()).abs().max() < 0.51
    assert torch.equal(purifier(batch[0]), out[0])
    assert np.array_equal(np.asarray(purifier(pictures[0])), np.asarray(purifier(pictures)[0]))


def test_an_image_alone_comes_out_as_in_its_batch(purifier: Purifier) -> None:
    batch = images(70)
    out = purifier(batch)
    alone = purifier(batch[69], ids=["69"])
    assert (alone.int() - out[69].int()).abs().max() <= 1
    assert not torch.equal(purifier(batch[:1], seed=1), out[:1])


def test_grey_and_transparent_pictures_keep_their_mode(purifier: Purifier) -> None:
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8))
    out = purifier([rgba, rgba.convert("L")])
    assert [picture.mode for picture in out] == ["RGBA", "L"] and out[0].size == (24, 20)
    assert np.array_equal(np.asarray(out[0])[..., 3], np.asarray(rgba)[..., 3])


def test_any_network_fits_and_its_weights_stay() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1))
    before = net[1].weight.clone()
    purifier = Purifier.from_energy(net, LangevinConfig(n_steps=1, step_size=0.1, temperature=1.0, noise=0))
    x = torch.full((2, 3, 16, 16), 0.5)
    expected = x - 0.005 * before.reshape(1, 3, 16, 16) / 2  # pm1 to pixel01 halves the move
    assert torch.allclose(purifier(x), expected, atol=1e-6)
    assert torch.equal(net[1].weight, before)


def test_a_data_set_is_purified_by_one_call(purifier: Purifier, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=images(5).permute(0, 2, 3, 1).numpy(), labels=np.arange(5))
    record = purifier.purify(tmp_path / "set.npz", tmp_path / "out.npz")
    assert record.counts["purified"] == 5 and record.steps == 3
    with np.load(tmp_path / "out.npz") as out:
        assert np.array_equal(out["labels"], np.arange(5)) and out["images"].shape == (5, 20, 20, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3, 32, 32, dtype=torch.int32), "uint8 or floating point, got torch.int32"),
        (torch.full((3, 32, 32), 1.5), r"must be in \[0, 1\], got 1.5"),
        (torch.full((3, 32, 32), float("nan")), r"must be in \[0, 1\]"),
        (torch.zeros(1, 32, 32), r"must be \(3, H, W\)"),
        (torch.zeros(3, 12, 32), "at least 16 px high and wide, got 12x32"),
        (np.zeros((3, 32, 32), np.uint8), r"must be \(H, W, 3\)"),
        ("cat.png", "got str"),
    ],
)
def test_what_is_no_image_is_refused(purifier: Purifier, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        purifier(value)  # type: ignore[type-var]


def test_a_result_that_is_not_finite_is_refused() -> None:
    purifier = Purifier.from_energy(lambda x: 1e30 * x.square().sum(dim=(1, 2, 3)), LangevinConfig(n_steps=20))
    with pytest.raises(InputError, match="became non-finite"):
        purifier(images(1))


def test_weights_decide_the_sampler(tmp_path: Path) -> None:
    from pureebm.energy.weights import save_model

    save_model(tmp_path / "m.safetensors", SNGANEnergy(4), {"sampler": {"n_steps": 2, "step_size": 0.5}})
    stage = Purifier.from_pretrained(tmp_path / "m.safetensors").stage
    assert stage.settings()["n_steps"] == 2 and stage.settings()["step_size"] == 0.5
    assert stage.settings()["model"]["sha256"]
