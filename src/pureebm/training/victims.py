"""A victim's training as a run in a folder: from a labeled source on disk to weights with a card.

The folder holds `run.json` (what is trained, on what), `checkpoints/` while it goes on, and at its end
`model.safetensors` with its card `model.json`. Repeating the same call goes on from the newest checkpoint and, on one
CPU, gives the weights of an uninterrupted run. It knows no attack and no defense.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from pureebm.classifiers.base import Classifier
from pureebm.classifiers.networks import build_network, check_network_name, replace_head
from pureebm.classifiers.weights import load_classifier, load_extractor, save_classifier
from pureebm.data.labels import read_labeled_source
from pureebm.errors import InputError, Interrupted, MismatchError
from pureebm.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint, write_atomically
from pureebm.training.classifier import ClassifierTraining, predict, settle_precision
from pureebm.training.recipes import NETWORK_OF, find_recipe
from pureebm.training.runtime import Runtime
from pureebm.training.workers import Workers
from pureebm.types import JSON

_REPORT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VictimSettings:
    """What is trained, and how. Everything here may change the weights."""

    network: str | None = None
    """A name of `NETWORKS`, or `timm:NAME`. None: that of the extractor, else the recipe's."""
    recipe: str = "fast"
    epochs: int | None = None
    """Instead of the recipe's."""
    extractor: Path | None = None
    """A trained classifier whose weights are begun with, under a fresh head where the recipe or the classes ask for it.

    One of ours (`.safetensors` with a card), or a published checkpoint of `network`."""
    size: int | None = None
    """Side to which images are cut and averaged down. None: they are of one size already."""
    seed: int = 0
    precision: str = "auto"


def train_victim(
    source: Path,
    out: Path,
    settings: VictimSettings,
    *,
    test: Path | None = None,
    runtime: Runtime | None = None,
) -> JSON:
    """Train a classifier on a labeled source, or go on with it.

    Args:
        source: anything `read_labeled_source` reads.
        out: the run's folder; one that exists is continued, a finished one is only tested.
        settings: what to train, and how.
        test: a labeled source on which its accuracy is measured.
        runtime: device, reports and such.

    Returns:
        The card of the model (`out / "model.json"`).

    Raises:
        InputError: the source, or a setting, does not fit.
        MismatchError: `out` holds a run with other settings or images.
        Interrupted: `runtime.stop` asked for it; a checkpoint was written.
        DivergedError: the loss is no longer finite.
    """
    return _Run(source, out, settings, test, runtime or Runtime(workers=Workers())).go()


