"""Training of a one-pass student: what a run in a folder (`pureebm.training.run`) trains, validates and leaves behind.

Beside what every run holds: `pairs/` (what the teacher made, see `training.pairs`), and `model.safetensors` with its
card: the averaged weights that came nearest to the teacher on held-out images. The loss is the mean squared distance to
the teacher's result under the same noise, as a share of that noise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pureebm.data.ranges import to_pm1
from pureebm.energy.networks import LocalEnergy
from pureebm.energy.student import Student
from pureebm.energy.weights import DEFAULT_MODEL, load_model, save_model
from pureebm.purify.stages import LangevinStage
from pureebm.purify.student import StudentStage
from pureebm.sampling.langevin import LangevinConfig
from pureebm.sampling.noise import CounterNoise
from pureebm.training.images import Images
from pureebm.training.pairs import Pairs, claim, make_pairs, make_residuals, taught
from pureebm.training.run import Run
from pureebm.training.runtime import Runtime
from pureebm.training.settings import StudentSettings
from pureebm.training.stepper import Phase, Step, Stepper
from pureebm.training.validation import perturbations, psnr
from pureebm.training.workers import Workers
from pureebm.types import JSON, Stage

GAUGE_WEIGHT = 0.01
"""Of the gauge's loss beside the distance to the teacher. It shares no weight with the rest: only the clip of the
gradient's norm sees both."""

_SAMPLES = 4  # of each image, for the variance
_SAMPLED = 32  # images whose variance is taken

INTENDED_USE = "Purifying image training sets in one pass, where the chain that it imitates takes too long."
LIMITS = (
    "It imitates its teacher, and was measured against it on held-out images under perturbations made for that; what it"
    " does to an attack must be measured on victims. Being differentiable in one pass, it is easier than the chain to"
    " optimize a perturbation through. It has no energy: scores and energy histograms need the teacher."
)


def train_student(
    source: Path, out: Path, settings: StudentSettings, *, holdout: Path | None = None, runtime: Runtime | None = None
) -> JSON:
    """Train a student on a set of images, or go on with it.

    Args:
        source: anything `open_source` recognizes; its labels are not used.
        out: the run's folder; one that exists is continued.
        settings: what to train and how.
        holdout: images for validation; without it the last 256 of `source` (at most a fifth) are held out.
        runtime: device, reports and such.

    Returns:
        The card of the best model (`out / "model.json"`).

    Raises:
        InputError: the teacher is no energy, or there are too few images.
        MismatchError: `out` holds a run with other settings, images or teacher.
        DivergedError: training diverged after three rollbacks.
        Interrupted: `runtime.stop` asked for it; what was done is kept.
    """
    return _Run(source, out, settings, holdout, runtime or Runtime(workers=Workers())).go()


class StudentTrainer(Stepper):
    """The training of a student, step by step.

    Args:
        pairs: gives what is learned from, when the first step needs it.
        residuals: the same for the gauge: images and residuals of `make_residuals`.
    """

    network: Student
    average: Student

    def __init__(
        self,
        settings: StudentSettings,
        network: Student,
        images: Images,
        pairs: Callable[[], Pairs],
        residuals: Callable[[], tuple[Tensor, Tensor]],
        workers: Workers,
    ) -> None:
        self.settings, self.pairs, self.residuals = settings, pairs, residuals
        super().__init__(settings, network, images, workers)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters, lr=1.0, fused=True)

    def compute(self, phase: Phase) -> Step:
        """Draw a batch of pairs, mirror some, and compute the squared distance to the teacher's results.

        The distance of a pair is divided by the strength of its noise, lest the few loud ones drown the others. The
        gauge learns the logarithm of the teacher's residual, from images of its own; the rest is given the teacher's.
        """
        pairs, n, device = self.pairs(), self.settings.batch, self.workers.device
        rows = torch.randint(len(pairs), (n,), generator=self.generator)
        fields = (to_pm1(pairs.images[rows]), pairs.start(rows.tolist()), pairs.later[rows], pairs.purified[rows])
        moved = [one.to(device).float() for one in fields]
        if self.settings.augment == "flip":
            mirrored = (torch.rand(n, 1, 1, 1, generator=self.generator) < 0.5).to(device)
            moved = [torch.where(mirrored, one.flip(3), one) for one in moved]
        images, start, later, target = moved
        network, strength = self.network, pairs.levels[rows].to(device)
        y, loss = network.coordinates(images), images.new_zeros(())
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            if network.adapt_above:
                loss = GAUGE_WEIGHT * self._gauge_loss()
                strength = strength * network.noise_scale(pairs.residuals[rows].to(device))
            out = network.purified(y, start, later, strength)
        return Step(loss + ((out - target).square().mean(dim=(1, 2, 3)) / strength).mean())

    def _gauge_loss(self) -> Tensor:
        images, residuals = self.residuals()
        rows = torch.randint(len(images), (self.settings.batch,), generator=self.generator)
        x, residual = to_pm1(images[rows]).to(self.workers.device), residuals[rows].to(self.workers.device)
        found = self.network.residual(self.network.coordinates(x))
        return (found / residual.clamp(min=1e-6)).log().square().mean()


