"""The fault campaign: `python -m tests.trust.faults --kills 100` breaks real jobs in every way that is listed here.

Each trial is the command `pureebm purify` in a process of its own, on bundled pictures as a folder, `.npz`, CIFAR file
or Parquet file, with the bundled model and very small chunks. It is broken, repeated without the fault, and its target
is compared byte by byte with that of a job that was left alone. The counts go to `results/trust/faults.json`.

lost: an image that should be in the target is not. wrong: other bytes, something left behind, a fault not told.
"""

from __future__ import annotations

import argparse
import errno
import io
import itertools
import json
import multiprocessing
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tests.purify.job_fakes import tree

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("folder", "npz", "cifar", "parquet")
N_IMAGES = 20
OPTIONS = ("--steps", "2", "--batch-size", "4", "--precision", "float32", "--device", "cpu")
PRELOADED = [
    "tests.purify.job_fakes",
    "pureebm.cli.purify",
    "pureebm.purify.job",
    "pureebm.energy.weights",
    "pydantic.type_adapter",
    "pandas",
    *(f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Png", "Ppm")),
]
"""Imported once, so that a job of the campaign starts at once; what is not here is passed over."""

Shim = tuple[str, dict[str, int]]


# In the process that is broken


def job(arguments: list[str], log: Path, shim: Shim | None) -> None:
    """The command, in small chunks and without plots; what it says goes to `log`."""
    from pureebm.cli.main import run
    from pureebm.purify import batches, report

    torch.set_num_threads(1)
    batches.CHUNK_ITEMS = 4
    report._plots = lambda rows: []
    if shim is not None:
        SHIMS[shim[0]](**shim[1])
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            code = run(arguments)
    finally:
        log.write_text(said.getvalue())
    sys.exit(code)


def refuse_writing(*, code: int, call: int) -> None:
    """The file system refuses the `call`-th flush, and all that follow, with this errno; 0: already the folder."""
    calls, flush = itertools.count(1), os.fsync
    if call == 0:

        def mkdir(path: str, *rest: object, **named: object) -> None:
            raise OSError(code, os.strerror(code), str(path))

        os.mkdir = mkdir  # type: ignore[assignment]

    def fsync(handle: int) -> None:
        if next(calls) >= call > 0:
            raise OSError(code, os.strerror(code))
        flush(handle)

    os.fsync = fsync


def read_slowly(*, seed: int) -> None:
    moments = random.Random(seed)
    _around_load(lambda: time.sleep(moments.random() * 0.05))


def fail_reading(*, call: int) -> None:
    """The `call`-th range that is read fails as a whole."""
    calls = itertools.count(1)

    def fail() -> None:
        if next(calls) == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    _around_load(fail)


def fail_files(*, seed: int) -> None:
    """Every fifth file or so cannot be read."""
    from pureebm.data import folder

    read = folder.read_regular

    def read_regular(path: Path) -> bytes:
        if unlucky(path.name, seed):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    folder.read_regular = read_regular


def unlucky(name: str, seed: int) -> bool:
    return random.Random(f"{seed}/{name}").random() < 0.2


def _around_load(before: Callable[[], None]) -> None:
    from pureebm.data.cifar import CifarSource
    from pureebm.data.folder import FolderSource
    from pureebm.data.npz import NpzSource
    from pureebm.data.parquet import ParquetSource

    for kind in (CifarSource, FolderSource, NpzSource, ParquetSource):

        def load(self: object, start: int, stop: int, real: Callable[..., object] = kind.load) -> object:
            before()
            return real(self, start, stop)

        kind.load = load  # type: ignore[method-assign,assignment]


def jump_clocks(*, seed: int) -> None:
    """Every look at a clock may be a day off, in both directions."""
    from pureebm.purify import job as job_module

    moments = random.Random(seed)
    for name in ("time", "monotonic", "perf_counter"):
        real = getattr(time, name)
        setattr(time, name, lambda real=real: real() + moments.choice((0, 0, 86_400, -86_400)))
    earlier = job_module.datetime

    class Jumping(earlier):  # type: ignore[misc,valid-type]
        @classmethod
        def now(cls, tz: object = None) -> object:
            return earlier.fromtimestamp(moments.choice((0, 4e9)), tz)

    job_module.datetime = Jumping


def run_out_of_memory(*, most: int, seed: int) -> None:
    """Half of the batches find memory for `most` images only."""
    from pureebm.purify.stages import LangevinStage

    moments = random.Random(seed)
    purify, energies = LangevinStage.purify_batch, LangevinStage.energies

    def check(images: torch.Tensor) -> None:
        if len(images) > most and moments.random() < 0.5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def purify_batch(self, images, ids, *, seed):  # type: ignore[no-untyped-def]
        check(images)
        return purify(self, images, ids, seed=seed)

    def energies_(self, images):  # type: ignore[no-untyped-def]
        check(images)
        return energies(self, images)

    LangevinStage.purify_batch, LangevinStage.energies = purify_batch, energies_  # type: ignore[method-assign]


SHIMS: dict[str, Callable[..., None]] = {
    one.__name__: one for one in (refuse_writing, read_slowly, fail_reading, fail_files, jump_clocks, run_out_of_memory)
}


# In the campaign's own process


@dataclass
class Tally:
    """trials; hit: those in which the fault really struck; lost and wrong: see above; problems: each in words."""

    trials: int = 0
    hit: int = 0
    lost: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)
    also: Counter[str] = field(default_factory=Counter)

    def check(self, right: bool, problem: str) -> None:
        if not right:
            self.wrong += 1
            self.problems.append(problem)

    def to_json(self) -> dict[str, object]:
        told = {"trials": self.trials, "hit": self.hit, "lost": self.lost, "wrong": self.wrong}
        return told | dict(self.also) | {"problems": self.problems[:20]}


