"""A look at an untrusted image set before anybody trains on it: what is broken, double, planted or oddly labeled.

Images are read once, as a stream; about 400 bytes stay of each. Where a repeated patch was found, they are read again
to name who has it. What a scan does not find may still be there: clean-label poison below the visible looks like any
other image. Purifying is the remedy; a scan is a gate for what is plainly wrong.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pureebm.data.base import Loaded, Source
from pureebm.data.labels import labels_of
from pureebm.data.pictures import MAX_BYTES, MAX_PIXELS
from pureebm.errors import InputError, Interrupted
from pureebm.evaluation.duplicates import digest, groups_of_equal, groups_of_pairs, looks, near_pairs
from pureebm.evaluation.patches import MAX_AREA, WINDOW, FrequentWindows, Occurrences, Patch, Pixels8
from pureebm.purify.batches import Outcome, look, score_items
from pureebm.purify.job import JobProgress, opened
from pureebm.purify.manifest import printable
from pureebm.types import JSON, Progress, Stage

Level = Literal["low", "medium", "high"]
LEVELS: tuple[Level, ...] = ("low", "medium", "high")

RULES: dict[str, tuple[Level, str]] = {
    "image-bomb": ("high", "An image or file so large that opening it may exhaust the memory."),
    "label-out-of-range": ("high", "A label that names no class."),
    "repeated-patch": ("high", "The same small patch at the same place in many images, as a backdoor leaves it."),
    "unreadable-image": ("medium", "Empty, truncated, damaged, or no image at all."),
    "conflicting-labels": ("medium", "The same image with different labels."),
    "energy-outlier": ("low", "An image far less, or far more, natural than the others of its class."),
    "exact-duplicate": ("low", "The same image more than once."),
    "near-duplicate": ("low", "Images that are hardly different."),
    "label-gap": ("low", "Class numbers or names without an image."),
    "single-image-class": ("low", "A class of one image."),
    "unscorable-image": ("low", "An image without an energy: too small, or with values out of reach."),
}
"""Rule -> the level of its findings (a finding may have another) and what it means. The worst first."""

NOT_RULED_OUT = (
    "A scan cannot rule out clean-label poison: it lies below the visible and looks like any other image. Purify the "
    "set before training on it."
)

OUTLIER, FAR_OUTLIER = 5.0, 8.0
"""Robust z-scores of a low and of a medium finding."""

MIN_CLASS = 20
"""Smaller classes' energies are compared with the whole set's."""

MAX_FINDINGS, MAX_ITEMS = 1000, 1000
"""Told of each rule, and items of each finding; what is beyond is counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. items: ids, at most `MAX_ITEMS` of the `count`."""

    rule: str
    level: Level
    message: str
    items: list[str]
    count: int
    details: JSON = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What was looked at and what was found, the worst first."""

    source: str
    single_file: bool  # all images lie in the file `source`
    images: int
    readable: int
    classes: int | None  # None: the set has no labels
    findings: list[Finding]
    notes: list[str]
    seconds: float

    def count(self, level: Level) -> int:
        return sum(finding.level == level for finding in self.findings)

    def fails(self, fail_on: Level) -> bool:
        """Whether there is a finding of this level or above."""
        return any(LEVELS.index(finding.level) >= LEVELS.index(fail_on) for finding in self.findings)

    def to_json(self) -> JSON:
        return asdict(self) | {
            "counts": {level: self.count(level) for level in reversed(LEVELS)},
            "not_ruled_out": NOT_RULED_OUT,
        }


