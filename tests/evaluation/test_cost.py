"""Seconds and peak memory of a piece of work, and of that piece only."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from pureebm.evaluation.cost import measured


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the mark of the peak cannot be reset elsewhere")
def test_the_peak_is_of_this_work_and_is_forgotten_for_the_next() -> None:
    with measured() as before:
        time.sleep(0.05)
    with measured() as large:
        torch.ones(75_000_000)  # 300 MB, given back at once
    with measured() as after:
        pass
    assert 0.05 <= before.seconds < 5
    assert 280 < large.peak_mb - before.peak_mb < 400
    assert after.peak_mb < large.peak_mb - 200


def test_a_failure_inside_is_passed_on() -> None:
    with pytest.raises(KeyError), measured():
        raise KeyError
