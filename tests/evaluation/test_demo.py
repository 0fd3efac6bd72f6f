"""The bundled sample, its trigger, and what the demonstration measures."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.evaluation.demo import N_POISONED, Sample, load_sample, measure_trigger, write_untrusted


class Shrink:
    """A purifier that moves every image towards gray by a known factor; its energy counts bright pixels."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def purify_batch(self, images, ids, *, seed):
        return images * self.factor

    def energies(self, images):
        return images.sum(dim=(1, 2, 3))

    def settings(self):
        return {"stage": "shrink", "factor": self.factor}


def test_the_sample_is_balanced_and_small_and_the_trigger_within_its_budget():
    sample = load_sample()
    assert sample.images.shape == (240, 32, 32, 3) and sample.images.dtype == torch.uint8
    assert sample.labels.bincount().tolist() == [24] * 10
    assert sample.trigger.shape == (3, 32, 32) and sample.trigger.dtype == torch.float32
    assert 8 / 255 < sample.trigger.abs().max() <= 16 / 255 + 1e-6
    assert len(set(sample.poisoned)) == N_POISONED
    assert set(sample.labels[sample.poisoned].tolist()) == {sample.target}


@pytest.mark.parametrize("factor", [0.25, 0.75])
def test_trigger_survival_is_exact_for_a_linear_purifier(tmp_path, factor):
    # Psi(x) = a x leaves the share a of every perturbation, up to the rounding of the stored files.
    images = torch.from_numpy(np.random.default_rng(0).integers(60, 190, (20, 32, 32, 3), dtype=np.uint8))
    sample = Sample(images, torch.zeros(20, dtype=torch.int64), ("only",), torch.full((3, 32, 32), 16 / 255), 0)
    write_untrusted(tmp_path / "untrusted", sample)
    poisoned = images.clone()
    poisoned[sample.poisoned] += 8
    stored = replace(sample, images=to_uint8(to_pm1(poisoned) * factor), trigger=torch.zeros(3, 32, 32))
    write_untrusted(tmp_path / "purified", stored)
    paired, left = measure_trigger(sample, tmp_path / "untrusted", tmp_path / "purified", Shrink(factor), seed=0)
    assert paired == 1.0
    assert left == pytest.approx(factor, abs=0.01)
