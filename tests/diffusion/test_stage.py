"""PureGen-DDPM as a stage: one image one result, any size, and only as far as the model has learned."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pureebm.diffusion.process import DDPMConfig, ddpm
from pureebm.diffusion.stage import DDPMStage
from pureebm.diffusion.weights import load_ddpm, predict_noise
from pureebm.errors import InputError
from pureebm.sampling.noise import CounterNoise

pytest.importorskip("diffusers")
X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
IDS = ["a", "b", "c", "d"]


def test_a_stage_is_the_walk_of_its_network_with_the_noise_of_seed_and_ids(network: Any) -> None:
    with torch.no_grad():
        expected = ddpm(lambda x, t: predict_noise(network, x, t), X, DDPMConfig(level=5), noise=CounterNoise(3, IDS))
    assert torch.equal(DDPMStage(network, DDPMConfig(level=5)).purify_batch(X, IDS, seed=3), expected)


@pytest.mark.parametrize("config", [DDPMConfig(level=6), DDPMConfig(level=6, ddim=2)])
def test_an_image_does_not_depend_on_its_neighbors_or_order(network: Any, config: DDPMConfig) -> None:
    stage = DDPMStage(network, config)
    whole, turned = stage.purify_batch(X, IDS, seed=0), stage.purify_batch(X.flip(0), IDS[::-1], seed=0)
    assert torch.equal(whole, turned.flip(0))
    assert not torch.equal(whole, stage.purify_batch(X, IDS, seed=1))
    other = stage.purify_batch(torch.cat([X[:1], -X[1:]]), ["a", "x", "y", "z"], seed=0)
    assert torch.equal(whole[0], other[0])


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (33, 18)])
def test_images_of_any_size_keep_it_and_what_is_padded_changes_nothing_of_the_size(
    network: Any, size: tuple[int, int]
) -> None:
    out = DDPMStage(network, DDPMConfig(level=3)).purify_batch(X[:, :, :1, :1].expand(4, 3, *size), IDS, seed=0)
    assert out.shape == (4, 3, *size) and out.isfinite().all() and out.is_contiguous()


def test_bfloat16_is_near_float32(network: Any) -> None:
    low, high = (
        DDPMStage(network, DDPMConfig(level=20, ddim=4), precision=precision).purify_batch(X, IDS, seed=0)
        for precision in ("bfloat16", "float32")
    )
    assert low.dtype == torch.float32 and 0 < (low - high).abs().mean() < 0.01


def test_levels_that_the_model_has_not_learned_are_refused(tiny_ddpm: Path, network: Any) -> None:
    model = load_ddpm(tiny_ddpm)
    DDPMStage(model, DDPMConfig(level=250))
    with pytest.raises(InputError, match="has learned 250 levels of noise; level 251 is beyond them"):
        DDPMStage(model, DDPMConfig(level=251))
    DDPMStage(network, DDPMConfig(level=999))


def test_settings_name_the_weights_and_the_walk(tiny_ddpm: Path) -> None:
    model = load_ddpm(tiny_ddpm)
    told = DDPMStage(model, DDPMConfig(level=40, ddim=4)).settings()
    assert (told["stage"], told["level"], told["ddim"], told["precision"]) == ("ddpm", 40, 4, "float32")
    assert told["model"]["sha256"] == model.sha256 and told["model"]["levels"] == 250
    assert DDPMStage(model).energies(X) is None


def test_a_stage_can_be_sent_to_other_processes(tiny_ddpm: Path) -> None:
    stage = DDPMStage(load_ddpm(tiny_ddpm), DDPMConfig(level=2))
    sent = pickle.loads(pickle.dumps(stage))
    assert torch.equal(sent.purify_batch(X, IDS, seed=0), stage.purify_batch(X, IDS, seed=0))


def test_an_unknown_precision_is_refused(network: Any) -> None:
    with pytest.raises(InputError, match="float32 or bfloat16, got 'auto'"):
        DDPMStage(network, precision="auto")
