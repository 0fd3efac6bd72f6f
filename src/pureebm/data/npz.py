"""A `.npz` file of images: read and written as a stream, every other array passed on.

The images are a uint8 array (N, H, W), (N, H, W, C) or (N, C, H, W), C = 1, 3 or 4 (the fourth is alpha), under one of
the names in `IMAGE_KEYS` or as the only such array. Arrays as long as the images (labels, names) lose the rows that
the images lose; all others stay byte for byte. Labels of another number than the images are refused. Nothing is ever
unpickled.
"""

from __future__ import annotations

import io
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pureebm.data.base import Item, Loaded, Result, Stored
from pureebm.data.durable import sync_folder, write_file
from pureebm.data.folder import fingerprint_of
from pureebm.data.pictures import MAX_PIXELS
from pureebm.data.rows import Layout, RowChunks, Rows, load_row
from pureebm.errors import InputError, ItemError
from pureebm.types import JSON

IMAGE_KEYS = ("images", "image", "x", "X", "x_train", "X_train", "train_images", "data", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "Y", "y_train", "train_labels", "targets", "fine_label", "class", "arr_1")
"""Names of label arrays, the first that is there counts."""

NAME_KEYS = ("class_names", "classes", "label_names")
"""Names of arrays of class names."""

BLOCK = 1 << 20
N_SHOWN = 5
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    SyntaxError,  # numpy reads an array's header as Python text
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Member:
    """One array of the file; its data begin behind `header_bytes`."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool
    header_bytes: int

    @property
    def key(self) -> str:
        return self.info.filename.removesuffix(".npy")

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def describe(self) -> str:
        return f"{self.key} ({self.dtype}, {' x '.join(map(str, self.shape)) or 'a number'})"


class NpzSource:
    """The rows of one uint8 array in a `.npz` file. Memory: the range that is loaded."""

    kind = "npz"
    single_file = True

    def __init__(self, path: Path) -> None:
        """Raises `InputError` if it is no whole `.npz` file, holds objects, or no array of images."""
        self.path = path
        try:
            self.members = _members(path)
        except DAMAGE as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: damaged, or not a .npz file ({error}); write it again with numpy.savez"
            ) from error
        self.images = _find_images(path, self.members)
        _refuse_other_labels(path, self.images, self.members)
        self.layout = _layout(self.images.shape)
        self._rows = RowReader(path, self.images)

    def __len__(self) -> int:
        return self.images.shape[0]

    def load(self, start: int, stop: int) -> list[Loaded]:
        items = [
            Item(i, f"{self.images.key}/{i}", f"{self.images.key}/{i}") for i in range(start, min(stop, len(self)))
        ]
        try:
            rows = self._rows.read(start, start + len(items))
        except DAMAGE as error:
            return [Loaded(item, None, ItemError(f"{item.id}: the file is damaged: {error}"), "") for item in items]
        return [load_row(item, row, self.layout) for item, row in zip(items, rows, strict=True)]

    def describe(self) -> JSON:
        fingerprint, n_bytes = fingerprint_of(self.path.parent, [self.path.name])
        odd_labels = self._odd_labels()
        return {
            "kind": self.kind,
            "images": len(self),
            "bytes": n_bytes,
            "array": self.images.key,
            "layout": "N" + self.layout,
            "shape": list(self.images.shape),
            "passed_on": [member.describe() for member in self.members if member is not self.images],
            "fingerprint": fingerprint,
        } | ({"labels_out_of_range": odd_labels} if odd_labels["count"] else {})

    def _odd_labels(self) -> JSON:
        """Labels that name no class, counted, and the first; -1, "no label", is none. Without names: negative ones."""
        named = {member.key: member for member in self.members}
        labels = next((named[key] for key in LABEL_KEYS if key in named and _are_labels(named[key], len(self))), None)
        names = next((named[key] for key in NAME_KEYS if key in named and len(named[key].shape) == 1), None)
        if labels is None:
            return {"count": 0, "first": []}
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                values = arrays[labels.key].reshape(-1)
        except DAMAGE as error:
            raise InputError(
                f"{self.path}: {labels.key} is damaged ({error}); write it again with numpy.savez"
            ) from error
        top = names.shape[0] if names is not None else np.inf
        odd = np.flatnonzero((values < -1) | (values >= top))
        first = [f"{labels.key}/{row} is {values[row]}" for row in odd[:N_SHOWN].tolist()]
        return {"count": len(odd), "first": first}

    def open_sink(self, staging: Path) -> NpzSink:
        return NpzSink(self, staging)


class NpzSink:
    """Chunks of rows; the new file has the source's members in their order."""

    def __init__(self, source: NpzSource, staging: Path) -> None:
        self._source = source
        reader = RowReader(source.path, source.images)  # its own, as the source reads in another thread
        self._chunks = RowChunks(staging, source.layout, source.images.shape[1:], reader.read)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        return self._chunks.write(chunk, results)

    def assemble(self, target: Path, n_chunks: int) -> None:
        kept = self._chunks.kept(n_chunks)
        write_file(
            target, lambda file: self._write_members(file, kept, n_chunks), aside=self._chunks.staging / "assembled"
        )
        sync_folder(target.parent)

    def _write_members(self, file: IO[bytes], kept: NDArray[np.int64], n_chunks: int) -> None:
        source = self._source
        with zipfile.ZipFile(source.path) as old, zipfile.ZipFile(file, "w") as new:
            for member in source.members:
                if member is source.images:
                    blocks: Iterator[bytes] = (rows.tobytes() for _, rows in self._chunks.read(n_chunks))
                    blocks = _with_header(member, len(kept), blocks)
                elif len(kept) < len(source) and member.shape[:1] == (len(source),):
                    blocks = _with_header(member, len(kept), _pick_rows(source.path, member, kept))
                else:
                    blocks = _copy(old, member)
                info = zipfile.ZipInfo(member.info.filename)  # dated 1980: the same content makes the same bytes
                info.compress_type = member.info.compress_type
                with new.open(info, "w", force_zip64=True) as stream:
                    for block in blocks:
                        stream.write(block)


