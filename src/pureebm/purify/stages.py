"""Stages: one purifier each, and chains of them. Batches in, batches out; no files, no journal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pureebm.energy.engine import ExactScore, checked, make_score
from pureebm.errors import InputError
from pureebm.sampling.langevin import LangevinConfig, energy_and_gradient, langevin
from pureebm.sampling.noise import CounterNoise
from pureebm.types import JSON, Energy, Stage

SELF_CHECK_LIMIT = 0.05
"""Largest relative error (L2) of a bfloat16 gradient against float32 on the first batch."""

CHECK_IMAGES = 8
"""How many images of the first batch the checks of precision and engine see."""


class LangevinStage:
    """PureEBM: every image walks down an energy for `config.n_steps` Langevin updates.

    Args:
        energy: (N, 3, H, W) in [-1, 1] -> (N,). A module is moved to `device` and channels-last. The exact engine
            copies the weights: a stage does not see later training.
        device: "cpu", "cuda", "cuda:1", ...
        precision: "float32", "bfloat16", or "auto": bfloat16 where the processor multiplies it in
            hardware, if the first batch's gradient agrees with float32; the state is float32 always.
        engine: "exact" (an explicit graph, for the networks that have one), "eager" (autograd), or "auto": exact
            where it is there and agrees with autograd on the first batch.
        compiled: the exact engine through torch.compile, checked in the same way. On processors it takes a minute to
            compile and gains nothing, since the convolutions are the same.
        model: what identifies the weights in records: name, sha256, ...

    A value that became non-finite is returned as it is: the job refuses to write it.
    """

    def __init__(
        self,
        energy: Energy,
        config: LangevinConfig,
        *,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        engine: str = "auto",
        compiled: bool = False,
        model: JSON | None = None,
    ) -> None:
        if precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
        self.device = torch.device(device)
        self.config = config
        self.model = model or {}
        self.energy = energy
        if isinstance(energy, nn.Module):
            energy.eval().requires_grad_(False).to(self.device)
            energy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision = precision
        if precision == "auto":
            self.precision = "bfloat16" if has_fast_bfloat16(self.device) else "float32"
        self._may_lower = precision == "auto"
        self._unchecked = True
        self.score = make_score(energy, self.precision, engine=engine, compiled=compiled)
        self._latest: tuple[Tensor | None, int, Tensor] = None, 0, torch.empty(0)  # images, and their energies
        self.steps_run = 0

    def prepare(self, images: Tensor) -> None:
        """Settle precision and engine before `settings` are recorded, by the gradients at (the first of) these images.

        With precision "auto", float32 where bfloat16 is off by more than `SELF_CHECK_LIMIT`; with an exact engine,
        autograd where the two disagree. `images`: (N, 3, H, W) in [-1, 1].
        """
        if not self._unchecked or not len(images):
            return
        self._unchecked = False
        x = images[:CHECK_IMAGES].to(self.device, memory_format=torch.channels_last)
        self.score = checked(self.score, self.energy, x)
        if self._may_lower and self.precision == "bfloat16":
            low, high = self.score(x)[1], energy_and_gradient(self.energy, x)[1]
            if not (low - high).norm() <= SELF_CHECK_LIMIT * high.norm():
                self.precision = "float32"
                self.score = checked(make_score(self.energy, "float32", engine=self.score.name), self.energy, x)

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """(N, 3, H, W) float32 in [-1, 1] and N ids -> the same shape on the CPU."""
        self.prepare(images)
        x = images.to(self.device, memory_format=torch.channels_last)
        noise = CounterNoise(seed, ids, device=self.device)
        energies = None
        if self.config.adapt_above:
            seen, version, found = self._latest  # a job has asked for them just before
            known = seen is images and version == _version(images) != 0  # and nobody has written to them since
            energies = (found if known else self.energies(images)).to(self.device)
            self._latest = None, 0, found
        out = langevin(self.energy, x, self.config, noise=noise, score=self.score, energies=energies)
        self.steps_run += self.config.n_steps * len(images)
        return out.cpu()

    def energies(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N,) float32 on the CPU: the network's own output, in float32."""
        x = images.to(self.device, memory_format=torch.channels_last)
        if isinstance(self.score, ExactScore) and self.precision == "float32":
            found = self.score.energy(x).cpu()
        else:
            with torch.no_grad():
                found = self.energy(x).float().cpu()
        self._latest = images, _version(images), found
        return found

    def settings(self) -> JSON:
        return {
            "stage": "langevin",
            "model": self.model,
            **dataclasses.asdict(self.config),
            "precision": self.precision,
            "engine": f"{self.score.name}: {self.score.why}",
            "device": self.device.type,
        }


def _version(images: Tensor) -> int:
    """Grows with every write to a tensor; 0 where torch does not count them."""
    return 0 if images.is_inference() else 1 + images._version


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AMX or AVX512-BF16; CUDA from Ampere on)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _cpu_has_bfloat16()


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Chain:
    """Stages one after the other, in float between them; stage k draws its noise from seed + k.

    A chain in a chain is its stages, so that no two of them draw the same noise.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise InputError("a chain needs at least one stage: an empty one would purify nothing")
        if any(isinstance(stage, Highest) for stage in stages):
            raise InputError("only whole chains can be limited to the images of highest energy: put Highest around it")
        flat = [stage.stages if isinstance(stage, Chain) else (stage,) for stage in stages]
        self.stages: tuple[Stage, ...] = tuple(stage for part in flat for stage in part)

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """As each stage's own; the first one sees `seed`."""
        for offset, stage in enumerate(self.stages):
            images = stage.purify_batch(images, ids, seed=(seed + offset) % 2**64)
        return images

    def prepare(self, images: Tensor) -> None:
        """Let every stage that wants to see images before its settings are recorded see them."""
        for stage in self.stages:
            _prepare(stage, images)

    def energies(self, images: Tensor) -> Tensor | None:
        """Those of the first stage that has an energy."""
        for stage in self.stages:
            values = stage.energies(images)
            if values is not None:
                return values
        return None

    def settings(self) -> JSON:
        return {"stage": "chain", "stages": [stage.settings() for stage in self.stages]}


class Highest:
    """Filt of PureGen: only the images of highest energy go through a purifier; the others stay as they are.

    Which these are depends on the whole set: a job finds out before it purifies (`purify.ranking`). Given some images,
    `purify_batch` purifies them all.

    Args:
        stage: what the chosen images go through.
        share: of the images that have an energy, above 0 and at most 1.
        by: has the energy that ranks them.

    Source: arXiv 2405.18627, appendix C.
    """

    def __init__(self, stage: Stage, share: float, *, by: Stage) -> None:
        if not 0 < share <= 1:
            raise InputError(f"the share of images of highest energy must be above 0 and at most 1, got {share}")
        self.stage, self.share, self.by = stage, share, by

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """As the stage's own: all of these images are among the chosen ones."""
        return self.stage.purify_batch(images, ids, seed=seed)

    def prepare(self, images: Tensor) -> None:
        """As in a chain."""
        _prepare(self.by, images)
        _prepare(self.stage, images)

    def energies(self, images: Tensor) -> Tensor | None:
        return self.by.energies(images)

    def settings(self) -> JSON:
        told = self.by.settings()
        ranking = {name: told[name] for name in ("model", "precision", "engine", "device") if name in told}
        return {"stage": "highest", "share": self.share, "of": self.stage.settings(), "by": ranking}


def _prepare(stage: Stage, images: Tensor) -> None:
    prepare = getattr(stage, "prepare", None)
    if prepare is not None:
        prepare(images)
