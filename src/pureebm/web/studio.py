"""What the pages compute while somebody waits: energies, previews, and the way of one image down the energy.

All of it is bounded, whatever the set: so many images, so many pixels, the center of large images. One thing is
computed at a time; a running job is not waited for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pureebm.data.base import Loaded, Pixels
from pureebm.data.ranges import stack, unstack
from pureebm.energy.weights import LoadedModel, load_model
from pureebm.errors import InputError
from pureebm.purify.batches import MIN_SIDE, Outcome, Sizes, Work, purify_items, score_items
from pureebm.purify.manifest import printable
from pureebm.purify.stages import LangevinStage
from pureebm.sampling.langevin import LangevinConfig, StepTrace, langevin
from pureebm.sampling.noise import CounterNoise
from pureebm.web.places import OpenSet

N_ENERGIES, FEWEST_ENERGIES = 512, 32
ENERGY_PIXELS = 2**20  # of all images whose energies are computed
N_SUSPICIOUS = 24
N_PREVIEW = 16
WALK_PIXELS = 2**20  # pixels times updates of one preview or chain
MAX_STEPS = 1000
LARGEST_SIDE, SMALLEST_SIDE = 160, 32
N_FRAMES = 60
N_KEPT = 6  # chains in memory


@dataclass(frozen=True, slots=True)
class Scored:
    """An image's place in its set and its energy."""

    index: int
    id: str
    energy: float


