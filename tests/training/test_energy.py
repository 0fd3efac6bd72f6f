"""The training run: resume, rollback, schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pureebm.data.ranges import to_pm1
from pureebm.energy.coordinates import Whitening
from pureebm.energy.weights import load_model
from pureebm.errors import DivergedError, Interrupted, MismatchError
from pureebm.sampling.langevin import energy_and_gradient
from pureebm.training import energy as training
from pureebm.training import scalars
from pureebm.training.energy import train_energy
from pureebm.training.runtime import Runtime
from pureebm.training.scalars import read_scalars
from pureebm.training.settings import EnergySettings
from pureebm.training.trainer import Phase, Trainer
from pureebm.training.workers import Workers

TINY = {"widths": (4, 6), "blocks": (1, 1), "width": 4, "size": 16, "batch": 4, "validation_images": 4, "lr_warmup": 2}
DSM = EnergySettings(**TINY, warm_steps=6, steps=8, sample_steps=2, validate_every=5)
MLE = EnergySettings(
    **TINY, objective="mle", model="sngan", steps=12, chain_steps=3, bank_size=12, sample_steps=2, rejuvenation=0.3
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time of so small a run; other tests look at them."""
    monkeypatch.setattr(training, "draw_curves", lambda *arguments: None)
    monkeypatch.setattr(training, "draw_diagnostics", lambda *arguments, **options: 5)
    monkeypatch.setattr(scalars, "_tensorboard", lambda folder, step: None)


def stop_after(n_steps: int):
    calls = iter(range(10**9))
    return lambda: next(calls) >= n_steps - 1


def runtime(**options) -> Runtime:
    return Runtime(workers=Workers("cpu"), **options)


@pytest.mark.parametrize("settings", [DSM, MLE], ids=["dsm", "mle"])
@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(source, tmp_path, settings, at):
    train_energy(source, tmp_path / "whole", settings, runtime=runtime())
    with pytest.raises(Interrupted, match="repeat the same command"):
        train_energy(source, tmp_path / "cut", settings, runtime=runtime(stop=stop_after(at)))
    train_energy(source, tmp_path / "cut", settings, runtime=runtime())
    for name in (
        "model.safetensors",
        "last.safetensors",
        f"checkpoints/step-{14 if settings is DSM else 12:09d}.safetensors",
    ):
        whole, cut = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys() and len(whole) > 3
        for key in whole:
            assert torch.equal(whole[key], cut[key]), (name, key)
    records = [read_scalars(tmp_path / run / "scalars.jsonl") for run in ("whole", "cut")]
    for record in (*records[0], *records[1]):
        record.pop("minutes", None)
    assert records[0] == records[1]


def test_a_repeat_with_other_settings_or_images_is_refused_and_names_the_difference(source, tmp_path):
    train_energy(source, tmp_path / "run", replace(DSM, warm_steps=0, steps=2), runtime=runtime())
    with pytest.raises(MismatchError, match="settings.batch was 4, now 5"):
        train_energy(source, tmp_path / "run", replace(DSM, warm_steps=0, steps=2, batch=5), runtime=runtime())
    np.savez(source, images=np.zeros((40, 16, 16, 3), np.uint8))
    with pytest.raises(MismatchError, match="data.sha256"):
        train_energy(source, tmp_path / "run", replace(DSM, warm_steps=0, steps=2), runtime=runtime())
    train_energy(
        source, tmp_path / "run", replace(DSM, warm_steps=0, steps=2, batch=5), runtime=runtime(overwrite=True)
    )


def test_a_finished_run_repeated_changes_nothing(source, tmp_path):
    first = train_energy(source, tmp_path / "run", DSM, runtime=runtime())
    stamp = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert train_energy(source, tmp_path / "run", DSM, runtime=runtime()) == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == stamp


def break_steps(monkeypatch, broken) -> None:
    """Make the loss NaN in the steps (by count of calls) that `broken` names."""
    compute, calls = Trainer.compute, iter(range(10**9))

    def faulty(self, phase):
        step = compute(self, phase)
        return step._replace(loss=step.loss * float("nan")) if broken(next(calls)) else step

    monkeypatch.setattr(Trainer, "compute", faulty)