@dataclass(frozen=True, slots=True)
class Reference:
    """What the teacher makes of held-out images, clean and perturbed, under one noise.

    images: (N, 3, S, S) of each kind. purified, later: the teacher's results and later noises, alike. variance: of its
    results over the noise, mean over pixels of the first images.
    """

    images: dict[str, Tensor]
    purified: dict[str, Tensor]
    later: dict[str, Tensor]
    ids: tuple[str, ...]
    seed: int
    variance: float

    @classmethod
    def make(cls, stage: LangevinStage, clean: Tensor, *, seed: int) -> Reference:
        """clean: (N, 3, S, S) in [-1, 1]."""
        ids = tuple(f"held/{row}" for row in range(len(clean)))
        images = {"clean": clean}
        images |= {name: (clean + one).clamp(-1, 1) for name, one in perturbations(clean, seed=seed).items()}
        results = {name: taught(stage, one, ids, level=1.0, seed=seed) for name, one in images.items()}
        purified, later = ({name: pair[part] for name, pair in results.items()} for part in (0, 1))
        return cls(images, purified, later, ids, seed, _variance(stage, clean, ids, seed))

    def compare(self, network: Student) -> JSON:
        """How near a student comes.

        Returns:
            `figure`: mean squared distance to the teacher's results under the same noise, over all kinds, in [-1, 1]
            units; lower is better; `psnr_to_teacher`, the same in dB. `clean_psnr`: of purified clean images to
            themselves, and `perturbations`: the share of each that survives; each with `teacher` beside it.
            `variance_share`: variance over the noise as a share of the teacher's.
        """
        device, clean = network.gain.device, self.images["clean"]
        level = torch.ones(len(self.ids), device=device)
        start = CounterNoise(self.seed, self.ids)(0, clean).to(device)
        with torch.no_grad():
            ours = {
                name: network(one.to(device), start, self.later[name].to(device), level).cpu()
                for name, one in self.images.items()
            }
        squared = [float((ours[name] - self.purified[name]).square().mean()) for name in ours]
        figure = sum(squared) / len(squared)
        variance = _variance(StudentStage(copy.deepcopy(network), precision="float32"), clean, self.ids, self.seed)
        return {
            "figure": figure,
            "psnr_to_teacher": -10 * math.log10(max(figure / 4, 1e-12)),
            "clean_psnr": psnr(ours["clean"], clean),
            "perturbations": self._survival(ours),
            "variance_share": variance / self.variance if self.variance else None,
            "teacher": {
                "clean_psnr": psnr(self.purified["clean"], clean),
                "perturbations": self._survival(self.purified),
                "variance": self.variance,
            },
        }

    def _survival(self, results: dict[str, Tensor]) -> dict[str, float]:
        """Share of each perturbation that is left, against the same noise on the clean images."""
        shares = {}
        for name in [name for name in results if name != "clean"]:
            change = self.images[name] - self.images["clean"]
            shares[name] = float(((results[name] - results["clean"]) * change).sum() / change.square().sum())
        return shares


def _variance(stage: Stage, images: Tensor, ids: tuple[str, ...], seed: int) -> float:
    """Of a purifier's results over seeds, mean over the pixels of the first images."""
    images, ids = images[:_SAMPLED], ids[:_SAMPLED]
    drawn = [stage.purify_batch(images, ids, seed=seed + 1 + number) for number in range(_SAMPLES)]
    return float(torch.stack(drawn).var(dim=0).mean())


