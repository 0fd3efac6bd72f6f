"""Numbers and pixels as what a page can show: coordinates of plots, and small PNG pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pureebm.data.base import Pixels

WIDTH, HEIGHT = 480, 206
LEFT, RIGHT, TOP, BOTTOM = 66, 28, 10, 42
N_BINS = 40
MOST_TICKS = 8
THUMB = 96


@dataclass(frozen=True, slots=True)
class Plot:
    """`marks` are bars (x, y, width, height) or points (x, y), in WIDTH x HEIGHT; ticks are (place, text)."""

    marks: list[tuple[float, ...]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]

    def line(self) -> str:
        """Points as an SVG polyline has them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.marks)


def histogram(values: NDArray[np.float64]) -> Plot:
    """Bars; the outermost hold what lies beyond the middle 99 %."""
    low, high = (float(edge) for edge in np.percentile(values, [0.5, 99.5]))
    spread = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)
    bins = np.linspace(low - 0.02 * spread, high + 0.02 * spread, N_BINS + 1)
    counts, _ = np.histogram(values.clip(bins[0], bins[-1]), bins)
    top = max(1, int(counts.max()))
    step = (WIDTH - LEFT - RIGHT) / N_BINS
    bars: list[tuple[float, ...]] = []
    for place, count in enumerate(counts.tolist()):
        height = (HEIGHT - TOP - BOTTOM) * count / top
        bars.append((LEFT + place * step + 0.5, HEIGHT - BOTTOM - height, step - 1, height))
    return Plot(bars, _x_ticks(float(bins[0]), float(bins[-1])), _y_ticks(0.0, float(top)))


def curve(values: Sequence[float], first: int = 0) -> Plot:
    """A line over the places of a chain; its steps are counted behind the start and `first` places of noise alone."""
    finite = [value for value in values if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    last = max(1, len(values) - 1)
    points: list[tuple[float, ...]] = [
        (_x(place / last), _y((value - low) / (high - low))) for place, value in enumerate(values) if np.isfinite(value)
    ]
    shares = range(1, last + 1) if last <= MOST_TICKS else (round(share * last) for share in (0.25, 0.5, 0.75, 1))
    ticks = sorted({*shares} - {0})
    names = [(_x(0), "before")]
    names += [(_x(place / last), str(place - first) if place > first else "noise") for place in ticks]
    return Plot(points, names, _y_ticks(low, high))


def png(pixels: Pixels) -> bytes:
    """(H, W, 3) pixels as an 8-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(_as_8_bit(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def thumb_uri(pixels: Pixels) -> str:
    """A PNG of at most 96 x 96 pixels, inside a URI."""
    image = Image.fromarray(_as_8_bit(pixels))
    image.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def difference(before: Pixels, after: Pixels, gain: int) -> NDArray[np.uint8]:
    """What changed, so many times amplified; grey is no change."""
    moved = (_as_8_bit(after).astype(np.int32) - _as_8_bit(before)) * gain + 128
    return moved.clip(0, 255).astype(np.uint8)


def _as_8_bit(pixels: Pixels) -> NDArray[np.uint8]:
    return (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels.astype(np.uint8)


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _x_ticks(low: float, high: float) -> list[tuple[float, str]]:
    return [(_x(share), _tick(low + share * (high - low))) for share in (0, 0.25, 0.5, 0.75, 1)]


def _y_ticks(low: float, high: float) -> list[tuple[float, str]]:
    return [(_y(share), _tick(low + share * (high - low))) for share in (0, 0.5, 1)]


def _tick(value: float) -> str:
    """Few enough letters for the large type of a phone."""
    return f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2g}"
