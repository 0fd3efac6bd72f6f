"""The suggested number of steps, where it is known; and the pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pureebm.energy.networks import LocalEnergy
from pureebm.sampling.langevin import LangevinConfig, langevin, residual_size
from pureebm.training.diagnostics import chain, draw_diagnostics, measure_distances, suggest_steps
from pureebm.training.scalars import ScalarLog, read_scalars
from pureebm.training.validation import RepeatedNoise


def quadratic(images):
    return images.square().sum((1, 2, 3)) / 2


@pytest.mark.parametrize("drift", [0.05, 0.2])
def test_the_suggested_steps_are_the_half_life_of_a_perturbation_on_a_quadratic_energy(drift):
    # Clean images stand at the minimum: after k updates without noise (1 - drift)^k of a perturbation is left,
    # and the image is nearer to its clean original as soon as that is at most 1/2.
    config = LangevinConfig(n_steps=20, step_size=math.sqrt(2 * drift), temperature=1.0, noise=0.0)
    expected = math.ceil(math.log(2) / -math.log(1 - drift))
    assert suggest_steps(quadratic, torch.zeros(4, 3, 16, 16), config) == expected
    part = measure_distances(quadratic, torch.zeros(4, 3, 16, 16), config, n_steps=5)["sinusoid"]
    assert part.clean == [0.0] * 6
    assert part.to_clean[5] == pytest.approx(part.to_clean[0] * (1 - drift) ** 5, rel=1e-5)


def test_noise_does_not_move_the_crossing():
    # x - clean = a^k d + n and x - start = (a^k - 1) d + n have the same noise n: it cancels in the comparison,
    # up to the product of d and n (long images make it small).
    still = LangevinConfig(n_steps=20, step_size=math.sqrt(0.1), temperature=1.0, noise=0.0)
    noisy = LangevinConfig(n_steps=20, step_size=math.sqrt(0.1), temperature=1.0, noise=0.05)
    images = torch.zeros(16, 3, 32, 32)
    assert abs(suggest_steps(quadratic, images, noisy) - suggest_steps(quadratic, images, still)) <= 1


def test_without_a_crossing_the_samplers_own_steps_are_suggested():
    config = LangevinConfig(n_steps=7, noise=0.0)
    assert suggest_steps(lambda x: 0 * x.sum((1, 2, 3)), torch.zeros(2, 3, 16, 16), config) == 7


def test_a_chain_has_every_state_and_goes_on_at_the_end_of_its_schedule():
    config = LangevinConfig(n_steps=3, step_size=0.4, step_size_end=0.1, temperature=1.0, noise=0.0)
    states = list(chain(quadratic, torch.ones(1, 3, 16, 16), config, 5, seed=0))
    value, expected = 1.0, [1.0]
    for step_size in (0.4, 0.2, 0.1, 0.1, 0.1):
        value *= 1 - step_size**2 / 2
        expected.append(value)
    assert [state.mean().item() for state in states] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fades", [True, False])
def test_a_chain_is_the_samplers_also_where_its_noise_adapts(fades):
    torch.manual_seed(0)
    energy = LocalEnergy((4,), (1,), residual=True)
    torch.nn.init.normal_(energy.head.weight, std=0.2)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    config = LangevinConfig(n_steps=3, step_size=0.1, temperature=0.01, initial_noise=0.05, adapt_fades=fades)
    config = replace(config, adapt_above=float(residual_size(energy, images).min()) / 2)
    *_, last = chain(energy, images, config, 3, seed=0)
    torch.testing.assert_close(last, langevin(energy, images, config, noise=RepeatedNoise(0)), rtol=0, atol=1e-5)


def test_all_pictures_are_drawn(tmp_path: Path):
    log = ScalarLog(tmp_path, 0)
    for step in range(1, 4):
        log.write(step, {"loss": 1 / step, "gradient_norm": 2.0, "lr": 1e-3, "clean_psnr": 30.0, "survival_signs": 0.5})
    log.close()
    config = LangevinConfig(n_steps=2, step_size=0.2, temperature=1.0)
    draw_diagnostics(quadratic, torch.rand(6, 3, 16, 16), config, tmp_path, log=log.path)
    for name in ("curves", "distances", "energies", "samples"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 200


def test_scalars_reach_tensorboard_where_it_is_installed(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = ScalarLog(tmp_path, 0)
    log.write(7, {"loss": 0.25, "phase": "dsm"})
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.25)]


def test_a_log_forgets_what_comes_after_the_step_it_goes_back_to(tmp_path: Path):
    log = ScalarLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": float(step)})
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 40, "lo')  # cut short by a crash
    ScalarLog(tmp_path, 20).close()
    assert [record["step"] for record in read_scalars(log.path)] == [10, 20]
