"""Defenses by name, as suites and the command line write them: NAME[-NUMBER][:key=value,...].

    none                          nothing is done
    jpeg-75  blur-0.7             baselines that change the training images once
    pureebm                       the bundled model with its own sampler
    pureebm:steps=auto            the model's measured mid-run
    pureebm:model=FILE,steps=20   any field of the sampler; model, seed and precision beside; sampler=paper, or
                                  sampler=NAME for the one on another model's card
    pureebm:model=FILE,level=1.2  a one-pass student; level of its noise, seed and precision beside
    ddpm  ddpm-125:ddim=10        PureGen-DDPM, to that level of noise; ddpm=FILE names its weights
    vq  vq:model=FILE             a vector-quantized autoencoder, one pass; precision beside
    naive  naive-75:energy=150    energy > ddpm, as PureGen's Naive; model=FILE and ddpm=FILE beside
    reps  reps-50:times=5         5 * (energy > ddpm), PureGen's Reps; energy steps: a fifteenth of the model's own
    filt  filt-125:share=50       filter(50%) > ddpm, PureGen's Filt
    chain:TEXT; model=FILE        any chain, as `purify.chains` reads it; model, ddpm, vq, seed and precision beside
    epic-0.1                      EPIC with that share of medoids, on PureGen's schedule
    epic-0.1:preset=short         on the schedule of short trainings; any field of `epic.Config` beside
    friends-b  friends-gaussian   FRIENDS with Bernoulli or Gaussian noise; presets and fields as above
    spectral  knn:after=2         detectors that drop images once; fields as above

A defense is a `Stage` that changes the training images once, or a `TrainingDefense` that acts while the victim is
trained, or both. A new one is a new entry of `MAKERS`; the runner names none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from pureebm.defenses import detector, epic, friends
from pureebm.diffusion.process import DDPMConfig
from pureebm.diffusion.weights import DEFAULT_DDPM, LoadedDDPM, bundled_path, load_ddpm
from pureebm.energy.student import Student
from pureebm.energy.weights import DEFAULT_MODEL, LoadedModel, load_model
from pureebm.errors import InputError
from pureebm.purify.baselines import baseline
from pureebm.purify.chains import build_chain, ddpm_stage, parse_chain
from pureebm.purify.student import model_stage
from pureebm.purify.vq import DEFAULT_VQ, VQStage, bundled_vq, load_vq
from pureebm.sampling.langevin import LangevinConfig
from pureebm.types import JSON, Stage, TrainingDefense

Number = TypeVar("Number", int, float)
Config = TypeVar("Config", epic.Config, friends.Config, detector.SpectralConfig | detector.NeighborsConfig)


class NotInstalledError(InputError):
    """A defense that suites name, but that this version has no weights for."""


@dataclass(frozen=True, slots=True)
class Defense:
    """name: as asked for. stage: changes the training images. training: made anew for each victim, from its seed.

    `training_settings` describe the second; without either there is no defense.
    """

    name: str
    stage: Stage | None = None
    seed: int = 0
    training: Callable[[int], TrainingDefense] | None = None
    training_settings: JSON | None = None

    def settings(self) -> JSON:
        """Everything that changes a result."""
        purifier = {"stage": "none"} if self.stage is None else {**self.stage.settings(), "seed": self.seed}
        return purifier if self.training_settings is None else purifier | {"training": self.training_settings}


@dataclass(frozen=True, slots=True)
class Asked:
    """A name taken apart. head: "jpeg-75"; options: what follows the colon."""

    name: str
    head: str
    options: Mapping[str, str]
    device: str
    precision: str


def find_defense(name: str, *, device: str = "cpu", precision: str = "auto") -> Defense:
    """The defense of that name, ready to use.

    Raises:
        InputError: an unknown name or option, or a value out of range.
        NotInstalledError: it needs weights that do not come with this version.
    """
    head, _, text = name.partition(":")
    if head == "chain":
        chain, _, text = text.partition(";")
        head = f"chain:{chain.strip()}"
    pairs = [pair.strip().partition("=") for pair in text.split(",")] if text.strip() else []
    if not all(key and equals and value for key, equals, value in pairs):
        raise InputError(f"defense {name!r}: what follows the colon must be key=value, several by commas")
    asked = Asked(name, head, {key: value for key, _, value in pairs}, device, precision)
    kind = "chain" if head.startswith("chain:") else head.partition("-")[0]
    if kind not in MAKERS:
        close = difflib.get_close_matches(kind, MAKERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise InputError(f"unknown defense {name!r}{hint} Known: {', '.join(MAKERS)}")
    return MAKERS[kind](asked)


def _simple(asked: Asked) -> Defense:
    if asked.options:
        raise InputError(f"defense {asked.name!r}: {asked.head} takes no options")
    return Defense(asked.name, baseline(asked.head))


def _pureebm(asked: Asked) -> Defense:
    options = dict(asked.options)
    model = load_model(options.pop("model", DEFAULT_MODEL), device=asked.device)
    precision, seed = options.pop("precision", asked.precision), options.pop("seed", "0")
    level = options.pop("level", None)
    student = isinstance(model.network, Student)
    if student and options:
        raise InputError(f"defense {asked.name!r}: a student takes model, level, seed and precision only")
    stage = model_stage(
        model,
        None if student else _sampler(asked.name, model.card, options),
        level=None if level is None else _number(asked.name, "level", level, float),
        device=asked.device,
        precision=precision,
    )
    return Defense(asked.name, stage, _number(asked.name, "seed", seed, int))


def _sampler(name: str, card: JSON, options: dict[str, str]) -> LangevinConfig:
    """The model's own sampler, the paper's or another model's, with the given fields put over it."""
    sampler, steps = options.pop("sampler", "default"), options.pop("steps", None)
    if sampler not in ("default", "paper"):
        card = load_model(sampler).card
        if "sampler" not in card:
            raise InputError(f"defense {name!r}: the card of {sampler!r} holds no sampler")
    if steps == "auto" and "auto_steps" not in card:
        raise InputError(f"defense {name!r}: the model's card holds no measured mid-run; give a number of steps")
    own = (card.get("auto_sampler") if steps == "auto" else None) or card.get("sampler", {})
    config = LangevinConfig(**({} if sampler == "paper" else own))
    if steps is not None:
        n_steps = int(card["auto_steps"]) if steps == "auto" else _number(name, "steps", steps, int)
        config = replace(config, n_steps=n_steps)
    known = [one.name for one in fields(LangevinConfig) if one.name != "n_steps"]
    for key, text in options.items():
        if key not in known:
            every = ", ".join(("model", "steps", "sampler", "seed", "precision", *known))
            raise InputError(f"defense {name!r} has no option {key!r}; known: {every}")
        number = _number(name, key, text, float)
        changes: JSON = {key: bool(number) if isinstance(getattr(config, key), bool) else number}
        if f"{key}_end" in known and f"{key}_end" not in options:
            changes[f"{key}_end"] = None  # a constant replaces the model's schedule
        config = replace(config, **changes)
    return config


