"""The whole story on bundled images: poison a few, purify all of them as one would, and look what is left.

The 240 images are CIFAR-10 test images, 24 of each class; the trigger is universal, at most 8/255, and was
crafted against other images. Nothing here prints; `pureebm demo` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pureebm.attacks.base import poison_rows
from pureebm.attacks.triggers import AddTrigger
from pureebm.data.open import open_source
from pureebm.data.ranges import stack, to_pm1, to_uint8
from pureebm.errors import InputError
from pureebm.evaluation.metrics import auroc, paired_share, survival
from pureebm.purify.job import JobConfig, run
from pureebm.purify.manifest import MANIFEST_NAME, REPORT_NAME
from pureebm.types import JSON, Progress, Stage

N_POISONED = 16  # of the 24 images of the trigger's target class


@dataclass(frozen=True, slots=True)
class Sample:
    """Images as they were, and a trigger with the class that an attacker wants it to stand for."""

    images: Tensor  # (N, 32, 32, 3) uint8
    labels: Tensor  # (N,) int64
    classes: tuple[str, ...]
    trigger: Tensor  # (3, 32, 32) float32 in [-1, 1] units, at most 16/255
    target: int

    @property
    def poisoned(self) -> list[int]:
        """Indices of the images that get the trigger, all of the target class, in order."""
        return poison_rows(self.labels, self.target, N_POISONED, seed=0).tolist()

    def image_id(self, index: int) -> str:
        """The id that the image has in the untrusted folder."""
        return f"{self.classes[int(self.labels[index])]}/{index:04d}.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What happened to the clean images, or to the poisoned ones."""

    n_images: int
    energy_before: float
    energy_after: float
    psnr: float  # of the purified images to what went in, mean of dB


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Figures of one demonstration; `paired_share` is the share of poisoned images above their own original in
    energy, `trigger_survival` the share of the trigger that is left in the purified files, and the `auroc`s say how
    well energy tells poisoned from clean images (0.5: not at all)."""

    clean: Group
    poisoned: Group
    target_class: str
    paired_share: float
    trigger_survival: float
    auroc_before: float
    auroc_after: float
    seconds: float
    exit_code: int
    untrusted: Path
    purified: Path
    report: Path
    picture: Path

    def to_json(self) -> JSON:
        """Plain values, paths as text."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def load_sample() -> Sample:
    """The bundled images and trigger."""
    images, poison = _arrays("cifar10-sample.npz"), _arrays("trigger.npz")
    return Sample(
        images=torch.from_numpy(images["images"]),
        labels=torch.from_numpy(images["labels"]),
        classes=tuple(str(name) for name in images["classes"]),
        trigger=torch.from_numpy(poison["trigger"]),
        target=int(poison["target"]),
    )


def _arrays(name: str) -> dict[str, NDArray[Any]]:
    with (resources.files("pureebm") / "data" / "demo" / name).open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def write_untrusted(folder: Path, sample: Sample) -> None:
    """The sample as a folder of class folders, its poisoned images with the trigger."""
    images = sample.images.clone()
    images[sample.poisoned] = AddTrigger(sample.trigger).apply(images[sample.poisoned])
    for index, image in enumerate(images):
        path = folder / sample.image_id(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)


