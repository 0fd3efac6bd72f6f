"""Langevin dynamics against answers that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pureebm.energy.coordinates import Whitening
from pureebm.energy.networks import LocalEnergy
from pureebm.errors import InputError
from pureebm.sampling.langevin import LangevinConfig, StepTrace, langevin
from pureebm.sampling.noise import CounterNoise


def quadratic(images: Tensor) -> Tensor:
    return images.square().sum(dim=(1, 2, 3)) / 2


def flat(images: Tensor) -> Tensor:
    return 0 * images.sum(dim=(1, 2, 3))


def gaussian(count: int, seed: int = 0) -> CounterNoise:
    return CounterNoise(seed, [str(i) for i in range(count)])


def test_a_chain_settles_at_the_exact_variance_of_a_quadratic_energy() -> None:
    # For E = |x|^2 / 2 an update is x <- a x + s z, a = 1 - s^2 / 2T: an AR(1) chain whose
    # variance is s^2 / (1 - a^2), the discretisation included.
    s, t = 0.1, 0.01
    a = 1 - s**2 / (2 * t)
    config = LangevinConfig(n_steps=60, step_size=s, temperature=t)
    end = langevin(quadratic, torch.ones(4096, 1, 4, 4), config, noise=gaussian(4096))
    assert end.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert end.var().item() == pytest.approx(s**2 / (1 - a**2), rel=0.02)


def test_without_an_energy_noise_accumulates_as_the_root_of_the_steps() -> None:
    config = LangevinConfig(n_steps=150, step_size=1.25e-2)
    end = langevin(flat, torch.zeros(64, 3, 16, 16), config, noise=gaussian(64))
    assert end.std().item() == pytest.approx(1.25e-2 * 150**0.5, rel=0.01)


def test_agrees_with_the_authors_loop_restated() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 1))
    start = torch.rand(5, 3, 8, 8) * 2 - 1
    noise = gaussian(5, seed=3)
    x = torch.autograd.Variable(start.clone(), requires_grad=True)
    for step in range(20):
        energy = net(x).sum() / 1e-4
        gradient = torch.autograd.grad(energy, [x])[0]
        x.data += -0.5 * 1.25e-2**2 * gradient + 1.25e-2 * noise(step + 1, start)
    ours = langevin(lambda images: net(images).squeeze(1), start, LangevinConfig(n_steps=20), noise=noise)
    assert torch.allclose(ours, x.detach(), rtol=0, atol=2e-6)


def test_zero_steps_change_nothing_and_the_input_is_left_alone() -> None:
    start = torch.rand(2, 3, 8, 8)
    kept = start.clone()
    config = LangevinConfig(n_steps=0, initial_noise=0.3)
    end = langevin(quadratic, start, config, noise=gaussian(2))
    assert torch.equal(end, start) and end.data_ptr() != start.data_ptr()
    langevin(quadratic, start, LangevinConfig(n_steps=3), noise=gaussian(2))
    assert torch.equal(start, kept)


def test_without_noise_it_is_gradient_descent() -> None:
    config = LangevinConfig(n_steps=7, step_size=0.1, temperature=0.02, noise=0)
    end = langevin(quadratic, torch.ones(1, 1, 4, 4), config, noise=gaussian(1))
    assert torch.allclose(end, torch.full_like(end, (1 - 0.1**2 / 0.04) ** 7))


def test_a_schedule_runs_geometrically_from_start_to_end() -> None:
    config = LangevinConfig(n_steps=3, step_size=0.4, step_size_end=0.1, temperature=1.0, temperature_end=0.01)
    assert [config.at(step) for step in range(3)] == [
        pytest.approx(pair) for pair in ((0.4, 1.0), (0.2, 0.1), (0.1, 0.01))
    ]
    x = 1.0
    for s, t in ((0.4, 1.0), (0.2, 0.1), (0.1, 0.01)):
        x -= s**2 / 2 * x / t
    config = LangevinConfig(n_steps=3, step_size=0.4, step_size_end=0.1, temperature=1.0, temperature_end=0.01, noise=0)
    end = langevin(quadratic, torch.ones(1, 1, 2, 2), config, noise=gaussian(1))
    assert torch.allclose(end, torch.full_like(end, x))


def test_initial_noise_is_added_once() -> None:
    config = LangevinConfig(n_steps=1, step_size=1e-6, initial_noise=0.25, noise=0)
    noise = gaussian(1)
    start = torch.zeros(1, 3, 8, 8)
    assert torch.allclose(langevin(flat, start, config, noise=noise), 0.25 * noise(0, start))


def test_the_trace_holds_energy_gradient_and_displacement_of_every_step() -> None:
    seen: list[StepTrace] = []
    config = LangevinConfig(n_steps=2, step_size=0.2, temperature=0.04, noise=0)  # halves x
    langevin(quadratic, torch.ones(2, 1, 2, 2), config, noise=gaussian(2), on_step=seen.append)
    assert [trace.step for trace in seen] == [0, 1, 2]
    assert [trace.energy[0].item() for trace in seen] == pytest.approx([2, 0.5, 0.125])
    assert [trace.gradient_norm[1].item() for trace in seen] == pytest.approx([2, 1, 0.5])
    assert [trace.displacement[1].item() for trace in seen] == pytest.approx([0, 1, 1.5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_steps": -1}, "n_steps must be 0 or more, got -1"),
        ({"step_size": float("nan")}, "step_size must be above 0 and finite, got nan"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"step_size": 1e30}, "step_size 1e.30 is too large for temperature 0.0001"),
        ({"temperature": 1e-300}, "too large for temperature 1e-300"),
        ({"noise": -0.5}, "noise must be 0 or more"),
    ],
)
def test_a_setting_out_of_range_is_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LangevinConfig(**values)  # type: ignore[arg-type]


def test_an_energy_of_another_shape_and_images_of_another_type_are_refused() -> None:
    with pytest.raises(InputError, match=r"must return \(2,\)"):
        langevin(lambda x: x.sum(), torch.zeros(2, 3, 4, 4), LangevinConfig(n_steps=1), noise=gaussian(2))
    with pytest.raises(InputError, match="must be .* float32"):
        langevin(quadratic, torch.zeros(2, 3, 4, 4).double(), LangevinConfig(), noise=gaussian(2))


def test_an_energy_of_whitened_coordinates_is_walked_in_them() -> None:
    torch.manual_seed(0)
    net = LocalEnergy((6, 8), (1, 1), whiten=4.0)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    assert net.whitening is not None
    x, noise = torch.rand(3, 3, 24, 16) * 2 - 1, gaussian(3)
    config = LangevinConfig(n_steps=5, step_size=0.05, temperature=0.01, initial_noise=0.1)
    in_coordinates = langevin(net.potential, net.whitening.whiten(x), config, noise=noise)
    torch.testing.assert_close(langevin(net, x, config, noise=noise), net.whitening.color(in_coordinates))


def test_coordinates_change_the_way_and_not_where_it_ends() -> None:
    # For E = |x|^2 / 2 each wave of amplitude a in the noise is an AR(1) chain of factor 1 - s^2 a^2 / 2T; with small
    # steps all waves end with the variance T of the energy itself, and the strong ones get there first.
    class Quadratic:
        whitening = Whitening(strength=3.0)

        def __call__(self, images: Tensor) -> Tensor:
            return quadratic(images)

    config = LangevinConfig(n_steps=400, step_size=0.02, temperature=0.01)
    end = langevin(Quadratic(), torch.zeros(512, 1, 8, 8), config, noise=gaussian(512))
    assert end.mean(dim=(2, 3)).std().item() == pytest.approx((0.01 / 64) ** 0.5, rel=0.1)
    assert end.std().item() == pytest.approx(0.1, rel=0.03)
    once = LangevinConfig(n_steps=1, step_size=0.02)
    early = langevin(Quadratic(), torch.zeros(512, 1, 8, 8), once, noise=gaussian(512))
    assert early.mean(dim=(2, 3)).std().item() == pytest.approx(0.02 * 10**0.5 / 8, rel=0.1)


def test_a_level_scales_the_noise_and_keeps_the_share_of_the_way_that_an_update_goes() -> None:
    config = LangevinConfig(n_steps=3, step_size=0.1, temperature=0.02, initial_noise=0.2, noise=0.5)
    for step in range(3):
        (size, temperature), (old_size, old_temperature) = config.at_level(1.5).at(step), config.at(step)
        assert size == pytest.approx(1.5 * old_size)
        assert size**2 / temperature == pytest.approx(old_size**2 / old_temperature)
    assert config.at_level(1.5).initial_noise == pytest.approx(0.3) and config.at_level(1.0) == config
    ended = LangevinConfig(n_steps=3, step_size_end=0.01, temperature_end=1e-4).at_level(2)
    assert ended.at(2) == pytest.approx((0.01, 1e-4)) and ended.step_size == pytest.approx(2 * 1.25e-2)


class Residual:
    """|x|^2 / 2 as the energy of a denoiser that knows only black."""

    residual = True

    def __call__(self, images: Tensor) -> Tensor:
        return images.square().sum((1, 2, 3)) / 2

    def residual_field(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), images


def test_an_image_with_a_larger_residual_gets_noise_by_a_power_of_it() -> None:
    levels = torch.tensor([0.05, 0.1, 0.2, 0.8])
    images = levels[:, None, None, None] * torch.ones(4, 3, 16, 16)
    still = LangevinConfig(n_steps=3, step_size=1e-6, temperature=1.0, noise=0.0, initial_noise=0.01)
    alike = langevin(Residual(), images, still, noise=CounterNoise(0, "abcd")) - images
    adapted = replace(still, adapt_above=0.1, adapt_most=4.0)
    factor = (langevin(Residual(), images, adapted, noise=CounterNoise(0, "abcd")) - images) / alike
    torch.testing.assert_close(
        factor.flatten(1).median(1).values, torch.tensor([1.0, 1.0, 2.0, 4.0]), rtol=1e-3, atol=0
    )
    fast = replace(adapted, adapt_power=2.0, adapt_most=50.0)
    factor_fast = (langevin(Residual(), images, fast, noise=CounterNoise(0, "abcd")) - images) / alike
    torch.testing.assert_close(
        factor_fast.flatten(1).median(1).values, torch.tensor([1.0, 1.0, 4.0, 50.0]), rtol=1e-3, atol=0
    )
    alone = langevin(Residual(), images[2:3], adapted, noise=CounterNoise(0, "c")) - images[2:3]
    torch.testing.assert_close(alone / alike[2:3], factor[2:3])


def test_the_factor_of_an_image_fades_along_the_chain_and_every_image_ends_alike() -> None:
    # E = |x|^2 / 2, three updates: a restatement by hand, with the factors 2^1, 2^(1/2), 2^0
    image, noise = torch.full((1, 3, 16, 16), 0.2), CounterNoise(0, "a")
    config = LangevinConfig(n_steps=3, step_size=0.1, temperature=0.05, noise=0.5, initial_noise=0.01, adapt_above=0.1)
    x = image + 0.01 * 2 * noise(0, image)
    for step, factor in enumerate((2.0, 2**0.5, 1.0)):
        x = x - 0.1**2 / (2 * 0.05) * x + 0.5 * 0.1 * factor * noise(step + 1, x)
    torch.testing.assert_close(langevin(Residual(), image, config, noise=noise), x)
    stays = replace(config, adapt_fades=False)
    assert [stays.fade(step) for step in range(3)] == [1.0, 1.0, 1.0]
    assert not torch.allclose(langevin(Residual(), image, stays, noise=noise), x, atol=0.01)
    assert replace(config, n_steps=1).fade(0) == 1.0


def test_noise_that_adapts_needs_an_energy_that_measures_a_residual() -> None:
    config = LangevinConfig(n_steps=1, adapt_above=0.1)
    with pytest.raises(InputError, match="adapt_above needs an energy that measures a residual"):
        langevin(LocalEnergy((6,), (1,)), torch.zeros(1, 3, 16, 16), config, noise=CounterNoise(0, "a"))