def _epic(asked: Asked) -> Defense:
    match = re.fullmatch(r"epic-(\d+\.\d+)", asked.head)
    if match is None:
        raise InputError(f"unknown defense {asked.name!r}; known: epic-SHARE (epic-0.1)")
    chosen = {name: replace(config, share=float(match[1])) for name, config in epic.PRESETS.items()}
    config = _configured(asked, chosen, fixed="share")
    return _acting(asked, "epic", config, lambda seed: epic.Epic(config, seed=seed))


def _friends(asked: Asked) -> Defense:
    noises: dict[str, friends.RandomNoise] = {"bernoulli": "bernoulli", "gaussian": "gaussian"}
    noise = next((noises[name] for name in noises if asked.head in (f"friends-{name}", f"friends-{name[0]}")), None)
    if noise is None:
        raise InputError(f"unknown defense {asked.name!r}; known: friends-bernoulli (friends-b), friends-gaussian")
    chosen = {name: replace(config, noise=noise) for name, config in friends.PRESETS.items()}
    config = _configured(asked, chosen, fixed="noise")
    return _acting(asked, "friends", config, lambda seed: friends.Friends(config, seed=seed))


def _detector(asked: Asked) -> Defense:
    if asked.head not in _DETECTORS:
        raise InputError(f"{asked.head.partition('-')[0]} takes no number: {asked.name!r}")
    config = _configured(asked, {"default": _DETECTORS[asked.head]})
    return _acting(asked, asked.head, config, lambda seed: detector.DropOnce(config.keeps, config.after))


_DETECTORS: Mapping[str, detector.SpectralConfig | detector.NeighborsConfig] = MappingProxyType(
    {"spectral": detector.SpectralConfig(), "knn": detector.NeighborsConfig()}
)


def _acting(asked: Asked, method: str, config: Any, make: Callable[[int], TrainingDefense]) -> Defense:
    return Defense(asked.name, training=make, training_settings={"method": method, **asdict(config)})


def _configured(asked: Asked, presets: Mapping[str, Config], *, fixed: str = "") -> Config:
    """The preset asked for, else the first, with the given fields put over it; `fixed` is part of the name."""
    options = dict(asked.options)
    preset = options.pop("preset", next(iter(presets)))
    if preset not in presets:
        raise InputError(f"defense {asked.name!r}: preset must be one of {', '.join(presets)}, got {preset!r}")
    config = presets[preset]
    known = {one.name: type(getattr(config, one.name)) for one in fields(config) if one.name != fixed}
    changes: JSON = {}
    for key, text in options.items():
        if key not in known:
            raise InputError(f"defense {asked.name!r} has no option {key!r}; known: preset, {', '.join(known)}")
        read = _switch if known[key] is bool else _number
        changes[key] = read(asked.name, key, text, known[key])
    return replace(config, **changes)


