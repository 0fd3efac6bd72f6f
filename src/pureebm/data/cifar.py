"""CIFAR-10 and CIFAR-100 as they are published, in the python and the binary version: a folder, or one of its files.

In a folder the training files are purified; the official test split and all other files are passed on byte for byte.
A file that is named itself is purified, whatever its name. Records: label byte(s), then 3 x 32 x 32 pixels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from pureebm.data.base import Item, Loaded, Result, Stored
from pureebm.data.durable import copy_file, sync_folder, sync_tree, write_file
from pureebm.data.folder import fingerprint_of, readable
from pureebm.data.rows import RowChunks, Rows, load_row
from pureebm.data.unpickle import dumps, loads
from pureebm.errors import InputError, ItemError
from pureebm.types import JSON

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3072
MAX_PICKLE_BYTES = 2**30
BLOCK_RECORDS = 1000
_TRAIN = re.compile(r"data_batch_\d+(\.bin)?|train(\.bin)?")
_TEST = re.compile(r"test_batch(\.bin)?|test(\.bin)?")


class CifarFile(Protocol):
    """One file of records."""

    @property
    def path(self) -> Path: ...

    @property
    def version(self) -> str: ...

    @property
    def n_records(self) -> int: ...

    def rows(self, start: int, stop: int) -> Rows:
        """(stop - start, 3, 32, 32)"""
        ...

    def label_error(self, record: int) -> str:
        """What is wrong with a record's labels; "" if nothing."""
        ...

    def write(self, file: BinaryIO, kept: NDArray[np.int64], rows: Iterator[Rows]) -> None:
        """The same file with these records only (their indices, sorted) and these pixels, given in blocks."""
        ...


@dataclass(frozen=True, slots=True)
class BinaryFile:
    """Records of label bytes (their number of classes in `classes`) and pixels, read where they lie."""

    path: Path
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        size = self.path.stat().st_size
        if not size or size % self.record_bytes:
            raise InputError(
                f"{self.path.name}: {size:,} bytes are not a whole number of records of {self.record_bytes}; "
                f"the file is damaged or not {self.version}"
            )

    @property
    def version(self) -> str:
        return f"CIFAR-{self.classes[-1]} (binary version)"

    @property
    def record_bytes(self) -> int:
        return len(self.classes) + IMAGE_BYTES

    @property
    def n_records(self) -> int:
        return self.path.stat().st_size // self.record_bytes

    def rows(self, start: int, stop: int) -> Rows:
        return self._records(start, stop)[:, len(self.classes) :].reshape(-1, *IMAGE_SHAPE)

    def label_error(self, record: int) -> str:
        for label, n_classes in zip(self._records(record, record + 1)[0], self.classes, strict=False):
            if label >= n_classes:
                return _label_text(self, int(label), record, n_classes)
        return ""

    def write(self, file: BinaryIO, kept: NDArray[np.int64], rows: Iterator[Rows]) -> None:
        done = 0
        for block in rows:
            part = kept[done : done + len(block)]
            done += len(block)
            if not len(part):
                continue
            records = self._records(int(part[0]), int(part[-1]) + 1)[part - part[0]]
            records[:, len(self.classes) :] = block.reshape(len(block), IMAGE_BYTES)
            file.write(records.tobytes())

    def _records(self, start: int, stop: int) -> Rows:
        with open(self.path, "rb") as file:
            file.seek(start * self.record_bytes)
            data = file.read((stop - start) * self.record_bytes)
        return np.frombuffer(data, np.uint8).reshape(stop - start, self.record_bytes)