def demo(out: Path, stage: Stage, *, seed: int = 0, progress: Progress | None = None) -> DemoResult:
    """Write `out/untrusted`, purify it into `out/purified`, and measure both.

    Args:
        out: Created if missing; a former demonstration there is replaced.
        stage: Must have an energy.

    Raises:
        InputError: `out` holds something else.
    """
    untrusted, purified = out / "untrusted", out / "purified"
    if out.exists() and not untrusted.is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is no former demonstration; name another folder with --out")
    sample = load_sample()
    write_untrusted(untrusted, sample)
    record = run(untrusted, purified, stage, JobConfig(seed=seed, overwrite=True), progress=progress)
    rows = {row["id"]: row for row in pq.read_table(purified / MANIFEST_NAME).to_pylist()}
    poisoned = {sample.image_id(index) for index in sample.poisoned}
    clean_rows = [row for name, row in rows.items() if name not in poisoned]
    poisoned_rows = [row for name, row in rows.items() if name in poisoned]
    draw_before_after(out / "before-after.png", sample, untrusted, purified)
    paired, left = measure_trigger(sample, untrusted, purified, stage, seed=seed)
    return DemoResult(
        clean=_group(clean_rows),
        poisoned=_group(poisoned_rows),
        target_class=sample.classes[sample.target],
        paired_share=paired,
        trigger_survival=left,
        auroc_before=auroc(_column(clean_rows, "energy_before"), _column(poisoned_rows, "energy_before")),
        auroc_after=auroc(_column(clean_rows, "energy_after"), _column(poisoned_rows, "energy_after")),
        seconds=record.seconds["total"],
        exit_code=record.exit_code,
        untrusted=untrusted,
        purified=purified,
        report=purified / REPORT_NAME,
        picture=out / "before-after.png",
    )


def measure_trigger(sample: Sample, untrusted: Path, purified: Path, stage: Stage, *, seed: int) -> tuple[float, float]:
    """(paired share, trigger survival) of the poisoned images, from the files.

    Their originals are purified under the same ids, and so with the same noise. With the perturbation d as it
    stands in the files, the survival is that of `metrics.survival`.
    """
    ids = [sample.image_id(index) for index in sample.poisoned]
    original = to_pm1(sample.images[sample.poisoned]).permute(0, 3, 1, 2)
    poisoned, cleaned = _read(untrusted, ids), _read(purified, ids)
    before, after = stage.energies(original), stage.energies(poisoned)
    if before is None or after is None:
        raise InputError("the demonstration needs a purifier with an energy")
    reference = to_pm1(to_uint8(stage.purify_batch(original, ids, seed=seed)))
    return paired_share(before, after), survival(poisoned - original, cleaned - reference)


def draw_before_after(path: Path, sample: Sample, untrusted: Path, purified: Path, *, n: int = 4) -> None:
    """A picture of `n` clean and `n` poisoned images: as they went in, as they came out, and what moved."""
    clean = [index for index in range(len(sample.labels)) if index not in sample.poisoned][:: 223 // n][:n]
    ids = [sample.image_id(index) for index in [*clean, *sample.poisoned[:n]]]
    before, after = _read(untrusted, ids), _read(purified, ids)
    rows = {"goes in": before, "comes out": after, "difference x 4": (after - before) * 4}
    figure = Figure(figsize=(1.1 * 2 * n + 1.2, 3.9), layout="constrained")
    axes = figure.subplots(3, 2 * n)
    for (name, images), row in zip(rows.items(), axes, strict=True):
        row[0].set_ylabel(name, fontsize=11)
        for image, place in zip(to_uint8(images).permute(0, 2, 3, 1).numpy(), row, strict=True):
            place.imshow(image, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
    for column, place in enumerate(axes[0]):
        poisoned = column >= n
        place.set_title("poisoned" if poisoned else "clean", fontsize=10, color="#b3261e" if poisoned else "#333333")
    figure.savefig(path, dpi=110)


def _read(folder: Path, ids: Sequence[str]) -> Tensor:
    """The pictures of these ids, (N, 3, H, W) in [-1, 1]."""
    source = open_source(folder)
    loaded = {item.item.id: item.picture for item in source.load(0, len(source))}
    return stack([picture.pixels for name in ids if (picture := loaded[name]) is not None])


def _group(rows: Sequence[JSON]) -> Group:
    return Group(
        n_images=len(rows),
        energy_before=_column(rows, "energy_before").mean().item(),
        energy_after=_column(rows, "energy_after").mean().item(),
        psnr=_column(rows, "psnr").mean().item(),
    )


def _column(rows: Sequence[JSON], name: str) -> Tensor:
    return torch.tensor([row[name] for row in rows])
