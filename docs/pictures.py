"""Draw the pictures of docs/how-it-works.md with the bundled model and images: `make pictures`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pureebm import CounterNoise, LangevinConfig, LangevinStage, langevin, load_model
from pureebm.attacks.triggers import AddTrigger
from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.evaluation.demo import Sample, load_sample
from pureebm.sampling.langevin import StepTrace

CLEAN, CRAFTED = "#1f6f8b", "#c2703d"
AMPLIFIED = 4
SHOWN = 1  # which of the poisoned images


def main(folder: Path) -> None:
    """Write chain.png and noise.png into the folder."""
    sample, stage = load_sample(), default_stage()
    draw_chain(sample, stage).savefig(folder / "chain.png", dpi=110)
    draw_noise(sample, stage).savefig(folder / "noise.png", dpi=110)


def default_stage() -> LangevinStage:
    model = load_model("residual-32")
    return LangevinStage(model.energy, LangevinConfig(**model.card["sampler"]), precision="float32")


def draw_chain(sample: Sample, stage: LangevinStage) -> Figure:
    """An image and the same image with the trigger: what they are along the chain, and their energies."""
    rows = sample.poisoned
    clean = to_pm1(sample.images[rows].permute(0, 3, 1, 2))
    crafted = to_pm1(AddTrigger(sample.trigger).apply(sample.images[rows]).permute(0, 3, 1, 2))
    walks = {"clean": walk(stage, clean), "with a trigger": walk(stage, crafted)}
    n_places = len(walks["clean"][0])
    titles = ["goes in", "noise", *(f"update {n}" for n in range(1, n_places - 1)), f"difference x {AMPLIFIED}"]
    figure = Figure(figsize=(9.4, 4.9), layout="constrained")
    grid = figure.add_gridspec(3, len(titles), height_ratios=(1, 1, 1.5))
    for row, (name, (frames, _)) in enumerate(walks.items()):
        shown = [frame[SHOWN] for frame in frames]
        for column, image in enumerate([*shown, AMPLIFIED * (shown[-1] - shown[0])]):
            place = figure.add_subplot(grid[row, column])
            show(place, image)
            place.set_title(titles[column] if row == 0 else "", fontsize=9)
            place.set_ylabel(name if column == 0 else "", fontsize=9)
    below = figure.add_subplot(grid[2, :])
    for (name, (_, energies)), color in zip(walks.items(), (CLEAN, CRAFTED), strict=True):
        below.plot(energies, color=color, linewidth=0.7, alpha=0.35)
        below.plot(energies.median(dim=1).values, color=color, linewidth=2, label=name)
    below.set_yscale("log")
    below.set_xticks(range(n_places), titles[:-1], fontsize=9)
    below.set_ylabel(f"energy of {len(rows)} images", fontsize=9)
    below.legend(frameon=False, fontsize=9)
    return figure


def walk(stage: LangevinStage, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """(N, 3, H, W) -> the images as they came, after the first noise, after each update; and (places, N) energies."""
    frames, energies, seen = [images], [stage.energies(images)], images

    def recorded(x: Tensor, *, energies: bool = False) -> tuple[Tensor | None, Tensor]:
        nonlocal seen
        seen = x.clone()
        return stage.score(x, energies=energies)

    def traced(trace: StepTrace) -> None:
        frames.append(seen)
        energies.append(trace.energy)

    noise = CounterNoise(0, [str(number) for number in range(len(images))])
    langevin(stage.energy, images, stage.config, noise=noise, on_step=traced, score=recorded)
    return frames, torch.stack(energies)


def draw_noise(sample: Sample, stage: LangevinStage) -> Figure:
    """White noise and the model's, equally strong, beside a trigger."""
    like = torch.zeros(1, 3, 32, 32)
    white = CounterNoise(0, ["0"])(0, like)
    colored = stage.energy.whitening.color(white)  # type: ignore[attr-defined]
    pictures = {"white noise": white, "noise of residual-32": colored, "a trigger": sample.trigger[None]}
    figure = Figure(figsize=(6.2, 2.3), layout="constrained")
    for place, (name, picture) in zip(figure.subplots(1, 3), pictures.items(), strict=True):
        show(place, picture[0] / picture.std() / 3)
        place.set_title(name, fontsize=9)
    return figure


def show(place: Axes, image: Tensor) -> None:
    """(3, H, W) in [-1, 1]."""
    place.imshow(to_uint8(image[None])[0].permute(1, 2, 0).numpy(), interpolation="nearest")
    place.set(xticks=[], yticks=[])
    place.spines[:].set_visible(False)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent)
