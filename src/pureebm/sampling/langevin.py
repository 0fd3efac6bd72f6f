"""Langevin dynamics: walk images down an energy while adding noise.

One update of a batch x, with z ~ N(0, I):

    x  <-  x - (step_size**2 / 2) * grad E(x) / temperature  +  noise * step_size * z

Both users of it, purification and the negatives of maximum-likelihood training, call `langevin`.
Nothing here knows of datasets, files or networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import torch
from torch import Tensor

from pureebm.errors import InputError
from pureebm.types import Energy, Noise

PAPER_N_STEPS = 150  # from scratch; 500 for linear transfer, 1000 for fine-tuning
PAPER_STEP_SIZE = 1.25e-2
PAPER_TEMPERATURE = 1e-4
_LARGEST_DRIFT = 1e30  # float32 ends at 3e38


@dataclass(frozen=True, slots=True, kw_only=True)
class LangevinConfig:
    """How long, how far and how warm a chain runs. Lengths are in units of [-1, 1].

    The defaults are the paper's. With an `_end`, a value moves geometrically from its start at the first
    update to its end at the last.
    """

    n_steps: Annotated[int, "updates per image; 0 returns the images as they are"] = PAPER_N_STEPS
    step_size: Annotated[float, "standard deviation of one update's noise"] = PAPER_STEP_SIZE
    temperature: Annotated[float, "divides the energy; lower is greedier"] = PAPER_TEMPERATURE
    step_size_end: Annotated[float | None, "step size of the last update (default: the same)"] = None
    temperature_end: Annotated[float | None, "temperature of the last update (default: the same)"] = None
    noise: Annotated[float, "scale of the noise of an update: 1 samples, 0 descends"] = 1.0
    initial_noise: Annotated[float, "standard deviation of noise added before the first update"] = 0.0
    adapt_above: Annotated[
        float, "residual (root mean square) above which an image's noise grows with it; 0: all alike"
    ] = 0.0
    adapt_power: Annotated[float, "how fast: the power of residual / adapt_above"] = 1.0
    adapt_most: Annotated[float, "largest factor of that growth"] = 8.0
    adapt_fades: Annotated[bool, "that factor falls to 1 along the chain; else it stays"] = True

    def __post_init__(self) -> None:
        if self.n_steps < 0:
            raise InputError(f"n_steps must be 0 or more, got {self.n_steps}")
        for name in ("step_size", "temperature", "step_size_end", "temperature_end"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):  # also catches NaN
                raise InputError(f"{name} must be above 0 and finite, got {value}")
        for name in ("noise", "initial_noise", "adapt_above", "adapt_power", "adapt_most"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be 0 or more and finite, got {value}")

        for step in {0, max(0, self.n_steps - 1)}:
            step_size, temperature = self.at(step)
            if not step_size * step_size / (2 * temperature) <= _LARGEST_DRIFT:  # ** raises
                raise InputError(
                    f"step_size {step_size:g} is too large for temperature {temperature:g}: an update would multiply "
                    f"the gradient by step_size^2 / (2 temperature), more than {_LARGEST_DRIFT:g}"
                )

    def at_level(self, level: float) -> LangevinConfig:
        """The same chain with `level` times the noise, at the start and in its first update: the temperature grows by
        the square, so that the share of the way that an update goes stays. Where a schedule ends is left as it is; what
        has none is scaled throughout.
        """
        return replace(
            self,
            initial_noise=self.initial_noise * level,
            step_size=self.step_size * level,
            temperature=self.temperature * level**2,
        )

    def share(self, step: int) -> float:
        """How far along the chain update `step` is, counted from 0: 0 at the first, 1 at the last."""
        return step / (self.n_steps - 1) if self.n_steps > 1 else 0.0

    def fade(self, step: int) -> float:
        """The power of an image's own factor (`adapt_above`) that the noise of update `step` is multiplied by: from 1
        at the first evenly down to 0 at the last, so that every image ends at the sampler's own temperature.
        """
        return 1.0 - self.share(step) if self.adapt_fades else 1.0

    def at(self, step: int) -> tuple[float, float]:
        """(step size, temperature) of update `step`, counted from 0."""
        share = self.share(step)
        return (
            _geometric(self.step_size, self.step_size_end, share),
            _geometric(self.temperature, self.temperature_end, share),
        )


def _geometric(start: float, end: float | None, share: float) -> float:
    return start if end is None else float(start ** (1 - share) * end**share)


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One update as seen just before it: each tensor is (N,). The last trace comes after the last update."""

    step: int
    energy: Tensor
    gradient_norm: Tensor  # L2 norm of grad E, not divided by the temperature
    displacement: Tensor  # L2 distance to the images that the chain was given


class Score(Protocol):
    """grad E without autograd at run time."""

    def __call__(self, images: Tensor, /, *, energies: bool = False) -> tuple[Tensor | None, Tensor]:
        """(N, C, H, W) -> (N,) energies, which may be None where they are not asked for, and (N, C, H, W) grad E."""
        ...


