"""The least job that there can be: load, change nothing or invert, write, assemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pureebm.data.base import Loaded, Picture, Result, Source, Stored
from pureebm.data.open import open_source

Decide = Callable[[Loaded], str]


def skip_bad(loaded: Loaded) -> str:
    return "purified" if loaded.picture else "skipped"


def copy_bad(loaded: Loaded) -> str:
    return "purified" if loaded.picture else "copied"


def keep(picture: Picture) -> Picture:
    return picture


def invert(picture: Picture) -> Picture:
    return dataclasses.replace(picture, pixels=np.iinfo(picture.pixels.dtype).max - picture.pixels)


def pass_through(
    source: Path | Source,
    target: Path,
    *,
    decide: Decide = skip_bad,
    change: Callable[[Picture], Picture] = keep,
    chunk: int = 7,
    repeat: bool = False,
) -> list[Stored]:
    """Run a whole set through source and sink; `repeat` writes every chunk twice, as after a crash."""
    source = open_source(source) if isinstance(source, Path) else source
    staging = target.with_name(f"{target.name}.staging")
    sink = source.open_sink(staging)
    stored: list[Stored] = []
    starts = range(0, len(source), chunk)
    for number, start in enumerate(starts):
        results = [result(loaded, decide, change) for loaded in source.load(start, start + chunk)]
        if repeat:
            sink.write(number, results)
        stored += sink.write(number, results)
    sink.assemble(target, len(starts))
    return stored


def result(loaded: Loaded, decide: Decide, change: Callable[[Picture], Picture]) -> Result:
    status = decide(loaded)
    assert status in ("purified", "copied", "skipped")
    return Result(loaded.item, status, change(loaded.picture) if status == "purified" and loaded.picture else None)


def noise_image(seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
