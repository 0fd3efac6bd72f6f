"""The update of a DDPM, against diffusers' schedulers given the same noise, and against what theory says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pureebm.diffusion.process import DDPMConfig, ddpm, diffuse, reverse_step, signal_shares
from pureebm.errors import InputError
from pureebm.sampling.noise import CounterNoise

diffusers = pytest.importorskip("diffusers")


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def estimate(x: Tensor, level: int) -> Tensor:
    """A smooth "network" whose estimate is far from perfect, so that clipping matters."""
    return 0.9 * torch.sin(3 * x + level / 50)


def test_signal_shares_are_those_of_the_linear_schedule() -> None:
    theirs = diffusers.DDPMScheduler().alphas_cumprod
    assert torch.tensor(signal_shares()[:-1]).allclose(theirs, rtol=1e-5, atol=1e-7)
    published = {75: 0.9376, 100: 0.8951, 125: 0.8440, 150: 0.7859, 249: 0.5241}
    assert {level: round(signal_shares()[level], 4) for level in published} == published
    assert signal_shares()[-1] == 1 and len(signal_shares()) == 1001


def test_the_forward_process_is_diffusers() -> None:
    z = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = diffusers.DDPMScheduler().add_noise(images(), z, torch.tensor([75] * 4))
    assert diffuse(images(), z, 75).allclose(theirs, atol=1e-6)


def exact(scheduler: Any) -> Any:
    """A scheduler of diffusers with its schedule in float64, so that only the formulas are compared."""
    scheduler.alphas_cumprod = torch.tensor(signal_shares()[:-1], dtype=torch.float64)
    return scheduler


def test_the_ancestral_walk_is_diffusers_with_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, noise = exact(diffusers.DDPMScheduler()), CounterNoise(3, ["a", "b", "c", "d"])
    start = images().double()
    ours = ddpm(estimate, start, DDPMConfig(level=75), noise=noise)
    x = scheduler.add_noise(start, noise(0, start), torch.tensor([75] * 4))
    for step, level in enumerate(range(74, -1, -1), start=1):
        z = noise(step, x)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, z=z, **_: z)
        x = scheduler.step(estimate(x, level), level, x).prev_sample
    assert (ours - start).abs().max() > 0.3
    assert ours.allclose(x, atol=1e-8)


@pytest.mark.parametrize("count", [1, 5, 10])
def test_a_ddim_walk_is_diffusers(count: int) -> None:
    scheduler, noise = exact(diffusers.DDIMScheduler()), CounterNoise(3, ["a", "b", "c", "d"])
    start = images().double()
    ours = ddpm(estimate, start, DDPMConfig(level=100, ddim=count), noise=noise)
    scheduler.set_timesteps(1000 * count // 100)  # its stride; only the last levels are walked
    x = scheduler.add_noise(start, noise(0, start), torch.tensor([100] * 4))
    for level in DDPMConfig(level=100, ddim=count).levels()[:-1]:
        x = scheduler.step(estimate(x, level), level, x, use_clipped_model_output=True).prev_sample
    assert ours.allclose(x, atol=1e-8)


@pytest.mark.parametrize("config", [DDPMConfig(level=60), DDPMConfig(level=60, ddim=6)])
def test_a_perfect_estimate_brings_the_image_back(config: DDPMConfig) -> None:
    clean, shares = images(), signal_shares()

    def oracle(x: Tensor, level: int) -> Tensor:
        return (x - math.sqrt(shares[level]) * clean) / math.sqrt(1 - shares[level])

    assert ddpm(oracle, clean, config, noise=CounterNoise(0, list("abcd"))).allclose(clean, atol=1e-5)


def test_an_ancestral_step_has_mean_and_variance_of_the_posterior() -> None:
    # Posterior of q(x_s | x_t, x0): weights on x0 and x_t, and variance (arXiv 2006.11239, equations 6 and 7).
    a, b = signal_shares()[40], signal_shares()[39]
    beta, x, e = 1 - a / b, torch.tensor([0.3]), torch.tensor([0.8])
    clean = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
    mean = math.sqrt(b) * beta / (1 - a) * clean + math.sqrt(a / b) * (1 - b) / (1 - a) * x
    assert reverse_step(x, e, a, b, torch.zeros(1)).item() == pytest.approx(mean.item(), abs=1e-6)
    spread = reverse_step(x, e, a, b, torch.ones(1)) - reverse_step(x, e, a, b, torch.zeros(1))
    assert spread.item() ** 2 == pytest.approx((1 - b) / (1 - a) * beta, rel=1e-3)


def test_the_network_is_asked_at_falling_levels_that_end_at_the_lowest_step() -> None:
    assert DDPMConfig(level=4).levels() == [3, 2, 1, 0, -1]
    assert DDPMConfig(level=75, ddim=4).levels() == [74, 55, 36, 17, -1]
    for count in range(1, 76):
        levels = DDPMConfig(level=75, ddim=count).levels()
        assert len(levels) == count + 1 and levels == sorted(set(levels), reverse=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level": 0}, "level of noise must be 1 to 999, got 0"),
        ({"level": 1000}, "level of noise must be 1 to 999, got 1000"),
        ({"level": 10, "ddim": 11}, "ddim must be 1 to 10 steps"),
        ({"ddim": 0}, "ddim must be 1 to 75 steps"),
    ],
)
def test_senseless_levels_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DDPMConfig(**values)