def energy_and_gradient(energy: Energy, images: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) energies and the (N, C, H, W) gradient of their sum, both detached.

    An energy with `residual` set gives both itself: its `residual_field` stands for the gradient.

    Raises:
        InputError: the energy does not return (N,).
    """
    if getattr(energy, "residual", False):
        with torch.no_grad():
            found: tuple[Tensor, Tensor] = energy.residual_field(images.detach())  # type: ignore[attr-defined]
        return found[0].float(), found[1].to(images.dtype)
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        values = energy(x)
        if values.shape != (len(images),):
            raise InputError(
                f"an energy must return ({len(images)},) for {len(images)} images, got {tuple(values.shape)}"
            )
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient


def langevin(
    energy: Energy,
    images: Tensor,
    config: LangevinConfig,
    *,
    noise: Noise,
    on_step: Callable[[StepTrace], None] | None = None,
    score: Score | None = None,
    energies: Tensor | None = None,
) -> Tensor:
    """Run `config.n_steps` Langevin updates on a batch.

    Args:
        energy: Called once an update. Must treat images independently (no batch norm in train mode).
        images: (N, C, H, W) float32 in [-1, 1]; left unchanged.
        config: Number, size and temperature of the updates.
        noise: Draws N(0, I) for an update; update k asks for step k + 1, the initial noise is step 0.
        on_step: Called before each update and once after the last (one more evaluation of the energy).
        score: A faster gradient of the same energy; without it, autograd.
        energies: (N,) of `images`, where they are known: noise that adapts then asks for them no second time.

    Returns:
        (N, C, H, W) float32, detached. May leave [-1, 1] by a few step sizes: clipping belongs to
        `data.ranges.to_uint8`, once, at the end.

    Raises:
        InputError: `images` is not 4-D float32, or `energy` does not return (N,).

    Source: arXiv 2405.18627, equations 4 and 11, Algorithm 1.
    Differs: with `adapt_above`, the noise of an image is multiplied by `noise_scale`, which is Langevin dynamics at a
        temperature of its own: hotter where the image is less natural, and cooling to the temperature of all
        (`LangevinConfig.fade`).
        An energy with `whitening` (W, see `types.Coordinates`) is walked in its coordinates y = W x, which in
        pixels is noise W^-1 z and a gradient multiplied by W^-2; the stationary density is the same. Schedules, a scale
        of the noise and an initial noise exist; at their defaults they do nothing.
        No clamping between updates, as in the authors' code.
    """
    if images.ndim != 4 or images.dtype != torch.float32:
        raise InputError(f"images must be (N, C, H, W) float32, got {tuple(images.shape)} {images.dtype}")
    start = images.detach()
    x = start
    traced, coordinates = on_step is not None, getattr(energy, "whitening", None)

    def evaluate(x: Tensor) -> tuple[Tensor | None, Tensor]:
        return energy_and_gradient(energy, x) if score is None else score(x, energies=traced)

    scale = noise_scale(energy, start, config, score, energies) if config.adapt_above and config.n_steps else None

    def draw(step: int, fade: float) -> Tensor:
        z = noise(step, x)
        z = z if scale is None else z * scale.pow(fade)
        return coordinates.color(z) if coordinates else z

    if config.initial_noise and config.n_steps:
        x = x + config.initial_noise * draw(0, 1.0)
    for step in range(config.n_steps):
        step_size, temperature = config.at(step)
        values, gradient = evaluate(x)
        if on_step is not None:
            on_step(_trace(step, values, gradient, x - start))
        if coordinates:
            gradient = coordinates.color(coordinates.color(gradient))
        x = torch.add(x, gradient, alpha=-(step_size**2) / (2 * temperature))
        if config.noise:
            x = x.add_(draw(step + 1, config.fade(step)), alpha=config.noise * step_size)
    if on_step is not None:
        values, gradient = evaluate(x)
        on_step(_trace(config.n_steps, values, gradient, x - start))
    return x.clone() if x is start else x


def _trace(step: int, values: Tensor | None, gradient: Tensor, moved: Tensor) -> StepTrace:
    assert values is not None
    return StepTrace(step, values, gradient.flatten(1).norm(dim=1), moved.flatten(1).norm(dim=1))


def noise_scale(
    energy: Energy, images: Tensor, config: LangevinConfig, score: Score | None = None, energies: Tensor | None = None
) -> Tensor:
    """(N, 1, 1, 1): how many times stronger an image's noise is, 1 to `config.adapt_most`.

    The energy of a denoiser's residual r is |r|^2 / 2, so it tells how far an image is from what the denoiser takes
    for natural, in the units of the noise: sqrt(2 E / (C H W)) is the root mean square of r.

    Raises:
        InputError: the energy is not of this kind (`LocalEnergy(residual=True)`).
    """
    if not getattr(energy, "residual", False):
        raise InputError("adapt_above needs an energy that measures a residual, such as LocalEnergy(residual=True)")
    residual = residual_size(energy, images, score, energies)
    scale = adapted(residual, config.adapt_above, config.adapt_power, config.adapt_most)
    return scale.to(images.dtype)[:, None, None, None]


def adapted(residual: Tensor, above: float, power: float, most: float) -> Tensor:
    """(residual / above)**power, at least 1 and at most `most`: the factor of an image's noise."""
    return (residual / above).pow(power).clamp(1.0, max(1.0, most))


def residual_size(energy: Energy, images: Tensor, score: Score | None = None, energies: Tensor | None = None) -> Tensor:
    """(N,): root mean square of the residual of an energy |r|^2 / 2, for images (N, C, H, W)."""
    values = energies
    if values is None:
        values = energy_and_gradient(energy, images)[0] if score is None else score(images, energies=True)[0]
    assert values is not None
    return (2 * values / images[0].numel()).sqrt()