class RowReader:
    """Rows of a member, read forward; going back opens it again."""

    def __init__(self, path: Path, member: Member) -> None:
        self._path, self._member = path, member
        self._stream: IO[bytes] | None = None
        self._next = 0

    def read(self, start: int, stop: int) -> Rows:
        """Rows start .. stop-1 of a uint8 member.

        Raises:
            OSError, zipfile.BadZipFile, zlib.error, EOFError: The file is damaged.
        """
        data = self.read_bytes(start, stop)
        return np.frombuffer(data, np.uint8).reshape(stop - start, *self._member.shape[1:])

    def read_bytes(self, start: int, stop: int) -> bytes:
        try:
            stream = self._at(start)
            data = _read_exactly(stream, (stop - start) * self._member.row_bytes)
        except BaseException:
            self._stream = None
            raise
        self._next = stop
        return data

    def _at(self, start: int) -> IO[bytes]:
        stream = self._stream
        if stream is None or start < self._next:
            with zipfile.ZipFile(self._path) as archive:  # an opened member keeps the file open
                stream = archive.open(self._member.info)
            stream.read(self._member.header_bytes)
            self._stream, self._next = stream, 0
        skip = (start - self._next) * self._member.row_bytes
        while skip:
            skip -= len(_read_exactly(stream, min(skip, BLOCK)))
        return stream


def _read_exactly(stream: IO[bytes], n_bytes: int) -> bytes:
    data = stream.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError(f"it ends {n_bytes - len(data):,} bytes too early")
    return data


def _members(path: Path) -> list[Member]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if len({info.filename for info in infos}) < len(infos):
            raise InputError(f"{path}: two arrays have the same name; write it again with numpy.savez")
        return [_member(archive, info, path) for info in infos]


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Member:
    if info.flag_bits & 1:
        raise InputError(f"{path}: {info.filename} is encrypted; write it again with numpy.savez")
    if not info.filename.endswith(".npy"):
        raise InputError(f"{path}: {info.filename} is no array; a .npz file holds .npy arrays only, remove it")
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read_header is None:
            raise InputError(f"{path}: {info.filename} has format version {version}; known are 1.0 and 2.0")
        shape, fortran, dtype = read_header(stream)
        if dtype.hasobject:
            raise InputError(
                f"{path}: {info.filename} holds pickled objects, which may run code when read and are never "
                "opened here; save it as numbers or fixed-length strings (astype('U'))"
            )
        member = Member(info, shape, dtype, fortran, stream.tell())
    if any(n < 0 for n in shape) or member.header_bytes + math.prod(shape) * dtype.itemsize != info.file_size:
        raise InputError(
            f"{path}: {info.filename} has {info.file_size:,} bytes, which do not fit its shape {shape}; damaged"
        )
    return member


