"""The settings of a purification as a page's form has them: an empty field stands for the model's own value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pureebm.sampling.langevin import LangevinConfig
from pureebm.web.studio import Studio

MAX_SEED = 2**53 - 1  # what a browser holds exactly

_Steps = Annotated[int, Field(ge=0, le=100_000)]
_Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
_Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=10**12)]
_Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def _nothing(value: Any) -> Any:
    return None if value == "" else value


def _zero(value: Any) -> Any:
    return 0 if value == "" else value


_Empty = BeforeValidator(_nothing)
Steps = Annotated[_Steps | None, _Empty]
Positive = Annotated[_Positive | None, _Empty]
Scale = Annotated[_Scale | None, _Empty]
Count = Annotated[_Count | None, _Empty]
Seed = Annotated[_Seed, BeforeValidator(_zero)]


class Settings(BaseModel):
    """What a preview and a chain depend on."""

    model_config = ConfigDict(frozen=True)

    steps: Steps = None
    step_size: Positive = None
    temperature: Positive = None
    noise: Scale = None
    seed: Seed = 0

    def config(self, studio: Studio) -> LangevinConfig:
        """Raises `InputError`."""
        return studio.config(steps=self.steps, step_size=self.step_size, temperature=self.temperature, noise=self.noise)

    def asked(self) -> dict[str, Any]:
        """Only what was not left empty, for addresses."""
        return {
            name: value for name, value in self.model_dump(exclude_none=True).items() if (name, value) != ("seed", 0)
        }


class JobForm(Settings):
    """What a job is asked to do."""

    source: Annotated[str, Field(max_length=4096)]
    limit: Count = None
    on_error: Literal["skip", "copy", "fail"] = "skip"


def _settings(
    steps: Annotated[Steps, Query()] = None,
    step_size: Annotated[Positive, Query()] = None,
    temperature: Annotated[Positive, Query()] = None,
    noise: Annotated[Scale, Query()] = None,
    seed: Annotated[Seed, Query()] = 0,
) -> Settings:
    return Settings(steps=steps, step_size=step_size, temperature=temperature, noise=noise, seed=seed)


Asked = Annotated[Settings, Depends(_settings)]
"""Settings from the address."""


def hints(config: LangevinConfig) -> dict[str, str]:
    """The model's own values, to show in empty fields."""

    def way(start: float, end: float | None) -> str:
        return _short(start) if end is None else f"{_short(start)} → {_short(end)}"

    return {
        "steps": str(config.n_steps),
        "step_size": way(config.step_size, config.step_size_end),
        "temperature": way(config.temperature, config.temperature_end),
        "noise": _short(config.noise),
    }


def _short(value: float) -> str:
    """Few enough letters for two of them in a field."""
    return f"{value:.3g}" if value >= 0.001 else f"{value:.2g}".replace("e-0", "e-")