@dataclass(frozen=True, slots=True)
class Energies:
    """Of images spread evenly over a set, highest first; `failures` are ids and reasons."""

    total: int
    scored: list[Scored]
    failures: list[tuple[str, str]]
    cropped: bool
    sampled: int

    def suspicious(self) -> list[Scored]:
        return self.scored[:N_SUSPICIOUS]

    def values(self) -> NDArray[np.float64]:
        return np.array([one.energy for one in self.scored], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Previewed:
    """An image before and after; `after` is None where `message` says why."""

    index: int
    id: str
    before: Pixels | None
    after: Pixels | None
    message: str
    energy_before: float | None
    energy_after: float | None
    psnr: float | None


@dataclass(frozen=True, slots=True)
class Preview:
    images: list[Previewed]
    side: int | None  # of the center that was purified, where images are larger


@dataclass(frozen=True, slots=True)
class Chain:
    """One image's way, from the image itself over the noise that is added first (if any) to the last update.

    `energies[place]` is that of each place on it; `frames[k]` is the picture at `places[k]`.
    """

    id: str
    frames: list[Pixels]
    places: list[int]
    energies: list[float]
    noise_first: bool
    cropped: bool

    def name(self, place: int) -> str:
        """What was done last at a place."""
        step = place - self.noise_first
        return "before" if place == 0 else f"step {step}" if step else "noise added"

    def psnr(self) -> float | None:
        """Of the last frame to the first, dB; None if they are equal."""
        first, last = (frame.astype(np.float64) for frame in (self.frames[0], self.frames[-1]))
        error = float(np.mean((first - last) ** 2))
        return float(10 * np.log10(np.iinfo(self.frames[0].dtype).max ** 2 / error)) if error else None


class Studio:
    """The one model of a server, loaded when it is first needed."""

    def __init__(self, model: str | Path, *, device: str = "cpu", precision: str = "auto") -> None:
        self.model, self.device, self.precision = model, device, precision
        self._loaded: LoadedModel | None = None
        self._loading = threading.Lock()
        self._busy = threading.Lock()
        self._chains: OrderedDict[object, Chain] = OrderedDict()

    def loaded(self) -> LoadedModel:
        """Raises `ModelError`."""
        with self._loading:
            if self._loaded is None:
                self._loaded = load_model(self.model, self.device)
            return self._loaded

    def stage(self, config: LangevinConfig) -> LangevinStage:
        """A purifier of its own, so that several threads can use one each."""
        loaded = self.loaded()
        with self._loading:
            return LangevinStage(
                loaded.energy, config, device=self.device, precision=self.precision, model=loaded.describe()
            )

    def config(
        self,
        *,
        steps: int | None = None,
        step_size: float | None = None,
        temperature: float | None = None,
        noise: float | None = None,
    ) -> LangevinConfig:
        """The model's own sampler with these put over it; a constant replaces a schedule. Raises `InputError`."""
        config = LangevinConfig(**self.loaded().card.get("sampler", {}))
        if steps is not None:
            config = replace(config, n_steps=steps)
        if step_size is not None:
            config = replace(config, step_size=step_size, step_size_end=None)
        if temperature is not None:
            config = replace(config, temperature=temperature, temperature_end=None)
        return config if noise is None else replace(config, noise=noise)

    def energies(self, opened: OpenSet) -> Energies:
        """Computed once for an opened set."""
        with self._busy:
            if "energies" not in opened.kept:
                opened.kept["energies"] = self._energies(opened)
            found: Energies = opened.kept["energies"]
            return found

    def preview(self, opened: OpenSet, config: LangevinConfig, seed: int) -> Preview:
        """Sixteen images purified: the eight of highest energy, and others spread evenly.

        Raises:
            InputError: More than `MAX_STEPS` updates.
        """
        _check_steps(config)
        side = _side(N_PREVIEW, config)
        cut, cropped = _centers(opened, _chosen(self.energies(opened)), side)
        with self._busy:
            batch_size = _sizes(cut).batch_size() // 4 or 1  # sixteen of 32 x 32
            outcomes = purify_items(
                cut, self.stage(config), seed=seed, batch_size=batch_size, work=Work(), on_batch=lambda _: None
            )
        return Preview([_previewed(outcome) for outcome in outcomes], side if cropped else None)

    def chain(self, opened: OpenSet, index: int, config: LangevinConfig, seed: int) -> Chain:
        """One image's way, from memory where it is there.

        Raises:
            InputError: No such image, one that cannot be read, or too many updates.
        """
        _check_steps(config)
        key = (opened.key, opened.since, index, config, seed)
        with self._busy:
            if key not in self._chains:
                self._chains[key] = self._walk(load_one(opened, index), config, seed)
                while len(self._chains) > N_KEPT:
                    self._chains.popitem(last=False)
            self._chains.move_to_end(key)
            return self._chains[key]

    def _energies(self, opened: OpenSet) -> Energies:
        total = len(opened.source)
        first, _ = _centers(opened, evenly(total, FEWEST_ENERGIES), LARGEST_SIDE)
        wanted = int(ENERGY_PIXELS / _sizes(first).mean_area)
        indices = evenly(total, min(N_ENERGIES, max(FEWEST_ENERGIES, wanted)))
        cut, cropped = _centers(opened, indices, LARGEST_SIDE)
        outcomes = score_items(cut, self.stage(LangevinConfig(n_steps=0)), batch_size=_sizes(cut).batch_size())
        scored = [
            Scored(outcome.loaded.item.index, printable(outcome.loaded.item.id), outcome.energy_before)
            for outcome in outcomes
            if not outcome.message and outcome.energy_before is not None
        ]
        failures = [(printable(o.loaded.item.id), printable(o.message)) for o in outcomes if o.message]
        scored.sort(key=lambda one: (-one.energy, one.index))
        return Energies(total, scored, failures, cropped, len(indices))

    def _walk(self, loaded: Loaded, config: LangevinConfig, seed: int) -> Chain:
        assert loaded.picture is not None
        cut = _center(loaded, _side(1, config))
        assert cut.picture is not None
        pixels = cut.picture.pixels
        stage, start = self.stage(config), stack([pixels])
        stage.prepare(start)
        noise_first = bool(config.initial_noise and config.n_steps)
        last = config.n_steps + noise_first
        places = [round(place) for place in np.linspace(0, last, min(N_FRAMES, last) + 1)]
        frames, energies, seen = [pixels], [float(stage.energies(start))], start

        def recorded(images: Tensor, *, energies: bool = False) -> tuple[Tensor | None, Tensor]:
            nonlocal seen
            seen = images
            return stage.score(images, energies=energies)

        def traced(trace: StepTrace) -> None:
            place = trace.step + noise_first
            if place:
                energies.append(float(trace.energy))
            if place in places[1:]:
                frames.append(unstack(seen, like=[pixels])[0])

        noise = CounterNoise(seed, [loaded.item.id], device=stage.device)
        langevin(stage.energy, start.to(stage.device), config, noise=noise, on_step=traced, score=recorded)
        return Chain(printable(loaded.item.id), frames, places, energies, noise_first, cut is not loaded)


def evenly(total: int, wanted: int) -> list[int]:
    """At most `wanted` indices below `total`, spread evenly."""
    count = min(total, wanted)
    return [place * total // count for place in range(count)]


def load_one(opened: OpenSet, index: int) -> Loaded:
    """An image that can be purified. Raises `InputError` if there is none."""
    if not 0 <= index < len(opened.source):
        raise InputError(f"there is no image {index}; the set has {len(opened.source)}, counted from 0")
    (loaded,) = opened.load([index])
    if loaded.picture is None:
        raise InputError(f"this image cannot be read: {loaded.error}")
    height, width = loaded.picture.pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{loaded.item.id} has {width} x {height} pixels; both sides must have at least {MIN_SIDE}")
    return loaded


def _check_steps(config: LangevinConfig) -> None:
    if config.n_steps > MAX_STEPS:
        raise InputError(f"the page shows at most {MAX_STEPS} steps, not {config.n_steps}; a job may have more")


def _side(n_images: int, config: LangevinConfig) -> int:
    """Of the center that so many images may have with so many updates."""
    side = int((WALK_PIXELS / n_images / max(1, config.n_steps)) ** 0.5)
    return min(LARGEST_SIDE, max(SMALLEST_SIDE, side))


def _chosen(energies: Energies) -> list[int]:
    high = [one.index for one in energies.scored[: N_PREVIEW // 2]]
    others = sorted({one.index for one in energies.scored} - set(high))
    return sorted(high + [others[place] for place in evenly(len(others), N_PREVIEW - len(high))])


def _center(loaded: Loaded, side: int) -> Loaded:
    """The same item with at most `side` x `side` pixels around its center; the very same where that is all of it."""
    if loaded.picture is None or max(loaded.picture.pixels.shape[:2]) <= side:
        return loaded
    top, left = (max(0, (length - side) // 2) for length in loaded.picture.pixels.shape[:2])
    part = loaded.picture.pixels[top : top + side, left : left + side].copy()
    return replace(loaded, picture=replace(loaded.picture, pixels=part, alpha=None))


def _centers(opened: OpenSet, indices: Sequence[int], side: int) -> tuple[list[Loaded], bool]:
    """Items cut as they come, so that large images are not all in memory; and whether any was cut."""
    items, cropped = [], False
    for index in indices:
        for loaded in opened.load([index]):
            items.append(_center(loaded, side))
            cropped = cropped or items[-1] is not loaded
    return items, cropped


def _sizes(items: Sequence[Loaded]) -> Sizes:
    return Sizes(tuple(loaded.picture.pixels.shape[:2] for loaded in items if loaded.picture is not None), None)


def _previewed(outcome: Outcome) -> Previewed:
    loaded = outcome.loaded
    return Previewed(
        loaded.item.index,
        printable(loaded.item.id),
        loaded.picture.pixels if loaded.picture is not None else None,
        outcome.pixels,
        printable(outcome.message),
        outcome.energy_before,
        outcome.energy_after,
        outcome.psnr(),
    )
