"""The training of a DDPM: its loss, its resume, its best model, and the command."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pureebm.cli.main import run
from pureebm.errors import InputError, Interrupted, MismatchError
from pureebm.training import scalars
from pureebm.training.runtime import Runtime
from pureebm.training.scalars import read_scalars
from pureebm.training.settings import DDPMSettings
from pureebm.training.stepper import Phase
from pureebm.training.workers import Workers

pytest.importorskip("diffusers")

from pureebm.diffusion.process import DDPMConfig, diffuse, signal_shares  # noqa: E402
from pureebm.diffusion.stage import DDPMStage  # noqa: E402
from pureebm.diffusion.weights import load_ddpm, predict_noise  # noqa: E402
from pureebm.training.ddpm import DDPMTrainer, build_network, train_ddpm, validate_ddpm  # noqa: E402

TINY = DDPMSettings(
    widths=(4, 8), size=16, batch=4, steps=10, lr_warmup=2, validate_every=5, validation_images=4, levels=20
)
PHASE = Phase("ddpm", 0, 100, 1e-3)


@pytest.fixture(autouse=True)
def no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scalars, "_tensorboard", lambda folder, step: None)


def runtime(**options: object) -> Runtime:
    return Runtime(workers=Workers("cpu"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("at", "precision"), [(3, "float32"), (5, "float32"), (6, "bfloat16")])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    source: Path, tmp_path: Path, at: int, precision: str
) -> None:
    settings = replace(TINY, precision=precision)  # type: ignore[arg-type]
    train_ddpm(source, tmp_path / "whole", settings, runtime=runtime())
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="repeat the same command"):
        train_ddpm(source, tmp_path / "cut", settings, runtime=runtime(stop=lambda: next(calls) >= at - 1))
    train_ddpm(source, tmp_path / "cut", settings, runtime=runtime())
    for name in ("model.safetensors", "last.safetensors", "checkpoints/step-000000010.safetensors"):
        whole, cut = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys() and len(whole) > 30
        assert all(torch.equal(whole[key], cut[key]) for key in whole), name
    records = [read_scalars(tmp_path / name / "scalars.jsonl") for name in ("whole", "cut")]
    for record in (*records[0], *records[1]):
        record.pop("minutes", None)
    assert records[0] == records[1]


def test_a_repeat_with_other_settings_is_refused_and_a_finished_run_changes_nothing(
    source: Path, tmp_path: Path
) -> None:
    card = train_ddpm(source, tmp_path / "run", TINY, runtime=runtime())
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert train_ddpm(source, tmp_path / "run", TINY, runtime=runtime()) == card
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(MismatchError, match="settings.levels was 20, now 30"):
        train_ddpm(source, tmp_path / "run", replace(TINY, levels=30), runtime=runtime())


def test_the_loss_is_the_error_of_the_noise_at_levels_of_the_first_part_of_the_schedule() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    trainer = DDPMTrainer(replace(TINY, batch=64).resolved(), images, Workers("cpu"))
    seen = []
    trainer.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs))
    state = trainer.generator.get_state()
    loss = trainer.compute(PHASE).loss
    (noisy, levels), _ = seen[0], trainer.generator.set_state(state)
    assert levels.min() == 0 and levels.max() == 19 and len(set(levels.tolist())) > 15
    clean = trainer.batch()
    torch.randint(20, (64,), generator=trainer.generator)
    z = torch.randn(clean.shape, generator=trainer.generator)
    for row, level in enumerate(levels.tolist()):
        expected = torch.nn.functional.pixel_unshuffle(diffuse(clean[row : row + 1], z[row : row + 1], level), 2)
        assert noisy[row : row + 1].allclose(expected, atol=1e-5)
    with torch.no_grad():
        estimate = predict_noise(trainer.network, torch.nn.functional.pixel_shuffle(noisy, 2), levels)
    assert loss.item() == pytest.approx((estimate - z).square().mean().item(), rel=1e-5)


def test_training_learns_to_take_off_noise(source: Path, tmp_path: Path) -> None:
    # Flat images: every deviation from flatness is noise, which even a tiny network learns in a few hundred steps.
    flat = np.random.default_rng(1).integers(0, 256, (64, 1, 1, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    np.savez(source, images=flat)
    settings = replace(TINY, widths=(16, 16), batch=16, steps=150, levels=100, ema=0.9, lr=1e-2, validate_every=150)
    card = train_ddpm(source, tmp_path / "run", settings, runtime=runtime())
    assert card["validation"]["figure"] < 0.5  # 1 is a network that knows nothing
    clean = torch.linspace(-0.8, 0.8, 8).view(8, 1, 1, 1).expand(8, 3, 16, 16)
    stage = DDPMStage(load_ddpm(tmp_path / "run"), DDPMConfig(level=60, ddim=6))
    left = (stage.purify_batch(clean, list("abcdefgh"), seed=0) - clean).square().mean()
    assert left < 0.5 * (1 - signal_shares()[60])  # of the noise that was put on


def test_validation_is_the_error_of_the_estimate_and_does_not_depend_on_chance() -> None:
    class Zero(torch.nn.Module):
        config = build_network(TINY.resolved()).config

        def forward(self, sample, level, return_dict):  # type: ignore[no-untyped-def]
            return (torch.zeros_like(sample),)

    images = torch.zeros(8, 3, 16, 16)
    result = validate_ddpm(Zero(), images, 250)
    assert result == validate_ddpm(Zero(), images, 250) and len(result["error"]) == 10
    assert result["figure"] == pytest.approx(1, abs=0.02)  # the variance of the noise
    share = signal_shares()[12]
    assert result["psnr"]["12"] == pytest.approx(10 * np.log10(4 / ((1 - share) / share)), abs=0.2)
    assert list(validate_ddpm(Zero(), images, 3)["error"]) == ["0", "1", "2"]


def test_the_command_has_every_setting_and_leaves_a_model_and_its_card(source: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert run(["train", "ddpm", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"--{field.name.replace('_', '-')} " in shown for field in fields(DDPMSettings))
    arguments = ["train", "ddpm", str(source), "--out", str(tmp_path / "run"), "--widths", "4,8", "--size", "16"]
    arguments += ["--batch", "4", "--steps", "3", "--levels", "20", "--device", "cpu", "--json"]
    assert run(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert printed["card"] == card and card["settings"]["widths"] == [4, 8]
    assert (card["architecture"], card["levels"], card["training_data"]["trained_on"]) == ("ddpm", 20, 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": 1001}, "levels must be 1 to 1000"),
        ({"widths": (6,)}, "widths must be multiples of 4"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"size": 18}, "size must be a multiple of 4 for 2 widths and patch 2, got 18"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_network(replace(TINY, **values).resolved())  # type: ignore[arg-type]


def test_the_light_network_fits_five_megabytes_and_the_papers_is_the_published_one() -> None:
    light = build_network(DDPMSettings().resolved())
    assert sum(parameter.numel() for parameter in light.parameters()) == 1_078_508
    with torch.device("meta"):
        paper = build_network(DDPMSettings(preset="paper").resolved())
    assert sum(parameter.numel() for parameter in paper.parameters()) == 113_673_219
