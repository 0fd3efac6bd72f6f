"""What can be set about the training of an energy, a DDPM, an autoencoder or a student: frozen dataclasses.

They are options of the command line too: the text beside a field is its `--help`. No torch here, so that showing the
help stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySettings:
    """Network, objective, optimiser and sampler of one training. Lengths are in units of [-1, 1].

    A number that is None takes the default of the objective (see `resolved`).
    """

    objective: Annotated[Literal["dsm", "mle"], "denoising score matching, or the paper's maximum likelihood"] = "dsm"
    preset: Annotated[
        Literal["code", "paper"], "mle: optimiser, data noise and bank of the authors' code or of the paper"
    ] = "code"
    model: Annotated[Literal["local", "sngan"], "the light network or the paper's"] = "local"
    widths: Annotated[tuple[int, ...], "local: channels at 1/2, 1/4, ... of the resolution"] = (48, 96, 96)
    blocks: Annotated[tuple[int, ...], "local: residual blocks at each of them"] = (1, 1, 2)
    whiten: Annotated[
        float, "local: how many times stronger the noise of training and sampling is at long waves; 0 is white"
    ] = 0.0
    chroma: Annotated[float, "local: how many times stronger that noise is in the color differences"] = 1.0
    residual: Annotated[
        bool, "local: fit a plain denoiser, and follow its residual in place of the gradient of an energy"
    ] = False
    width: Annotated[int, "sngan: channels; 128 is the published network"] = 128
    size: Annotated[int, "side in pixels that every image is brought to"] = 32
    batch: Annotated[int, "images a step (on each device)"] = 64
    steps: Annotated[int, "steps of the objective"] = 20_000
    minutes: Annotated[
        float | None, "instead of --steps: as many steps as fit, by the speed measured at the start; then fixed"
    ] = None
    warm_steps: Annotated[int, "dsm, local: steps of the warm start as a plain denoiser"] = 0
    warm_minutes: Annotated[float | None, "instead of --warm-steps"] = None
    lr: Annotated[float | None, "learning rate (default: dsm 6e-4, mle as the preset says)"] = None
    precision: Annotated[
        Literal["float32", "bfloat16"], "dsm: of the products in the network; weights and sums stay float32"
    ] = "float32"
    warm_lr: Annotated[float, "learning rate of the warm start"] = 2e-3
    lr_warmup: Annotated[int, "steps over which the rate grows at the start of each phase"] = 100
    grad_clip: Annotated[float | None, "largest gradient norm; 0 is none (default: dsm 1, mle none)"] = None
    ema: Annotated[float, "decay of the running average of the weights"] = 0.999
    augment: Annotated[Literal["flip", "none"], "random change of a training image"] = "flip"
    sigma_min: Annotated[float, "dsm: least standard deviation of the noise"] = 0.02
    sigma_max: Annotated[float, "dsm: largest standard deviation of the noise"] = 0.4
    energy_unit: Annotated[
        float | None,
        "dsm: E / (unit * sigma^2) is fitted to the log density at noise sigma (default: local 1, sngan .1)",
    ] = None
    chain_steps: Annotated[int, "mle: Langevin updates of a negative each step"] = 100
    chain_step_size: Annotated[float, "mle: their step size"] = 1.25e-2
    temperature: Annotated[float, "mle: temperature of the density, exp(-E / T)"] = 1e-4
    data_noise: Annotated[float | None, "mle: noise on the data (default: code .015, paper .02)"] = None
    bank_size: Annotated[int, "mle: number of persistent negatives"] = 10_000
    rejuvenation: Annotated[float, "mle: chance that a negative is replaced by a noisy image"] = 0.05
    init: Annotated[str | None, "weights to start from: a model's name or .safetensors file"] = None
    seed: Annotated[int, "fixes every draw"] = 0
    validate_every: Annotated[int | None, "steps between validations (default: 10 in all)"] = None
    validation_images: Annotated[int, "held-out images that a validation purifies"] = 128
    sample_steps: Annotated[int | None, "steps of the model's own sampler (default: dsm 60, mle 150)"] = None
    sample_step_size: Annotated[float | None, "its step size (default: dsm .02 in pixels, mle as the chains)"] = None
    sample_temperature: Annotated[
        float | None, "its temperature (default: dsm .03^2 * unit in pixels, mle as trained)"
    ] = None

    def __post_init__(self) -> None:
        _check(
            self,
            least_one=("batch", "size", "width", "validation_images", "chain_steps", "bank_size"),
            positive=("minutes", "warm_minutes", "lr", "warm_lr", "energy_unit", "temperature", "chain_step_size"),
            not_negative=("steps", "warm_steps", "lr_warmup"),
            shares=("ema", "rejuvenation"),
        )
        if not 0 < self.sigma_min <= self.sigma_max:
            raise InputError(f"sigma_min and sigma_max must be 0 < min <= max, got {self.sigma_min}, {self.sigma_max}")
        if self.objective == "mle" and self.bank_size < self.batch:
            raise InputError(f"bank_size must be at least the batch ({self.batch}), got {self.bank_size}")
        if self.objective == "mle" and self.precision != "float32":
            raise InputError("maximum likelihood needs float32: its energy gaps are below the rounding of bfloat16")
        if self.has_warm_start and (self.model != "local" or self.objective != "dsm"):
            raise InputError(
                "a warm start needs --objective dsm and --model local; leave out --warm-steps/--warm-minutes"
            )

    @property
    def has_warm_start(self) -> bool:
        """Whether training begins with a plain denoiser."""
        return bool(self.warm_steps or self.warm_minutes)

    def resolved(self) -> EnergySettings:
        """The same settings with every None that has a default replaced by it."""
        from pureebm.energy.coordinates import Whitening  # brings torch: not for --help

        dsm, code = self.objective == "dsm", self.preset == "code"
        unit = self.energy_unit or (1.0 if self.model == "local" else 0.1)
        gain = Whitening(self.whiten, chroma=self.chroma).gain(self.size)  # colored noise is as strong in pixels
        defaults = {
            "lr": 6e-4 if dsm else (1e-4 if code else 5e-5),
            "grad_clip": 1.0 if dsm else 0.0,
            "energy_unit": unit,
            "data_noise": 0.015 if code else 0.02,
            "sample_steps": 60 if dsm else 150,
            "sample_step_size": 0.02 / gain if dsm else self.chain_step_size,
            "sample_temperature": (0.03 / gain) ** 2 * unit if dsm else self.temperature,
        }
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        missing = {name: value for name, value in defaults.items() if values[name] is None}
        return EnergySettings(**{**values, **missing})


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSettings:
    """Teacher, network, pairs and optimizer of the training of a one-pass student."""

    teacher: Annotated[str | None, "energy to learn from: a name or .safetensors (default: the bundled one)"] = None
    widths: Annotated[tuple[int, ...], "channels at 1/2, 1/4, ... of the resolution"] = (32, 64, 96)
    blocks: Annotated[tuple[int, ...], "residual blocks at each of them"] = (1, 1, 1)
    pairs: Annotated[int, "images that the teacher purifies, once, before the training"] = 30_000
    gauged: Annotated[int, "images whose residual is learned, where the teacher's noise adapts to it"] = 100_000
    level_min: Annotated[float, "least level of noise that is learned, as a multiple of the teacher's"] = 0.7
    level_max: Annotated[float, "largest level of noise that is learned"] = 1.4
    size: Annotated[int, "side in pixels that every image is brought to"] = 32
    batch: Annotated[int, "pairs a step"] = 64
    steps: Annotated[int, "steps of the training"] = 12_000
    minutes: Annotated[
        float | None, "instead of --steps: as many steps as fit, by the speed measured at the start; then fixed"
    ] = None
    lr: Annotated[float, "largest learning rate; it falls to 0 as a cosine"] = 2e-3
    lr_warmup: Annotated[int, "steps over which the rate grows at the start"] = 100
    grad_clip: Annotated[float, "largest gradient norm; 0 is none"] = 1.0
    ema: Annotated[float, "decay of the running average of the weights"] = 0.998
    precision: Annotated[
        Literal["float32", "bfloat16"], "of the products in the network; weights and sums stay float32"
    ] = "float32"
    augment: Annotated[Literal["flip", "none"], "random change of a pair"] = "flip"
    seed: Annotated[int, "fixes every draw"] = 0
    validate_every: Annotated[int | None, "steps between validations (default: 10 in all)"] = None
    validation_images: Annotated[int, "held-out images that a validation purifies"] = 128

    def __post_init__(self) -> None:
        _check(
            self,
            least_one=("pairs", "gauged", "batch", "size", "steps", "validation_images"),
            positive=("minutes", "lr"),
            not_negative=("grad_clip", "lr_warmup"),
            shares=("ema",),
        )
        if not 0 < self.level_min <= 1 <= self.level_max < float("inf"):
            raise InputError(
                f"level_min and level_max must be 0 < min <= 1 <= max, got {self.level_min} and {self.level_max}"
            )
        if self.size < 16:
            raise InputError(f"size must be at least 16, got {self.size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPMSettings:
    """Network, noise and optimizer of the training of a DDPM.

    A value that is None takes the default of the preset (see `resolved`).
    """

    preset: Annotated[
        Literal["light", "paper"], "network and rate: light ones for CPUs, or the paper's (113.7 million parameters)"
    ] = "light"
    widths: Annotated[
        tuple[int, ...] | None,
        "channels at each resolution, each half the last (default: light 48,48,64, paper 128,128,256,256,512,512)",
    ] = None
    layers: Annotated[int | None, "residual blocks at each of them (default: light 1, paper 2)"] = None
    patch: Annotated[int | None, "squares of so many pixels become channels (default: light 2, paper 1)"] = None
    levels: Annotated[int, "noise levels that are learned: the first so many of the schedule's 1,000"] = 250
    size: Annotated[int, "side in pixels that every image is brought to"] = 32
    batch: Annotated[int, "images a step (on each device)"] = 64
    steps: Annotated[int, "steps of the training"] = 20_000
    minutes: Annotated[
        float | None, "instead of --steps: as many steps as fit, by the speed measured at the start; then fixed"
    ] = None
    lr: Annotated[float | None, "largest rate; it falls to 0 as a cosine (default: light 1e-3, paper 1e-4)"] = None
    lr_warmup: Annotated[int, "steps over which the rate grows at the start"] = 100
    weight_decay: Annotated[float, "of AdamW"] = 0.01
    grad_clip: Annotated[float, "largest gradient norm; 0 is none"] = 1.0
    ema: Annotated[float, "decay of the running average of the weights"] = 0.999
    precision: Annotated[
        Literal["float32", "bfloat16"], "of the products in the network; weights and sums stay float32"
    ] = "float32"
    augment: Annotated[Literal["flip", "none"], "random change of a training image"] = "flip"
    seed: Annotated[int, "fixes every draw"] = 0
    validate_every: Annotated[int | None, "steps between validations (default: 10 in all)"] = None
    validation_images: Annotated[int, "held-out images that a validation denoises"] = 128

    def __post_init__(self) -> None:
        _check(
            self,
            least_one=("layers", "patch", "batch", "size", "validation_images"),
            positive=("minutes", "lr"),
            not_negative=("steps", "lr_warmup", "weight_decay", "grad_clip"),
            shares=("ema",),
        )
        if not 1 <= self.levels <= 1000:
            raise InputError(f"levels must be 1 to 1000, got {self.levels}")
        if self.widths is not None and not all(width >= 4 and width % 4 == 0 for width in self.widths):
            raise InputError(f"widths must be multiples of 4, got {self.widths}")

    def resolved(self) -> DDPMSettings:
        """The same settings with every None that has a default replaced by it."""
        light = self.preset == "light"
        defaults = {
            "widths": (48, 48, 64) if light else (128, 128, 256, 256, 512, 512),
            "layers": 1 if light else 2,
            "patch": 2 if light else 1,
            "lr": 1e-3 if light else 1e-4,
        }
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        missing = {name: value for name, value in defaults.items() if values[name] is None}
        return DDPMSettings(**{**values, **missing})


@dataclass(frozen=True, slots=True, kw_only=True)
class VQSettings:
    """Network, codes and optimizer of the training of a vector-quantized autoencoder."""

    width: Annotated[int, "channels of encoder and decoder"] = 96
    layers: Annotated[int, "residual blocks of each of them"] = 2
    n_codes: Annotated[int, "number of codes"] = 512
    code_dim: Annotated[int, "length of a code"] = 32
    halvings: Annotated[int, "the grid of codes has 1 / 2^N of the resolution"] = 1
    commitment: Annotated[float, "weight of the distance of what is encoded to its code"] = 0.25
    code_decay: Annotated[float, "decay of the running averages that are the codes"] = 0.99
    size: Annotated[int, "side in pixels that every image is brought to"] = 32
    batch: Annotated[int, "images a step"] = 32
    steps: Annotated[int, "steps of the training"] = 8_000
    minutes: Annotated[
        float | None, "instead of --steps: as many steps as fit, by the speed measured at the start; then fixed"
    ] = None
    lr: Annotated[float, "largest learning rate; it falls to 0 as a cosine"] = 1e-3
    lr_warmup: Annotated[int, "steps over which the rate grows at the start"] = 100
    grad_clip: Annotated[float, "largest gradient norm; 0 is none"] = 1.0
    ema: Annotated[float, "decay of the running average of the weights"] = 0.998
    precision: Annotated[
        Literal["float32", "bfloat16"], "of the products in the network; weights, sums and codes stay float32"
    ] = "float32"
    augment: Annotated[Literal["flip", "none"], "random change of a training image"] = "flip"
    seed: Annotated[int, "fixes every draw"] = 0
    validate_every: Annotated[int | None, "steps between validations (default: 10 in all)"] = None
    validation_images: Annotated[int, "held-out images that a validation rebuilds"] = 512

    def __post_init__(self) -> None:
        _check(
            self,
            least_one=("width", "layers", "n_codes", "code_dim", "halvings", "batch", "steps", "validation_images"),
            positive=("minutes", "lr"),
            not_negative=("commitment", "grad_clip", "lr_warmup"),
            shares=("ema", "code_decay"),
        )
        if self.size < 16 or self.size % 2**self.halvings:
            raise InputError(f"size must be a multiple of {2**self.halvings} and at least 16, got {self.size}")


Settings = EnergySettings | StudentSettings | DDPMSettings | VQSettings
"""Of any training that is a `pureebm.training.run.Run`."""


def _check(
    settings: object,
    *,
    least_one: tuple[str, ...],
    positive: tuple[str, ...],
    not_negative: tuple[str, ...],
    shares: tuple[str, ...],
) -> None:
    """Refuse fields out of range, NaN among them, by an `InputError`; None stands for a default."""

    def refuse(names: tuple[str, ...], allowed: Callable[[float], bool], what: str) -> None:
        for name in names:
            value = getattr(settings, name)
            if value is not None and not allowed(value):
                raise InputError(f"{name} must be {what}, got {value}")

    refuse(least_one, lambda value: value >= 1, "at least 1")
    refuse(not_negative, lambda value: 0 <= value < math.inf, "0 or more and finite")
    refuse(positive, lambda value: 0 < value < math.inf, "above 0 and finite")
    refuse(shares, lambda value: 0 <= value <= 1, "in 0 .. 1")
