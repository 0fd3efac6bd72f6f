"""pureebm: hand over an image training set you do not trust; get the same set back, harmless.

    from pureebm import Purifier

    purifier = Purifier.from_pretrained()
    clean = purifier(images)  # tensors, arrays or PIL images; the same type comes out
    purifier.purify("scraped/", "scraped-purified/")

Names are loaded when they are first used, so that importing the package (and `pureebm --help`) stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pureebm.data.open import open_source
    from pureebm.energy.networks import LocalEnergy, SNGANEnergy
    from pureebm.energy.weights import load_model, save_model
    from pureebm.errors import PureebmError
    from pureebm.purify.baselines import BlurStage, JPEGStage
    from pureebm.purify.job import JobConfig, RunRecord
    from pureebm.purify.purifier import Purifier
    from pureebm.purify.stages import Chain, LangevinStage
    from pureebm.sampling.langevin import LangevinConfig, langevin
    from pureebm.sampling.noise import CounterNoise

__version__ = "0.1.0"

_HOME = {
    "open_source": "data.open",
    "LocalEnergy": "energy.networks",
    "SNGANEnergy": "energy.networks",
    "load_model": "energy.weights",
    "save_model": "energy.weights",
    "PureebmError": "errors",
    "BlurStage": "purify.baselines",
    "JPEGStage": "purify.baselines",
    "JobConfig": "purify.job",
    "RunRecord": "purify.job",
    "Purifier": "purify.purifier",
    "Chain": "purify.stages",
    "LangevinStage": "purify.stages",
    "LangevinConfig": "sampling.langevin",
    "langevin": "sampling.langevin",
    "CounterNoise": "sampling.noise",
}

__all__ = [
    "BlurStage",
    "Chain",
    "CounterNoise",
    "JPEGStage",
    "JobConfig",
    "LangevinConfig",
    "LangevinStage",
    "LocalEnergy",
    "Purifier",
    "PureebmError",
    "RunRecord",
    "SNGANEnergy",
    "langevin",
    "load_model",
    "open_source",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pureebm' has no attribute {name!r}")
    return getattr(import_module(f"pureebm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
