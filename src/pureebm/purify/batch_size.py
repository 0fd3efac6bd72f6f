"""Batch size by a short measured search, remembered for this machine and this model.

The exact engine cuts a batch into parts that fit the caches, so sizes hardly differ on processors; on a GPU they do.
Since another batch shape may change last bits of the result, the ordinary size stays unless another is clearly faster,
and sets so small that the search does not pay are not searched for. What was chosen is recorded by the job.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

from pureebm.data.durable import write_file
from pureebm.purify.batches import AUTO_BATCH_SIZE, images_per_batch
from pureebm.purify.stages import LangevinStage
from pureebm.types import JSON, Stage

SEARCH_FROM = 5_000
"""Images of 32x32, from which on a search pays."""

CLEARLY = 1.15
"""How much faster another size must be, in images per second."""

CANDIDATES = {"cpu": (16, 256), "cuda": (256, 1024)}
ROUNDS = 3


def choose_batch_size(stage: Stage, ordinary: int, images: int, height: int, width: int) -> int:
    """Images of 32x32 in a batch.

    Args:
        stage: Measured if it is a `LangevinStage`; any other has the ordinary size.
        ordinary: What the sizes of the pictures suggest; only `AUTO_BATCH_SIZE` is put to the test.
        images: In the whole set, of mostly `height` x `width`.
    """
    small = images * height * width < SEARCH_FROM * 32 * 32
    if small or ordinary != AUTO_BATCH_SIZE or not isinstance(stage, LangevinStage):
        return ordinary
    path, key = cache_path(), _key(stage, height, width)
    known = _remembered(path)
    if isinstance(known.get(key), int):
        return int(known[key])
    chosen = fastest(stage, height, width)
    _remember(path, known | {key: chosen})
    return chosen


def fastest(stage: LangevinStage, height: int, width: int) -> int:
    """The candidate that takes the least time for a gradient of an image, in turns; the ordinary one unless clearly."""
    sizes = (AUTO_BATCH_SIZE, *CANDIDATES.get(stage.device.type, ()))
    batches = {
        size: torch.zeros(images_per_batch(size, height, width), 3, height, width, device=stage.device)
        for size in sizes
    }
    for batch in batches.values():
        _seconds(stage, batch)
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size, batch in batches.items():
            taken[size].append(_seconds(stage, batch) / len(batch))
    medians = {size: statistics.median(values) for size, values in taken.items()}
    best = min(medians, key=lambda size: medians[size])
    return best if medians[AUTO_BATCH_SIZE] >= CLEARLY * medians[best] else AUTO_BATCH_SIZE


def cache_path() -> Path:
    """Where choices are remembered: in the user's cache folder, by the XDG rules."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if Path(base).is_absolute() else Path(os.path.expanduser("~")) / ".cache"
    return folder / "pureebm" / "batch-size.json"


def _seconds(stage: LangevinStage, batch: torch.Tensor) -> float:
    began = time.perf_counter()
    stage.score(batch)
    if stage.device.type == "cuda":
        torch.cuda.synchronize(stage.device)
    return time.perf_counter() - began


def _key(stage: LangevinStage, height: int, width: int) -> str:
    """The machine, the model and the shape."""
    device = torch.cuda.get_device_name(stage.device) if stage.device.type == "cuda" else platform.processor()
    machine = [platform.node(), platform.machine(), device, os.cpu_count(), torch.get_num_threads(), torch.__version__]
    told = stage.settings()
    work = [told["model"].get("sha256"), told["model"].get("name"), told["precision"], told["engine"], height, width]
    return hashlib.sha256(json.dumps([machine, work]).encode()).hexdigest()[:16]


def _remembered(path: Path) -> JSON:
    """What a readable file holds, else nothing: a cache is never an error."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(path: Path, known: JSON) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: file.write(json.dumps(known).encode()))
    except OSError:
        pass
