"""A data set, a sink and purifiers that need no decoder and no network: what the job's own tests run on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pureebm.data.base import Item, Loaded, Picture, Result, Stored
from pureebm.errors import ItemError
from pureebm.purify import batches, report
from pureebm.purify.job import JobConfig, run
from pureebm.purify.processes import Processes
from pureebm.types import JSON


def write_source(path: Path, n: int, *, size: int = 16, seed: int = 0) -> Path:
    """A `.npy` file of n random images."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, pixels)
    return path


class FakeSource:
    """Images of a `.npy` file. Those in `broken` cannot be read; `shapes` crops an image to another size."""

    kind = "fake"

    def __init__(
        self,
        path: Path,
        *,
        broken: Sequence[int] = (),
        shapes: dict[int, tuple[int, int]] | None = None,
        single_file: bool = False,
        full_disk_at: int | None = None,
        load_error: BaseException | None = None,
    ) -> None:
        self.path, self.single_file = path, single_file
        self.pixels = np.load(path, mmap_mode="r")
        self.broken, self.shapes = set(broken), shapes or {}
        self.full_disk_at, self.load_error = full_disk_at, load_error

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, start: int, stop: int) -> list[Loaded]:
        if self.load_error is not None and start > 0:
            raise self.load_error
        return [self._one(index) for index in range(start, stop)]

    def _one(self, index: int) -> Loaded:
        item = Item(index, f"a/{index:05d}.jpg", f"a/{index:05d}.png")
        height, width = self.shapes.get(index, self.pixels.shape[1:3])
        pixels = np.array(self.pixels[index, :height, :width])
        sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
        if index in self.broken:
            return Loaded(item, None, ItemError("truncated <b>file</b>"), sha256)
        return Loaded(item, Picture(pixels), None, sha256)

    def describe(self) -> JSON:
        return {"kind": self.kind, "count": len(self), "fingerprint": f"{self.path.stat().st_mtime_ns}"}

    def open_sink(self, staging: Path) -> FakeSink:
        return FakeSink(self, staging)


class FakeSink:
    """One `.npz` a chunk; the target is a folder (or one file) with all names and pixels in order."""

    def __init__(self, source: FakeSource, staging: Path) -> None:
        self.source, self.staging = source, staging
        staging.mkdir(exist_ok=True, parents=True)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        if chunk == self.source.full_disk_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        lines, stored = [], []
        for result in results:
            pixels = result.picture.pixels if result.picture else self.source.pixels[result.item.index]
            sha256 = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
            if result.status == "skipped":
                stored.append(Stored("", ""))
            else:
                name = result.item.target_name if result.status == "purified" else result.item.id
                lines.append([name, sha256, pixels.shape[0]])
                stored.append(Stored(name, sha256))
        (self.staging / f"{chunk}.json").write_text(json.dumps(lines))
        return stored

    def assemble(self, target: Path, n_chunks: int) -> None:
        lines = [line for c in range(n_chunks) for line in json.loads((self.staging / f"{c}.json").read_text())]
        beside = target.with_name("." + target.name)
        if self.source.single_file:
            beside.write_text(json.dumps(lines))
        else:
            beside.mkdir(exist_ok=True)
            (beside / "images.json").write_text(json.dumps(lines))
        beside.rename(target)


class Shift:
    """Adds a little that depends on the image's id and the seed, as noise does; counts what it saw."""

    def __init__(self, amount: float = 0.1, *, delay: float = 0.0, bad: str = "", steps: int = 3) -> None:
        self.amount, self.delay, self.bad, self.steps = amount, delay, bad, steps
        self.shapes: set[tuple[int, ...]] = set()
        self.n_batches = 0

    def purify_batch(self, images: Tensor, ids: list[str], *, seed: int) -> Tensor:
        assert len(images) == len(ids)
        time.sleep(self.delay)
        self.shapes.add(tuple(images.shape))
        self.n_batches += 1
        shifts = [
            int(hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).hexdigest()[:4], 16) / 65535
            for name in ids
        ]
        out = images + self.amount * torch.tensor(shifts).view(-1, 1, 1, 1)
        for row, name in enumerate(ids):
            if self.bad and self.bad in name:
                out[row, 0, 0, 0] = float("nan")
        return out

    def energies(self, images: Tensor) -> Tensor | None:
        return images.flatten(1).mean(1)

    def settings(self) -> JSON:
        return {"stage": "shift", "amount": self.amount, "n_steps": self.steps}


class Killer(Shift):
    """Kills the process that it works in at the n-th batch; only once if it can leave a mark."""

    def __init__(self, at: int, mark: Path | None = None) -> None:
        super().__init__(delay=0.02)
        self.at, self.mark = at, mark

    def purify_batch(self, images: Tensor, ids: list[str], *, seed: int) -> Tensor:
        if self.n_batches == self.at and not (self.mark and self.mark.exists()):
            if self.mark:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().purify_batch(images, ids, seed=seed)


def tree(target: Path) -> dict[str, bytes]:
    """All bytes of a target but those of the run record, which holds times. Side files of a file count as well."""
    roots = [target, target.with_name(target.name + ".pureebm")]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(target.parent)): path.read_bytes() for path in files if path.name != "pureebm-run.json"
    }


def purify_slowly(source: Path, target: Path, single_file: bool, delay: float) -> None:
    """What the process does that is killed: a job of many small chunks."""
    torch.set_num_threads(1)
    batches.CHUNK_ITEMS = 8
    report._plots = lambda rows: []  # they take most of the time
    stage = Shift(delay=delay, bad="00003")
    run(FakeSource(source, broken=[5], single_file=single_file), target, stage, JobConfig(batch_size=2))


def purify_with_a_worker(source: Path, target: Path) -> None:
    """What the process does whose worker outlives it."""
    batches.CHUNK_ITEMS = 8
    stage = Shift(delay=0.4)
    run(FakeSource(source, broken=[5, 60]), target, stage, JobConfig(batch_size=2), crew=Processes(1))
