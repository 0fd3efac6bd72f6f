"""Training of an energy: what a run in a folder (`pureebm.training.run`) trains, validates and leaves behind.

Beside what every run holds: `diagnostics/` with pictures, and `model.safetensors` with its card: the averaged weights
that purified a held-out set best so far.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pureebm.energy.weights import load_model, save_model
from pureebm.sampling.langevin import LangevinConfig
from pureebm.training.diagnostics import draw_curves, draw_diagnostics
from pureebm.training.run import Run
from pureebm.training.runtime import Runtime
from pureebm.training.settings import EnergySettings
from pureebm.training.stepper import Phase, known
from pureebm.training.trainer import Network, Trainer
from pureebm.training.validation import validate
from pureebm.training.workers import Workers
from pureebm.types import JSON


def train_energy(
    source: Path, out: Path, settings: EnergySettings, *, holdout: Path | None = None, runtime: Runtime | None = None
) -> JSON:
    """Train an energy on a set of images, or go on with it.

    Args:
        source: anything `open_source` recognizes.
        out: the run's folder; one that exists is continued.
        settings: what to train and how.
        holdout: images for validation; without it the last 256 of `source` (at most a fifth) are held out.
        runtime: device, reports and such.

    Returns:
        The card of the best model (`out / "model.json"`).

    Raises:
        MismatchError: `out` holds a run with other settings or images.
        DivergedError: training diverged after three rollbacks.
        Interrupted: `runtime.stop` asked for it; a checkpoint was written.
    """
    runtime = runtime or Runtime(workers=Workers())
    return _Run(source, out, settings.resolved(), holdout, runtime).go()


class _Run(Run):
    trainer: Trainer

    def __init__(
        self, source: Path, out: Path, settings: EnergySettings, holdout: Path | None, runtime: Runtime
    ) -> None:
        self.settings = settings
        self.sampler = LangevinConfig(
            n_steps=int(known(settings.sample_steps)),
            step_size=known(settings.sample_step_size),
            temperature=known(settings.sample_temperature),
        )
        super().__init__(source, out, settings, holdout, runtime)

    def make_trainer(self) -> Trainer:
        return Trainer(self.settings, self.images, self.workers)

    def phases(self) -> list[tuple[str, int, float | None, float]]:
        settings = self.settings
        main = (settings.objective, settings.steps, settings.minutes, known(settings.lr))
        if not settings.has_warm_start:
            return [main]
        return [("warm", settings.warm_steps, settings.warm_minutes, settings.warm_lr), main]

    def validate(self, phase: Phase) -> None:
        """Purify the held-out set with the averaged weights; keep them if none were better."""
        result = validate(self.trainer.average, self.held, self.sampler, seed=self.settings.seed)
        better = self.improves(result["figure"])
        if self.log is None:
            return
        survival = {f"survival_{name}": kind["survival"] for name, kind in result["perturbations"].items()}
        flat = {"figure": result["figure"], "clean_psnr": result["clean_psnr"], **survival, "validation": result}
        self.log.write(self.trainer.step, flat)
        draw_curves(self.log.path, self.out / "diagnostics")
        shares = " ".join(f"{name} {kind['survival']:.2f}" for name, kind in result["perturbations"].items())
        mark = " (best)" if better else ""
        self.report(
            f"{phase.name} step {self.trainer.step:,}: clean {result['clean_psnr']:.2f} dB, survival {shares},"
            f" figure {result['figure']:.5f}{mark}"
        )
        if better:
            save_model(self.out / "model.safetensors", self.trainer.average, self._card(phase, result))

    def _card(self, phase: Phase, validation: JSON) -> JSON:
        return {
            "description": f"{self.settings.model} energy for images of {self.settings.size} px",
            "objective": self.settings.objective,
            **self.card_of_run(phase, validation),
            "sampler": asdict(self.sampler),
        }

    def finish(self) -> JSON:
        """Pictures and the final card of the best model; the last weights beside it."""
        path = self.out / "model.safetensors"
        if not self.main:
            return {}
        best = load_model(path, self.workers.device)
        assert isinstance(best.energy, Network)
        card = best.card
        if "auto_steps" not in card:
            save_model(self.out / "last.safetensors", self.trainer.average, {**card, "step": self.trainer.step})
            assert self.log is not None
            auto = draw_diagnostics(
                best.energy,
                self.held,
                self.sampler,
                self.out / "diagnostics",
                log=self.log.path,
                seed=self.settings.seed,
            )
            card["auto_steps"], card["auto_sampler"] = auto, card["sampler"]
            card["curves"] = _curves(self.log.path)
            card["total_minutes"] = round(self.minutes, 2)
            save_model(path, best.energy, card)
        self.report(f"done: {path}")
        return card


def _curves(path: Path) -> JSON:
    from pureebm.training.diagnostics import curves

    return {name: [[step, round(value, 6)] for step, value in points] for name, points in curves(path, 100).items()}
