"""The page that shows what a job did: one self-contained HTML file that needs no network.

Its bytes depend on the source and the settings alone: no clock, no machine, no path. Names come from the data set and
are hostile input: the template escapes everything but our own plots. While a job runs, an `Album` keeps the few
pictures that the page may show, so that neither memory nor the journal grows with the data set.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from pureebm.data.base import Pixels
from pureebm.purify.chains import chain_text, leaves
from pureebm.purify.manifest import MANIFEST_NAME, RECORD_NAME, Journal, Shown, printable
from pureebm.types import JSON

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pureebm.purify.batches import Outcome

Key = tuple[float, int]
N_SHOWN = 4  # of each kind
LARGEST_SHOWN = 160  # px; larger pictures show their center
N_FAILURES = 200
AMPLIFIED = 4
MANY_LOUDER = 0.3  # share of images with stronger noise above which the page says that the set is unusual
KINDS = ("Changed most", "Highest energy before", "Any")
BEFORE_COLOR, AFTER_COLOR = "#c2703d", "#1f6f8b"


@dataclass(slots=True)
class Album:
    """Chooses pictures chunk by chunk: all that can still be among the best of the whole set.

    A later kind must not repeat the pictures of an earlier one, hence the growing sizes.
    """

    best: list[list[Key]] = field(default_factory=lambda: [[] for _ in KINDS])

    def choose(self, outcomes: Sequence[Outcome]) -> list[Shown]:
        """One entry an outcome: its pictures as PNG, or None where the page will not show it."""
        keys = [_keys(outcome) for outcome in outcomes if outcome.pixels is not None]
        for kind, best in enumerate(self.best):
            ours = (standing for key in keys if (standing := key[kind]) is not None)
            self.best[kind] = heapq.nsmallest(N_SHOWN * (kind + 1), [*best, *ours])
        wanted = {index for best in self.best for _, index in best}
        return [_pngs(o) if o.pixels is not None and o.loaded.item.index in wanted else None for o in outcomes]


def write_report(
    file: BinaryIO,
    journal: Journal,
    n_chunks: int,
    *,
    settings: JSON,
    counts: dict[str, int],
    warnings: Sequence[str],
    louder: int = 0,
) -> None:
    """Make the page of all rows in the journal. louder: how many images met noise that grew with their residual."""
    rows = _Rows.read(journal, n_chunks)
    shown = rows.shown()
    pictures = _read_pictures(journal, [index for _, indices in shown for index in indices], settings["chunk_items"])
    groups = [(name, [_figure(rows, i, *pictures[i]) for i in indices]) for name, indices in shown if indices]
    limits = [line for stage in leaves(settings["stage"]) for line in _limits(stage.get("model") or {})]
    name = settings["source_name"]
    page = _template().render(
        title=f"Purified: {name}" if counts["purified"] else f"Not purified: {name}",
        sentence=_sentence(counts, settings, rows, louder),
        counts=[
            (label, counts.get(key, 0))
            for key, label in _COUNTS
            if counts.get(key) or key in ("total", "purified", "failed")
        ],
        warnings=warnings,
        groups=groups,
        cropped=any(max(before.shape[:2]) >= LARGEST_SHOWN for before, _ in pictures.values()),
        plots=_plots(rows),
        failures=rows.failures,
        failure_note=_failure_note(counts, len(rows.failures)),
        command=command(settings),
        record_name=RECORD_NAME,
        manifest_name=MANIFEST_NAME,
        settings=_readable(settings),
        limits=list(dict.fromkeys(limits)),
    )
    file.write(page.encode("utf-8", "backslashreplace"))


_COUNTS = (
    ("total", "images"),
    ("purified", "purified"),
    ("kept", "kept as they were, by the filter"),
    ("failed", "failed"),
    ("copied", "copied as they were"),
    ("skipped", "left out"),
    ("unchanged", "not changed"),
)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The numbers of all rows, and the first failures; nothing else is held for a large set."""

    ids: pa.ChunkedArray
    psnr: NDArray[np.float64]  # NaN where there is none
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    failures: list[JSON]

    @classmethod
    def read(cls, journal: Journal, n_chunks: int) -> _Rows:
        tables: list[pa.Table] = []
        failures: list[JSON] = []
        for table in journal.tables(
            range(n_chunks), ["id", "status", "message", "psnr", "energy_before", "energy_after"]
        ):
            if len(failures) < N_FAILURES:
                bad = [line for line in table.select(["id", "status", "message"]).to_pylist() if line["message"]]
                failures += [line | {"done": _DONE[line["status"]]} for line in bad][: N_FAILURES - len(failures)]
            tables.append(table.select(["id", "psnr", "energy_before", "energy_after"]))
        whole = pa.concat_tables(tables)
        columns = (whole[name].to_numpy() for name in ("psnr", "energy_before", "energy_after"))
        return cls(whole["id"], next(columns), next(columns), next(columns), failures)

    def shown(self) -> list[tuple[str, list[int]]]:
        """For each kind the indices of its pictures; none comes twice."""
        names = (name for chunk in self.ids.chunks for name in chunk.to_pylist())
        chance = np.fromiter(map(_chance, names), np.float64, len(self.psnr))
        changed = np.where(np.isinf(self.psnr), np.nan, self.psnr)
        taken: set[int] = set()
        groups = []
        ranks = [np.asarray(values, np.float64) for values in (changed, -self.before, chance)]
        for title, values in zip(KINDS, ranks, strict=True):
            values = np.where(np.isnan(self.psnr), np.nan, values)  # only what was purified; NaN sorts last
            first = np.argsort(values, kind="stable")[: N_SHOWN * len(KINDS)].tolist()
            indices = [index for index in first if not np.isnan(values[index]) and index not in taken][:N_SHOWN]
            taken.update(indices)
            groups.append((title, indices))
        return groups