class _Run:
    def __init__(self, source: Path, out: Path, settings: VictimSettings, test: Path | None, runtime: Runtime) -> None:
        self.source, self.out, self.settings, self.runtime = source, out, settings, runtime
        self.workers = runtime.workers
        self.main = self.workers.rank == 0
        self.config = find_recipe(settings.recipe, epochs=settings.epochs)
        self.precision = settle_precision(settings.precision, self.workers.device)
        _check_names(settings)
        self.images, self.labels, self.class_names, _ = read_labeled_source(source, size=settings.size)
        self.n_classes = len(self.class_names or ()) or int(self.labels.max()) + 1
        if self.n_classes < 2:
            raise InputError(f"{source}: all images are of one class; name the folder that holds the class folders")
        self.size = self.images.shape[1]
        self.test = read_labeled_source(test, size=settings.size) if test else None
        self._check_test(test)
        self.name, self.network = self._network()
        if runtime.overwrite and self.main:
            _clear(out)
        out.mkdir(parents=True, exist_ok=True)
        self.workers.any(False)  # none goes on before the old run is cleared

    def go(self) -> JSON:
        self._claim()
        if (self.out / "model.json").exists():
            return self._finished()
        self.seconds, self.since = 0.0, time.monotonic()
        self.training = ClassifierTraining(
            self.network, self.images, self.labels, self.config, seed=self.settings.seed, workers=self.workers,
            precision=self.precision,
        )  # fmt: skip
        self._resume()
        loss = self._train()
        card = self._finish(loss)
        self.workers.close()
        return card

    def _train(self) -> float | None:
        training, config = self.training, self.config
        loss, told, saved = None, time.monotonic(), time.monotonic()
        while training.epoch < config.epochs:
            ended = training.advance()
            now = time.monotonic()
            if ended is not None:
                loss, told = ended, now
                self.runtime.report(
                    f"epoch {training.epoch} of {config.epochs}: loss {loss:.4f}, {self._spent():.0f} s"
                )
            elif now - told > _REPORT_SECONDS:
                told = now
                self.runtime.report(f"epoch {training.epoch + 1} of {config.epochs}: update {training.batch:,}")
            stop, due = self.runtime.stop(), now - saved > self.runtime.checkpoint_minutes * 60
            if self.workers.any(stop or due) and training.epoch < config.epochs:
                saved = time.monotonic()
                self._save()
                if self.workers.any(stop):
                    raise Interrupted(f"stopped in epoch {training.epoch + 1}; repeat the same command to go on")
        return loss

    def _network(self) -> tuple[str, Classifier]:
        """The network and its name: the extractor with a head of as many classes, or a fresh one."""
        settings = self.settings
        if settings.extractor is None:
            name = settings.network or NETWORK_OF.get(settings.recipe, "resnet18")
            return name, build_network(name, self.n_classes, size=self.size, seed=settings.seed)
        name, network = load_extractor(settings.extractor, network=settings.network, size=self.size)
        if network.head.out_features != self.n_classes:
            replace_head(network, self.n_classes, seed=settings.seed)
        return name, network

    def _check_test(self, path: Path | None) -> None:
        if self.test is None:
            return
        images, labels, names, _ = self.test
        if images.shape[1:] != self.images.shape[1:]:
            raise InputError(
                f"{path}: images of {tuple(images.shape[1:3])}, those of training have {tuple(self.images.shape[1:3])}"
            )
        if names and self.class_names and names != self.class_names:
            raise InputError(f"{path}: its classes {names[:5]}.. are not those of training, {self.class_names[:5]}..")
        if int(labels.max()) >= self.n_classes:
            raise InputError(f"{path}: label {int(labels.max())} is outside the training set's 0..{self.n_classes - 1}")

    def _claim(self) -> None:
        """Write down what this run is, or refuse to go on with another one."""
        digest = hashlib.sha256(self.images.numpy().data)
        digest.update(self.labels.numpy().data)
        wanted: JSON = {
            "network": self.name,
            "recipe": self.settings.recipe,
            "config": asdict(self.config),
            "seed": self.settings.seed,
            "precision": self.precision,
            "extractor": _file_sha256(self.settings.extractor),
            "data": {"images": len(self.images), "sha256": digest.hexdigest()},
            "processes": self.workers.count,
        }
        wanted = json.loads(json.dumps(wanted))
        path = self.out / "run.json"
        if path.exists():
            _refuse_differences(json.loads(path.read_text("utf-8")), wanted, self.out)
        elif self.main:
            write_atomically(path, json.dumps(wanted, indent=2).encode())
        self.claim = wanted

    def _resume(self) -> None:
        folder, rank = self.out / "checkpoints", self.workers.rank
        found = {int(path.name[5:14]): path for path in checkpoints(folder, rank=rank)}
        step = int(-self.workers.largest(-max(found, default=-1)))  # what every process has
        if step < 0:
            return
        tensors, state = load_checkpoint(found[step])
        self.training.restore(tensors)
        self.seconds = float(state["seconds"])
        self.runtime.report(f"going on in epoch {self.training.epoch + 1} of {self.config.epochs}")

    def _save(self) -> None:
        n_batches = max(len(self.images) // self.config.batch_size + 1, 1)
        step = self.training.epoch * n_batches + self.training.batch
        folder, rank = self.out / "checkpoints", self.workers.rank
        save_checkpoint(folder, step, self.training.tensors(), {"seconds": self._spent()}, rank=rank)

    def _spent(self) -> float:
        return self.seconds + time.monotonic() - self.since

    def _finish(self, loss: float | None) -> JSON:
        seconds = self._spent()
        network = self.network.eval()
        card: JSON = {
            **self.claim,
            "epochs": self.config.epochs,
            "n_classes": self.n_classes,
            "class_names": self.class_names,
            "size": self.size,
            "train_loss": loss,
            "test_accuracy": self._accuracy(network),
            "test_images": None if self.test is None else len(self.test[1]),
            "seconds": round(seconds, 2),
            "device": str(self.workers.device),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
            "command": self.runtime.command,
        }
        if self.main:
            card = save_classifier(self.out / "model.safetensors", network, card)
            self._tell(card)
            for path in (self.out / "checkpoints").glob("step-*"):
                path.unlink()
        return card

    def _finished(self) -> JSON:
        """The card of a run that has ended; measured anew where a test set is given."""
        network, card = load_classifier(self.out / "model.safetensors")
        self.runtime.report(f"{self.out} holds this classifier already; nothing is trained")
        if self.test is not None:
            accuracy = self._accuracy(network.to(self.workers.device))
            card = {**card, "test_accuracy": accuracy, "test_images": len(self.test[1])}
            if self.main:
                write_atomically(self.out / "model.json", (json.dumps(card, indent=1) + "\n").encode())
            self._tell(card)
        return card

    def _accuracy(self, network: Classifier) -> float | None:
        if self.test is None:
            return None
        images, labels = self.test[:2]
        right: Tensor = predict(network, images, device=str(self.workers.device)) == labels
        return float(right.double().mean())

    def _tell(self, card: JSON) -> None:
        accuracy = card["test_accuracy"]
        told = "" if accuracy is None else f", {100 * accuracy:.2f} % right of {card['test_images']:,} test images"
        self.runtime.report(f"{self.name}: {card['epochs']} epochs in {card['seconds']:.0f} s{told}")


def _check_names(settings: VictimSettings) -> None:
    """What can be refused before any image is read."""
    if settings.network is not None:
        check_network_name(settings.network)
    if settings.extractor is None and find_recipe(settings.recipe).fresh_head:
        raise InputError(f"the recipe {settings.recipe!r} goes on from a trained network; name it by --extractor FILE")


def _refuse_differences(stored: JSON, wanted: JSON, out: Path) -> None:
    told = "; ".join(
        f"{key} was {stored.get(key)!r}, now {wanted[key]!r}" for key in wanted if stored.get(key) != wanted[key]
    )
    if told:
        raise MismatchError(f"{out} holds another run ({told}); choose another --out, or --overwrite it")


def _clear(out: Path) -> None:
    names = ("run.json", "model.safetensors", "model.json")
    for path in [*(out / name for name in names), *(out / "checkpoints").glob("step-*")]:
        path.unlink(missing_ok=True)


def _file_sha256(path: Path | None) -> str | None:
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()


def _versions() -> JSON:
    from importlib.metadata import version

    return {"pureebm": version("pureebm"), "torch": str(torch.__version__), "python": platform.python_version()}
