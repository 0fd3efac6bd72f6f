"""`Purifier`: the class that people import. Images or whole data sets in, the same kind out."""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pureebm.data.base import Picture
from pureebm.data.pictures import decode_pil, encode_pil
from pureebm.data.ranges import stack, to_pm1, to_uint8, unstack
from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.energy.weights import DEFAULT_MODEL, load_model
from pureebm.errors import InputError
from pureebm.purify.crew import Crew
from pureebm.purify.job import JobConfig, RunRecord, run
from pureebm.purify.model_folder import push_folder, save_folder
from pureebm.purify.stages import Highest, LangevinStage
from pureebm.purify.student import model_stage
from pureebm.sampling.langevin import LangevinConfig
from pureebm.types import JSON, Energy, Progress, Stage

Images = TypeVar("Images", Tensor, np.ndarray[Any, Any], Image.Image, list[Any], tuple[Any, ...])

BATCH_SIZE = 64


class Purifier:
    """Purifies images: `purifier(images)` for a few, `purifier.purify(source, target)` for a data set.

    Args:
        stage: what is done to a batch: a `LangevinStage`, a `Chain`, or anything of that protocol.
        card: what is known of its weights; goes into the model folder.

    Make one with `from_pretrained` (bundled or published weights) or `from_energy` (your own network).
    """

    def __init__(self, stage: Stage, *, card: JSON | None = None) -> None:
        self.stage, self.card = stage, card or {}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT_MODEL,
        *,
        config: LangevinConfig | None = None,
        level: float | None = None,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ) -> Purifier:
        """A bundled name, a `.safetensors` file, a model folder or `hf:owner/name`: an energy or a one-pass student.

        Args:
            config: of an energy's chain; None: the model's own sampler.
            level: of a student: the noise as a multiple of its teacher's; None: 1.

        Raises:
            ModelError: the weights cannot be loaded.
            InputError: a setting that is not for this kind of model.
        """
        loaded = load_model(name, device)
        stage = model_stage(loaded, config, level=level, device=device, precision=precision)
        return cls(stage, card=loaded.card)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a model folder of the Hugging Face shape: `model.safetensors`, `config.json`, the card as `README.md`.

        `from_pretrained(folder)` makes this purifier again: its sampler goes into the card. Files there are replaced.

        Raises:
            InputError: the purifier is no model of this package (a chain, a baseline, another network).
        """
        return save_folder(Path(folder), self.stage, self.card)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the model folder to the Hugging Face Hub, as `repo_id` ("owner/name"); return where it stands.

        Raises:
            InputError: as `save_pretrained`; huggingface_hub is missing, or the hub refused.
        """
        with tempfile.TemporaryDirectory() as folder:
            return push_folder(self.save_pretrained(folder), repo_id, private=private, token=token)

    @classmethod
    def from_energy(
        cls,
        energy: nn.Module | Energy,
        config: LangevinConfig | None = None,
        *,
        device: torch.device | str = "cpu",
        precision: str = "float32",
        name: str = "user network",
    ) -> Purifier:
        """Any network (N, 3, H, W) in [-1, 1] -> (N,), lower where an image looks natural; (N, 1) is taken too.

        `config` defaults to the paper's constants. A network whose gradient depends on the image's area (one
        that averages over positions) should rescale its output itself, as `SNGANEnergy` does.
        """
        known = isinstance(energy, LocalEnergy | SNGANEnergy)  # these return (N,), and have an explicit gradient
        stage = LangevinStage(
            energy if known else _Flat(energy),
            config or LangevinConfig(),
            device=device,
            precision=precision,
            model={"name": name},
        )
        return cls(stage)

    def __call__(self, images: Images, *, seed: int = 0, ids: Sequence[str] | None = None) -> Images:
        """Purify images; what comes out has the type, shape, range and color mode of what went in.

        Args:
            images: one image or a batch: a tensor (3, H, W) or (N, 3, H, W), an array (H, W, 3) or
                (N, H, W, 3), each uint8 or floating point in [0, 1]; a PIL image; or a list or tuple of any of them.
                At least 16 px high and wide.
            seed: fixes every draw.
            ids: a name for each image, on which its noise depends; default "0", "1", ... as in the batch.

        Raises:
            InputError: another type, shape or range, or an image that became non-finite.
        """
        if isinstance(images, tuple):
            return tuple(self(list(images), seed=seed, ids=ids))  # type: ignore[return-value]
        if isinstance(images, Tensor):
            return self._tensor(images, seed, ids)
        if isinstance(images, np.ndarray):
            if images.ndim not in (3, 4) or images.shape[-1] != 3:
                raise InputError(f"an array must be (H, W, 3) or (N, H, W, 3), got {images.shape}")
            tensor = torch.from_numpy(images).movedim(-1, -3)
            return np.ascontiguousarray(self._tensor(tensor, seed, ids).movedim(-3, -1).numpy())
        if isinstance(images, Image.Image):
            return self._pictures([images], seed, ids)[0]
        if isinstance(images, list):
            if all(isinstance(image, Image.Image) for image in images):
                return self._pictures(images, seed, ids)
            names = _ids(ids, len(images))
            return [self(image, seed=seed, ids=[name]) for image, name in zip(images, names, strict=True)]
        kind = type(images).__name__
        raise InputError(f"images must be a tensor, an array, a PIL image or a list of them, got {kind}")

    def purify(
        self,
        source: str | Path,
        target: str | Path,
        *,
        config: JobConfig | None = None,
        progress: Progress | None = None,
        stop: threading.Event | None = None,
        crew: Crew | None = None,
        **changes: Any,
    ) -> RunRecord:
        """Purify a data set on disk into a new one: see `pureebm.purify.job.run`.

        `changes` are fields of `JobConfig` that differ from `config`, as in `purify(source, target, seed=1)`.
        """
        config = replace(config or JobConfig(), **changes)
        return run(Path(source), Path(target), self.stage, config, progress=progress, stop=stop, crew=crew)

    def _tensor(self, images: Tensor, seed: int, ids: Sequence[str] | None) -> Tensor:
        batch = images if images.ndim == 4 else images[None]
        if batch.ndim != 4 or batch.shape[1] != 3:
            raise InputError(f"a tensor must be (3, H, W) or (N, 3, H, W), got {tuple(images.shape)}")
        integer = images.dtype == torch.uint8
        if not integer:
            if not images.is_floating_point():
                raise InputError(f"images must be uint8 or floating point, got {images.dtype}")
            if batch.numel() and not (batch.min() >= 0 and batch.max() <= 1):  # also catches NaN
                raise InputError(f"floating point images must be in [0, 1], got {batch.min():g} .. {batch.max():g}")
        pm1 = to_pm1(batch) if integer else batch.float() * 2 - 1
        out = self._batches(pm1, _ids(ids, len(batch)), seed).to(images.device)
        out = to_uint8(out) if integer else ((out + 1) / 2).clamp(0, 1).to(images.dtype)
        return out.reshape(images.shape)

    def _pictures(self, images: list[Image.Image], seed: int, ids: Sequence[str] | None) -> list[Image.Image]:
        pictures = [decode_pil(image) for image in images]
        names = _ids(ids, len(images))
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, picture in enumerate(pictures):
            by_shape[(*picture.pixels.shape, picture.pixels.dtype.itemsize)].append(index)
        out: list[Image.Image] = list(images)
        for group in by_shape.values():
            pixels = [pictures[index].pixels for index in group]
            purified = self._batches(stack(pixels), [names[index] for index in group], seed)
            for index, new in zip(group, unstack(purified, like=pixels), strict=True):
                old = pictures[index]
                out[index] = encode_pil(Picture(new, old.mode, old.alpha))
        return out

    def _batches(self, images: Tensor, names: list[str], seed: int) -> Tensor:
        if isinstance(self.stage, Highest):
            raise InputError("the images of highest energy are chosen among a whole set on disk: use `purify`")
        if not len(images):
            return images
        if min(images.shape[2:]) < 16:
            raise InputError(f"images must be at least 16 px high and wide, got {images.shape[2]}x{images.shape[3]}")
        parts = [
            self.stage.purify_batch(images[start : start + BATCH_SIZE], names[start : start + BATCH_SIZE], seed=seed)
            for start in range(0, len(images), BATCH_SIZE)
        ]
        out = torch.cat(parts) if parts else images
        finite = out.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            name = names[int(finite.int().argmin())]
            raise InputError(f"image {name!r} became non-finite; does the step size fit the energy?")
        return out


class _Flat(nn.Module):
    """An energy that may return (N, 1)."""

    def __init__(self, energy: nn.Module | Energy) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, images: Tensor) -> Tensor:
        values = self.energy(images)
        return values.squeeze(1) if values.ndim == 2 and values.shape[1] == 1 else values


def _ids(ids: Sequence[str] | None, count: int) -> list[str]:
    if ids is None:
        return [str(index) for index in range(count)]
    if len(ids) != count:
        raise InputError(f"ids must name each of {count} images, got {len(ids)}")
    return list(ids)
