"""DDPMs on disk: ours and diffusers' come back as they were, everything else is refused in words."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pureebm.data.ranges import to_pm1
from pureebm.diffusion import weights
from pureebm.diffusion.process import diffuse
from pureebm.diffusion.weights import (
    DEFAULT_DDPM,
    build_unet,
    bundled_path,
    is_ddpm,
    load_ddpm,
    multiple,
    predict_noise,
    save_ddpm,
    unet_config,
)
from pureebm.energy.networks import LocalEnergy
from pureebm.energy.weights import save_model
from pureebm.errors import InputError, ModelError
from pureebm.sampling.noise import CounterNoise

diffusers = pytest.importorskip("diffusers")
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_ours_comes_back_from_its_file_and_its_folder(network: Any, tiny_ddpm: Path) -> None:
    for name in (tiny_ddpm, tiny_ddpm.parent):
        loaded = load_ddpm(name)
        assert torch.equal(predict_noise(loaded.network, X, 7), predict_noise(network, X, 7))
        assert loaded.levels == 250 and loaded.card["parameters"] == sum(p.numel() for p in network.parameters())
        assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
        assert is_ddpm(name)


def test_a_folder_of_diffusers_loads_plain_or_as_a_pipeline(tmp_path: Path) -> None:
    theirs = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "plain")
    theirs.save_pretrained(tmp_path / "pipeline" / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "pipeline" / "scheduler")
    for name in ("plain", "pipeline", "plain/diffusion_pytorch_model.safetensors"):
        loaded = load_ddpm(tmp_path / name)
        with torch.no_grad():
            assert predict_noise(loaded.network, X, 3).allclose(theirs(X, 3).sample, atol=1e-5)
        assert loaded.levels == 1000 and is_ddpm(tmp_path / name)


def test_attention_layers_with_their_old_names_load(tmp_path: Path) -> None:
    theirs = diffusers.UNet2DModel(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    assert "mid_block.attentions.0.query.weight" in tensors
    save_file(tensors, path)
    assert predict_noise(load_ddpm(tmp_path).network, X, 3).allclose(theirs(X, 3).sample, atol=1e-5)


@pytest.mark.parametrize(
    "changed", [{"beta_schedule": "scaled_linear"}, {"prediction_type": "v_prediction"}, {"num_train_timesteps": 4000}]
)
def test_a_model_of_another_schedule_is_refused(network: Any, tmp_path: Path, changed: dict[str, Any]) -> None:
    network.save_pretrained(tmp_path)
    diffusers.DDPMScheduler(**changed).save_pretrained(tmp_path)
    (key,) = changed
    with pytest.raises(ModelError, match=f"{key} is .* purification needs"):
        load_ddpm(tmp_path)


def test_a_changed_file_wrong_shapes_and_pickles_are_refused(network: Any, tiny_ddpm: Path, tmp_path: Path) -> None:
    card = json.loads(tiny_ddpm.with_suffix(".json").read_text())
    card["config"]["layers_per_block"] = 2
    tiny_ddpm.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="tensors do not fit its config; the first is"):
        load_ddpm(tiny_ddpm)
    tiny_ddpm.write_bytes(tiny_ddpm.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match="sha256 is"):
        load_ddpm(tiny_ddpm)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="only pickled weights"):
        load_ddpm(tmp_path / "pickled")


def test_what_is_no_ddpm_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such DDPM: nowhere"):
        load_ddpm("nowhere")
    save_model(tmp_path / "energy.safetensors", LocalEnergy((4,), (1,)), {})
    assert not is_ddpm(tmp_path / "energy.safetensors") and not is_ddpm("local-32") and not is_ddpm(tmp_path)
    with pytest.raises(ModelError, match="is no DDPM"):
        load_ddpm(tmp_path / "energy.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"out_channels": 6, "norm_num_groups": 4, "block_out_channels": [8] * 4}, "maps 3 -> 6 channels"),
        (
            {"num_class_embeds": 10, "norm_num_groups": 4, "block_out_channels": [8] * 4},
            "needs a class for every image",
        ),
        ({"cross_attention_dim": 8}, "its cross_attention_dim is another"),
        ({"_class_name": "UNet2DConditionModel"}, "not the config of a UNet2DModel"),
        ({"block_out_channels": [8]}, "can be built of"),
    ],
)
def test_a_config_that_cannot_purify_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_unet(config)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install 'pureebm\[diffusion\]'"):
        build_unet({})


def test_the_papers_network_has_its_published_size() -> None:
    paper = unet_config(widths=(128, 128, 256, 256, 512, 512), layers=2, patch=1, size=32, attention=True)
    with torch.device("meta"):
        network = build_unet(paper)
    assert sum(parameter.numel() for parameter in network.parameters()) == 113_673_219
    assert len(network.state_dict()) == 450 and multiple(network) == 32


def test_squares_of_pixels_become_channels_and_come_back(network: Any) -> None:
    seen: list[torch.Tensor] = []
    network.register_forward_hook(lambda _, inputs, __: (seen.append(inputs[0]), (inputs[0],))[1])
    assert torch.equal(predict_noise(network, X, 0), X)
    assert seen[0].shape == (2, 12, 16, 16) and multiple(network) == 4


def test_a_saved_card_rebuilds_the_network_and_keeps_what_it_was_given(network: Any, tmp_path: Path) -> None:
    card = save_ddpm(tmp_path / "m.safetensors", network, {"note": "x"})
    assert card == json.loads((tmp_path / "m.json").read_text()) and card["architecture"] == "ddpm"
    assert card["note"] == "x" and load_ddpm(tmp_path / "m.safetensors").sha256 == card["sha256"]


def test_the_hub_is_asked_for_the_files_that_are_needed_and_no_others(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    network.save_pretrained(tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: (asked.append((name, options)), tmp_path)[1])
    assert load_ddpm("hf:owner/name").name == "hf:owner/name"
    ((name, options),) = asked
    assert name == "owner/name" and set(options["allow_patterns"]) == set(weights._WANTED)
    assert not any("*" in pattern or pattern.endswith((".bin", ".py")) for pattern in weights._WANTED)


def test_the_bundled_ddpm_is_small_intact_and_takes_noise_off_pictures_that_it_never_saw() -> None:
    assert bundled_path().stat().st_size <= 5_000_000
    loaded = load_ddpm(DEFAULT_DDPM)
    assert loaded.levels == 250 and "ddpm-32" in loaded.name
    with np.load(str(resources.files("pureebm") / "data" / "demo" / "cifar10-sample.npz")) as stored:
        pictures = to_pm1(torch.from_numpy(stored["images"][:64]).permute(0, 3, 1, 2))
    noise = CounterNoise(0, [str(place) for place in range(64)])
    estimate = predict_noise(loaded.network, diffuse(pictures, noise(0, pictures), 75), 75)
    error = (estimate - noise(0, pictures)).square().mean().item()
    assert error == pytest.approx(0.1182, rel=0.02)  # of 1, which is no estimate at all
