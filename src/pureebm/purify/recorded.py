"""A purifier made again from what a run record says of it: the inverse of `Stage.settings`.

A record is a file from elsewhere: every value is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, TypeVar

import torch

from pureebm.diffusion.process import DDPMConfig
from pureebm.diffusion.stage import DDPMStage
from pureebm.diffusion.weights import load_ddpm
from pureebm.energy.student import Student
from pureebm.energy.weights import load_model
from pureebm.errors import InputError, ModelError
from pureebm.purify.baselines import BlurStage, JPEGStage
from pureebm.purify.chains import MAX_LINKS
from pureebm.purify.stages import Chain, LangevinStage
from pureebm.purify.student import StudentStage
from pureebm.purify.vq import VQStage, load_vq
from pureebm.sampling.langevin import LangevinConfig
from pureebm.types import JSON, Stage

MOST = 1e6
"""No number of a stage is larger: a damaged record must not make a run that never ends."""

KINDS = ("langevin", "student", "ddpm", "vq", "jpeg", "blur", "chain", "highest")

Config = TypeVar("Config", LangevinConfig, DDPMConfig)


def stage_of(told: JSON, *, model: str | None = None, device: str | None = None) -> Stage:
    """The purifier that `Stage.settings` describes; of one for the highest energies, what these images go through.

    Args:
        told: the settings.
        model: the energy's or student's weights, where the recorded name is not known here.
        device: None: the recorded one.

    Raises:
        ModelError: the weights are not here, or others.
        InputError: settings that no stage of this version has.
    """
    match told.get("stage"):
        case "langevin":
            return _langevin(told, model, device)
        case "student":
            return _student(told, model, device)
        case "ddpm":
            return _ddpm(told, device)
        case "vq":
            return _vq(told, device)
        case "jpeg":
            return JPEGStage(int(_number(told, "quality", whole=True)))
        case "blur":
            return BlurStage(_number(told, "sigma"))
        case "chain":
            inner = told.get("stages")
            if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner) or len(inner) > MAX_LINKS:
                raise _damaged("stages", inner)
            return Chain([stage_of(one, model=model, device=device) for one in inner])
        case "highest":
            return stage_of(_object(told, "of"), model=model, device=device)
        case kind:
            raise InputError(f"a {kind!r} stage cannot be made from its record; known: {', '.join(KINDS)}")


def _langevin(told: JSON, model: str | None, device: str | None) -> LangevinStage:
    place = _device(told, device)
    loaded = _loaded(load_model, _object(told, "model"), model, place, "--model")
    engine, _, why = _text(told, "engine").partition(": ")
    return LangevinStage(
        loaded.energy,
        _config(LangevinConfig, {"adapt_fades": False} | told),  # it stayed when nothing was recorded of it
        device=place,
        precision=_text(told, "precision"),
        engine=engine,
        compiled=why.endswith(", compiled"),
        model=_object(told, "model"),  # the sha256 is the same
    )


def _student(told: JSON, model: str | None, device: str | None) -> StudentStage:
    place = _device(told, device)
    loaded = _loaded(load_model, _object(told, "model"), model, place, "--model")
    if not isinstance(loaded.network, Student):
        raise ModelError(f"changed: {loaded.name} is no student")
    return StudentStage(
        loaded.network,
        level=_number(told, "level"),
        device=place,
        precision=_text(told, "precision"),
        model=_object(told, "model"),
    )


def _ddpm(told: JSON, device: str | None) -> DDPMStage:
    place = _device(told, device)
    loaded = _loaded(load_ddpm, _object(told, "model"), None, place, "")
    return DDPMStage(loaded, _config(DDPMConfig, told), device=place, precision=_text(told, "precision"))


def _vq(told: JSON, device: str | None) -> VQStage:
    place = _device(told, device)
    loaded = _loaded(load_vq, _object(told, "model"), None, place, "")
    return VQStage(loaded, device=place, precision=_text(told, "precision"))


def _loaded(load: Any, recorded: JSON, given: str | None, device: str, option: str) -> Any:
    """The recorded weights; `ModelError` where they are not here, or others."""
    name = given or recorded.get("name")
    if not name or not isinstance(name, str):
        raise ModelError("missing: the record names no weights" + (f"; name them with {option}" if option else ""))
    try:
        loaded = load(name, device=device)
    except (ModelError, OSError) as error:
        hint = f"; name the file with {option}" if option and not given else ""
        raise ModelError(f"missing: {error}{hint}") from error
    if loaded.sha256 != recorded.get("sha256"):
        raise ModelError(f"changed: the sha256 of {name} is {loaded.sha256}, the record says {recorded.get('sha256')}")
    return loaded


def _config(kind: type[Config], told: JSON) -> Config:
    """The recorded fields; what an older version did not record has its default."""
    values: dict[str, Any] = {}
    for one in dataclasses.fields(kind):
        whole, optional = isinstance(one.default, int) or one.name == "ddim", one.default is None
        if one.name in told and isinstance(one.default, bool):
            values[one.name] = _truth(told, one.name)
        elif one.name in told and not (optional and told[one.name] is None):
            number = _number(told, one.name, whole=whole)
            values[one.name] = int(number) if whole else number
    return kind(**values)


def _number(told: JSON, name: str, *, whole: bool = False) -> float:
    value = told.get(name)
    good = type(value) is int or (type(value) is float and not whole)
    if not good or not abs(value) <= MOST:  # type: ignore[arg-type]
        raise _damaged(name, value)
    return value  # type: ignore[return-value]


def _truth(told: JSON, name: str) -> bool:
    value = told.get(name)
    if not isinstance(value, bool):
        raise _damaged(name, value)
    return value


def _text(told: JSON, name: str) -> str:
    value = told.get(name)
    if not isinstance(value, str):
        raise _damaged(name, value)
    return value


def _object(told: JSON, name: str) -> JSON:
    value = told.get(name)
    if not isinstance(value, dict):
        raise _damaged(name, value)
    return value


def _device(told: JSON, given: str | None) -> str:
    device = given or _text(told, "device")
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", device):
        raise _damaged("device", device)
    if device != "cpu" and not torch.cuda.is_available():
        raise InputError(
            f"it was purified on {device}, which is not here; take --device cpu, where last bits may differ"
        )
    return device


def _damaged(name: str, value: object) -> InputError:
    return InputError(f"the record's {name} is {str(value)[:80]!r}: damaged, or of another version; purify again")