class _Run(Run):
    trainer: StudentTrainer

    def __init__(
        self, source: Path, out: Path, settings: StudentSettings, holdout: Path | None, runtime: Runtime
    ) -> None:
        self.settings = settings
        self.teacher = load_model(settings.teacher or DEFAULT_MODEL, runtime.workers.device)
        config = LangevinConfig(**self.teacher.card.get("sampler", {}))
        self.stage = LangevinStage(
            self.teacher.energy, config, device=runtime.workers.device, model=self.teacher.describe()
        )
        super().__init__(source, out, settings, holdout, runtime)

    @cached_property
    def pairs(self) -> Pairs:
        return make_pairs(
            torch.from_numpy(self.images),
            self.stage,
            self.out / "pairs",
            count=self.settings.pairs,
            levels=self._levels(),
            seed=self.settings.seed,
            report=self.report,
            stop=self.runtime.stop,
        )

    @cached_property
    def residuals(self) -> tuple[Tensor, Tensor]:
        return make_residuals(
            torch.from_numpy(self.images),
            self.stage,
            self.out / "pairs" / "gauge.safetensors",
            count=self.settings.gauged,
            seed=self.settings.seed,
            report=self.report,
            stop=self.runtime.stop,
        )

    @cached_property
    def reference(self) -> Reference:
        return Reference.make(self.stage, self.held.cpu(), seed=self.settings.seed)

    def _levels(self) -> tuple[float, float]:
        return self.settings.level_min, self.settings.level_max

    def _told_teacher(self) -> JSON:
        config = asdict(self.stage.config)
        return {"name": self.teacher.name, "sha256": self.teacher.sha256, "sampler": config}

    def make_trainer(self) -> StudentTrainer:
        settings, energy = self.settings, self.teacher.energy
        torch.manual_seed(settings.seed)
        whitening = energy.whitening if isinstance(energy, LocalEnergy) else None
        network = Student(
            settings.widths,
            settings.blocks,
            initial_noise=self.stage.config.initial_noise,
            whiten=whitening.strength if whitening else 0.0,
            chroma=whitening.chroma if whitening else 1.0,
            levels=self._levels(),
            adapt_above=self.stage.config.adapt_above,
            adapt_power=self.stage.config.adapt_power,
            adapt_most=self.stage.config.adapt_most,
        )
        known: JSON = {"teacher": self._told_teacher(), "data": self.data, "held_out": self.held_data}
        known |= {"levels": self._levels(), "seed": settings.seed}
        claim(self.out / "pairs", known, overwrite=self.runtime.overwrite)
        return StudentTrainer(settings, network, self.images, lambda: self.pairs, lambda: self.residuals, self.workers)

    def phases(self) -> list[tuple[str, int, float | None, float]]:
        return [("student", self.settings.steps, self.settings.minutes, self.settings.lr)]

    def validate(self, phase: Phase) -> None:
        """Compare the averaged weights with the teacher; keep them if none came nearer."""
        result = self.reference.compare(self.trainer.average)
        better = self.improves(result["figure"])
        if self.log is None:
            return
        shares, theirs = result["perturbations"], result["teacher"]["perturbations"]
        flat = {name: result[name] for name in ("figure", "psnr_to_teacher", "clean_psnr", "variance_share")}
        flat |= {f"survival_{name}": share for name, share in shares.items()}
        self.log.write(self.trainer.step, {**flat, "validation": result})
        variance = "" if result["variance_share"] is None else f", {result['variance_share']:.2f} of its variance"
        survival = " ".join(f"{name} {share:.2f} ({theirs[name]:.2f})" for name, share in shares.items())
        self.report(
            f"step {self.trainer.step:,}: {result['psnr_to_teacher']:.2f} dB to the teacher{variance}; clean"
            f" {result['clean_psnr']:.2f} dB ({result['teacher']['clean_psnr']:.2f}), survival (teacher's) {survival}"
            + (" (best)" if better else "")
        )
        if better:
            save_model(self.out / "model.safetensors", self.trainer.average, self._card(phase, result))

    def _card(self, phase: Phase, result: JSON) -> JSON:
        name = Path(self.teacher.name).stem
        return {
            "description": f"one-pass student of {name} for images of {self.settings.size} px",
            **self.card_of_run(phase, result),
            "data": f"{self.settings.pairs:,} pairs by {name}, from {len(self.images):,} images of {self.source}",
            "teacher": self._told_teacher(),
            "intended_use": INTENDED_USE,
            "limits": LIMITS,
        }

    def finish(self) -> JSON:
        """The card of the best model, with the time of the whole training."""
        path = self.out / "model.safetensors"
        if not self.main:
            return {}
        best = load_model(path)
        assert isinstance(best.network, Student)
        card = best.card
        if "total_minutes" not in card:
            card = save_model(path, best.network, {**card, "total_minutes": round(self.minutes, 2)})
        self.report(f"done: {path}")
        return card