def scan(
    source: Source | Path,
    stage: Stage,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Scan:
    """Look at every image of a set.

    Args:
        source: opened, or a path whose kind is recognized.
        stage: a purifier with an energy.
        limit: only the first so many images; the classes are then not checked for gaps.
        progress: called with a `job.JobProgress` after every chunk.
        stop: set it to end after the current chunk.

    Raises:
        InputError: no set, no images, or a purifier without energy.
        Interrupted: `stop` was set.
    """
    source, began = opened(source), time.perf_counter()
    n = min(len(source), limit or len(source))
    labels, names, notes = _read_labels(source, n)
    seen = _Seen(source, stage, n, labels, progress, stop)
    seen.read()
    if not seen.fits:
        notes.append("images of {1} x {0} px are not searched for repeated patches".format(*seen.shape))
    findings = [
        *seen.findings,
        *_label_findings(seen.ids, labels, names, whole=n == len(source)),
        *_duplicate_findings(seen, labels),
        *_energy_findings(seen, labels, names),
        *[_patch_finding(patch, seen.ids, names) for patch in seen.patches()],
    ]
    return Scan(
        source=str(source.path),
        single_file=source.single_file or source.path.is_file(),
        images=n,
        readable=seen.n_readable,
        classes=None if labels is None else len(np.unique(labels)),
        findings=_limited(sorted(findings, key=lambda one: (-LEVELS.index(one.level), list(RULES).index(one.rule)))),
        notes=notes,
        seconds=round(time.perf_counter() - began, 2),
    )


def _read_labels(source: Source, n: int) -> tuple[NDArray[np.int64] | None, list[str] | None, list[str]]:
    try:
        labels, names = labels_of(source)
        return labels[:n], names, []
    except InputError as error:
        return None, None, [f"no labels, so nothing is compared between classes ({error})"]


class _Seen:
    """The pass over the images, and what stays of them."""

    def __init__(
        self,
        source: Source,
        stage: Stage,
        n: int,
        labels: NDArray[np.int64] | None,
        progress: Progress | None,
        stop: threading.Event | None,
    ) -> None:
        self.source, self.stage, self.n, self.progress, self.stop = source, stage, n, progress, stop
        self.labels = np.zeros(n, np.int64) if labels is None else labels
        self.sizes = look(source, n)
        self.shape = self.sizes.common_shape()
        self.fits = min(self.shape) >= WINDOW and self.shape[0] * self.shape[1] <= MAX_AREA
        self.ids: list[str] = []
        self.digests: list[bytes | None] = []
        self.thumbnails = np.zeros((n, 8, 8, 3), np.uint8)
        self.bits = np.zeros(n, np.uint64)
        self.energies = np.full(n, np.nan, np.float32)
        self.uniform = np.zeros(n, bool)  # of the common size: only these have places in common
        self.windows = FrequentWindows()
        self.findings: list[Finding] = []

    @property
    def n_readable(self) -> int:
        return sum(one is not None for one in self.digests)

    def read(self) -> None:
        began = time.perf_counter()
        for start, loaded in self._chunks():
            self._take(start, loaded)
            if self.progress is not None:
                done = len(self.ids)
                rate = done / (time.perf_counter() - began)
                failed = done - self.n_readable
                self.progress(JobProgress(done, self.n, 0, failed, rate, (self.n - done) / rate))

    def patches(self) -> list[Patch]:
        """Of the images of the common size; reads them again if there is something to look for."""
        sizes = {int(label): int(count) for label, count in Counter(self.labels[self.uniform].tolist()).items()}
        candidates = self.windows.candidates(sizes)
        if not len(candidates):
            return []
        occurrences = Occurrences(candidates)
        for start, loaded in self._chunks():
            pixels, numbers = self._uniform_pixels(start, loaded)
            if len(numbers):
                occurrences.add(pixels, numbers)
        return occurrences.patches(self.labels, sizes, self.shape[1])

    def _chunks(self) -> Iterator[tuple[int, list[Loaded]]]:
        step = self.sizes.chunk_items()
        for start in range(0, self.n, step):
            if self.stop is not None and self.stop.is_set():
                raise Interrupted(f"interrupted after {start} of {self.n} images; repeat the command to scan them")
            yield start, self.source.load(start, min(start + step, self.n))

    def _take(self, start: int, loaded: list[Loaded]) -> None:
        outcomes = score_items(loaded, self.stage, batch_size=self.sizes.batch_size())
        numbers = np.arange(start, start + len(loaded))
        self.ids += [printable(one.item.id) for one in loaded]
        self.digests += [digest(one.picture) if one.picture else None for one in loaded]
        for number, outcome in zip(numbers, outcomes, strict=True):
            if outcome.message:
                self.findings.append(self._bad(int(number), outcome))
            else:
                self.energies[number] = outcome.energy_before
        readable = [(number, one.picture.pixels) for number, one in zip(numbers, loaded, strict=True) if one.picture]
        if readable:
            rows = [number for number, _ in readable]
            self.thumbnails[rows], self.bits[rows] = looks([pixels for _, pixels in readable])
        pixels, numbers = self._uniform_pixels(start, loaded)
        if len(numbers):
            self.uniform[numbers] = True
            self.windows.add(pixels, self.labels[numbers])

    def _uniform_pixels(self, start: int, loaded: list[Loaded]) -> tuple[Pixels8, NDArray[np.int64]]:
        chosen = [
            (number, one.picture.pixels)
            for number, one in enumerate(loaded, start)
            if self.fits and one.picture is not None and one.picture.pixels.shape[:2] == self.shape
        ]
        if not chosen:
            return np.empty((0, *self.shape, 3), np.uint8), np.empty(0, np.int64)
        pixels = [(one // 257).astype(np.uint8) if one.dtype == np.uint16 else one for _, one in chosen]
        return np.stack(pixels).astype(np.uint8, copy=False), np.array([number for number, _ in chosen], np.int64)

    def _bad(self, number: int, outcome: Outcome) -> Finding:
        if outcome.loaded.picture is not None:
            rule = "unscorable-image"
        elif any(f"{limit:,}" in outcome.message for limit in (MAX_PIXELS, MAX_BYTES)):
            rule = "image-bomb"
        elif self.source.kind == "cifar" and "label" in outcome.message:
            rule = "label-out-of-range"
        else:
            rule = "unreadable-image"
        return _finding(rule, printable(outcome.message), [self.ids[number]])


def _finding(
    rule: str, message: str, items: Sequence[str], *, level: Level | None = None, details: JSON | None = None
) -> Finding:
    return Finding(rule, level or RULES[rule][0], message, list(items[:MAX_ITEMS]), len(items), details or {})


def _limited(findings: list[Finding]) -> list[Finding]:
    """At most `MAX_FINDINGS` of a rule and level; the last one says how many more there are."""
    kept: list[Finding] = []
    seen: Counter[tuple[str, Level]] = Counter()
    for finding in findings:
        seen[finding.rule, finding.level] += 1
        if seen[finding.rule, finding.level] <= MAX_FINDINGS:
            kept.append(finding)
    for (rule, level), count in seen.items():
        if count > MAX_FINDINGS:
            more = count - MAX_FINDINGS
            kept.append(Finding(rule, level, f"and {more:,} more findings of this kind", [], more))
    return kept


def _label_findings(
    ids: list[str], labels: NDArray[np.int64] | None, names: list[str] | None, *, whole: bool
) -> list[Finding]:
    """Labels that name no class, classes without an image, classes of one."""
    if labels is None:
        return []
    findings = []
    top = len(names) if names else None
    for label, count in sorted(Counter(labels.tolist()).items()):
        mine = [ids[number] for number in np.flatnonzero(labels == label)[:MAX_ITEMS]] if count else []
        if label < 0 or (top is not None and label >= top):
            allowed = f"0..{top - 1}" if top is not None else "0 and above"
            text = f"label {label} of {count:,} images is outside {allowed}"
            findings.append(Finding("label-out-of-range", "high", text, mine, count))
        elif count == 1 and whole:
            findings.append(_finding("single-image-class", f"class {_called(label, names)} has one image", mine))
    if whole and len(labels):
        n_classes = top if top is not None else int(labels.max()) + 1
        present = set(np.unique(labels).tolist())
        gaps = [label for label in range(min(n_classes, 100_000)) if label not in present]
        if gaps:
            shown = ", ".join(_called(label, names) for label in gaps[:10]) + (", ..." if len(gaps) > 10 else "")
            text = f"{len(gaps):,} of {n_classes:,} classes have no image: {shown}"
            findings.append(_finding("label-gap", text, [], details={"labels": gaps[:MAX_ITEMS]}))
    return findings


def _called(label: int, names: list[str] | None) -> str:
    return f"{label} ({printable(names[label])})" if names and 0 <= label < len(names) else str(label)


def _duplicate_findings(seen: _Seen, labels: NDArray[np.int64] | None) -> list[Finding]:
    findings, first_of = [], dict[int, int]()
    for group in groups_of_equal(seen.digests):
        items = [seen.ids[number] for number in group]
        first_of |= {number: group[0] for number in group}
        different = sorted({int(seen.labels[number]) for number in group}) if labels is not None else []
        if len(different) > 1:
            text = f"{len(group)} equal images with {len(different)} different labels"
            findings.append(_finding("conflicting-labels", text, items, details={"labels": different}))
        else:
            findings.append(_finding("exact-duplicate", f"{len(group)} equal images", items))
    readable = np.flatnonzero([one is not None for one in seen.digests])
    pairs = readable[near_pairs(seen.thumbnails[readable], seen.bits[readable])]
    apart = {tuple(sorted((first_of.get(a, a), first_of.get(b, b)))) for a, b in pairs.tolist()}
    for group in groups_of_pairs(sorted((a, b) for a, b in apart if a != b)):
        different = sorted({int(seen.labels[number]) for number in group}) if labels is not None else []
        text = f"{len(group)} images that hardly differ" + (", with different labels" if len(different) > 1 else "")
        level: Level = "medium" if len(different) > 1 else "low"
        findings.append(_finding("near-duplicate", text, [seen.ids[number] for number in group], level=level))
    return findings


def _energy_findings(seen: _Seen, labels: NDArray[np.int64] | None, names: list[str] | None) -> list[Finding]:
    scores = robust_scores(seen.energies, seen.labels)
    findings = []
    for number in np.flatnonzero(np.abs(scores) >= OUTLIER):
        energy, score = float(seen.energies[number]), float(scores[number])
        whom = f"class {_called(int(seen.labels[number]), names)}" if labels is not None else "the set"
        kind = "less natural" if score > 0 else "smoother"
        findings.append(
            _finding(
                "energy-outlier",
                f"{kind} than the rest of {whom}: energy {energy:.4g}, robust z {score:+.1f}",
                [seen.ids[number]],
                level="medium" if abs(score) >= FAR_OUTLIER else "low",
                details={"energy": energy, "z": round(score, 2)},
            )
        )
    return findings


def robust_scores(energies: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) energies, NaN where there is none, and (N,) labels -> (N,) distances from the class's median, in robust
    standard deviations (1.4826 times the median absolute deviation); 0 where there is no energy.

    Energies of natural images are spread over orders of magnitude, so they are compared as asinh(20 E / median |E|): a
    logarithm for large ones, linear around 0. Classes of fewer than `MIN_CLASS` images are compared with all.
    """
    scores = np.zeros(len(energies))
    known = np.isfinite(energies)
    if known.sum() < MIN_CLASS:
        return scores
    unit = float(np.median(np.abs(energies[known]))) or 1.0
    values = np.arcsinh(20 * energies.astype(np.float64) / unit)
    for label in np.unique(labels[known]):
        mine = known & (labels == label)
        others = mine if mine.sum() >= MIN_CLASS else known
        center = np.median(values[others])
        spread = 1.4826 * np.median(np.abs(values[others] - center))
        scores[mine] = (values[mine] - center) / max(float(spread), 1e-6)
    return scores


def _patch_finding(patch: Patch, ids: list[str], names: list[str] | None) -> Finding:
    size = f"{patch.width} x {patch.height} px at x {patch.left}, y {patch.top}"
    if patch.label is None:
        text = f"a patch of about {size} is in {patch.share:.1%} of all images"
    else:
        text = (
            f"a patch of about {size} is in {patch.share:.1%} of class {_called(patch.label, names)} and in "
            f"{patch.share_elsewhere:.2%} of the others"
        )
    details: dict[str, Any] = {"x": patch.left, "y": patch.top, "width": patch.width, "height": patch.height}
    details |= {"class": patch.label, "share": patch.share, "share_elsewhere": patch.share_elsewhere}
    level: Level = "medium" if patch.label is None else "high"
    items = [ids[number] for number in patch.images]
    return _finding("repeated-patch", text, items, level=level, details=details)
