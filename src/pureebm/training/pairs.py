"""What a student learns from: images, and what a chain of Langevin updates made of them, kept on disk.

A pair is an image (clean, or changed by a perturbation made here: no attack), the level of noise, the size of the
teacher's residual where its noise adapts to that, the chain's result, and of the chain's later noises the sum that a
student is shown (see `energy.student`). The starting noise is not kept:
it is a function of the pair's id. Pairs come in blocks; a block is a function of (images, teacher, levels, seed, its
number and length) and one file, so that a making that was cut off goes on where it was.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.errors import Interrupted, MismatchError
from pureebm.purify.baselines import JPEGStage
from pureebm.purify.stages import LangevinStage
from pureebm.purify.student import NOISE_IMAGES
from pureebm.sampling.langevin import LangevinConfig, langevin, residual_size
from pureebm.sampling.noise import CounterNoise
from pureebm.training.checkpoints import write_atomically
from pureebm.types import JSON, Noise

BLOCK = 512
BATCH = 64  # of the teacher; one level of noise each
LARGEST_EPS = 16  # in steps of 1/255

_GAUGE_SEED = 500_009
_QUALITIES = (50, 96)  # of JPEG, from and below

_NAMES = ("images", "purified", "later", "levels", "residuals")


@dataclass(frozen=True, slots=True)
class Pairs:
    """images: (N, 3, S, S) uint8. purified, later: alike, float16. levels, residuals: (N,) float32, the latter 0 where
    the teacher's noise does not adapt. ids: of their noise."""

    images: Tensor
    purified: Tensor
    later: Tensor
    levels: Tensor
    residuals: Tensor
    ids: Sequence[str]
    seed: int

    def __len__(self) -> int:
        return len(self.ids)

    def start(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), 3, S, S): the starting noise of these pairs."""
        names = [self.ids[row] for row in rows]
        shape = self.images.shape[1:]
        groups = [names[first : first + NOISE_IMAGES] for first in range(0, len(names), NOISE_IMAGES)]
        return torch.cat([CounterNoise(self.seed, group)(0, torch.empty(len(group), *shape)) for group in groups])


class HeardNoise:
    """Passes a chain's noise on, and sums what a student is shown of it (`Noise` protocol).

    Args:
        noise: of the chain.
        config: of the chain; update k adds noise of deviation s_k, and goes the share g_k = step_size^2 / 2T of the way
            that its energy asks for. The weight of z_k is s_k times the root of each later 1 - g_j: between what is
            left where the energy holds back nothing (s_k) and where it takes that share. Without starting noise the
            temperature tells no share, and the weight is s_k.
    """

    def __init__(self, noise: Noise, config: LangevinConfig) -> None:
        scales, left = [0.0] * config.n_steps, 1.0
        for step in reversed(range(config.n_steps)):
            step_size, temperature = config.at(step)
            scales[step] = config.noise * step_size * left
            if config.initial_noise:
                left *= math.sqrt(max(0.0, 1 - step_size**2 / (2 * temperature)))
        norm = math.hypot(*scales)
        self.noise = noise
        self.weights = [scale / norm for scale in scales] if norm else [1.0]  # a chain without noise: any will do
        self.later: Tensor | None = None

    def __call__(self, step: int, like: Tensor, /) -> Tensor:
        z = self.noise(step, like)
        if step:
            part = self.weights[step - 1] * z
            self.later = part if self.later is None else self.later + part
        return z

    def heard(self, like: Tensor) -> Tensor:
        """N(0, 1) noise shaped like its argument."""
        return self.noise(1, like) if self.later is None else self.later


def taught(
    stage: LangevinStage, images: Tensor, ids: Sequence[str], *, level: float, seed: int
) -> tuple[Tensor, Tensor]:
    """What the teacher makes of images at a level of noise, and the later noise that it met.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        Two tensors like `images`, on the CPU; the first is what `LangevinStage` gives at this level.
    """
    stage.prepare(images)
    config = stage.config.at_level(level)
    noise = HeardNoise(CounterNoise(seed, ids, device=stage.device), config)
    x = images.to(stage.device, memory_format=torch.channels_last)
    out = langevin(stage.energy, x, config, noise=noise, score=stage.score)
    return out.cpu(), noise.heard(x).cpu()


def make_pairs(
    images: Tensor,
    stage: LangevinStage,
    folder: Path,
    *,
    count: int,
    levels: tuple[float, float],
    seed: int,
    report: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Pairs:
    """The first `count` pairs, made or read from `folder`.

    Args:
        images: (N, S, S, 3) uint8, taken in a random order, from the start again where they do not suffice.
        levels: half of the pairs have level 1, the others one between these, by their logarithm.
        folder: see `claim`, which is asked before.

    Raises:
        Interrupted: `stop` asked for it, between two blocks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    blocks: list[dict[str, Tensor]] = []
    began, made = time.monotonic(), 0
    n_blocks = -(-count // BLOCK)
    for number in range(n_blocks):
        path = folder / f"{number:06d}.safetensors"
        rows = torch.arange(number * BLOCK, min((number + 1) * BLOCK, count)) % len(images)
        block = _read(path, len(rows))
        if block is None:
            if stop():
                raise Interrupted(f"stopped after {number * BLOCK:,} pairs; repeat the same command to go on")
            block = _make(images[order[rows]], stage, levels, seed, number)
            write_atomically(path, save(block))
            made += len(rows)
            if number % 10 == 9 or number == n_blocks - 1:
                rate = made / (time.monotonic() - began)
                report(f"pairs: {min((number + 1) * BLOCK, count):,}/{count:,}, {rate:.1f} images/s")
        blocks.append(block)
    joined = {name: torch.cat([block[name] for block in blocks]) for name in _NAMES}
    return Pairs(**joined, ids=[_id(row) for row in range(count)], seed=seed)


def make_residuals(
    images: Tensor,
    stage: LangevinStage,
    path: Path,
    *,
    count: int,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """(count, 3, S, S) uint8 images and (count,) float32 sizes of the teacher's residual, made or read from a file.

    They cost one evaluation each, so there are more of them than pairs. Half of the images go through JPEG of random
    quality before half are perturbed, since the residual depends on where images come from.

    Args:
        images: (N, S, S, 3) uint8, drawn from at random.

    Raises:
        InputError: the teacher's noise does not adapt to a residual.
        Interrupted: `stop` asked for it; what was made is lost.
    """
    found = _read_residuals(path, count)
    if found is not None:
        return found
    generator = torch.Generator().manual_seed(seed * 1_000_003 + _GAUGE_SEED)
    pictures, residuals = [], []
    for start in range(0, count, BLOCK):
        if stop():
            raise Interrupted("stopped before the residuals were made; repeat the same command to go on")
        rows = torch.randint(len(images), (min(BLOCK, count - start),), generator=generator)
        clean = to_pm1(images[rows].permute(0, 3, 1, 2))
        for row in torch.randperm(len(rows), generator=generator)[: len(rows) // 2].tolist():
            quality = int(torch.randint(*_QUALITIES, (), generator=generator))
            clean[row : row + 1] = JPEGStage(quality).purify_batch(clean[row : row + 1], [""], seed=0)
        pixels = to_uint8(perturb(clean, generator)).contiguous()
        pictures.append(pixels)
        residuals += [_residuals(stage, to_pm1(batch)) for batch in torch.split(pixels, BATCH)]
    made = {"images": torch.cat(pictures), "residuals": torch.cat(residuals)}
    write_atomically(path, save(made))
    report(f"residuals: {count:,}")
    return made["images"], made["residuals"]


def _read_residuals(path: Path, count: int) -> tuple[Tensor, Tensor] | None:
    try:
        block = load_file(path) if path.exists() else {}
    except SafetensorError:
        return None
    whole = block.keys() == {"images", "residuals"} and len(block["residuals"]) == count
    return (block["images"], block["residuals"]) if whole else None


def perturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with a perturbation of its own, or (every second) as it is: smooth, a wave, or signs, of random size.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        The same shape; at most 16/255 of the range from the originals.
    """
    n, channels, height, width = images.shape
    out = images.clone()
    for row in range(0, n, 2):
        eps = 2 / 255 * float(torch.randint(2, LARGEST_EPS + 1, (), generator=generator))
        kind = int(torch.randint(3, (), generator=generator))
        if kind == 0:
            cells = int(torch.randint(2, 1 + max(2, height // 2), (), generator=generator))
            coarse = torch.randn(1, channels, cells, cells, generator=generator)
            pattern = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
            pattern = pattern / pattern.std()
        elif kind == 1:
            pattern = _wave(channels, height, width, generator)
        else:
            pattern = torch.randint(0, 2, images.shape[1:], generator=generator).float() * 2 - 1
        out[row] = (images[row] + eps * pattern.clamp(-1, 1)).clamp(-1, 1)
    return out


def _wave(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A sinusoid of random direction, length (from 2 pixels to the whole image), phase and colors."""
    angle, phase = (2 * math.pi * torch.rand(2, generator=generator)).tolist()
    cycles = 1 + (min(height, width) / 2 - 1) * float(torch.rand((), generator=generator)) ** 2
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
    wave = torch.sin(2 * math.pi * cycles * (math.cos(angle) * columns + math.sin(angle) * rows) + phase)
    colors = torch.rand(channels, 1, 1, generator=generator) * 2 - 1
    return colors / colors.abs().max() * wave


def claim(folder: Path, known: JSON, *, overwrite: bool) -> None:
    """Write down what the pairs in a folder are made of; others that stand there are dropped if `overwrite` is set.

    Args:
        known: all that a pair depends on: images, teacher, levels, seed.

    Raises:
        MismatchError: there are others, and `overwrite` is not set.
    """
    path, known = folder / "about.json", json.loads(json.dumps(known))
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and json.loads(path.read_text("utf-8")) != known:
        if not overwrite:
            raise MismatchError(
                f"{folder} holds pairs of another teacher, other images, levels or seed; choose another --out, or"
                " --overwrite them"
            )
        for old in folder.glob("*.safetensors"):
            old.unlink()
    write_atomically(path, json.dumps(known, indent=2).encode())


def _make(
    images: Tensor, stage: LangevinStage, levels: tuple[float, float], seed: int, number: int
) -> dict[str, Tensor]:
    """One block: images (B, S, S, 3) uint8 -> the tensors of `_NAMES`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    pixels = to_uint8(perturb(to_pm1(images.permute(0, 3, 1, 2)), generator))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    strengths = torch.ones(len(pixels))
    low, high = (math.log(level) for level in levels)
    for at, batch in enumerate(torch.split(pixels, BATCH)):
        drawn = math.exp(low + (high - low) * float(torch.rand((), generator=generator)))
        level = drawn if at % 2 else 1.0
        first = at * BATCH
        strengths[first : first + len(batch)] = level
        ids = [_id(number * BLOCK + first + row) for row in range(len(batch))]
        x = to_pm1(batch)
        parts.append((*taught(stage, x, ids, level=level, seed=seed), _residuals(stage, x)))
    purified, later, residuals = (torch.cat(one) for one in zip(*parts, strict=True))
    halves = {"purified": purified.half().contiguous(), "later": later.half().contiguous()}
    return {"images": pixels.contiguous(), **halves, "levels": strengths, "residuals": residuals}


def _residuals(stage: LangevinStage, images: Tensor) -> Tensor:
    """(N,) float32, on the CPU."""
    if not stage.config.adapt_above:
        return torch.zeros(len(images))
    x = images.to(stage.device, memory_format=torch.channels_last)
    return residual_size(stage.energy, x, stage.score).float().cpu()


def _id(row: int) -> str:
    return f"pair/{row}"


def _read(path: Path, count: int) -> dict[str, Tensor] | None:
    """The first `count` pairs of a block as it was written; None where it must be made."""
    if not path.exists():
        return None
    try:
        block = load_file(path)
    except SafetensorError:
        return None
    whole = block.keys() == set(_NAMES) and len(block["levels"]) >= count
    return {name: value[:count] for name, value in block.items()} if whole else None