class World:
    """Sources of every kind, and what purifying each gives when nothing goes wrong."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.numbers = root, random.Random(seed), itertools.count()
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(PRELOADED)
        self.sources = {kind: write_source(kind, root / "sources") for kind in KINDS}
        self.until = float("inf")
        self.whole: dict[tuple[str, tuple[str, ...]], tuple[dict[str, bytes], int, float]] = {}

    def trials(self, n: int) -> Iterator[int]:
        """0 .. n-1, or fewer when this fault's time is up; at least one."""
        for trial in range(n):
            if trial and time.monotonic() > self.until:
                return
            yield trial

    def target(self, kind: str) -> Path:
        return self.root / str(next(self.numbers)) / f"out{self.sources[kind].suffix}"

    def start(
        self, kind: str, target: Path, shim: Shim | None = None, options: tuple[str, ...] = OPTIONS
    ) -> multiprocessing.process.BaseProcess:
        target.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["purify", str(self.sources[kind]), str(target), *options]
        log = self.root / f"log-{next(self.numbers)}"
        process = self.processes.Process(target=job, args=(arguments, log, shim), name=str(log))
        process.start()
        return process

    def finish(
        self, kind: str, target: Path, shim: Shim | None = None, options: tuple[str, ...] = OPTIONS
    ) -> tuple[int, str]:
        """Exit code, and what was said."""
        process = self.start(kind, target, shim, options)
        process.join()
        return process.exitcode or 0, Path(process.name).read_text()

    def reference(self, kind: str, options: tuple[str, ...] = OPTIONS) -> tuple[dict[str, bytes], int, float]:
        """Bytes, exit code and seconds of a job that is left alone."""
        if (kind, options) not in self.whole:
            target = self.target(kind)
            began = time.perf_counter()
            code, said = self.finish(kind, target, options=options)
            assert code in (0, 1), said
            self.whole[kind, options] = (tree(target), code, time.perf_counter() - began)
            shutil.rmtree(target.parent)
        return self.whole[kind, options]

    def compare(self, tally: Tally, kind: str, target: Path, what: str, options: tuple[str, ...] = OPTIONS) -> None:
        """The target against the reference; it is removed where all is well."""
        expected = self.reference(kind, options)[0]
        found = tree(target) if target.exists() else {}
        lost = expected.keys() - found.keys()
        other = {name for name in found if found[name] != expected.get(name)}
        names = {path.name for path in target.parent.iterdir()}
        beside = names - {target.name, f"{target.name}.pureebm"}
        tally.lost += len(lost)
        tally.check(
            not other and not lost, f"{what}: {len(other)} files are other, {len(lost)} lost: {sorted(other)[:3]}"
        )
        tally.check(not beside, f"{what}: left behind: {sorted(beside)}")
        if not (lost or other or beside):
            shutil.rmtree(target.parent)


