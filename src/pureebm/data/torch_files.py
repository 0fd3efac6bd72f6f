"""Files that `torch.save` and `pickle.dump` wrote of arrays, tensors and Pillow images, read without running them.

Read are PyTorch's zip archives (since 1.6), its sequences of pickles before that, and plain pickles, all through the
stack machine of `unpickle`. A tensor comes back as a numpy array of its shape (read-only; its device and
gradient are dropped), an image as an (H, W, 3) uint8 array. Neither PyTorch nor Pillow takes part.

A tensor is a window on a storage: one that reaches outside of it, or that is larger than it, is refused. Memory is
bounded by the file's size: archives must be stored without compression, as PyTorch writes them.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pureebm.data.unpickle import DAMAGE, Unfinished, Vocabulary, finish, run
from pureebm.errors import InputError

MAX_BYTES = 4 * 2**30
MAX_OPCODES = 20_000_000  # an image and its label as a tensor take 52, so that 100,000 of them are read
MAGIC = 0x1950A86A20F9469CFC6C
_OLD_PROTOCOL = 1001
_STORAGES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Double": "f8",
        "Float": "f4",
        "Half": "f2",
        "Long": "i8",
        "Int": "i4",
        "Short": "i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "b1",
    }.items()
}


def load(path: Path) -> Any:
    """What the file holds: numbers, strings, lists, tuples, dicts and arrays.

    Raises:
        InputError: It cannot be read, is damaged, or asks for anything else; the text begins with the file's name.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES / 2**30:g} GiB, the most that is read at once")
        return loads(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def loads(data: bytes, name: str) -> Any:
    """As `load`, of a file's bytes."""
    try:
        if data[:4] == b"PK\x03\x04":
            return finish(_run_archive(data))
        if data[257:262] == b"ustar":
            raise ValueError("it has PyTorch's tar layout of before 0.1.10; load it there and torch.save it again")
        if _is_sequence(data):
            return finish(_run_sequence(data, _VOCABULARY))
        return finish(run(io.BytesIO(data), _VOCABULARY))
    except (*DAMAGE, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise InputError(f"{name}: refused, and not run: {error}") from error


@dataclass(slots=True)
class _Storage(Unfinished):
    """A run of numbers, known before its bytes are."""

    dtype: np.dtype[Any]
    n_values: int
    data: memoryview | None = None

    def fill(self, data: memoryview) -> None:
        if len(data) != self.n_values * self.dtype.itemsize:
            raise ValueError(f"a storage of {self.n_values:,} values of type {self.dtype} in {len(data):,} bytes")
        self.data = data

    def values(self) -> NDArray[Any]:
        if self.data is None:
            raise ValueError("a tensor whose numbers are not in the file")
        return np.frombuffer(self.data, self.dtype)


@dataclass(slots=True)
class _Tensor(Unfinished):
    """A window on a storage: element (i, j, ..) stands at start + i * strides[0] + j * strides[1] + .."""

    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def finished(self) -> Any:
        values = self.storage.values()
        count = int(np.prod(np.array(self.shape, object)))
        last = self.start + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if count == 0:
            return np.empty(self.shape, values.dtype)
        if last >= len(values) or count > len(values):
            raise ValueError(
                f"a tensor of shape {self.shape}, strides {self.strides} and start {self.start} reaches outside of"
                f" its storage of {len(values):,} values"
            )
        strides = [stride * values.dtype.itemsize for stride in self.strides]
        return as_strided(values[self.start :], self.shape, strides, writeable=False)


@dataclass(slots=True)
class _Image(Unfinished):
    """A Pillow image, before and after it got its state."""

    pixels: NDArray[np.uint8] | None = None

    def build(self, state: object) -> None:
        match state:
            case [dict(), "RGB" | "L" as mode, (int() as width, int() as height), _, bytes() as data, *_]:
                n_channels = 3 if mode == "RGB" else 1
                if width < 0 or height < 0 or width * height * n_channels != len(data):
                    raise ValueError(f"an image of {width} x {height} in {len(data):,} bytes")
                pixels = np.frombuffer(data, np.uint8).reshape(height, width, n_channels)
                self.pixels = np.broadcast_to(pixels, (height, width, 3))
            case [_, str() as mode, *_]:
                raise ValueError(f"an image of mode {mode!r:.20}; RGB and L are read: convert it before it is saved")
            case _:
                raise ValueError("an image without pixels")

    def finished(self) -> Any:
        if self.pixels is None:
            raise ValueError("an image without pixels")
        return self.pixels


def _tensor(storage: object, start: object, shape: object, strides: object, *_: object) -> _Tensor:
    match storage, start, shape, strides:
        case _Storage(), int(), tuple(), tuple() if len(shape) == len(strides) <= 32 and all(
            isinstance(n, int) and n >= 0 for n in (start, *shape, *strides)
        ):
            return _Tensor(storage, start, shape, strides)
    raise ValueError(f"a tensor with start {start!r:.40}, shape {shape!r:.80} and strides {strides!r:.80}")


def _parameter(tensor: object, *_: object) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise ValueError("a parameter that is no tensor")
    return tensor


def _size(sizes: object) -> tuple[Any, ...]:
    if not isinstance(sizes, tuple):
        raise ValueError("a torch.Size that is no tuple")
    return sizes


def _storage_of(data: object) -> _Storage:
    """A storage inside a pickle is a sequence of pickles again: short ones, that may hold no further storage."""
    if not isinstance(data, bytes) or not _is_sequence(data):
        raise ValueError("a storage that is no saved storage")
    storage = _run_sequence(data, replace(_VOCABULARY, calls={}, max_opcodes=100))
    if not isinstance(storage, _Storage):
        raise ValueError("a storage that is something else")
    return storage


_VOCABULARY = Vocabulary(
    calls={
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.storage._load_from_bytes": _storage_of,
        "torch.Size": _size,
        "PIL.Image.Image": _Image,
        "PIL.PngImagePlugin.PngImageFile": _Image,
        "PIL.JpegImagePlugin.JpegImageFile": _Image,
    },
    symbols=frozenset(_STORAGES),
    objects=True,
    max_opcodes=MAX_OPCODES,
    says="tensors, images, arrays, numbers, strings and containers",
)


def _described(key: Any, byte_order: Literal["<", ">"]) -> tuple[str, _Storage]:
    """A persistent id -> the storage's name in the file, and the storage, yet empty."""
    match key:
        case ("storage", kind, str() as name, str(), int() as n_values) | (
            "storage",
            kind,
            str() as name,
            str(),
            int() as n_values,
            None,
        ) if str(kind) in _STORAGES and n_values >= 0:
            return name, _Storage(np.dtype(_STORAGES[str(kind)]).newbyteorder(byte_order), n_values)
    raise ValueError(f"a persistent id that is no storage: {key!r:.80}")


def _run_archive(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = _checked_files(archive, len(data))
        big = "byteorder" in files and archive.read(files["byteorder"]) == b"big"
        read: dict[str, memoryview] = {}

        def persistent(key: Any) -> _Storage:
            name, storage = _described(key, ">" if big else "<")
            if f"data/{name}" not in files:
                raise ValueError(f"the archive has no storage {name!r:.40}")
            if name not in read:
                read[name] = memoryview(archive.read(files[f"data/{name}"]))
            storage.fill(read[name])
            return storage

        words = replace(_VOCABULARY, persistent=persistent)
        return run(io.BytesIO(archive.read(files["data.pkl"])), words)


def _checked_files(archive: zipfile.ZipFile, n_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by their names without the root folder, which is one for all."""
    infos = archive.infolist()
    roots = {info.filename.partition("/")[0] for info in infos}
    files = {info.filename.partition("/")[2]: info for info in infos}
    if len(roots) != 1 or len(files) != len(infos) or "data.pkl" not in files:
        raise ValueError("a zip file, but not one that torch.save wrote (one folder with data.pkl)")
    for info in infos:
        if ".." in info.filename.split("/") or "\\" in info.filename or info.filename.startswith("/"):
            raise ValueError(f"a file in the archive is named {info.filename!r:.80}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"{info.filename!r:.80} in the archive is compressed or encrypted; PyTorch only stores")
    if sum(info.file_size for info in infos) > n_bytes:
        raise ValueError("the archive says that its files are larger than itself")
    return files


def _is_sequence(data: bytes) -> bool:
    return data[:14] == b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little")


def _run_sequence(data: bytes, vocabulary: Vocabulary) -> Any:
    """Magic, version, byte order, the object, the storages' names, then the storages: a count and the numbers each."""
    stream = io.BytesIO(data)
    storages: dict[str, _Storage] = {}
    plain = Vocabulary(max_opcodes=vocabulary.max_opcodes)
    _, version, system = (finish(run(stream, plain)) for _ in range(3))
    if version != _OLD_PROTOCOL or system.get("little_endian") is not True:
        raise ValueError(f"its version is {version!r:.40}, or it was written on a big-endian machine; save it again")

    def persistent(key: Any) -> _Storage:
        name, storage = _described(key, "<")
        found = storages.setdefault(name, storage)
        if found != storage:
            raise ValueError(f"storage {name!r:.40} has two sizes")
        return found

    value = run(stream, replace(vocabulary, persistent=persistent))
    names = finish(run(stream, plain))
    view, position = memoryview(data), stream.tell()
    for name in names:
        storage = storages[name]
        end = position + 8 + storage.n_values * storage.dtype.itemsize
        if struct.unpack("<q", view[position : position + 8]) != (storage.n_values,):
            raise ValueError(f"storage {name!r:.40} has another size than said")
        storage.fill(view[position + 8 : end])
        position = end
    return value