def _switch(name: str, key: str, text: str, kind: type[bool]) -> bool:
    if text not in ("true", "false"):
        raise InputError(f"defense {name!r}: {key} must be true or false, got {text!r}")
    return text == "true"


def _number(name: str, key: str, text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"defense {name!r}: {key} must be a number, got {text!r}") from None


_PAPER_SHORT = 15
"""How many times fewer updates an energy makes in PureGen's Reps than alone: 10 of 150."""

_COMBINATIONS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "ddpm": ("ddpm({level})", 75),
        "naive": ("energy{energy} > ddpm({level})", 75),
        "reps": ("{times} * (energy{energy} > ddpm({level}))", 50),
        "filt": ("filter({share}%) > ddpm({level})", 125),
    }
)
"""PureGen's, with the level of noise that the paper chose (arXiv 2405.18627, appendix F)."""


def _combined(asked: Asked) -> Defense:
    kind, dash, number = asked.head.partition("-")
    if dash and not number.isdecimal():
        raise InputError(
            f"unknown defense {asked.name!r}; known: {kind}-LEVEL, such as {kind}-{_COMBINATIONS[kind][1]}"
        )
    text, usual = _COMBINATIONS[kind]
    options, values = dict(asked.options), {"level": number or str(usual)}
    if "ddim" in options:
        values["level"] += f", ddim={options.pop('ddim')}"
    for key, default in (("times", "5"), ("share", "50"), ("energy", "")):
        if f"{{{key}}}" in text:
            values[key] = options.pop(key, default)
    model = load_model(options.pop("model", DEFAULT_MODEL), device=asked.device)
    if kind == "reps" and not values["energy"] and not isinstance(model.network, Student):
        own = LangevinConfig(**model.card.get("sampler", {})).n_steps
        values["energy"] = str(max(1, round(own / _PAPER_SHORT)))
    values["energy"] = f"({values['energy']})" if values.get("energy") else ""
    return _chained(asked, text.format(**values), model, options)


def _chain(asked: Asked) -> Defense:
    options = dict(asked.options)
    model = load_model(options.pop("model", DEFAULT_MODEL), device=asked.device)
    return _chained(asked, asked.head.partition(":")[2], model, options)


def _chained(asked: Asked, text: str, model: LoadedModel, options: dict[str, str]) -> Defense:
    """The chain of a text; `options`: what is left of those asked for."""
    recipe = parse_chain(text)
    precision = options.pop("precision", asked.precision)
    seed = _number(asked.name, "seed", options.pop("seed", "0"), int)
    weights, autoencoder = options.pop("ddpm", DEFAULT_DDPM), options.pop("vq", DEFAULT_VQ)
    if options:
        known = "model, ddpm, vq, seed, precision"
        raise InputError(f"defense {asked.name!r} has no option {min(options)!r}; known: {known}")
    diffusion = _diffusion(asked, weights) if recipe.uses("ddpm") else None

    def energy(steps: str | None) -> Stage:
        config = None if steps is None else _sampler(asked.name, model.card, {"steps": steps})
        return model_stage(model, config, device=asked.device, precision=precision)

    def ddpm(config: DDPMConfig) -> Stage:
        assert diffusion is not None
        return ddpm_stage(diffusion, config, device=asked.device, precision=precision)

    def vq() -> Stage:
        return _autoencoder(asked, autoencoder, precision)

    return Defense(asked.name, build_chain(recipe, energy=energy, ddpm=ddpm, vq=vq), seed)


def _diffusion(asked: Asked, weights: str) -> LoadedDDPM:
    if weights == DEFAULT_DDPM and not bundled_path().is_file():
        raise NotInstalledError(f"defense not installed: {asked.name}: no DDPM comes with this version; add ddpm=FILE")
    return load_ddpm(weights, asked.device)


def _vq(asked: Asked) -> Defense:
    options = dict(asked.options)
    weights, precision = options.pop("model", DEFAULT_VQ), options.pop("precision", asked.precision)
    if options or asked.head != "vq":
        raise InputError(f"defense {asked.name!r}: vq takes no number, and model and precision as options only")
    return Defense(asked.name, _autoencoder(asked, weights, precision))


def _autoencoder(asked: Asked, weights: str, precision: str) -> VQStage:
    if weights == DEFAULT_VQ and not bundled_vq().is_file():
        raise NotInstalledError(
            f"defense not installed: {asked.name}: no autoencoder comes with this version; name one"
        )
    return VQStage(load_vq(weights, asked.device), device=asked.device, precision=precision)


MAKERS: Mapping[str, Callable[[Asked], Defense]] = MappingProxyType(
    {
        "none": _simple,
        "jpeg": _simple,
        "blur": _simple,
        "pureebm": _pureebm,
        "ddpm": _combined,
        "vq": _vq,
        "epic": _epic,
        "friends": _friends,
        "spectral": _detector,
        "knn": _detector,
        "naive": _combined,
        "reps": _combined,
        "filt": _combined,
        "chain": _chain,
    }
)
"""What stands before the first dash or colon -> how to make it."""