def write_source(kind: str, root: Path) -> Path:
    """The bundled pictures; among those of the folder a damaged one, a JPEG, and a file that is no image."""
    with np.load(ROOT / "src" / "pureebm" / "data" / "demo" / "cifar10-sample.npz") as sample:
        images, labels = sample["images"][::12], sample["labels"][::12]
    assert len(images) == N_IMAGES
    root.mkdir(parents=True, exist_ok=True)
    path = root / {"folder": "set", "npz": "set.npz", "cifar": "data_batch_1.bin", "parquet": "set.parquet"}[kind]
    if kind == "npz":
        np.savez(path, images=images, labels=labels)
    elif kind == "cifar":
        planes = images.transpose(0, 3, 1, 2).reshape(N_IMAGES, -1)
        np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1).tofile(path)
    elif kind == "parquet":
        cells = [{"bytes": png(image), "path": f"{number}.png"} for number, image in enumerate(images)]
        pq.write_table(pa.table({"image": cells, "label": labels}), path)
    else:
        for number, image in enumerate(images):
            place = path / str(labels[number]) / f"{number:02}.{'jpg' if number == 7 else 'png'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)
        (path / "0" / "damaged.png").write_bytes(png(images[0])[:200])
        (path / "notes.txt").write_text("no image")
    return path


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def sigkill(world: World, n: int) -> Tally:
    """Killed at a random moment, sometimes again while it is repeated."""
    tally = Tally()
    for trial in world.trials(n):
        kind = KINDS[trial % len(KINDS)]
        seconds, target = world.reference(kind)[2], world.target(kind)
        tally.trials += 1
        struck = 0
        for _ in range(world.random.choice((1, 1, 2, 3))):
            process = world.start(kind, target)
            process.join(world.random.random() * seconds)
            process.kill()
            process.join()
            struck += process.exitcode != 0 and process.exitcode != 1
            if process.exitcode in (0, 1):
                break
        tally.hit += bool(struck)
        tally.also["kills"] += struck
        partial = target.parent / f".{target.name}.pureebm-partial"
        tally.also["killed_while_work_was_there"] += bool(struck and partial.exists())
        if process.exitcode not in (0, 1):
            code, said = world.finish(kind, target)
            tally.check(code == world.reference(kind)[1], f"kill {trial}: the repeat ended with {code}: {said[-300:]}")
        world.compare(tally, kind, target, f"kill {trial} ({kind})")
    return tally


def disk(world: World, n: int, code: int, said_of_it: str) -> Tally:
    """The disk is full, or read-only, from a random flush on; then it is mended."""
    tally = Tally()
    for trial in world.trials(n):
        kind = KINDS[trial % len(KINDS)]
        target = world.target(kind)
        call = 0 if trial == 0 else world.random.randint(1, 25)
        exit_code, said = world.finish(kind, target, ("refuse_writing", {"code": code, "call": call}))
        tally.trials += 1
        tally.hit += exit_code == 2
        if exit_code == 2:
            words = "cannot write beside" if call == 0 else said_of_it
            tally.check(words in said and "Traceback" not in said, f"{kind}, flush {call}: said {said[-300:]}")
            tally.check(not target.exists(), f"{kind}, flush {call}: a target stands there")
            exit_code, said = world.finish(kind, target)
        tally.check(exit_code == world.reference(kind)[1], f"{kind}, flush {call}: {exit_code}, {said[-300:]}")
        world.compare(tally, kind, target, f"flush {call} ({kind})")
    return tally


def same_result(world: World, n: int, shim: str, **arguments: int) -> Tally:
    """A fault that must not be seen in the result at all."""
    tally = Tally()
    options = tuple("16" if option == "4" else option for option in OPTIONS) if "most" in arguments else OPTIONS
    for trial in world.trials(n):
        kind = KINDS[trial % len(KINDS)]
        target = world.target(kind)
        expected = world.reference(kind, options)[1]
        code, said = world.finish(kind, target, (shim, {"seed": trial, **arguments}), options)
        tally.trials += 1
        tally.hit += 1
        tally.check(code == expected and "Traceback" not in said, f"{shim} {trial}: {code}, {said[-300:]}")
        world.compare(tally, kind, target, f"{shim} {trial} ({kind})", options)
    return tally


def failing_ranges(world: World, n: int) -> Tally:
    """Reading fails once, for a whole range: told, and mended by repeating the command."""
    tally = Tally()
    for trial in world.trials(n):
        kind = KINDS[trial % len(KINDS)]
        target = world.target(kind)
        code, said = world.finish(kind, target, ("fail_reading", {"call": world.random.randint(1, 24)}))
        tally.trials += 1
        tally.hit += code == 2
        if code == 2:
            tally.check("Input/output error" in said and "Traceback" not in said, f"{kind}: said {said[-300:]}")
            code, said = world.finish(kind, target)
        tally.check(code == world.reference(kind)[1], f"{kind}: {code}, {said[-300:]}")
        world.compare(tally, kind, target, f"failing range {trial} ({kind})")
    return tally


