"""Training of a DDPM: what a run in a folder (`pureebm.training.run`) trains, validates and leaves behind.

The loss is the mean squared error of the estimated noise, at levels drawn uniformly from the first `levels` of the
schedule. Beside what every run holds: `model.safetensors` with its card: the averaged weights that estimated the noise
of held-out images best so far.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.diffusion.process import diffuse, signal_shares
from pureebm.diffusion.weights import build_unet, load_ddpm, multiple, predict_noise, save_ddpm, unet_config
from pureebm.errors import InputError
from pureebm.sampling.noise import CounterNoise
from pureebm.training.images import Images
from pureebm.training.run import Run
from pureebm.training.runtime import Runtime
from pureebm.training.settings import DDPMSettings
from pureebm.training.stepper import Phase, Step, Stepper, known
from pureebm.training.workers import Workers
from pureebm.types import JSON

_VALIDATION_LEVELS = 10
_BATCH = 128

INTENDED_USE = "Purifying image training sets (PureGen-DDPM), alone or in a chain with an energy model."
LIMITS = (
    "What it does to an attack must be measured on victims. It knows the levels of noise that it was trained on and no"
    " others, and images like those of its training data best."
)


def train_ddpm(
    source: Path, out: Path, settings: DDPMSettings, *, holdout: Path | None = None, runtime: Runtime | None = None
) -> JSON:
    """Train a DDPM on a set of images, or go on with it.

    Args:
        source: anything `open_source` recognizes.
        out: the run's folder; one that exists is continued.
        settings: what to train and how.
        holdout: images for validation; without it the last 256 of `source` (at most a fifth) are held out.
        runtime: device, reports and such.

    Returns:
        The card of the best model (`out / "model.json"`).

    Raises:
        InputError: diffusers is not installed, or the sizes do not fit.
        MismatchError: `out` holds a run with other settings or images.
        DivergedError: training diverged after three rollbacks.
        Interrupted: `runtime.stop` asked for it; a checkpoint was written.

    Source: arXiv 2405.18627, PureGen-DDPM, and the authors' training code.
    Differs: an average of the weights, flipped images, clipped gradients; `--ema 0 --augment none --grad-clip 0
        --preset paper --batch 256 --lr-warmup 500` are the authors'.
    """
    return _Run(source, out, settings.resolved(), holdout, runtime or Runtime(workers=Workers())).go()


class DDPMTrainer(Stepper):
    """The moving parts of a training of a DDPM.

    Args:
        settings: resolved, see `DDPMSettings.resolved`.
        images: (N, size, size, 3) uint8 to train on.
        workers: the processes that take part.
    """

    memory_format = torch.contiguous_format  # on processors a third faster here than channels-last

    def __init__(self, settings: DDPMSettings, images: Images, workers: Workers) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.shares = torch.tensor(signal_shares()[: settings.levels]).view(-1, 1, 1, 1)
        super().__init__(settings, build_network(settings), images, workers)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters, lr=1.0, weight_decay=self.settings.weight_decay, fused=True)

    def compute(self, phase: Phase) -> Step:
        """Draw images, levels and noise; the mean squared error of the noise that the network estimates."""
        clean = self.batch()
        levels = torch.randint(self.settings.levels, (len(clean),), generator=self.generator)
        shares, z = self.shares[levels].to(clean.device), self.normal(clean)
        noisy = shares.sqrt() * clean + (1 - shares).sqrt() * z
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            estimate = predict_noise(self.network, noisy, levels.to(clean.device))
        return Step(F.mse_loss(estimate.float(), z))


def build_network(settings: DDPMSettings) -> nn.Module:
    """The untrained network of resolved settings. Raises `InputError` where their sizes do not fit."""
    assert settings.widths is not None
    layers, patch = int(known(settings.layers)), int(known(settings.patch))
    config = unet_config(
        widths=settings.widths, layers=layers, patch=patch, size=settings.size, attention=settings.preset == "paper"
    )
    network = build_unet(config)
    if settings.size % multiple(network):
        raise InputError(
            f"size must be a multiple of {multiple(network)} for {len(settings.widths)} widths and patch {patch}, "
            f"got {settings.size}"
        )
    return network


class _Run(Run):
    trainer: DDPMTrainer

    def __init__(self, source: Path, out: Path, settings: DDPMSettings, holdout: Path | None, runtime: Runtime) -> None:
        self.settings = settings
        super().__init__(source, out, settings, holdout, runtime)

    def make_trainer(self) -> DDPMTrainer:
        return DDPMTrainer(self.settings, self.images, self.workers)

    def phases(self) -> list[tuple[str, int, float | None, float]]:
        return [("ddpm", self.settings.steps, self.settings.minutes, known(self.settings.lr))]

    def validate(self, phase: Phase) -> None:
        result = validate_ddpm(self.trainer.average, self.held, self.settings.levels, seed=self.settings.seed)
        better = self.improves(result["figure"])
        if self.log is None:
            return
        self.log.write(self.trainer.step, {"figure": result["figure"], "validation": result})
        middle = sorted(result["psnr"], key=int)[len(result["psnr"]) // 2]
        mark = " (best)" if better else ""
        self.report(
            f"ddpm step {self.trainer.step:,}: error of the noise {result['figure']:.5f}, "
            f"restored from level {middle}: {result['psnr'][middle]:.2f} dB{mark}"
        )
        if better:
            save_ddpm(self.out / "model.safetensors", self.trainer.average, self._card(phase, result))

    def _card(self, phase: Phase, validation: JSON) -> JSON:
        return {
            "description": f"DDPM for images of {self.settings.size} px, {self.settings.levels} levels of noise",
            "intended_use": INTENDED_USE,
            "limits": [LIMITS],
            "levels": self.settings.levels,
            **self.card_of_run(phase, validation),
        }

    def finish(self) -> JSON:
        """The card of the best model, which stands there already; the last weights beside it."""
        if not self.main:
            return {}
        best = load_ddpm(self.out / "model.safetensors", self.workers.device)
        card = best.card
        if "total_minutes" not in card:
            last = {**card, "step": self.trainer.step}
            save_ddpm(self.out / "last.safetensors", self.trainer.average, last)
            card = save_ddpm(
                self.out / "model.safetensors", best.network, {**card, "total_minutes": round(self.minutes, 2)}
            )
        self.report(f"done: {self.out / 'model.safetensors'}")
        return card


@torch.no_grad()
def validate_ddpm(network: nn.Module, images: Tensor, levels: int, *, seed: int = 0) -> JSON:
    """How well a network estimates the noise of held-out images, the same noise each time.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        levels: as many as it learns; ten of them, evenly spread, are looked at.

    Returns:
        `figure`: mean squared error of the estimate over these levels, lower is better; `error` and `psnr` of each:
        the error there, and dB of the image that one estimate restores.
    """
    chosen = sorted({(2 * place + 1) * levels // (2 * _VALIDATION_LEVELS) for place in range(_VALIDATION_LEVELS)})
    noise = CounterNoise(seed, [str(place) for place in range(len(images))], device=images.device)
    errors, psnr = {}, {}
    for level in chosen:
        z, share = noise(level, images), signal_shares()[level]
        noisy = diffuse(images, z, level)
        estimates = [predict_noise(network, noisy[at : at + _BATCH], level) for at in range(0, len(noisy), _BATCH)]
        error = F.mse_loss(torch.cat(estimates), z).item()
        errors[str(level)] = error
        psnr[str(level)] = 10 * math.log10(4 * share / ((1 - share) * error)) if error else math.inf
    return {"figure": sum(errors.values()) / len(errors), "error": errors, "psnr": psnr}
