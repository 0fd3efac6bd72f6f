"""Every row of the table in `pureebm.data.pictures`, and every image that must be refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.data_job import invert, noise_image

from pureebm.data.base import Item, Picture
from pureebm.data.pictures import decode, encode, load_picture
from pureebm.errors import ItemError


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(width: int, height: int, depth: int, color: int, pixels: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


RGBA = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 8, 4), dtype=np.uint8))


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (noise_image(0, mode="L"), "L"),
        (noise_image(0, mode="1"), "L"),
        (noise_image(0, mode="RGB"), "RGB"),
        (noise_image(0, mode="P"), "RGB"),
        (RGBA.convert("LA"), "LA"),
        (RGBA, "RGBA"),
        (Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)), "I;16"),
    ],
)
def test_an_unchanged_picture_is_stored_with_the_same_colors(image: Image.Image, mode: str) -> None:
    written = opened(encode(decode(saved(image), "a.png")))
    assert written.mode == mode
    assert np.array_equal(np.asarray(written), np.asarray(image if image.mode == mode else image.convert(mode)))


def test_alpha_passes_through_untouched_while_colors_change() -> None:
    written = np.asarray(opened(encode(invert(decode(saved(RGBA), "a.png")))))
    before = np.asarray(RGBA)
    assert np.array_equal(written[..., 3], before[..., 3])
    assert np.array_equal(written[..., :3], 255 - before[..., :3])


def test_a_palette_with_transparency_becomes_rgba_with_its_transparency() -> None:
    image = noise_image(3, mode="P")
    picture = decode(saved(image, transparency=7), "a.png")
    assert picture.mode == "P" and picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, np.asarray(image) == 7)
    assert opened(encode(picture)).mode == "RGBA"


def test_grey_with_a_transparent_shade_becomes_grey_with_alpha() -> None:
    image = noise_image(3, mode="L")
    written = opened(encode(decode(saved(image, transparency=9), "a.png")))
    assert written.mode == "LA"
    assert np.array_equal(np.asarray(written)[..., 1] == 0, np.asarray(image) == 9)


def test_cmyk_is_purified_and_stored_as_rgb() -> None:
    image = noise_image(4, mode="CMYK")
    data = saved(image, "TIFF")
    written = opened(encode(decode(data, "a.tif")))
    assert written.mode == "RGB" and np.array_equal(np.asarray(written), np.asarray(image.convert("RGB")))
    assert decode(saved(image, "JPEG"), "a.jpg").mode == "CMYK"


def test_sixteen_bit_rgb_is_read_with_its_upper_eight_bits() -> None:
    values = np.arange(12, dtype=np.uint16).reshape(2, 2, 3) * 5000
    data = raw_png(2, 2, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    assert np.array_equal(decode(data, "a.png").pixels, values >> 8)


def test_sixteen_bit_pgm_keeps_its_sixteen_bits() -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    picture = decode(b"P5 16 16 65535\n" + values.astype(">u2").tobytes(), "a.pgm")
    assert np.array_equal(picture.pixels[..., 1], values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotated_image_is_stored_upright_without_orientation(orientation: int) -> None:
    stored = noise_image(5, (12, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    written = opened(encode(decode(saved(stored, exif=exif), "a.png")))
    # what the EXIF standard says of rows and columns, restated
    pixels = np.asarray(stored)
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert np.array_equal(np.asarray(written), upright)
    assert 0x0112 not in written.getexif()


def test_purified_grey_is_the_rounded_mean_of_the_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    written = np.asarray(opened(encode(Picture(pixels, "L"))))
    assert np.array_equal(written, np.rint(pixels.mean(axis=2)).astype(np.uint8))


def test_a_one_pixel_image_is_an_image() -> None:
    assert decode(saved(noise_image(0, (1, 1))), "a.png").pixels.shape == (1, 1, 3)


def test_the_same_pixels_make_the_same_bytes() -> None:
    image = noise_image(7)
    assert encode(decode(saved(image), "a.png")) == encode(decode(saved(image, "TIFF"), "b.tif"))


def apng() -> bytes:
    return saved(noise_image(0), save_all=True, append_images=[noise_image(1), noise_image(2)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"label,name\n1,cat\n", "not an image"),
        (saved(noise_image(0, (200, 200)), "JPEG")[:3000], "damaged image"),
        (saved(noise_image(0))[:-300], "damaged image"),
        (raw_png(20_000, 20_000, 8, 0, b"\0"), "more than 67,108,864 pixels"),
        (raw_png(10_000, 10_000, 8, 0, b"\0"), "more than 67,108,864 pixels"),
        (raw_png(9_000, 9_000, 8, 0, b"\0"), "9000 x 9000 is more than 67,108,864 pixels"),
        (apng(), "3 frames"),
        (saved(noise_image(0), "GIF", save_all=True, append_images=[noise_image(1)]), "2 frames"),
        (saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "mode F"),
        (saved(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "outside 0..65535"),
        (saved(noise_image(0), "ICO"), "not an image"),
    ],
)
def test_what_is_no_whole_still_image_is_refused_by_name(data: bytes, reason: str) -> None:
    with pytest.raises(ItemError, match=f"^cat.png: .*{reason}"):
        decode(data, "cat.png")


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_damaged_bytes_never_raise_anything_but_an_item_error(noise: bytes, position: int) -> None:
    data = bytearray(saved(noise_image(0), "PNG"))
    data[position : position + len(noise)] = noise
    loaded = load_picture(Item(0, "a.png", "a.png"), bytes(data))
    assert (loaded.picture is None) == isinstance(loaded.error, ItemError)
