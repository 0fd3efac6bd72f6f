"""Pictures of a training, and the number of sampling steps that they suggest.

curves.png      loss, gradient norm, energy gap, learning rate, and what the validations measured
distances.png   how far clean and perturbed images move along the chain, with the crossing (the paper's mid-run)
energies.png    energies of clean and of perturbed images
samples.png     short, mid and long chains from data and from noise
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pureebm.data.ranges import to_uint8
from pureebm.sampling.langevin import LangevinConfig, langevin, noise_scale
from pureebm.training.scalars import read_scalars
from pureebm.training.validation import RepeatedNoise, auroc, energies, perturbations
from pureebm.types import Energy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = list[tuple[int, float]]

_LONGEST = 3  # chains are followed to this many times the sampler's steps
_IMAGES = 32
_COLORS = {"clean": "#2a6f97", "smooth": "#c9184a", "sinusoid": "#e09f3e", "signs": "#588157"}


@dataclass(frozen=True, slots=True)
class Distances:
    """Mean L2 distances after 0, 1, 2, ... steps, for one perturbation.

    `clean`: purified clean image to its original. `to_clean`: purified perturbed image to the clean original.
    `to_start`: purified perturbed image to the perturbed image.
    """

    clean: list[float]
    to_clean: list[float]
    to_start: list[float]

    @property
    def crossing(self) -> int | None:
        """The first step after which a perturbed image is nearer to its clean original than to where it
        started, that is, has lost half of its perturbation."""
        pairs = zip(self.to_clean, self.to_start, strict=True)
        return next((step for step, (clean, start) in enumerate(pairs) if clean <= start), None)


def chain(energy: Energy, images: Tensor, config: LangevinConfig, n_steps: int, *, seed: int) -> Iterator[Tensor]:
    """The images after 0, 1, ... `n_steps` updates of the sampler, which stays at its end once its schedule is over."""
    noise = RepeatedNoise(seed)
    scale = noise_scale(energy, images, config) if config.adapt_above else torch.ones(())
    yield images
    for step in range(n_steps):
        place = min(step, max(config.n_steps - 1, 0))
        step_size, temperature = config.at(place)
        powers = (1.0, config.fade(place))  # of the initial noise, of the update's
        one = LangevinConfig(
            n_steps=1,
            step_size=step_size,
            temperature=temperature,
            noise=config.noise,
            initial_noise=config.initial_noise if step == 0 else 0.0,
        )

        def draw(part: int, like: Tensor, step: int = step, powers: tuple[float, float] = powers) -> Tensor:
            return scale.pow(powers[part]) * noise(step + part, like)

        images = langevin(energy, images, one, noise=draw)
        yield images


def measure_distances(
    energy: Energy, images: Tensor, config: LangevinConfig, *, n_steps: int, seed: int = 0
) -> dict[str, Distances]:
    """Follow clean and perturbed images (N, C, H, W) along the chain with the same noise, by perturbation."""
    clean = [_distance(x, images) for x in chain(energy, images, config, n_steps, seed=seed)]
    found = {}
    for name, change in perturbations(images, seed=seed).items():
        start = images + change
        steps = [(_distance(x, images), _distance(x, start)) for x in chain(energy, start, config, n_steps, seed=seed)]
        found[name] = Distances(clean, [a for a, _ in steps], [b for _, b in steps])
    return found


def latest_crossing(parts: dict[str, Distances], config: LangevinConfig) -> int:
    """The step by which every perturbation that crosses has crossed; the sampler's own steps if none does.

    A perturbation that looks natural never crosses, and says nothing about the number of steps.
    """
    crossings = [part.crossing for part in parts.values() if part.crossing is not None]
    return max(crossings, default=config.n_steps)


def suggest_steps(
    energy: Energy, images: Tensor, config: LangevinConfig, *, n_steps: int | None = None, seed: int = 0
) -> int:
    """How many steps to take: the crossing of the paper's mid-run figure (see `latest_crossing`).

    Args:
        images: (N, C, H, W) in [-1, 1], clean; they are perturbed by 8/255 in several ways here.
        config: step size, temperature and noise; its `n_steps` is returned if nothing crosses.
        n_steps: how long chains are followed (default: three times the sampler's).
    """
    longest = _LONGEST * config.n_steps if n_steps is None else n_steps
    return latest_crossing(measure_distances(energy, images, config, n_steps=longest, seed=seed), config)


def curves(path: Path, most: int = 2000) -> dict[str, Points]:
    """Every scalar of a log as (step, value) points, at most about `most` of each."""
    found: dict[str, Points] = {}
    for record in read_scalars(path):
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                found.setdefault(name, []).append((record["step"], float(value)))
    return {name: points[:: max(1, len(points) // most)] for name, points in found.items()}


def draw_diagnostics(
    energy: Energy, images: Tensor, config: LangevinConfig, folder: Path, *, log: Path, seed: int = 0
) -> int:
    """Draw every picture into `folder`; returns what `suggest_steps` would, from the chains it drew.

    Args:
        images: (N, C, H, W) in [-1, 1], held out; the first 32 are followed along chains.
        log: the run's `scalars.jsonl`.
    """
    parts = measure_distances(energy, images[:_IMAGES], config, n_steps=_LONGEST * config.n_steps, seed=seed)
    draw_curves(log, folder)
    _save(_distances_figure(parts, config), folder / "distances.png")
    _save(_energies_figure(energy, images, seed), folder / "energies.png")
    _save(_samples_figure(energy, images[:8], config, seed), folder / "samples.png")
    return latest_crossing(parts, config)


def draw_curves(log: Path, folder: Path) -> None:
    """`curves.png`: the scalars of a log, one panel each."""
    found = curves(log)
    titles = {
        "loss": "loss",
        "gradient_norm": "gradient norm",
        "energy_gap": "energy gap / T",
        "lr": "learning rate",
        "figure": "validation: squared distance to the clean original",
        "clean_psnr": "validation: PSNR of purified clean images (dB)",
    }
    survival = {name: points for name, points in found.items() if name.startswith("survival_")}
    shown = [name for name in titles if name in found]
    panels = len(shown) + bool(survival)
    if not panels:
        return
    figure, axes = _figure(panels, columns=min(3, panels), width=4.2, height=2.9)
    for axis, name in zip(axes, shown, strict=False):
        axis.plot(
            *zip(*found[name], strict=True), color=_COLORS["clean"], lw=1, marker="." if len(found[name]) < 40 else None
        )
        axis.set(title=titles[name], xlabel="step", yscale="log" if name == "gradient_norm" else "linear")
    if survival:
        for name, points in survival.items():
            kind = name.removeprefix("survival_")
            axes[len(shown)].plot(*zip(*points, strict=True), color=_COLORS[kind], marker=".", lw=1, label=kind)
        axes[len(shown)].set(title="validation: share of a perturbation left", xlabel="step", ylim=(0, 1.05))
        axes[len(shown)].legend(frameon=False)
    _save(figure, folder / "curves.png")


def _distances_figure(parts: dict[str, Distances], config: LangevinConfig) -> Figure:
    figure, axes = _figure(len(parts), columns=len(parts), width=4.8, height=3.6)
    for axis, (name, part) in zip(axes, parts.items(), strict=True):
        steps = range(len(part.clean))
        axis.plot(steps, part.clean, color="#2a6f97", lw=4, alpha=0.4, label="purified clean - clean")
        axis.plot(steps, part.to_clean, color="#588157", label="purified perturbed - clean")
        axis.plot(steps, part.to_start, color="#c9184a", label="purified perturbed - perturbed")
        axis.axvline(config.n_steps, color="0.6", ls=":", label=f"the sampler's steps ({config.n_steps})")
        if part.crossing is not None:
            axis.axvline(part.crossing, color="k", ls="--", lw=1, label=f"crossing ({part.crossing})")
        axis.set(title=f"{name}, 8/255", xlabel="Langevin steps", ylabel="mean L2 distance, [-1, 1]")
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _energies_figure(energy: Energy, images: Tensor, seed: int) -> Figure:
    calm = energies(energy, images)
    figure, axes = _figure(3, columns=3, width=4.2, height=3.0)
    for axis, (name, change) in zip(axes, perturbations(images, seed=seed).items(), strict=True):
        raised = energies(energy, images + change)
        both = torch.cat([calm, raised]).cpu()
        low, high = torch.quantile(both, 0.01).item(), torch.quantile(both, 0.99).item()
        bins = np.linspace(low, max(high, low + 1e-6), 30).tolist()
        axis.hist(calm.cpu().numpy(), bins=bins, color=_COLORS["clean"], alpha=0.6, label="clean")
        axis.hist(raised.cpu().numpy(), bins=bins, color=_COLORS[name], alpha=0.6, label=f"{name} 8/255")
        paired = (raised > calm).float().mean().item()
        axis.set(
            title=f"AUROC {auroc(calm, raised):.3f}, raised in {paired:.1%} of pairs", xlabel="energy", ylabel="images"
        )
        axis.legend(frameon=False)
    return figure


def _samples_figure(energy: Energy, images: Tensor, config: LangevinConfig, seed: int) -> Figure:
    lengths = sorted({0, math.ceil(config.n_steps / 4), config.n_steps, _LONGEST * config.n_steps})
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.rand(images.shape, generator=generator) * 2 - 1).to(images)
    figure, axes = _figure(2 * len(lengths), columns=1, width=max(len(images), 4) * 1.1, height=1.25)
    rows = iter(axes)
    for name, start in (("data", images), ("noise", noise)):
        for step, x in enumerate(chain(energy, start, config, lengths[-1], seed=seed)):
            if step in lengths:
                axis = next(rows)
                axis.imshow(np.concatenate(list(to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()), axis=1))
                axis.set_title(f"from {name}, {step} steps", fontsize=9, loc="left")
                axis.set_axis_off()
    return figure


def _figure(panels: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    rows = -(-panels // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _distance(images: Tensor, others: Tensor) -> float:
    return float((images - others).flatten(1).norm(dim=1).mean())