def test_a_divergence_is_rolled_back_with_half_the_rate_and_reported_in_words(source, tmp_path, monkeypatch):
    break_steps(monkeypatch, lambda call: call in (5, 9))
    lines: list[str] = []
    settings = replace(DSM, warm_steps=0, steps=8)
    card = train_energy(source, tmp_path / "run", settings, runtime=runtime(report=lines.append))
    told = [line for line in lines if "diverged" in line]
    assert len(told) == 2 and "the loss became nan" in told[0] and "attempt 2 of 3" in told[1]
    assert card["attempts"] == 2
    last = read_scalars(tmp_path / "run" / "scalars.jsonl")[-2]
    assert last["step"] == 8
    full = Phase("dsm", 0, 8, settings.resolved().lr).rate(7, settings)
    assert last["lr"] == pytest.approx(full / 4)


def test_three_rollbacks_and_another_divergence_end_with_a_clear_error(source, tmp_path, monkeypatch):
    break_steps(monkeypatch, lambda call: call >= 3)
    with pytest.raises(DivergedError, match=r"at step 0: the loss became nan\. It was rolled back 3 times"):
        train_energy(source, tmp_path / "run", replace(DSM, warm_steps=0), runtime=runtime())


def test_a_rollback_draws_other_noise_and_after_a_second_failure_goes_one_checkpoint_further_back(
    source, tmp_path, monkeypatch
):
    batches: list[float] = []
    batch = Trainer.batch
    monkeypatch.setattr(Trainer, "batch", lambda self: (x := batch(self), batches.append(x.sum().item()))[0])
    break_steps(monkeypatch, lambda call: call in (4, 5))
    lines: list[str] = []
    options = runtime(report=lines.append, checkpoint_minutes=0)
    train_energy(source, tmp_path / "run", replace(DSM, warm_steps=0), runtime=options)
    told = [line for line in lines if "diverged" in line]
    assert "back to step 4" in told[0] and "back to step 3" in told[1]
    assert batches[4] != batches[5]


def test_minutes_become_steps_once_and_a_resumed_run_keeps_them(source, tmp_path, monkeypatch):
    monkeypatch.setattr(training._Run, "_seconds_per_step", lambda self, name: 0.5)
    settings = replace(DSM, warm_steps=0, minutes=0.05)  # 3 s of half a second each
    with pytest.raises(Interrupted):
        train_energy(source, tmp_path / "run", settings, runtime=runtime(stop=stop_after(2)))
    monkeypatch.setattr(training._Run, "_seconds_per_step", lambda self, name: 1e-9)
    assert train_energy(source, tmp_path / "run", settings, runtime=runtime())["plan"][-1]["stop"] == 6


def test_rates_warm_up_then_fall_as_a_cosine_or_tenfold_at_the_authors_epochs():
    cosine, marks = Phase("dsm", 10, 110, 1.0), Phase("mle", 0, 120, 1.0)
    plain = EnergySettings(lr_warmup=0)
    assert [cosine.rate(10 + k, plain) for k in (0, 50)] == pytest.approx([1, 0.5])
    assert [marks.rate(k, plain) for k in (39, 40, 75, 100)] == pytest.approx([1, 0.1, 0.01, 0.001])
    assert [marks.rate(k, EnergySettings(lr_warmup=9)) for k in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1])
    assert marks.rate(119, EnergySettings(lr_warmup=0, preset="paper")) == 1


def test_one_step_of_maximum_likelihood_follows_the_papers_recipe():
    settings = replace(MLE, batch=6, bank_size=6, rejuvenation=0.0, chain_steps=1, temperature=1.0).resolved()
    trainer = Trainer(
        settings, np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8), Workers("cpu")
    )
    before = trainer.bank.images.clone()
    assert (before.abs() <= 1.2).all() and before.std() > 0.3  # noisy data, not zeros
    step = trainer.compute(Phase("mle", 0, 10, 1e-4))
    moved = trainer.bank.images - before
    assert moved.std().item() == pytest.approx(
        settings.chain_step_size, rel=0.05
    )  # one update: noise and a small drift
    order = torch.cdist(step.negatives.flatten(1), trainer.bank.images.flatten(1)).argmin(1)
    assert sorted(order.tolist()) == list(range(6)) and torch.equal(trainer.bank.images[order], step.negatives)
    assert not step.negatives.requires_grad


