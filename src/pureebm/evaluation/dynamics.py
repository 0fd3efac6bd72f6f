"""Chains far beyond a purifier's steps: from images, from poisoned ones, and from noise.

Three questions of the papers about one energy and sampler, on held-out CIFAR-10 images:

- the mid-run: how far an image has moved, and from which update on a poisoned one is nearer to its clean original than
  to where it began;
- the energies of clean and of poisoned images, before the chain and along it;
- convergence: do long chains from images and from uniform noise end at the same energies? Where they do not, the model
  is no density that could be sampled from, and a purifier must stop in the middle of the run.

Source: arXiv 2405.19376 and 2405.18627, the figures of mid-run dynamics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pureebm.attacks.narcissus import Config as NarcissusConfig
from pureebm.attacks.triggers import AddTrigger
from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.energy.weights import LoadedModel
from pureebm.evaluation.cards import provenance, write_card
from pureebm.evaluation.metrics import auroc, paired_share
from pureebm.evaluation.quick import QuickData, digest, load_triggers
from pureebm.sampling.langevin import LangevinConfig
from pureebm.training.diagnostics import chain
from pureebm.training.validation import energies
from pureebm.types import JSON, Energy

POINTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
"""Updates after which a chain is looked at, as far as it goes."""

N_SHOWN = 4
CHAINS = ("clean", "poisoned", "noise")
COLORS = {"clean": "#2a6f97", "poisoned": "#c9184a", "noise": "#8a939c"}


def _lists(*names: str) -> Any:
    return field(default_factory=lambda: {name: [] for name in names})


@dataclass(slots=True)
class Followed:
    """What three chains did; the lists have an entry for each of `steps`.

    distances: mean L2 in [-1, 1] units: "clean" from a clean image's chain to the image; "to_clean" and "to_start"
    from a poisoned image's chain to the clean original and to the poisoned image. energies: (N,) of each chain. shown:
    a few of its images. outside: share of its pixel values beyond [-1, 1]. crossing: the first update after which
    "to_clean" is at most "to_start", of all updates.
    """

    steps: list[int] = field(default_factory=list)
    distances: dict[str, list[float]] = _lists("clean", "to_clean", "to_start")
    energies: dict[str, list[Tensor]] = _lists(*CHAINS)
    shown: dict[str, list[Tensor]] = _lists(*CHAINS)
    outside: dict[str, list[float]] = _lists(*CHAINS)
    crossing: int | None = None


def follow(
    energy: Energy,
    clean: Tensor,
    poisoned: Tensor,
    config: LangevinConfig,
    *,
    n_steps: int,
    seed: int = 0,
    report: Callable[[int], None] = lambda step: None,
) -> Followed:
    """Follow the chains of clean and of poisoned images, with the same noise, and of uniform noise, with another.

    Args:
        clean, poisoned: (N, C, H, W) in [-1, 1], the same images in both.
        config: the sampler; after its own steps it stays at its end.
        n_steps: how far.
        report: told of each point's step.
    """
    generator, found = torch.Generator().manual_seed(seed), Followed()
    noise = (torch.rand(clean.shape, generator=generator) * 2 - 1).to(clean)
    starts = dict(zip(CHAINS, (clean, poisoned, noise), strict=True))
    chains = [chain(energy, x, config, n_steps, seed=seed + (name == "noise")) for name, x in starts.items()]
    for step, states in enumerate(zip(*chains, strict=True)):
        pairs = {"clean": (states[0], clean), "to_clean": (states[1], clean), "to_start": (states[1], poisoned)}
        moved = {name: float((x - y).flatten(1).norm(dim=1).mean()) for name, (x, y) in pairs.items()}
        if found.crossing is None and moved["to_clean"] <= moved["to_start"]:
            found.crossing = step
        if step not in (*POINTS, n_steps):
            continue
        report(step)
        found.steps.append(step)
        for key, value in moved.items():
            found.distances[key].append(value)
        for name, x in zip(CHAINS, states, strict=True):
            found.energies[name].append(energies(energy, x).cpu())
            found.shown[name].append(x[:N_SHOWN].cpu())
            found.outside[name].append((x.abs() > 1).double().mean().item())
    return found


def run_dynamics(
    model: LoadedModel,
    config: LangevinConfig,
    data: QuickData,
    *,
    n_steps: int,
    n_images: int,
    out: Path,
    device: str = "cpu",
    command: str = "",
    report: Callable[[int], None] = lambda step: None,
) -> JSON:
    """Follow a model's chains on CIFAR-10 test images, write the card and its picture to `out`/dynamics.

    The poisoned images carry the first "report" trigger of the quick suite, 8/255.
    """
    began, attack = time.perf_counter(), NarcissusConfig()
    trigger = load_triggers("report", data, out / "triggers", attack)[0]
    images = data.test.images[:n_images]
    triggered = AddTrigger(trigger.pattern).apply(images)
    clean, poisoned = (to_pm1(x).permute(0, 3, 1, 2).to(device) for x in (images, triggered))
    found = follow(model.energy, clean, poisoned, config, n_steps=n_steps, report=report)
    card = {
        "suite": "dynamics",
        "data": f"cifar10-test-{n_images}",
        "eps": attack.eps,
        "trigger": trigger.name,
        "model": model.describe(),
        "settings": asdict(config),
        **told(found),
        "seconds": round(time.perf_counter() - began, 1),
        "command": command,
        **provenance(),
    }
    name = f"{model.name}-{digest({key: card[key] for key in ('model', 'settings', 'data', 'steps')})[:8]}"
    write_card(out / "dynamics" / f"{name}.json", card)
    draw(card, found.shown, out / "dynamics" / f"{name}.png")
    return card | {"picture": str(out / "dynamics" / f"{name}.png")}


def told(found: Followed) -> JSON:
    """The numbers of a card. `auroc`: how well the energy tells the chain of that name from the clean one, at each
    step; 0.5 is not at all. `paired_share`: of poisoned images above their originals."""
    calm = found.energies["clean"]
    apart = {
        name: [auroc(low, high) for low, high in zip(calm, found.energies[name], strict=True)]
        for name in ("poisoned", "noise")
    }
    pairs = zip(calm, found.energies["poisoned"], strict=True)
    return {
        "steps": found.steps,
        "distances": found.distances,
        "crossing": found.crossing,
        "energies": {name: [values.tolist() for values in part] for name, part in found.energies.items()},
        "auroc": apart,
        "paired_share": [paired_share(low, high) for low, high in pairs],
        "outside": found.outside,
    }


def draw(card: JSON, shown: Mapping[str, Sequence[Tensor]], path: Path) -> None:
    """Distances, energies and AUROC against the updates; histograms of energies at three steps; pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 10.5), layout="constrained")
    axes, steps = figure.subplots(3, 3), card["steps"]
    labels = {"clean": "purified clean - clean", "to_clean": "purified poisoned - clean"}
    labels["to_start"] = "purified poisoned - poisoned"
    for (key, label), color in zip(labels.items(), ("#2a6f97", "#588157", "#c9184a"), strict=True):
        axes[0, 0].plot(steps, card["distances"][key], marker=".", color=color, label=label)
    if card["crossing"] is not None:
        axes[0, 0].axvline(card["crossing"], color="k", ls="--", lw=1, label=f"crossing ({card['crossing']})")
    axes[0, 0].set(title="mean L2 distance, [-1, 1]")
    for name, part in card["energies"].items():
        low, middle, high = np.quantile(np.array(part), (0.1, 0.5, 0.9), axis=1)
        axes[0, 1].plot(steps, middle, marker=".", color=COLORS[name], label=name)
        axes[0, 1].fill_between(steps, low, high, color=COLORS[name], alpha=0.2, lw=0)
    axes[0, 1].set(title="energy: median, 10 to 90 %", yscale="symlog")
    for name, values in card["auroc"].items():
        axes[0, 2].plot(steps, values, marker=".", color=COLORS[name], label=f"{name} against clean")
    axes[0, 2].set(title="AUROC of the energies (0.5: the same)", ylim=(-0.03, 1.03))
    for axis in axes[0]:
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlabel("updates")
        axis.legend(frameon=False, fontsize=8)
    places = (0, len(steps) // 2, len(steps) - 1)
    for axis, place in zip(axes[1], places, strict=True):
        every = np.concatenate([part[place] for part in card["energies"].values()])
        for name, part in card["energies"].items():
            axis.hist(part[place], bins=np.histogram_bin_edges(every, 24), color=COLORS[name], alpha=0.55, label=name)
        axis.set(title=f"after {steps[place]} updates", xlabel="energy", ylabel="images")
        axis.legend(frameon=False, fontsize=8)
    for axis, (name, states) in zip(axes[2], shown.items(), strict=True):
        columns = [np.concatenate(list(to_uint8(x).permute(0, 2, 3, 1).numpy()), axis=0) for x in states]
        axis.imshow(np.concatenate(columns, axis=1))
        axis.set_title(f"from {name}, after {steps[0]}, {steps[1]}, ... {steps[-1]} updates", fontsize=9)
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