class PythonFile:
    """A pickled dict with `data` (N, 3072) and lists as long as it; the one read last stays in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _read_pickle(path)
        keys = {_key(key): key for key in content}
        self._label_keys = [keys[name] for name in ("labels", "fine_labels", "coarse_labels") if name in keys]
        self.n_records = len(content[keys["data"]])
        self._ranges = {
            key: {"labels": 10, "fine_labels": 100, "coarse_labels": 20}[_key(key)] for key in self._label_keys
        }
        self.version = f"CIFAR-{100 if 'fine_labels' in keys else 10} (python version)"
        self._data_key = keys["data"]
        for key in self._label_keys:
            if not _is_column(content[key], self.n_records):
                raise InputError(
                    f"{path.name}: {self.n_records} images, but {_key(key)} is no list of as many labels; damaged"
                )

    def rows(self, start: int, stop: int) -> Rows:
        data: Rows = _read_pickle(self.path)[self._data_key]
        return data[start:stop].reshape(-1, *IMAGE_SHAPE)

    def label_error(self, record: int) -> str:
        content = _read_pickle(self.path)
        for key in self._label_keys:
            label = content[key][record]
            if not isinstance(label, int | np.integer) or not 0 <= label < self._ranges[key]:
                return _label_text(self, label, record, self._ranges[key])
        return ""

    def write(self, file: BinaryIO, kept: NDArray[np.int64], rows: Iterator[Rows]) -> None:
        content = dict(_read_pickle(self.path))
        for key, value in content.items():
            if _is_column(value, self.n_records):
                content[key] = value[kept] if isinstance(value, np.ndarray) else [value[i] for i in kept]
        data = content[self._data_key] = np.empty((len(kept), IMAGE_BYTES), np.uint8)
        done = 0
        for block in rows:
            data[done : done + len(block)] = block.reshape(len(block), IMAGE_BYTES)
            done += len(block)
        file.write(dumps(content))


class CifarSource:
    """The records of one or several files, in the order of their numbers."""

    kind = "cifar"

    def __init__(self, path: Path) -> None:
        """Raises `InputError` if a file has a wrong size, is damaged, or holds anything but plain data."""
        self.path = path
        self.single_file = path.is_file()
        names = [path.name] if self.single_file else training_files(path)
        self.root = path.parent if self.single_file else path
        self.files = [open_file(self.root / name) for name in names]
        versions = sorted({file.version for file in self.files})
        if len(versions) > 1:
            raise InputError(f"{path}: a mixture of {' and '.join(versions)}; keep each in a folder of its own")
        self.starts = np.cumsum([0] + [file.n_records for file in self.files])
        if not len(self):
            raise InputError(f"{path}: holds no records; there is nothing to purify")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def load(self, start: int, stop: int) -> list[Loaded]:
        loaded: list[Loaded] = []
        for file, offset, first, last in self.spans(start, min(stop, len(self))):
            for record, row in enumerate(file.rows(first, last), first):
                loaded.append(self._load_one(file, offset, record, row))
        return loaded

    def rows(self, start: int, stop: int) -> Rows:
        return np.concatenate([file.rows(first, last) for file, _, first, last in self.spans(start, stop)])

    def spans(self, start: int, stop: int) -> Iterator[tuple[CifarFile, int, int, int]]:
        """(file, its first item, first record, last record + 1) for items start .. stop-1."""
        for file, offset in zip(self.files, map(int, self.starts), strict=False):
            first, last = max(start - offset, 0), min(stop - offset, file.n_records)
            if first < last:
                yield file, offset, first, last

    def passed_on(self) -> list[str]:
        """The other files of the folder: the test split, names of classes, ..."""
        if self.single_file:
            return []
        mine = {file.path.name for file in self.files}
        return sorted(
            name
            for name in os.listdir(self.path)
            if (self.path / name).is_file() and name not in mine and not name.startswith("pureebm-")
        )

    def describe(self) -> JSON:
        passed_on = self.passed_on()
        fingerprint, n_bytes = fingerprint_of(self.root, [file.path.name for file in self.files] + passed_on)
        return {
            "kind": self.kind,
            "version": self.files[0].version,
            "images": len(self),
            "bytes": n_bytes,
            "files": {file.path.name: file.n_records for file in self.files},
            "test_split": [name for name in passed_on if _TEST.fullmatch(name)],
            "passed_on": [readable(name) for name in passed_on],
            "fingerprint": fingerprint,
        }

    def open_sink(self, staging: Path) -> CifarSink:
        return CifarSink(self, staging)

    def _load_one(self, file: CifarFile, offset: int, record: int, row: Rows) -> Loaded:
        name = f"{readable(file.path.name)}/{record}"
        loaded = load_row(Item(offset + record, name, name), row, "CHW")
        error = file.label_error(record)
        return Loaded(loaded.item, None, ItemError(error), loaded.sha256) if error else loaded


class CifarSink:
    """Chunks of rows; the new files have the old ones' names and labels."""

    def __init__(self, source: CifarSource, staging: Path) -> None:
        self._source = source
        self._chunks = RowChunks(staging, "CHW", IMAGE_SHAPE, source.rows)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        return self._chunks.write(chunk, results)

    def assemble(self, target: Path, n_chunks: int) -> None:
        source, staging = self._source, self._chunks.staging
        if source.single_file:
            self._write_file(target, 0, n_chunks)
            sync_folder(target.parent)
            return
        tree = staging / "tree"
        tree.mkdir(exist_ok=True)
        for index in range(len(source.files)):
            self._write_file(tree / source.files[index].path.name, index, n_chunks)
        for name in source.passed_on():
            copy_file(source.path / name, tree / name, aside=staging / "assembled")
        sync_tree(tree)
        os.rename(tree, target)
        sync_folder(target.parent)

    def _write_file(self, path: Path, index: int, n_chunks: int) -> None:
        file, start, stop = self._source.files[index], *map(int, self._source.starts[index : index + 2])
        kept = self._chunks.kept(n_chunks)
        kept = kept[(kept >= start) & (kept < stop)] - start
        rows = self._rows_between(start, stop, n_chunks)
        write_file(path, lambda out: file.write(out, kept, rows), aside=self._chunks.staging / "assembled")

    def _rows_between(self, start: int, stop: int, n_chunks: int) -> Iterator[Rows]:
        for indices, rows in self._chunks.read(n_chunks):
            mine = (indices >= start) & (indices < stop)
            if mine.any():
                yield rows[mine]


