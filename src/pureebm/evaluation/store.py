"""What takes long and is kept: purified images, poisons and trained networks, in files named by a hash of their making.

A file is written whole or not at all, so a killed run leaves nothing that a later one would believe. The folder may be
deleted at any time; it costs the time to make it all again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pureebm.attacks.base import LabeledSet, Poisoned
from pureebm.attacks.storage import describe_goal, goal_of
from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.errors import InputError
from pureebm.evaluation.arrays import load_arrays, save_arrays
from pureebm.evaluation.cost import Cost, measured
from pureebm.evaluation.defenses import Defense
from pureebm.evaluation.scenarios import digest
from pureebm.purify.ranking import Ranking
from pureebm.purify.stages import Chain, Highest, LangevinStage
from pureebm.types import JSON, Stage

log = logging.getLogger(__name__)

CHUNK = 500
"""Purified images are stored in files of this many, so that a killed run loses little."""

BATCH = 100


def set_hash(data: LabeledSet) -> str:
    """sha256 of pixels, labels and the number of classes."""
    found = hashlib.sha256(f"{tuple(data.images.shape)} {data.n_classes}".encode())
    found.update(data.images.contiguous().numpy().tobytes())
    found.update(data.labels.contiguous().numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """The folder of kept things; `device` is where their making is measured."""

    folder: Path
    device: str = "cpu"

    def purified(self, defense: Defense, images: Tensor, ids: Sequence[str]) -> tuple[Tensor, Cost]:
        """(N, H, W, 3) uint8 as the defense's stage leaves them, and what it cost when it was done.

        An image has the noise of its id: a poison and its original walk alike. The shape of a batch is fixed.
        """
        stage, cost = defense.stage, Cost()
        if stage is None or not len(images):
            return images, cost
        if isinstance(stage, LangevinStage | Chain | Highest):
            stage.prepare(_batch(images[:BATCH]))
        if isinstance(stage, Highest):  # which ones these are is seen when the whole set is there: `highest`
            stage = stage.stage
        done = []
        for start in range(0, len(images), CHUNK):
            chunk, names = images[start : start + CHUNK], list(ids[start : start + CHUNK])
            pixels = hashlib.sha256(chunk.contiguous().numpy().tobytes()).hexdigest()
            made_of = {**stage.settings(), "seed": defense.seed, "ids": names, "pixels": pixels}
            path = self.folder / "purified" / f"{digest(made_of)[:24]}.npz"
            if not path.is_file():
                with measured(self.device) as spent:
                    purified = _purify(stage, chunk, names, defense.seed)
                save_arrays(path, images=purified, seconds=torch.tensor(spent.seconds), mb=torch.tensor(spent.peak_mb))
                log.info("%s: %d of %d images", defense.name, start + len(chunk), len(images))
            arrays = load_arrays(path)
            done.append(arrays["images"])
            cost.seconds += arrays["seconds"].item()
            cost.peak_mb = max(cost.peak_mb, arrays["mb"].item() if "mb" in arrays else 0.0)
        return torch.cat(done), cost

    def highest(self, stage: Highest, given: Tensor, purified: Tensor) -> tuple[Tensor, Cost]:
        """The purified images in place of the given ones of highest energy, and what ranking all of these cost.

        Both (N, H, W, 3) uint8. Raises `InputError` if what ranks has no energy.
        """
        energies = []
        with measured(self.device) as cost:
            for start in range(0, len(given), BATCH):
                found = stage.energies(_batch(given[start : start + BATCH]))
                if found is None:
                    raise InputError("the images of highest energy need an energy model: name one by model=FILE")
                energies.append(found)
        kept = list(Ranking(torch.cat(energies).numpy(), cost.seconds).kept(stage.share))
        images = purified.clone()
        images[kept] = given[kept]
        return images, cost

    def poisoned(self, made_of: JSON, make: Callable[[], Poisoned]) -> Poisoned:
        """The poisons of these settings, crafted once."""
        path = self.folder / "poisons" / f"{digest(made_of)[:24]}.npz"
        if not path.is_file():
            made = make()
            aim, arrays = describe_goal(made.goal)
            text = json.dumps({"goal": aim, "record": made.record}, default=str)
            arrays |= {"rows": made.rows, "images": made.images, "labels": made.labels}
            save_arrays(path, **arrays, text=torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
        arrays = load_arrays(path)
        told = json.loads(arrays["text"].numpy().tobytes())
        goal = goal_of(told["goal"], arrays)
        return Poisoned(arrays["rows"], arrays["images"], arrays["labels"], goal, told["record"])

    def network(self, made_of: JSON, empty: nn.Module, train: Callable[[], nn.Module]) -> tuple[nn.Module, Cost]:
        """`empty` with the weights that `train` gave for these settings, in eval mode, and what training cost."""
        path = self.folder / "networks" / f"{digest(made_of)[:24]}.npz"
        if not path.is_file():
            with measured(self.device) as spent:
                trained = train()
            costs = {"cost/seconds": torch.tensor(spent.seconds), "cost/mb": torch.tensor(spent.peak_mb)}
            save_arrays(path, **trained.state_dict(), **costs)
        arrays = load_arrays(path)
        cost = Cost(arrays.pop("cost/seconds").item(), arrays.pop("cost/mb").item())
        empty.load_state_dict(arrays)
        return empty.eval(), cost


def _batch(images: Tensor) -> Tensor:
    """uint8 NHWC -> float NCHW in [-1, 1]."""
    return to_pm1(images).permute(0, 3, 1, 2).contiguous()


def _purify(stage: Stage, pixels: Tensor, ids: list[str], seed: int) -> Tensor:
    batches = [
        stage.purify_batch(_batch(pixels[start : start + BATCH]), ids[start : start + BATCH], seed=seed)
        for start in range(0, len(pixels), BATCH)
    ]
    purified = torch.cat(batches)
    if not purified.isfinite().all():
        raise InputError(f"the purifier {stage.settings()} returned values that are not finite")
    return to_uint8(purified).permute(0, 2, 3, 1).contiguous()