def test_the_average_of_weights_is_their_exponential_mean():
    settings = replace(DSM, ema=0.5, lr_warmup=0).resolved()
    trainer = Trainer(settings, np.zeros((9, 16, 16, 3), np.uint8), Workers("cpu"))
    expected = trainer.parameters[0].detach().clone()
    for step in range(4):
        trainer.advance(Phase("dsm", 0, 100, 1e-2))
        decay = min(0.5, 1 - 1 / (step + 2))
        expected = decay * expected + (1 - decay) * trainer.parameters[0].detach()
    assert torch.allclose(trainer.averaged[0], expected, atol=1e-6)


def test_training_learns_to_denoise_and_to_raise_the_energy_of_noise(source, tmp_path):
    # Flat images: every deviation from flatness is noise, which even a tiny network learns in a few hundred steps.
    flat = np.random.default_rng(1).integers(0, 256, (64, 1, 1, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    np.savez(source, images=flat)
    easy = replace(DSM, widths=(16, 16), batch=16, lr_warmup=10, warm_lr=3e-3, lr=2e-3, ema=0.9)
    settings = replace(easy, warm_steps=160, steps=40, validate_every=200, sample_steps=10)
    card = train_energy(source, tmp_path / "run", settings, runtime=runtime())
    losses = [record["loss"] for record in read_scalars(tmp_path / "run" / "scalars.jsonl") if "loss" in record]
    assert losses[-1] < 0.5 < losses[0]
    signs = card["validation"]["perturbations"]["signs"]
    assert signs["paired"] == 1 and signs["survival"] < 0.6


@pytest.mark.parametrize("changes", [{}, {"residual": True, "chroma": 2.0, "precision": "bfloat16"}], ids=str)
def test_an_energy_for_colored_noise_learns_to_remove_it_and_keeps_its_coordinates(source, tmp_path, changes):
    # Only the highest frequencies of these images mean something: colored noise lies below, and is easy to tell apart.
    checker = np.indices((16, 16)).sum(0) % 2 * 120
    levels = np.random.default_rng(1).choice([-1, 1], 64)
    np.savez(source, images=(128 + levels[:, None, None] * (checker - 60)).astype(np.uint8)[..., None].repeat(3, 3))
    easy = replace(DSM, widths=(16, 16), batch=16, lr_warmup=10, warm_lr=3e-3, lr=2e-3, ema=0.9, whiten=4.0, **changes)
    train_energy(
        source, tmp_path / "run", replace(easy, warm_steps=300, steps=40, validate_every=340), runtime=runtime()
    )
    energy = load_model(str(tmp_path / "run" / "model.safetensors")).energy
    assert (energy.config["whiten"], energy.config["chroma"]) == (4.0, changes.get("chroma", 1.0))
    way, generator = energy.whitening, torch.Generator().manual_seed(0)
    clean = to_pm1(torch.from_numpy(np.load(source)["images"])).permute(0, 3, 1, 2)
    noise = 0.1 * way.color(torch.randn(clean.shape, generator=generator))
    noisy = clean + noise
    _, gradient = energy_and_gradient(energy, noisy)
    restored = noisy - way.color(way.color(gradient))
    assert (restored - clean).square().mean() < 0.3 * noise.square().mean()


def test_the_sampler_of_a_validation_is_as_warm_in_pixels_whatever_the_color_of_the_noise() -> None:
    white, colored = (EnergySettings(whiten=whiten, chroma=chroma).resolved() for whiten, chroma in ((0, 1), (8, 2)))
    gain = Whitening(8.0, chroma=2.0).gain(32)
    assert (white.sample_step_size, white.sample_temperature) == (0.02, pytest.approx(0.03**2))
    assert colored.sample_step_size == pytest.approx(0.02 / gain)
    assert colored.sample_temperature == pytest.approx((0.03 / gain) ** 2)
