"""Whole jobs as their users start them: seconds and memory against the number of images and of worker processes.

Every job is a process of its own, `pureebm purify SOURCE TARGET --limit N ...`, start included; all share out the same
number of threads. What it wrote is hashed, so that more workers are seen to change no byte. Memory is the largest
resident size of any one process of the job.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pureebm.data.open import open_source
from pureebm.errors import InputError
from pureebm.evaluation.cards import provenance, write_card
from pureebm.evaluation.speed import processor
from pureebm.types import JSON

RUN = "from pureebm.cli.main import main; main()"
RESIDENT_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def measure_jobs(
    source: Path,
    *,
    model: str,
    images: Sequence[int],
    workers: Sequence[int],
    threads: int,
    device: str = "cpu",
    told: Callable[[str], None] = lambda line: None,
) -> list[JSON]:
    """Run a job for each number of images with the first number of workers, and for the last one with the others.

    Args:
        source: anything `open_source` recognizes.
        threads: of all workers together.
        told: hears of each finished job.

    Returns:
        One row a job: images, workers, threads of each, seconds, images per second, peak_mb (10**6 bytes), sha256 of
        what was written.

    Raises:
        InputError: the source has too few images, or a job failed.
    """
    if not images or not workers or min(*images, *workers, threads) < 1:
        raise InputError("numbers of images, workers and threads must be 1 or more")
    total = len(open_source(source))
    if total < max(images):
        raise InputError(f"{source} holds {total:,} images, {max(images):,} were asked for")
    rows = []
    for count, crew in [*((one, workers[0]) for one in images), *((images[-1], more) for more in workers[1:])]:
        rows.append(_job(source, model, count, crew, max(1, threads // crew), device))
        told("{images:,} images, {workers} workers: {seconds:.1f} s, {peak_mb:.0f} MB".format(**rows[-1]))
    return rows


def _job(source: Path, model: str, images: int, workers: int, threads: int, device: str) -> JSON:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / source.name
        words = ["purify", source, target, "--model", model, "--limit", images, "--workers", workers]
        words += ["--threads", threads, "--device", device]
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-c", RUN, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            errors = process.stderr.read()
            _, status, used = os.wait4(process.pid, 0)  # tells the memory as well
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            said = errors.decode(errors="replace").strip().splitlines()[-1:]
            raise InputError(f"`pureebm {' '.join(map(str, words))}` failed; mend it first: {''.join(said)}")
        written = _sha256(target)
    return {
        "images": images,
        "workers": workers,
        "threads": threads,
        "seconds": seconds,
        "images_per_second": images / seconds,
        "peak_mb": RESIDENT_UNIT * used.ru_maxrss / 1e6,
        "sha256": written,
    }


def _sha256(target: Path) -> str:
    """Of a file, or of the files of a folder in the order of their names, without the records beside the images."""
    digest = hashlib.sha256()
    files = [target] if target.is_file() else sorted(one for one in target.rglob("*") if one.is_file())
    for file in files:
        if not file.name.startswith("pureebm-"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def write_scale_card(folder: Path, rows: Sequence[JSON], *, model: str, source: Path, command: str) -> Path:
    """A card for each model and processor; a new measurement replaces it."""
    identical = len({row["sha256"] for row in rows if row["images"] == rows[-1]["images"]}) == 1
    card = {"model": model, "source": str(source), "jobs": list(rows), "identical": identical}
    kind = "-".join(re.findall(r"[a-z0-9.]+", f"{Path(model).stem} {processor()}".lower()))
    path = folder / "scale" / f"{kind}.json"
    write_card(path, card | provenance() | {"processor": processor(), "command": command})
    draw(path.with_suffix(".png"), rows, title=f"{Path(model).stem}, {processor()}")
    return path


def draw(path: Path, rows: Sequence[JSON], *, title: str) -> None:
    """Seconds over images with the first number of workers, and the peak of memory beside it."""
    from matplotlib.figure import Figure

    line = [row for row in rows if row["workers"] == rows[0]["workers"]]
    counts = [row["images"] for row in line]
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    time_axes.plot(counts, [row["seconds"] for row in line], "o-", color="#1f6f8b")
    time_axes.set(xlabel="images", ylabel="seconds, start included", xlim=(0, None), ylim=(0, None))
    memory_axes.plot(counts, [row["peak_mb"] for row in line], "s-", color="#c98a1b")
    memory_axes.set(xlabel="images", ylabel="peak memory, MB", xlim=(0, None), ylim=(0, None))
    for axes in (time_axes, memory_axes):
        axes.grid(color="#e6e9ed", linewidth=0.8)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.get_major_locator().set_params(nbins=4)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