_DONE = {"skipped": "left out", "copied": "copied as it was", "purified": "purified"}


def _keys(outcome: Outcome) -> tuple[Key | None, ...]:
    """Where an image stands in each of `KINDS`; the smallest are shown, as in `_Rows.shown`."""
    psnr, energy, item = outcome.psnr(), outcome.energy_before, outcome.loaded.item
    changed = None if psnr is None or np.isinf(psnr) else (psnr, item.index)
    unnatural = None if energy is None else (-energy, item.index)
    return changed, unnatural, (_chance(printable(item.id)), item.index)


def _chance(name: str) -> float:
    """A number that looks random but belongs to the name."""
    return float(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big"))


def _pngs(outcome: Outcome) -> tuple[bytes, bytes]:
    assert outcome.pixels is not None
    return _png(_center(outcome.picture.pixels)), _png(_center(outcome.pixels))


def _center(pixels: Pixels) -> NDArray[np.uint8]:
    """At most 160 x 160 pixels around the center, as 8 bits."""
    top, left = (max(0, (side - LARGEST_SHOWN) // 2) for side in pixels.shape[:2])
    part = pixels[top : top + LARGEST_SHOWN, left : left + LARGEST_SHOWN]
    return (part >> 8).astype(np.uint8) if part.dtype == np.uint16 else part.astype(np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _read_pictures(
    journal: Journal, indices: Sequence[int], chunk_items: int
) -> dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The chosen pictures before and after, from the chunks that hold them."""
    found = {}
    for chunk in sorted({index // chunk_items for index in indices}):
        (table,) = journal.tables([chunk], ["before_png", "after_png"])
        for index in indices:
            if index // chunk_items == chunk:
                cells = table.slice(index % chunk_items, 1).to_pylist()[0]
                found[index] = tuple(np.asarray(Image.open(io.BytesIO(cells[c]))) for c in ("before_png", "after_png"))
    return found  # type: ignore[return-value]


def _figure(rows: _Rows, index: int, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> JSON:
    difference = (after.astype(np.int16) - before) * AMPLIFIED + 128
    facts = [f"PSNR {rows.psnr[index]:.1f} dB" if np.isfinite(rows.psnr[index]) else "unchanged"]
    if np.isfinite(rows.before[index]):
        facts.append(f"energy {rows.before[index]:.4g} → {rows.after[index]:.4g}")
    return {
        "id": rows.ids[index].as_py(),
        "facts": ", ".join(facts),
        "before": _data_uri(before),
        "after": _data_uri(after),
        "difference": _data_uri(difference.clip(0, 255).astype(np.uint8)),
    }


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(pixels)).decode()


def _sentence(counts: dict[str, int], settings: JSON, rows: _Rows, louder: int) -> str:
    """What happened, in plain words."""
    steps = n_steps(settings["stage"])
    how = f" by {steps} Langevin steps each" if steps is not None else ""
    parts = [f"{counts['purified']:,} of {counts['total']:,} images were purified{how}."]
    if counts.get("kept"):
        parts.append(f"{counts['kept']:,} were kept as they were: others have higher energies.")
    finite = rows.psnr[np.isfinite(rows.psnr)]
    if finite.size:
        parts.append(f"A typical image differs from its original by {np.median(finite):.1f} dB PSNR.")
    both = np.isfinite(rows.before) & np.isfinite(rows.after) & ~np.isnan(rows.psnr)  # those that were purified
    if both.any():
        parts.append(f"The energy fell in {np.mean(rows.after[both] < rows.before[both]):.1%} of them.")
    if louder:
        parts.append(f"{louder:,} look less natural than most, and were purified with stronger noise.")
        if louder > MANY_LOUDER * counts["purified"]:
            parts.append(
                "So many say that the whole set is noisier than what the model knows, or of another kind: look at the "
                "pictures below before you train on the result."
            )
    if counts["failed"]:
        done = "left out of" if counts["skipped"] else "passed on as they were to"
        parts.append(f"{counts['failed']:,} could not be purified and were {done} the target.")
    return " ".join(parts)


def _failure_note(counts: dict[str, int], listed: int) -> str:
    more = f" The first {listed:,} are listed; the manifest names all." if counts["failed"] > listed else ""
    return f"{counts['failed']:,} images could not be read or purified.{more}"


def command(settings: JSON) -> str:
    """The command line that gives the same bytes; settings without a flag stay in the table below it.

    A schedule has no flags: it comes with the model, and a constant step size would replace it.
    """
    whole, stage = settings["stage"], settings["stage"]
    model = find(whole, "model") or {}
    others: JSON = {}
    chain = None if whole.get("stage") in ("langevin", "student") else chain_text(whole)
    if chain is not None:
        parts = list(leaves(whole))
        stage = next((part for part in parts if part["stage"] in ("langevin", "student")), {})
        model = stage.get("model") or whole.get("by", {}).get("model") or {}
        others = {part["stage"]: part["model"]["name"] for part in parts if part["stage"] in ("ddpm", "vq")}
    scheduled = any(stage.get(name) for name in ("step_size_end", "temperature_end", "initial_noise"))
    constant: JSON = {} if scheduled else stage
    flags: list[tuple[str, Any]] = [
        ("--chain", chain),
        ("--model", model.get("name")),
        ("--ddpm", others.get("ddpm")),
        ("--vq", others.get("vq")),
        ("--steps", stage.get("n_steps") if chain is None else None),
        ("--step-size", constant.get("step_size")),
        ("--temperature", constant.get("temperature")),
        ("--noise", constant.get("noise")),
        ("--level", stage.get("level")),
        ("--precision", stage.get("precision") or find(whole, "precision")),
        ("--seed", settings["seed"]),
        ("--batch-size", settings["batch_size"]),
        ("--limit", settings["limit"]),
        ("--on-error", settings["on_error"]),
    ]
    words = [f"{flag} {shlex.quote(str(value))}" for flag, value in flags if value is not None]
    lines = ["pureebm purify SOURCE TARGET", *(" ".join(words[start : start + 4]) for start in range(0, len(words), 4))]
    return " \\\n    ".join(lines)


def _readable(tree: JSON, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of a table; empty ones left out, long ones cut, the model's limits told elsewhere."""
    lines: list[tuple[str, str]] = []
    for name, value in tree.items():
        if isinstance(value, dict):
            lines += _readable(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            lines += _readable({str(number): entry for number, entry in enumerate(value)}, f"{prefix}{name}.")
        elif value not in (None, "", []) and name not in _TOLD:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append((f"{prefix}{name}", text if len(text) <= 200 else text[:200] + " …"))
    return lines


_TOLD = ("intended_use", "limits", "limitations")


def _limits(model: JSON) -> list[str]:
    """What the model's card says about where it should not be trusted."""
    card = model | (model.get("card") or {})
    found: list[str] = []
    for name in _TOLD:
        value = card.get(name) or []
        found += [value] if isinstance(value, str) else [str(line) for line in value]
    return found


def n_steps(stage: JSON) -> int | None:
    """Langevin updates that each image goes through, summed over a chain; None where no stage counts steps."""
    found = list(_find_all(stage, "n_steps"))
    return sum(found) if found else None


def find(tree: Any, name: str) -> Any:
    """The first value under this name anywhere in nested settings, or None."""
    return next(_find_all(tree, name), None)


def _find_all(tree: Any, name: str) -> Iterator[Any]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if key == name:
            yield value
        elif key != "model":  # a card may speak of other steps and devices
            yield from _find_all(value, name)


@cache
def _template() -> Template:
    text = resources.files("pureebm.purify").joinpath("report.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(text)


def _plots(rows: _Rows) -> list[JSON]:
    """Histograms of energies and of displacement as inline SVG."""
    plots = []
    before, after = (values[np.isfinite(values)] for values in (rows.before, rows.after))
    if before.size and after.size:
        caption = "Energy of every image: low means natural. The outermost bins hold what lies beyond them."
        plots.append({"svg": _plot(lambda axes: _draw_energies(axes, before, after)), "caption": caption})
    psnr = rows.psnr[np.isfinite(rows.psnr)]
    if psnr.size:
        caption = "How far the images moved. Further right is closer to the original; 40 dB cannot be seen by eye."
        plots.append({"svg": _plot(lambda axes: _draw_displacement(axes, psnr)), "caption": caption})
    return plots


def _draw_energies(axes: Axes, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
    low, high = np.percentile(np.concatenate([before, after]).astype(np.float64), [0.5, 99.5])
    bins = _bins(low, high)
    for values, color, label in ((before, BEFORE_COLOR, "before"), (after, AFTER_COLOR, "after")):
        _stairs(axes, values, bins, color=color, label=label)
    axes.set_xlabel("energy")
    axes.legend(frameon=False)


def _draw_displacement(axes: Axes, psnr: NDArray[np.float64]) -> None:
    bins = _bins(*np.percentile(psnr, [0.5, 99.5]))
    _stairs(axes, psnr, bins, color=AFTER_COLOR)
    axes.set_xlabel("PSNR to the original (dB)")


def _stairs(axes: Axes, values: NDArray[Any], bins: NDArray[np.float64], *, color: str, label: str = "") -> None:
    counts, _ = np.histogram(values.clip(bins[0], bins[-1]), bins)
    axes.stairs(counts, bins, fill=True, color=color, alpha=0.6, label=label)


def _bins(low: float, high: float, n: int = 48) -> NDArray[np.float64]:
    spread = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)
    return np.linspace(low - 0.02 * spread, high + 0.02 * spread, n + 1)


def _plot(draw: Any) -> Markup:
    """An SVG without date, random ids or document head."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "pureebm", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.2, 3.1))
        figure.subplots_adjust(0.13, 0.16, 0.95, 0.96)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_ylabel("images")
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2])
