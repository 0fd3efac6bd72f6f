"""A long training as a folder: its plan, the loop, checkpoints, rollbacks and the log; what is trained is a subclass's.

A run holds `run.json` (settings and plan), `checkpoints/`, `scalars.jsonl` and what its kind leaves behind. Repeating
the same call goes on from the newest checkpoint and, on one CPU, gives the bits of an uninterrupted run: everything
drawn comes from one generator whose state is stored.
"""

from __future__ import annotations

import json
import math
import platform
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from pureebm.data.ranges import to_pm1
from pureebm.errors import DivergedError, InputError, Interrupted, MismatchError
from pureebm.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint, write_atomically
from pureebm.training.images import load_images
from pureebm.training.runtime import Runtime
from pureebm.training.scalars import ScalarLog
from pureebm.training.settings import Settings
from pureebm.training.stepper import Phase, Stepper
from pureebm.training.watchdog import check_parameters
from pureebm.types import JSON

MAX_ATTEMPTS = 3
_LOG_EVERY = 20
_HELD_OUT = 256
_MEASURED_SECONDS = 10.0


class Run(ABC):
    """One training in a folder.

    Args:
        source: anything `open_source` recognizes.
        out: the run's folder; one that exists is continued.
        settings: resolved.
        holdout: images for validation; without it the last 256 of `source` (at most a fifth) are held out.
        runtime: device, reports and such.
    """

    def __init__(
        self,
        source: Path,
        out: Path,
        settings: Settings,
        holdout: Path | None,
        runtime: Runtime,
    ) -> None:
        self.source, self.out, self.runtime = source, out, runtime
        self._common = settings
        self.workers, self.report = runtime.workers, runtime.report
        self.main = self.workers.rank == 0
        out.mkdir(parents=True, exist_ok=True)
        if runtime.overwrite and self.main:
            _clear(out)
        cache = out / "images.npy" if self.main else None
        images, self.data = load_images(source, settings.size, cache=cache, report=self.report)
        if holdout is None:
            n = min(_HELD_OUT, len(images) // 5)
            images, held = images[: len(images) - n], images[len(images) - n :]
            self.held_data: JSON = {"images": n, "of": "the end of the training source, left out of training"}
        else:
            held, self.held_data = load_images(holdout, settings.size)
        if not len(held):
            raise InputError(
                f"{source}: {len(images)} images are too few to hold some out; give at least 5, or --holdout"
            )
        chosen = to_pm1(torch.from_numpy(held[: settings.validation_images]).permute(0, 3, 1, 2))
        self.held = chosen.to(self.workers.device)
        self.images = images
        self.trainer = self.make_trainer()
        self.best = math.inf
        self.minutes = 0.0
        self.fresh = True  # a checkpoint was written since the last rollback
        self.plan = self._plan()
        self.log: ScalarLog | None = None

    @abstractmethod
    def make_trainer(self) -> Stepper:
        """What makes the steps, at step 0."""

    @abstractmethod
    def phases(self) -> list[tuple[str, int, float | None, float]]:
        """Name, steps, minutes in place of steps, and learning rate of each phase."""

    @abstractmethod
    def validate(self, phase: Phase) -> None:
        """Measure the averaged weights on `held`, and keep them if none were better (`best`)."""

    def improves(self, figure: float) -> bool:
        """Whether a validation's figure is below all before (a NaN is not); it is the `best` from then on."""
        better = figure < self.best
        self.best = figure if better else self.best
        return better

    @abstractmethod
    def finish(self) -> JSON:
        """The card of the best model."""

    def go(self) -> JSON:
        self._resume()
        self.log = ScalarLog(self.out, self.trainer.step) if self.main else None
        self.since = self.saved = time.monotonic()
        try:
            while self.trainer.step < self.plan[-1].stop:
                self._one_step()
            card = self.finish()
            self.workers.close()
            return card
        finally:
            if self.log is not None:
                self.log.close()

    def _one_step(self) -> None:
        trainer = self.trainer
        phase = next(phase for phase in self.plan if trainer.step < phase.stop)
        if trainer.step == phase.start:
            trainer.enter(phase)
            self.best = math.inf  # a model of the objective replaces any of the warm start
        problem = trainer.advance(phase)
        if problem:
            self._roll_back(problem)
            return
        if trainer.step % _LOG_EVERY == 0 or trainer.step == phase.stop:
            self._write_log(phase)
        if trainer.step % self._validate_every() == 0 or trainer.step == phase.stop:
            self.validate(phase)
        stop = self.workers.any(self.runtime.stop())
        due = time.monotonic() - self.saved > self.runtime.checkpoint_minutes * 60
        if stop or trainer.step == self.plan[-1].stop or self.workers.any(due):
            self._save()
        if stop and trainer.step < self.plan[-1].stop:
            raise Interrupted(f"stopped at step {trainer.step:,}; repeat the same command to go on")

    def _validate_every(self) -> int:
        return self._common.validate_every or max(self.plan[-1].stop // 10, 1)

    def _plan(self) -> list[Phase]:
        """The stored plan of this run, or a new one: phases in steps, once and for all."""
        path = self.out / "run.json"
        stored = json.loads(path.read_text("utf-8")) if path.exists() else None
        wanted = json.loads(
            json.dumps({"settings": asdict(self._common), "data": self.data, "held_out": self.held_data})
        )
        if stored is not None:
            _refuse_differences(stored, wanted, self.out)
            return [Phase(**phase) for phase in stored["plan"]]
        plan: list[Phase] = []
        start = 0
        for name, steps, minutes, lr in self.phases():
            n = steps if minutes is None else max(1, round(minutes * 60 / self._seconds_per_step(name)))
            plan.append(Phase(name, start, start + int(self.workers.largest(n)), lr))
            start = plan[-1].stop
        if plan[-1].stop == plan[-1].start:
            raise InputError("nothing to train: give --steps or --minutes")
        if self.main:
            record = {**wanted, "plan": [asdict(phase) for phase in plan], "command": self.runtime.command}
            write_atomically(path, json.dumps(record, indent=2).encode())
        self.report("plan: " + ", ".join(f"{phase.name} {phase.stop - phase.start:,} steps" for phase in plan))
        return plan

    def _seconds_per_step(self, name: str) -> float:
        """Measured on a trainer that is thrown away: two steps, then as many as fit into ten seconds."""
        trainer, phase = self.make_trainer(), Phase(name, 0, 10**9, 1e-6)
        trainer.advance(phase)
        trainer.advance(phase)
        start = time.monotonic()
        while time.monotonic() - start < _MEASURED_SECONDS:
            trainer.advance(phase)
            if trainer.step >= 52:
                break
        return (time.monotonic() - start) / max(trainer.step - 2, 1)

    def _resume(self) -> None:
        folder, rank = self.out / "checkpoints", self.workers.rank
        found = checkpoints(folder, rank=rank)
        newest = int(found[-1].name[5:14]) if found else -1
        step = int(-self.workers.largest(-newest))  # what every process has
        if step < 0:
            self._save()
            return
        for path in found:
            if int(path.name[5:14]) == step:
                self._load(path)
        self.report(f"going on from step {self.trainer.step:,} of {self.plan[-1].stop:,}")

    def _save(self) -> None:
        problem = check_parameters([*self.trainer.parameters, *self.trainer.averaged])
        if problem and self.trainer.step:
            self._roll_back(problem)
            return
        now = time.monotonic()
        self.minutes += (now - getattr(self, "since", now)) / 60
        self.since = self.saved = now
        best = None if math.isinf(self.best) else self.best
        state = {**self.trainer.state(), "best": best, "minutes": self.minutes}
        save_checkpoint(
            self.out / "checkpoints", self.trainer.step, self.trainer.tensors(), state, rank=self.workers.rank
        )
        self.fresh = True

    def _load(self, path: Path) -> JSON:
        tensors, state = load_checkpoint(path)
        self.trainer.restore(tensors, state)
        self.best = math.inf if state["best"] is None else state["best"]
        self.minutes = state["minutes"]
        return state

    def _roll_back(self, problem: str) -> None:
        """Go back to the newest checkpoint (or the one before, if that was tried): half the rate, other noise."""
        attempts, at = self.trainer.attempts + 1, self.trainer.step
        if attempts > MAX_ATTEMPTS:
            raise DivergedError(
                f"training diverged at step {at:,}: {problem}. It was rolled back {MAX_ATTEMPTS} times before, each"
                f" time with half the learning rate. Try a smaller --lr, or look at {self.out / 'diagnostics'}"
            )
        found = checkpoints(self.out / "checkpoints", rank=self.workers.rank)
        if not self.fresh and len(found) > 1:
            found.pop().unlink()
        best = self.best
        self._load(found[-1])
        self.best = min(best, self.best)
        self.trainer.attempts = attempts
        self.trainer.generator.manual_seed((self._common.seed * 1009 + self.workers.rank) * 31 + attempts)
        if self.log is not None:
            self.log.rewind(self.trainer.step)
        self._save()
        self.fresh = False
        self.report(
            f"diverged at step {at:,}: {problem}; back to step {self.trainer.step:,}"
            f" with {0.5**attempts:g} of the learning rate (attempt {attempts} of {MAX_ATTEMPTS})"
        )

    def _write_log(self, phase: Phase) -> None:
        losses, norms, gaps = zip(*self.trainer.pending, strict=True)
        self.trainer.pending = []
        values: JSON = {"phase": phase.name, "loss": _mean(losses), "gradient_norm": _mean(norms)}
        if phase.name == "mle":
            values["energy_gap"] = _mean(gaps)
        values["lr"] = phase.rate(self.trainer.step - 1, self._common) * 0.5**self.trainer.attempts
        minutes = self.minutes + (time.monotonic() - self.since) / 60
        if self.log is not None:
            self.log.write(self.trainer.step, {**values, "minutes": round(minutes, 3)})
        if self.trainer.step % (5 * _LOG_EVERY) == 0:
            done, total = self.trainer.step, self.plan[-1].stop
            self.report(f"{phase.name} step {done:,}/{total:,}  loss {values['loss']:.4g}  {minutes:.1f} min")

    def card_of_run(self, phase: Phase, validation: JSON) -> JSON:
        """What the card of any model says of its training."""
        minutes = self.minutes + (time.monotonic() - self.since) / 60
        return {
            "data": f"{len(self.images):,} images of {self.source}",
            "training_data": {"source": str(self.source), "trained_on": len(self.images), **self.data},
            "held_out": self.held_data,
            "settings": json.loads(json.dumps(asdict(self._common))),
            "plan": [asdict(phase) for phase in self.plan],
            "step": self.trainer.step,
            "phase": phase.name,
            "minutes": round(minutes, 2),
            "attempts": self.trainer.attempts,
            "command": self.runtime.command,
            "versions": _versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "validation": validation,
        }


def _refuse_differences(stored: JSON, wanted: JSON, out: Path) -> None:
    for part, values in wanted.items():
        old = stored[part]
        names = [name for name in sorted({*old, *values}) if old.get(name) != values.get(name)]
        if names:
            told = "; ".join(f"{part}.{name} was {old.get(name)!r}, now {values.get(name)!r}" for name in names)
            raise MismatchError(f"{out} holds another run ({told}); choose another --out, or --overwrite it")


def _clear(out: Path) -> None:
    for path in (out / "run.json", out / "model.safetensors", out / "model.json", out / "scalars.jsonl"):
        path.unlink(missing_ok=True)
    for path in (out / "checkpoints").glob("step-*"):
        path.unlink()


def _versions() -> JSON:
    from importlib.metadata import version

    return {"pureebm": version("pureebm"), "torch": str(torch.__version__), "python": platform.python_version()}


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
