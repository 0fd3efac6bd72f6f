"""Image files <-> pixels: what becomes of every kind of picture.

| stored as                                   | purified as                  | written as      |
|---------------------------------------------|------------------------------|-----------------|
| grey (L), black and white (1)               | grey in all three channels   | L               |
| 16-bit grey (I;16, I within 0..65535)       | uint16 in all three channels | I;16            |
| grey with alpha (LA, La, L with tRNS)       | grey; alpha kept             | LA              |
| RGB, YCbCr, 16-bit RGB (read as 8-bit)      | RGB                          | RGB             |
| RGB with alpha (RGBA, RGBa, RGB with tRNS)  | RGB; alpha kept              | RGBA            |
| palette (P)                                 | its colors                   | RGB             |
| palette with transparency (P, PA)           | its colors; alpha kept       | RGBA            |
| CMYK                                        | RGB                          | RGB             |
| F, LAB, 32-bit grey beyond 65535            | refused (`ItemError`)        |                 |
| animated (GIF, WebP, APNG, many-page TIFF)  | refused (`ItemError`)        |                 |

Pixels are upright: an EXIF orientation is applied and then gone. A palette becomes RGB(A), because purified
colors no longer fit in it; PNG has no CMYK; Pillow reads the color channels of 16-bit PNG with 8 bits. Purified
grey is the mean of the three channels, rounded. Color profiles and other metadata are not kept. All is written
as PNG, with fixed settings: the same pixels make the same bytes. Nothing here knows of data sets.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pureebm.data.base import Item, Loaded, Picture, Pixels
from pureebm.errors import ItemError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".jpe"}
)
MAX_PIXELS = 64 * 2**20
MAX_BYTES = 512 * 2**20

_GREY = frozenset({"1", "L", "LA", "La"})
_GREY16 = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

_BEGINNINGS = (
    b"\x89PNG\r\n",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  ",
    b"\xff\x0a",
    b"P5\n",
    b"P6\n",
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")

T = TypeVar("T")
R = TypeVar("R")


def decode(data: bytes, name: str) -> Picture:
    """The bytes of an image file -> its picture.

    Raises:
        ItemError: Not one whole, still image of a known format and allowed size; the text begins with `name`.
    """
    if not data:
        raise ItemError(f"{name}: the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_extent(image)
            image.load()
            return decode_pil(image)
    except UnidentifiedImageError:
        reason = f"not an image (it begins with {data[:8]!r}); readable are {', '.join(FORMATS)}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"more than {MAX_PIXELS:,} pixels; make it smaller first"
    except ItemError as error:
        reason = str(error)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        reason = f"damaged image: {error}"
    raise ItemError(f"{name}: {reason}")


def looks_like_image(beginning: bytes) -> bool:
    """Whether a file that begins so (16 bytes suffice) is a picture, also of a format that is not read here."""
    if beginning[:4] == b"RIFF":
        return beginning[8:12] == b"WEBP"
    if beginning[4:8] == b"ftyp":
        return beginning[8:12] in _BRANDS
    return beginning.startswith(_BEGINNINGS)


def decode_pil(image: Image.Image) -> Picture:
    """An opened image -> its upright picture, treated as the table says.

    Raises:
        ItemError: Its mode has no defined treatment.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _GREY16:
        return _decode_grey16(image)
    if image.mode in ("F", "LAB"):
        raise ItemError(f"mode {image.mode} has no defined range of colors; convert it to 8-bit RGB or 16-bit grey")
    if image.mode in _ALPHA or "transparency" in image.info:
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = np.array(straight.convert("RGBA"))
        return Picture(rgba[..., :3], image.mode, rgba[..., 3])
    return Picture(np.array(image.convert("RGB")), image.mode)


def encode_pil(picture: Picture) -> Image.Image:
    """A picture -> the image that is written of it, treated as the table says."""
    return Image.fromarray(stored_pixels(picture))


def encode(picture: Picture) -> bytes:
    """A picture -> the bytes of its PNG file."""
    buffer = io.BytesIO()
    encode_pil(picture).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def stored_pixels(picture: Picture) -> Pixels:
    """(H, W) if grey, else (H, W, C) with C = 2 (grey, alpha), 3 or 4 (RGB, alpha)."""
    color = _mean(picture.pixels) if picture.mode in _GREY | _GREY16 else picture.pixels
    if picture.alpha is None:
        return color
    stacked: Pixels = np.concatenate([color.reshape(*color.shape[:2], -1), picture.alpha[..., None]], axis=2)
    return stacked


def load_picture(item: Item, data: bytes) -> Loaded:
    """Decode one item's file; what is wrong with it becomes its error."""
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        return Loaded(item, decode(data, item.id), None, sha256)
    except ItemError as error:
        return Loaded(item, None, error.with_traceback(None), sha256)  # a traceback would keep the bytes alive


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Map in order over a few threads: decoding, compressing and file access let each other run."""
    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1)) as pool:
        return list(pool.map(work, items))


def _check_extent(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ItemError(f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels; make it smaller")
    n_frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # MPO: a JPEG with previews behind it
    if n_frames > 1:
        raise ItemError(f"animated or many pages: {n_frames} frames; store each frame as an image of its own")


def _decode_grey16(image: Image.Image) -> Picture:
    if "transparency" in image.info:
        raise ItemError("16-bit grey with a transparent shade cannot be kept; store it as 8-bit grey with alpha")
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ItemError(f"32-bit grey values {grey.min()}..{grey.max()} are outside 0..65535; convert it to 16 bit")
    return Picture(np.repeat(grey.astype(np.uint16)[..., None], 3, axis=2), "I;16")


def _mean(pixels: Pixels) -> Pixels:
    """(H, W, 3) -> (H, W), rounded to nearest: with thirds there are no ties."""
    mean: Pixels = ((pixels.astype(np.uint32).sum(axis=2) + 1) // 3).astype(pixels.dtype)
    return mean
