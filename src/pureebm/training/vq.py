"""Training of a vector-quantized autoencoder: what a run in a folder (`pureebm.training.run`) trains and leaves behind.

With the vectors z of a batch, the codes e that are nearest to them, and sg that stops the gradient:

    loss  =  mean |decode(z + sg(e - z)) - x|^2  +  commitment * mean |z - sg(e)|^2

The codes follow no gradient: each is the running mean of the vectors that chose it (`Codebook`). Beside what every run
holds: `model.safetensors` with its card: the averaged weights that rebuilt held-out images best so far.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.energy.weights import save_model
from pureebm.purify.vq import VQAutoencoder, load_vq
from pureebm.training.images import Images
from pureebm.training.run import Run
from pureebm.training.runtime import Runtime
from pureebm.training.settings import VQSettings
from pureebm.training.stepper import Phase, Step, Stepper
from pureebm.training.workers import Workers
from pureebm.types import JSON

REVIVE_BELOW = 0.5
"""A code that fewer vectors of a batch choose, on the running average, begins anew at a random vector."""

_BATCH = 128

INTENDED_USE = "A baseline for purifying image training sets: what a plain autoencoder does to an attack."
LIMITS = (
    "What it does to an attack must be measured on victims. It loses fine detail, most on images unlike those of its"
    " training data; it draws no noise, so that one who knows it can optimize a perturbation through it."
)


def train_vq(
    source: Path, out: Path, settings: VQSettings, *, holdout: Path | None = None, runtime: Runtime | None = None
) -> JSON:
    """Train an autoencoder on a set of images, or go on with it.

    Args:
        source: anything `open_source` recognizes; its labels are not used.
        out: the run's folder; one that exists is continued.
        settings: what to train and how.
        holdout: images for validation; without it the last 256 of `source` (at most a fifth) are held out.
        runtime: device, reports and such.

    Returns:
        The card of the best model (`out / "model.json"`).

    Raises:
        InputError: the sizes do not fit.
        MismatchError: `out` holds a run with other settings or images.
        DivergedError: training diverged after three rollbacks.
        Interrupted: `runtime.stop` asked for it; a checkpoint was written.

    Source: van den Oord, Vinyals & Kavukcuoglu, arXiv 1711.00937, equation 3, and appendix A.1 for the codes.
    Differs: codes that are not used begin anew; an average of the weights, flipped images, clipped gradients.
    """
    return _Run(source, out, settings, holdout, runtime or Runtime(workers=Workers())).go()


class Codebook:
    """The codes e_j as running averages of the vectors z that chose them, n_j of a batch:

        N_j  <-  decay N_j + (1 - decay) n_j        M_j  <-  decay M_j + (1 - decay) sum z        e_j  =  M_j / N_j

    N starts at 0: all codes begin at vectors of the first batch, as later those do whose N_j falls below
    `REVIVE_BELOW`.

    Args:
        codes: (K, D), changed in place.

    Source: arXiv 1711.00937, equations 6 to 8.
    Differs: dead codes are revived.
    """

    def __init__(self, codes: Tensor, decay: float) -> None:
        self.codes, self.decay = codes, decay
        self.counts, self.sums = codes.new_zeros(len(codes)), torch.zeros_like(codes)  # N and M

    @torch.no_grad()
    def update(self, vectors: Tensor, numbers: Tensor, generator: torch.Generator) -> None:
        """Move the codes by the (n, D) vectors of a batch and the (n,) numbers of the codes that they chose."""
        counts = numbers.bincount(minlength=len(self.codes)).to(vectors.dtype)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, numbers, vectors), 1 - self.decay)
        dead = self.counts < REVIVE_BELOW
        rows = torch.randint(len(vectors), (len(self.codes),), generator=generator).to(vectors.device)
        self.sums[dead], self.counts[dead] = vectors[rows[dead]], 1.0
        self.codes.copy_(self.sums / self.counts[:, None])


class VQTrainer(Stepper):
    """The moving parts of a training of an autoencoder.

    Args:
        images: (N, size, size, 3) uint8 to train on.
        workers: one process.
    """

    network: VQAutoencoder
    average: VQAutoencoder

    def __init__(self, settings: VQSettings, images: Images, workers: Workers) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        super().__init__(settings, build_network(settings), images, workers)
        self.codebook = Codebook(self.network.codes, settings.code_decay)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters, lr=1.0, weight_decay=0.0, fused=True)

    def compute(self, phase: Phase) -> Step:
        """Draw images; the loss above. The codes are those before this batch, and move at once."""
        images, network = self.batch(), self.network
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            z = network.encode(images)
            numbers = network.nearest(z.detach())
            codes = network.embed(numbers).contiguous(memory_format=self.memory_format)
            rebuilt = network.decode(straight_through(z, codes))
        vectors = z.detach().movedim(1, -1).flatten(0, 2)  # (N, D, h, w) -> (N * h * w, D)
        self.codebook.update(vectors, numbers.flatten(), self.generator)
        return Step(F.mse_loss(rebuilt, images) + self.settings.commitment * F.mse_loss(z, codes))

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"codebook/counts": self.codebook.counts, "codebook/sums": self.codebook.sums}

    def restore(self, tensors: dict[str, Tensor], state: JSON) -> None:
        super().restore(tensors, state)
        self.codebook.counts.copy_(tensors["codebook/counts"])
        self.codebook.sums.copy_(tensors["codebook/sums"])


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """The codes, with the gradient handed on to z as it is."""
    return z + (codes - z).detach()


def build_network(settings: VQSettings) -> VQAutoencoder:
    """The untrained network. Raises `InputError` for sizes that no network has."""
    return VQAutoencoder(
        settings.width, settings.layers, settings.n_codes, settings.code_dim, halvings=settings.halvings
    )


class _Run(Run):
    trainer: VQTrainer

    def __init__(self, source: Path, out: Path, settings: VQSettings, holdout: Path | None, runtime: Runtime) -> None:
        self.settings = settings
        super().__init__(source, out, settings, holdout, runtime)

    def make_trainer(self) -> VQTrainer:
        return VQTrainer(self.settings, self.images, self.workers)

    def phases(self) -> list[tuple[str, int, float | None, float]]:
        return [("vq", self.settings.steps, self.settings.minutes, self.settings.lr)]

    def validate(self, phase: Phase) -> None:
        result = validate_vq(self.trainer.average, self.held)
        better = self.improves(result["figure"])
        if self.log is None:
            return
        self.log.write(self.trainer.step, {"figure": result["figure"], "validation": result})
        self.report(
            f"vq step {self.trainer.step:,}: {result['psnr']:.2f} dB, {result['used']} of {self.settings.n_codes} codes"
            f" in use, perplexity {result['perplexity']:.0f}" + (" (best)" if better else "")
        )
        if better:
            save_model(self.out / "model.safetensors", self.trainer.average, self._card(phase, result))

    def _card(self, phase: Phase, validation: JSON) -> JSON:
        return {
            "description": f"vector-quantized autoencoder for images of {self.settings.size} px",
            "intended_use": INTENDED_USE,
            "limits": [LIMITS],
            **self.card_of_run(phase, validation),
        }

    def finish(self) -> JSON:
        """The card of the best model, with the time of the whole training."""
        path = self.out / "model.safetensors"
        best = load_vq(path)
        assert isinstance(best.network, VQAutoencoder)
        card = best.card
        if "total_minutes" not in card:
            card = save_model(path, best.network, {**card, "total_minutes": round(self.minutes, 2)})
        self.report(f"done: {path}")
        return card


@torch.no_grad()
def validate_vq(network: VQAutoencoder, images: Tensor) -> JSON:
    """How well a network rebuilds held-out images.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        `figure`: mean squared error in units of [-1, 1], lower is better; `psnr`: the same in dB; `used`: how many
        codes are chosen at all; `perplexity`: as how many equally frequent ones they count.
    """
    errors, counts = [], torch.zeros(len(network.codes), dtype=torch.float64)
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        numbers = network.nearest(network.encode(part))
        rebuilt = network.decode(network.embed(numbers)).clamp(-1, 1)
        errors.append(F.mse_loss(rebuilt, part).double() * len(part))
        counts += numbers.flatten().bincount(minlength=len(counts)).cpu()
    figure = float(torch.stack(errors).sum()) / len(images)
    shares = counts[counts > 0] / counts.sum()
    return {
        "figure": figure,
        "psnr": 10 * math.log10(4 / figure) if figure else math.inf,
        "used": len(shares),
        "perplexity": float((-(shares * shares.log()).sum()).exp()),
    }
