"""A student's pairs: what the teacher was given, what it made of it, and a making that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pureebm.data.ranges import to_pm1
from pureebm.energy.networks import LocalEnergy
from pureebm.energy.weights import load_model
from pureebm.errors import Interrupted, MismatchError
from pureebm.purify.stages import LangevinStage
from pureebm.sampling.langevin import LangevinConfig, residual_size
from pureebm.sampling.noise import CounterNoise
from pureebm.training import pairs as making
from pureebm.training.pairs import HeardNoise, claim, make_pairs, make_residuals, perturb, taught

CONFIG = LangevinConfig(
    n_steps=3, step_size=0.04, temperature=0.01, step_size_end=0.02, temperature_end=0.003, noise=0.6, initial_noise=0.1
)


@pytest.fixture(scope="module")
def stage(tiny_model: Path) -> LangevinStage:
    return LangevinStage(load_model(tiny_model).energy, CONFIG, precision="float32")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (30, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_result_is_the_stages_own_and_another_level_moves_more(stage) -> None:
    x, ids = torch.rand(4, 3, 16, 16) * 2 - 1, list("abcd")
    out, _ = taught(stage, x, ids, level=1.0, seed=3)
    assert torch.equal(out, stage.purify_batch(x, ids, seed=3))
    assert (taught(stage, x, ids, level=2.0, seed=3)[0] - x).norm() > 1.5 * (out - x).norm()


def test_what_is_heard_is_the_weighted_sum_of_the_updates_noises_with_variance_one() -> None:
    ids, like = [str(row) for row in range(64)], torch.zeros(64, 3, 16, 16)
    noise = CounterNoise(0, ids)
    heard = HeardNoise(noise, CONFIG)
    for step in (0, 1, 2, 3):
        assert torch.equal(heard(step, like), noise(step, like))
    sizes, temperatures = zip(*(CONFIG.at(step) for step in range(3)), strict=True)
    left = [(1 - size**2 / (2 * temperature)) ** 0.5 for size, temperature in zip(sizes, temperatures, strict=True)]
    weights = torch.tensor([sizes[0] * left[1] * left[2], sizes[1] * left[2], sizes[2]])
    expected = sum(w * noise(step + 1, like) for step, w in enumerate(weights / weights.norm()))
    torch.testing.assert_close(heard.heard(like), expected, atol=1e-5, rtol=0)
    assert heard.heard(like).var().item() == pytest.approx(1, abs=0.02)
    unmoved = HeardNoise(noise, replace(CONFIG, initial_noise=0.0))
    assert unmoved.weights[0] / unmoved.weights[2] == pytest.approx(sizes[0] / sizes[2])
    silent = HeardNoise(noise, LangevinConfig(n_steps=0))
    assert torch.equal(silent.heard(like), noise(1, like))


def test_every_second_image_is_changed_by_at_most_16_of_255() -> None:
    x = torch.rand(60, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    change = perturb(x, torch.Generator().manual_seed(1)) - x
    largest = change.abs().amax(dim=(1, 2, 3)) * 127.5
    assert (largest[1::2] == 0).all() and (largest[::2] > 0.5).all() and largest.max() <= 16.001
    assert largest[::2].round().unique().numel() > 5  # of many sizes


def test_pairs_go_on_where_their_making_was_cut_off(stage, images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(making, "BLOCK", 8)
    monkeypatch.setattr(making, "BATCH", 4)
    options = {"count": 20, "levels": (0.5, 2.0), "seed": 1}
    whole = make_pairs(images, stage, tmp_path / "whole", **options)
    asked = iter((False, True))
    with pytest.raises(Interrupted, match="stopped after 8 pairs"):
        make_pairs(images, stage, tmp_path / "cut", **options, stop=lambda: next(asked))
    cut = make_pairs(images, stage, tmp_path / "cut", **options)
    for name in ("images", "purified", "later", "levels", "residuals"):
        assert torch.equal(getattr(whole, name), getattr(cut, name)), name
    assert len(whole) == 20 and [
        len(load_file(path)["levels"]) for path in sorted((tmp_path / "cut").glob("*.s*"))
    ] == [
        8,
        8,
        4,
    ]
    fewer = make_pairs(images, stage, tmp_path / "cut", **{**options, "count": 18})
    assert len(fewer) == 18 and torch.equal(fewer.purified, whole.purified[:18])
    more = make_pairs(images, stage, tmp_path / "cut", **{**options, "count": 24})
    assert len(more) == 24 and torch.equal(more.purified[:20], whole.purified)
    assert (whole.levels.view(5, 4)[::2] == 1).all() and whole.levels.view(5, 4)[1].unique().numel() == 1
    assert whole.levels.unique().numel() == 3 and whole.levels.min() >= 0.5 and whole.levels.max() <= 2


def test_pairs_of_something_else_are_refused_or_dropped(stage, images, tmp_path) -> None:
    known = {"teacher": "tiny", "levels": (0.5, 2.0), "seed": 1}
    claim(tmp_path, known, overwrite=False)
    make_pairs(images, stage, tmp_path, count=4, levels=(0.5, 2.0), seed=1)
    claim(tmp_path, known, overwrite=True)  # the same: they stay
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    with pytest.raises(MismatchError, match="pairs of another teacher"):
        claim(tmp_path, {**known, "teacher": "another"}, overwrite=False)
    claim(tmp_path, {**known, "teacher": "another"}, overwrite=True)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_pair_can_be_made_again_from_what_is_kept(stage, images, tmp_path) -> None:
    pairs = make_pairs(images, stage, tmp_path, count=70, levels=(0.5, 2.0), seed=1)
    for row in (3, 68):  # of level 1, and of another
        x = pairs.images[row : row + 1].float() / 127.5 - 1
        level = float(pairs.levels[row])
        again, later = taught(stage, x, [pairs.ids[row]], level=level, seed=1)
        torch.testing.assert_close(again, pairs.purified[row : row + 1].float(), atol=2e-3, rtol=0)
        torch.testing.assert_close(later, pairs.later[row : row + 1].float(), atol=2e-3, rtol=0)
    assert torch.equal(pairs.start([3, 68]), CounterNoise(1, ["pair/3", "pair/68"])(0, torch.zeros(2, 3, 16, 16)))


def test_residuals_are_of_many_kinds_of_images_and_made_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    energy = LocalEnergy((4,), (1,), residual=True)
    torch.nn.init.normal_(energy.head.weight, std=0.1)
    stage = LangevinStage(energy, LangevinConfig(n_steps=1, adapt_above=0.01), precision="float32")
    images = torch.randint(0, 256, (30, 16, 16, 3), dtype=torch.uint8)
    path = tmp_path / "gauge.safetensors"
    pictures, sizes = make_residuals(images, stage, path, count=600, seed=1)
    assert pictures.shape == (600, 3, 16, 16) and sizes.shape == (600,)
    torch.testing.assert_close(sizes, residual_size(energy, to_pm1(pictures)))
    known = {bytes(one.numpy().tobytes()) for one in images.permute(0, 3, 1, 2).contiguous()}
    untouched = sum(bytes(one.numpy().tobytes()) in known for one in pictures)
    assert 0.15 < untouched / 600 < 0.35  # neither through JPEG nor perturbed
    stamp = path.stat().st_mtime_ns
    again = make_residuals(images, stage, path, count=600, seed=1, stop=lambda: True)
    assert torch.equal(again[0], pictures) and path.stat().st_mtime_ns == stamp
    with pytest.raises(Interrupted):
        make_residuals(images, stage, path, count=601, seed=1, stop=lambda: True)
    path.write_bytes(b"torn")
    assert torch.equal(make_residuals(images, stage, path, count=600, seed=1)[1], sizes)