def is_cifar_folder(path: Path) -> bool:
    return bool(training_files(path))


def training_files(path: Path) -> list[str]:
    """The training files of a CIFAR folder, in the order of their numbers; none if it is no such folder."""
    names = [name for name in os.listdir(path) if _TRAIN.fullmatch(name) and (path / name).is_file()]
    return sorted(names, key=lambda name: (len(name), name))


def is_cifar_file(path: Path) -> bool:
    """By its name, or as a pickle, or as a .bin of whole records."""
    if _TRAIN.fullmatch(path.name) or _TEST.fullmatch(path.name) or path.suffix == ".bin":
        return True
    with open(path, "rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and start[1] <= 5


def open_file(path: Path) -> CifarFile:
    """A file of either version.

    Raises:
        InputError: It is neither, or damaged.
    """
    try:
        if path.suffix != ".bin":
            return PythonFile(path)
        hundred = path.name in ("train.bin", "test.bin")
        if path.stat().st_size % (1 + IMAGE_BYTES) == 0 and not hundred:
            return BinaryFile(path, (10,))
        if path.stat().st_size % (2 + IMAGE_BYTES) == 0 or hundred:
            return BinaryFile(path, (20, 100))
        return BinaryFile(path, (10,))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error


@lru_cache(maxsize=2)
def _read_pickle_at(path: Path, time: int, size: int) -> dict[Any, Any]:
    if size > MAX_PICKLE_BYTES:
        raise InputError(f"{path.name}: {size:,} bytes are more than the allowed {MAX_PICKLE_BYTES:,} of a CIFAR file")
    content = loads(path.read_bytes(), path.name)
    if not isinstance(content, dict) or "data" not in map(_key, content):
        raise InputError(f"{path.name}: holds no 'data'; the file is damaged or not CIFAR (python version)")
    data = next(value for key, value in content.items() if _key(key) == "data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (IMAGE_BYTES,):
        found = f"{data.dtype} of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(f"{path.name}: 'data' must be uint8 of shape (N, {IMAGE_BYTES}), is {found}; not CIFAR")
    return content


def _read_pickle(path: Path) -> dict[Any, Any]:
    status = path.stat()
    return _read_pickle_at(path, status.st_mtime_ns, status.st_size)


def _key(key: object) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _is_column(value: object, n_records: int) -> bool:
    return isinstance(value, list | np.ndarray) and len(value) == n_records


def _label_text(file: CifarFile, label: object, record: int, n_classes: int) -> str:
    return (
        f"{file.path.name}: label {label!r:.40} in record {record} is outside 0..{n_classes - 1}; "
        f"the file is damaged or not {file.version}"
    )