def _find_images(path: Path, members: list[Member]) -> Member:
    """The array of images, by name, else the only array that looks like one."""
    shaped = [member for member in members if _layout_or_none(member.shape)]
    fitting = [member for member in shaped if member.dtype == np.uint8]
    named = {member.key: member for member in shaped}
    chosen = next((named[key] for key in IMAGE_KEYS if key in named), None)
    if chosen is None and len(fitting) == 1:
        chosen = fitting[0]
    if chosen is None:
        found = ", ".join(member.describe() for member in members) or "nothing"
        raise InputError(
            f"{path}: no array of images: uint8 of shape N x H x W, N x H x W x C or N x C x H x W, named "
            f"{', '.join(IMAGE_KEYS)} or the only one of its kind; found {found}"
        )
    if chosen.dtype != np.uint8:
        hint = "(255 * x).round()" if chosen.dtype.kind == "f" else "x"
        raise InputError(
            f"{path}: the images {chosen.describe()} must be uint8; convert them, say by {hint}.astype(numpy.uint8)"
        )
    if chosen.fortran:
        raise InputError(f"{path}: {chosen.key} is stored in Fortran order; save numpy.ascontiguousarray of it")
    if not math.prod(chosen.shape):
        raise InputError(f"{path}: {chosen.describe()} is empty; there is nothing to purify")
    if math.prod(chosen.shape[1:]) > 4 * MAX_PIXELS:  # values of an image, at most four a pixel
        raise InputError(
            f"{path}: {chosen.describe()} holds images of more than {MAX_PIXELS:,} pixels; make them smaller"
        )
    return chosen


def _refuse_other_labels(path: Path, images: Member, members: list[Member]) -> None:
    """Labels of whole numbers, but none as long as the images: nobody could tell which belongs to which."""
    named = {member.key: member for member in members if member is not images and member.shape}
    found = [named[key] for key in LABEL_KEYS if key in named]
    if any(member.shape[0] == images.shape[0] for member in found):
        return
    for labels in found:
        if _are_labels(labels, labels.shape[0]):
            raise InputError(
                f"{path}: {labels.describe()} holds {labels.shape[0]:,} labels for the {images.shape[0]:,} images of "
                f"{images.describe()}; save one label an image, or leave {labels.key} out"
            )


def _are_labels(member: Member, n: int) -> bool:
    """So many whole numbers, of no more than one axis."""
    return member.dtype.kind in "iu" and member.shape in ((n,), (n, 1))


def _layout(shape: tuple[int, ...]) -> Layout:
    layout = _layout_or_none(shape)
    assert layout is not None
    return layout


def _layout_or_none(shape: tuple[int, ...]) -> Layout | None:
    """Where the channels are. Both ends possible: a size of 3 decides, then the last axis."""
    if len(shape) == 3:
        return "HW"
    if len(shape) != 4:
        return None
    last, first = shape[3] in (1, 3, 4), shape[1] in (1, 3, 4)
    if first and (not last or (shape[1] == 3 and shape[3] != 3)):
        return "CHW"
    return "HWC" if last else None


def _with_header(member: Member, n_rows: int, blocks: Iterator[bytes]) -> Iterator[bytes]:
    header = io.BytesIO()
    shape = (n_rows, *member.shape[1:])
    npy.write_array_header_1_0(
        header, {"descr": npy.dtype_to_descr(member.dtype), "fortran_order": member.fortran, "shape": shape}
    )
    yield header.getvalue()
    yield from blocks


def _pick_rows(path: Path, member: Member, kept: NDArray[np.int64]) -> Iterator[bytes]:
    """The kept rows of an array as long as the images, in blocks."""
    if member.fortran and len(member.shape) > 1:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays[member.key][kept].tobytes(order="F")
        return
    reader = RowReader(path, member)
    n_rows = max(1, BLOCK // max(1, member.row_bytes))
    for start in range(0, member.shape[0], n_rows):
        stop = min(start + n_rows, member.shape[0])
        block = np.frombuffer(reader.read_bytes(start, stop), np.uint8).reshape(stop - start, member.row_bytes)
        first, last = np.searchsorted(kept, [start, stop])
        yield block[kept[first:last] - start].tobytes()


def _copy(archive: zipfile.ZipFile, member: Member) -> Iterator[bytes]:
    with archive.open(member.info) as stream:
        while block := stream.read(BLOCK):
            yield block


def is_npz(path: Path) -> bool:
    """A zip archive that holds arrays, or a file that is named .npz."""
    if path.suffix.lower() == ".npz":
        return True
    if not os.access(path, os.R_OK) or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except DAMAGE:
        return False
