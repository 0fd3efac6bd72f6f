"""What the victims of the standard attacks share: enough textures to learn a pattern from, and a victim without one."""

from __future__ import annotations

from functools import cache

from tests.attacks.worlds import textures, train

from pureebm.classifiers.base import Classifier

EPOCHS = 16
MANY = textures(800, seed=0)


@cache
def clean_victim() -> Classifier:
    """Trained on `MANY` as it is; once for all tests of a run."""
    return train(MANY, seed=0, epochs=EPOCHS)
