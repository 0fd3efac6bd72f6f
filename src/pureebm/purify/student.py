"""The one-pass student as a stage, and the stage that goes with any loaded model."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from pureebm.energy.student import Student
from pureebm.energy.weights import LoadedModel
from pureebm.errors import InputError
from pureebm.purify.stages import LangevinStage, has_fast_bfloat16
from pureebm.sampling.langevin import LangevinConfig
from pureebm.sampling.noise import CounterNoise
from pureebm.types import JSON, Stage

NOISE_IMAGES = 32
"""Noise is made for so many images at once: its integers then stay in the caches, which is three times as fast."""


class StudentStage:
    """A student purifies every image in one pass of its network.

    The noise of an image is a function of (seed, id): step 0 is the chain's start, as in `langevin`, and step 1 what
    stands for the noises of its updates. So student and teacher begin with the same noise.

    Args:
        network: moved to `device`. For bfloat16 its convolutions run on a copy; all else is float32.
        level: strength of the noise as a multiple of the teacher's, within the network's `levels`.
        precision: "float32", "bfloat16", or "auto": bfloat16 where the processor multiplies it in hardware.
        model: what identifies the weights in records: name, sha256, ...

    Raises:
        InputError: a level that the network was not trained for, or an unknown precision.
    """

    def __init__(
        self,
        network: Student,
        *,
        level: float = 1.0,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        model: JSON | None = None,
    ) -> None:
        if precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
        low, high = network.levels
        if not low <= level <= high:
            raise InputError(f"this student was trained for levels {low:g} to {high:g} of noise, got {level:g}")
        self.device = torch.device(device)
        if precision == "auto":
            precision = "bfloat16" if has_fast_bfloat16(self.device) else "float32"
        self.precision, self.level, self.model = precision, level, model or {}
        network = copy.deepcopy(network) if precision == "bfloat16" else network
        network.eval().requires_grad_(False).to(self.device, getattr(torch, precision))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """(N, 3, H, W) float32 in [-1, 1] and N ids -> the same shape on the CPU."""
        x = images.to(self.device)
        level = torch.full((len(x),), self.level, device=self.device)
        start = self._noise(0, x, ids, seed) if self.network.initial_noise else x.new_zeros(())
        with torch.no_grad():
            out: Tensor = self.network(x, start, self._noise(1, x, ids, seed), level)
        return out.cpu()

    def _noise(self, step: int, images: Tensor, ids: Sequence[str], seed: int) -> Tensor:
        parts = [
            CounterNoise(seed, ids[start : start + NOISE_IMAGES], device=self.device)(
                step, images[start : start + NOISE_IMAGES]
            )
            for start in range(0, len(images), NOISE_IMAGES)
        ]
        return torch.cat(parts) if parts else torch.empty_like(images)

    def energies(self, images: Tensor) -> None:
        """None: a student has no energy, and one of another model would take longer than the student itself."""
        return None

    def settings(self) -> JSON:
        network = self.network
        adapt = {"above": network.adapt_above, "power": network.adapt_power, "most": network.adapt_most}
        adapt["margin"] = network.gauge_margin
        return {
            "stage": "student",
            "model": self.model,
            "level": self.level,
            **({f"adapt_{name}": value for name, value in adapt.items()} if network.adapt_above else {}),
            "precision": self.precision,
            "device": self.device.type,
        }


def model_stage(
    model: LoadedModel,
    config: LangevinConfig | None = None,
    *,
    level: float | None = None,
    device: torch.device | str = "cpu",
    precision: str = "auto",
) -> Stage:
    """The purifier that a loaded model is: a chain down its energy, or one pass of a student.

    Args:
        config: of the chain; None: the model's own sampler.
        level: of the student's noise; None: 1.

    Raises:
        InputError: a sampler for a student, or a level for an energy.
    """
    told = model.describe()
    if isinstance(model.network, Student):
        if config is not None:
            raise InputError(f"{model.name!r} is a one-pass student: it has no sampler; it takes a level of noise")
        return StudentStage(
            model.network, level=1.0 if level is None else level, device=device, precision=precision, model=told
        )
    if level is not None:
        raise InputError(f"{model.name!r} is an energy: a level is for students; give its sampler's settings instead")
    config = config or LangevinConfig(**model.card.get("sampler", {}))
    return LangevinStage(model.energy, config, device=device, precision=precision, model=told)