def failing_files(world: World, n: int) -> Tally:
    """Files that cannot be read are named and left out; all others are as ever."""
    tally = Tally()
    for trial in world.trials(n):
        target = world.target("folder")
        code, said = world.finish("folder", target, ("fail_files", {"seed": trial}))
        whole = world.reference("folder")[0]
        rows = pq.read_table(target / "pureebm-manifest.parquet").to_pylist()
        failed = {row["id"] for row in rows if row["status"] == "skipped"}
        expected = {row["id"] for row in rows if unlucky(Path(row["id"]).name, trial)} | {"0/damaged.png"}
        tally.trials += 1
        tally.hit += len(expected) > 1
        tally.check(code == 1 and failed == expected, f"files {trial}: {code}, {failed ^ expected}")
        found = tree(target)
        images = {name for name in whole if name.endswith(".png")}
        left_out = {f"{target.name}/{os.path.splitext(name)[0]}.png" for name in failed}
        tally.lost += len(images - left_out - found.keys())
        tally.check(
            all(found[name] == whole[name] for name in (images - left_out) & found.keys()),
            f"files {trial}: other bytes",
        )
        shutil.rmtree(target.parent)
    return tally


def two_at_once(world: World, n: int) -> Tally:
    """Two processes on one target: one does the work, the other is refused."""
    tally = Tally()
    for trial in world.trials(n):
        kind = KINDS[trial % len(KINDS)]
        target = world.target(kind)
        expected = world.reference(kind)[1]
        pair = [world.start(kind, target) for _ in range(2)]
        for process in pair:
            process.join()
        said = [Path(process.name).read_text() for process in pair]
        codes = sorted(process.exitcode or 0 for process in pair)
        tally.trials += 1
        tally.hit += codes == [expected, 2]
        refusals = sum("another process" in text for text in said)
        after = sum("nothing to do" in text for text in said)  # the one was done before the other looked
        right = (codes == [expected, 2] and refusals == 1) or (codes == [expected] * 2 and after == 1)
        tally.check(right, f"two {trial}: {codes}, {said}")
        world.compare(tally, kind, target, f"two {trial} ({kind})")
    return tally


def campaign(kills: int, *, seconds: float, seed: int, root: Path, report: Callable[[str], None]) -> dict[str, object]:
    """All faults. The others' trials follow the number of kills; half of the seconds is for the kills."""
    few = max(3, kills // 5)
    world = World(root, seed)
    faults: dict[str, Callable[[], Tally]] = {
        "sigkill": lambda: sigkill(world, kills),
        "disk_full": lambda: disk(world, 2 * few, errno.ENOSPC, "the disk is full"),
        "read_only": lambda: disk(world, 2 * few, errno.EROFS, "may not write"),
        "slow_reads": lambda: same_result(world, few, "read_slowly"),
        "failing_reads": lambda: failing_ranges(world, 2 * few),
        "unreadable_files": lambda: failing_files(world, few),
        "clock_jumps": lambda: same_result(world, few, "jump_clocks"),
        "two_processes": lambda: two_at_once(world, few),
        "out_of_memory": lambda: same_result(world, few, "run_out_of_memory", most=4),
    }
    told: dict[str, dict[str, object]] = {}
    end = time.monotonic() + seconds
    for number, (name, fault) in enumerate(faults.items()):
        now = time.monotonic()
        world.until = now + (end - now) / (2 if name == "sigkill" else len(faults) - number)
        told[name] = fault().to_json()
        report(f"{name}: {json.dumps(told[name])}")
    totals = {key: sum(int(str(one[key])) for one in told.values()) for key in ("trials", "hit", "lost", "wrong")}
    return {"faults": told, **totals, "images": N_IMAGES, "kinds": list(KINDS), "seed": seed}


def card_path(name: str, out: Path) -> Path:
    return out / "trust" / f"{name}.json"


def told_command() -> str:
    """What made a card: it stands in it."""
    return shlex.join(["python", "-m", f"tests.trust.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def main() -> int:
    from pureebm.evaluation.cards import provenance, write_card

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="jobs that are killed (default: 100)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no new trials after so long")
    parser.add_argument("--folder", type=Path, help="where the jobs work (default: the folder for temporary files)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of cards")
    options = parser.parse_args()
    began = time.perf_counter()
    os.environ["XDG_CACHE_HOME"] = "/nonexistent"  # nothing is remembered from one job to the next
    with tempfile.TemporaryDirectory(prefix="pureebm-faults-", dir=options.folder) as folder:
        found = campaign(
            options.kills,
            seconds=60 * options.minutes,
            seed=options.seed,
            root=Path(folder),
            report=lambda line: print(line, flush=True),
        )
    seconds = round(time.perf_counter() - began, 1)
    write_card(
        card_path("faults", options.out), {**found, "seconds": seconds, **provenance(), "command": told_command()}
    )
    return 1 if found["lost"] or found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
