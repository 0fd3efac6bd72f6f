"""What a purifier does to pictures and to perturbations, without training a victim on them.

On 2,000 CIFAR-10 test images x and four kinds of x + d with |d| <= 8/255: the PSNR of Psi(x) to x, the share of d
that survives, <Psi(x + d) - Psi(x), d> / <d, d> under the same noise, and how well the energy tells x + d from
x. A diagnosis only: its order of purifiers is not that of the victims (`evaluation.quick`), which decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.attacks.triggers import AddTrigger
from pureebm.data.ranges import to_pm1
from pureebm.evaluation.arrays import LabeledImages
from pureebm.evaluation.cards import provenance, write_card
from pureebm.evaluation.metrics import auroc, paired_share, psnr, survival
from pureebm.evaluation.quick import (
    Defense,
    QuickConfig,
    QuickData,
    clean_victim,
    digest,
    load_triggers,
    purify_cached,
)
from pureebm.types import JSON, Stage

N_IMAGES = 2_000
EPS = 8
SIG_FREQUENCY = 6
PGD_STEPS = 20
BATCH = 250


def sinusoid(size: int, eps: int = EPS) -> Tensor:
    """SIG's pattern, eps * sin(2 pi 6 j / size) along the columns j: (3, size, size) in [-1, 1] units.

    Source: Barni et al., arXiv 1902.11237. Differs: eps of 8 instead of 40, to stay in the common budget.
    """
    wave = torch.sin(2 * math.pi * SIG_FREQUENCY * torch.arange(size) / size)
    return (wave * eps * 2 / 255).expand(3, size, size).contiguous()


def targeted_pgd(
    network: nn.Module, images: Tensor, targets: Tensor, *, eps: int = EPS, n_steps: int = PGD_STEPS
) -> Tensor:
    """Move each image toward its target class within the budget: (N, H, W, 3) uint8 -> the same.

    `n_steps` sign steps of 2.5 eps / n_steps, from the image itself; rounded at the end, which keeps |d| <= eps.

    Source: Madry et al., arXiv 1706.06083.
    """
    x = to_pm1(images).permute(0, 3, 1, 2)
    budget, change = 2 * eps / 255, torch.zeros_like(x)
    for _ in range(n_steps):
        change.requires_grad_(True)
        loss = F.cross_entropy(network((x + change).clamp(-1, 1)), targets)
        gradient = torch.autograd.grad(loss, change)[0]
        change = (change.detach() - 2.5 * budget / n_steps * gradient.sign()).clamp(-budget, budget)
    moved = ((x + change).clamp(-1, 1) + 1) * 127.5
    return moved.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def perturbations(clean: LabeledImages, trigger: Tensor, surrogate: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """The images four times, each perturbed by at most 8/255: (N, H, W, 3) uint8 by kind."""
    images, generator = clean.images, torch.Generator().manual_seed(seed)
    targets = (clean.labels + torch.randint(1, 10, clean.labels.shape, generator=generator)) % 10
    signs = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    pgd = [targeted_pgd(surrogate, x, t) for x, t in zip(_split(images), _split(targets), strict=True)]
    return {
        "trigger": AddTrigger(trigger).apply(images),
        "pgd": torch.cat(pgd),
        "sinusoid": AddTrigger(sinusoid(images.shape[1])).apply(images),
        "random": (images.int() + EPS * signs).clamp(0, 255).to(torch.uint8),
    }


def diagnose(defense: Defense, clean: Tensor, changed: Mapping[str, Tensor], cache: Path) -> JSON:
    """PSNR, survival by kind, and the energy's separation: (N, H, W, 3) uint8, the same images in all."""
    ids = [f"cifar10/test/{row}" for row in range(len(clean))]
    after, seconds = purify_cached(defense, clean, ids, cache)
    shares = {}
    for kind, images in changed.items():
        moved, more = purify_cached(defense, images, ids, cache)
        shares[kind] = survival(images.double() - clean.double(), moved.double() - after.double())
        seconds += more
    touched = (after != clean).flatten(1).any(dim=1)  # JPEG 75 leaves images alone that were stored so before
    return {
        "psnr": psnr(after[touched], clean[touched]) if touched.any() else None,
        "changed_share": touched.double().mean().item(),
        "survival": shares,
        "energy": None if defense.stage is None else separation(defense.stage, clean, changed["trigger"]),
        "defence_seconds": round(seconds, 1),
    }


def separation(stage: Stage, clean: Tensor, triggered: Tensor) -> JSON | None:
    """AUROC of the energy, clean against triggered, and the share of pairs in which the triggered image is higher."""
    low, high = _energies(stage, clean), _energies(stage, triggered)
    if low is None or high is None:
        return None
    return {"auroc": auroc(low, high), "paired_share": paired_share(low, high)}


def _energies(stage: Stage, images: Tensor) -> Tensor | None:
    values = []
    for batch in _split(images):
        found = stage.energies(to_pm1(batch).permute(0, 3, 1, 2).contiguous())
        if found is None:
            return None
        values.append(found)
    return torch.cat(values)


def _split(values: Tensor) -> list[Tensor]:
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]


def run_diagnosis(
    defense: Defense, data: QuickData, *, out: Path, cache: Path, n_images: int = N_IMAGES, command: str = ""
) -> JSON:
    """Diagnose one purifier and write its card to `out`/diagnosis; the surrogate is the suite's clean victim."""
    config = QuickConfig()
    clean = LabeledImages(data.test.images[:n_images], data.test.labels[:n_images])
    trigger = load_triggers("report", data, out / "triggers", config.attack)[0]
    surrogate = clean_victim(data, config, seed=0, cache=cache)[0]
    changed = perturbations(clean, trigger.pattern, surrogate)
    card = {
        "suite": "diagnosis",
        "data": f"cifar10-test-{n_images}",
        "eps": EPS,
        "defence": defense.name,
        "settings": defense.settings(),
        "trigger": trigger.name,
        **diagnose(defense, clean.images, changed, cache),
        "command": command,
        **provenance(),
    }
    name = f"{defense.name.replace('/', '_')}-{digest({**defense.settings(), 'n': n_images})[:8]}.json"
    write_card(out / "diagnosis" / name.replace(" ", "_"), card)
    return card
