"""What a piece of work costs: wall-clock seconds and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(slots=True)
class Cost:
    """Filled when the work is done. peak_mb: 10**6 bytes, of the device's allocator or of the whole process."""

    seconds: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def measured(device: str = "cpu") -> Iterator[Cost]:
    """Measure what happens inside the `with`.

    On CUDA the peak is that of torch's allocator; on a processor the largest resident size of the process during the
    work, where the system lets us reset that mark (Linux), else since the start of the process.
    """
    cost, on_cuda = Cost(), torch.device(device).type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _reset_high_water_mark()
    begin = time.perf_counter()
    yield cost
    if on_cuda:
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - begin
    cost.peak_mb = torch.cuda.max_memory_allocated(device) / 1e6 if on_cuda else _resident_peak() / 1e6


def _reset_high_water_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak then counts from the start of the process


def _resident_peak() -> int:
    """Bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
