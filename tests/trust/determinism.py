"""The determinism matrix: `python -m tests.trust.determinism` purifies the same pictures in many ways and compares.

With the bundled model on bundled pictures. What is promised (order, neighbors, shards, workers, resuming, repeating)
must change no byte; what is not promised (another batch size, engine, precision, number of threads) is measured: how
many of the stored values change, and by how much at most. The rows go to `results/trust/determinism.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tests.purify.job_fakes import tree
from tests.trust.faults import ROOT, card_path, told_command

from pureebm.data.base import Loaded
from pureebm.data.npz import NpzSource
from pureebm.energy.weights import DEFAULT_MODEL, load_model
from pureebm.errors import Interrupted
from pureebm.integrations.ray import RayCrew
from pureebm.purify import batches
from pureebm.purify.batches import Work, purify_items
from pureebm.purify.crew import Crew
from pureebm.purify.job import JobConfig, run
from pureebm.purify.processes import Processes
from pureebm.purify.stages import LangevinStage
from pureebm.sampling.langevin import LangevinConfig
from pureebm.types import JSON

BATCH, SEED = 16, 0
Results = dict[str, np.ndarray]
"""Id -> stored pixels (H, W, 3)."""


def stage(**options: str) -> LangevinStage:
    loaded = load_model(DEFAULT_MODEL)
    config = LangevinConfig(**loaded.card["sampler"])
    return LangevinStage(loaded.energy, config, **({"precision": "float32"} | options), model=loaded.describe())  # type: ignore[arg-type]


def purify(items: Sequence[Loaded], *, batch: int = BATCH, **options: str) -> Results:
    outcomes = purify_items(items, stage(**options), seed=SEED, batch_size=batch, work=Work(), on_batch=lambda n: None)
    return {one.loaded.item.id: one.pixels for one in outcomes if one.pixels is not None}


def with_threads(items: Sequence[Loaded], threads: int) -> Results:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return purify(items)
    finally:
        torch.set_num_threads(before)


def row(what: str, promised: bool, base: Results, other: Results) -> JSON:
    """The comparison of the images that both have."""
    change = [np.abs(base[name].astype(int) - other[name].astype(int)) for name in other]
    return {
        "what": what,
        "promised": promised,
        "images": len(change),
        "values": int(sum(one.size for one in change)),
        "changed_images": sum(bool(one.any()) for one in change),
        "changed_values": int(sum((one > 0).sum() for one in change)),
        "largest_change": int(max(one.max() for one in change)),
    }


def matrix(n: int) -> list[JSON]:
    """All rows on `n` pictures."""
    source = NpzSource(ROOT / "src" / "pureebm" / "data" / "demo" / "cifar10-sample.npz")
    items = source.load(0, n)
    base = purify(items)
    shuffled = random.Random(1).sample(items, len(items))
    few = items[:8]
    same: dict[str, Callable[[], Results]] = {
        "repeated": lambda: purify(items),
        "in another order": lambda: purify(shuffled),
        "without two of three neighbors": lambda: purify(items[::3]),
        "each alone": lambda: {name: out for item in few for name, out in purify([item]).items()},
        "in another thread": lambda: in_thread(lambda: purify(items)),
    }
    measured: dict[str, Callable[[], Results]] = {
        f"batches of {size} instead of {BATCH}": lambda size=size: purify(items, batch=size)  # type: ignore[misc]
        for size in (1, 2, 8, 32, 64)
    }
    measured |= {
        "autograd instead of the exact engine": lambda: purify(items, engine="eager"),
        "bfloat16 instead of float32": lambda: purify(items, precision="bfloat16"),
        "2 threads instead of 1": lambda: with_threads(items, 2),
        "4 threads instead of 1": lambda: with_threads(items, 4),
    }
    rows = [row(what, True, base, make()) for what, make in same.items()]
    return rows + jobs(n) + [row(what, False, base, make()) for what, make in measured.items()]


def in_thread(make: Callable[[], Results]) -> Results:
    made: list[Results] = []
    thread = threading.Thread(target=lambda: made.append(make()))
    thread.start()
    thread.join()
    return made[0]


def jobs(n: int) -> list[JSON]:
    """Whole jobs, compared by all bytes of the target, manifest and report included."""
    batches.CHUNK_ITEMS = 16
    path = ROOT / "src" / "pureebm" / "data" / "demo" / "cifar10-sample.npz"
    with tempfile.TemporaryDirectory(prefix="pureebm-determinism-") as folder:
        whole = _job(path, Path(folder) / "whole", n)
        others = {
            "in three shards": _job(path, Path(folder) / "shards", n, shards=3),
            "resumed": _job(path, Path(folder) / "resumed", n, stop_every=16),
            "by two worker processes": _job(path, Path(folder) / "workers", n, crew=Processes(2, threads=1)),
            "by two Ray workers": _job(path, Path(folder) / "ray", n, crew=RayCrew(2)),
        }
    return [_compared(what, whole, other) for what, other in others.items()]


def _job(
    path: Path, folder: Path, n: int, *, shards: int = 1, stop_every: int = 0, crew: Crew | None = None
) -> dict[str, bytes]:
    target = folder / "out.npz"
    for index in reversed(range(shards)):
        config = JobConfig(batch_size=BATCH, seed=SEED, limit=n, shard=(index, shards))
        while True:
            stop = threading.Event()

            def progress(told, stop=stop):  # type: ignore[no-untyped-def]
                if stop_every and told.done - told.resumed >= stop_every:
                    stop.set()

            try:
                run(path, target, stage(), config, progress=progress, stop=stop, crew=crew)
                break
            except Interrupted:
                continue
    return tree(target)


def _compared(what: str, whole: dict[str, bytes], other: dict[str, bytes]) -> JSON:
    names = whole.keys() | other.keys()
    changed = sorted(name for name in names if whole.get(name) != other.get(name))
    return {"what": what, "promised": True, "files": len(names), "changed_files": len(changed), "changed": changed}


def main() -> int:
    from pureebm.evaluation.cards import provenance, write_card
    from pureebm.evaluation.speed import processor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64, help="pictures of the bundled sample (default: 64)")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of cards")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    rows = matrix(options.images)
    for one in rows:
        print(json.dumps(one), flush=True)
    broken = [one["what"] for one in rows if one["promised"] and (one.get("changed_values") or one.get("changed"))]
    card = {"rows": rows, "broken_promises": broken, "model": DEFAULT_MODEL, "batch": BATCH, "processor": processor()}
    card |= {"seconds": round(time.perf_counter() - began, 1), **provenance(), "command": told_command()}
    write_card(card_path("determinism", options.out), card)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
