"""Which images of a set have the highest energies: a first pass of a job over all of them, kept in its workplace.

One process makes it, the others of the same job wait for it; once it is there it is never made again, so that shards,
workers and resumed runs choose the same images.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pureebm.data.base import Source
from pureebm.errors import Interrupted
from pureebm.purify.batches import score_items
from pureebm.purify.manifest import write_durably
from pureebm.purify.stages import Highest
from pureebm.purify.workplace import Workplace
from pureebm.types import JSON

_NAME = "ranking.npz"
_WAIT = 0.2  # seconds between looks at what another process does


@dataclass(frozen=True, slots=True)
class Ranking:
    """energies: (N,) float32 by the item's index, NaN where there is none. seconds: what the pass took."""

    energies: NDArray[np.float32]
    seconds: float

    def kept(self, share: float) -> dict[int, float]:
        """The items that are not purified, with their energies: all but the `share` of highest energy.

        Of equal ones the earlier is purified. Items without energy are not among them: purifying says what is wrong.
        """
        ranked = np.argsort(-self.energies, kind="stable")[: int(np.isfinite(self.energies).sum())]  # NaN sorts last
        n_chosen = int(np.floor(share * len(ranked) + 0.5))
        return {int(index): float(self.energies[index]) for index in ranked[n_chosen:]}


def read_ranking(place: Workplace) -> Ranking:
    """The ranking that a job has made."""
    with np.load(place.folder / _NAME, allow_pickle=False) as stored:
        return Ranking(stored["energies"], float(stored["seconds"]))


def settle_ranking(
    source: Source, stage: Highest, settings: JSON, place: Workplace, stop: threading.Event | None
) -> None:
    """Make the ranking, or wait until another process has made it.

    Args:
        settings: the job's plan.

    Raises:
        InputError: the purifier that ranks has no energy.
        Interrupted: `stop` was set; the pass is made anew by the same command.
    """
    while not (place.folder / _NAME).is_file():
        _check(stop, "another process ranks the images")
        try:
            with place.ranking():
                if not (place.folder / _NAME).is_file():
                    _make(source, stage, settings, place, stop)
        except BlockingIOError:
            time.sleep(_WAIT)


def _make(source: Source, stage: Highest, settings: JSON, place: Workplace, stop: threading.Event | None) -> None:
    began, total, step = time.perf_counter(), int(settings["images"]), int(settings["chunk_items"])
    energies = np.full(total, np.nan, np.float32)
    for start in range(0, total, step):
        _check(stop, f"{start} of {total} images were ranked")
        items = source.load(start, min(start + step, total))
        for outcome in score_items(items, stage.by, batch_size=settings["batch_size"]):
            if not outcome.message and outcome.energy_before is not None:
                energies[outcome.loaded.item.index] = outcome.energy_before
    seconds = time.perf_counter() - began
    write_durably(place.folder / _NAME, lambda file: np.savez(file, energies=energies, seconds=np.array(seconds)))


def _check(stop: threading.Event | None, where: str) -> None:
    if stop is not None and stop.is_set():
        raise Interrupted(f"interrupted before purifying: {where}; repeat the same command to go on")
