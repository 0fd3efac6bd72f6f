"""Labeled image sets as arrays: what classifiers train on and attacks poison, of every kind that `open_source` knows.

| kind       | where its labels are                                                                                  |
|------------|-------------------------------------------------------------------------------------------------------|
| folder     | the first folder of each image's name, as sorted; so in zip and tar archives                          |
| npz        | an array as long as the images: one of `KEYS`, or the only of numbers; numbers, names or one-hot      |
| CIFAR      | the label byte or list; of CIFAR-100 the fine one                                                     |
| tables     | Parquet, Arrow: the column that the metadata call a ClassLabel, one of `KEYS`, or the only of numbers |
| csv        | the column that is one of `KEYS`; numbers, or names as sorted                                         |
| webdataset | the `.cls` of each sample; numbers, or names as sorted                                                |

All is held in memory: 3 KB an image of 32 px.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pureebm.data.archives import ArchiveSource
from pureebm.data.base import Pixels, Source
from pureebm.data.cifar import BinaryFile, CifarSource
from pureebm.data.csv_list import CsvSource
from pureebm.data.folder import FolderSource
from pureebm.data.npz import LABEL_KEYS, NAME_KEYS, NpzSource
from pureebm.data.open import open_source
from pureebm.data.tables import TableFile, TableSource, features_of
from pureebm.data.unpickle import loads
from pureebm.data.webdataset import WebDatasetSource
from pureebm.errors import InputError

KEYS = LABEL_KEYS
"""Of arrays and columns."""

CHUNK = 1000

Labels = NDArray[np.int64]


def read_labeled_source(
    path: Path, *, size: int | None = None, limit: int | None = None, eight_bit: bool = False
) -> tuple[Tensor, Tensor, list[str] | None, list[str]]:
    """Every image of a source with its label.

    Args:
        path: a labeled source, as the table says.
        size: side to which images are cut and averaged down; without it all must have one size.
        limit: only the first so many images.
        eight_bit: refuse images of 16 bits a color, which are rounded else.

    Returns:
        images (N, H, W, 3) uint8, labels (N,) int64 from 0 on, the classes' names where the source knows them (of all
        classes, whatever the limit), and the items' ids.

    Raises:
        InputError: no labels, a label below 0 or missing, unreadable images (naming the first), or different sizes.
    """
    source = open_source(path)
    labels, names = labels_of(source)
    n = len(source) if limit is None else min(limit, len(source))
    _refuse_bad_labels(source, labels[:n], names)
    images, ids = _images(source, n, size, eight_bit)
    return images, torch.from_numpy(labels[:n].copy()), names, ids


def label_key(source: NpzSource | TableSource) -> str:
    """The name of the array or column that holds the labels. Raises `InputError`, listing what is there, for none."""
    if isinstance(source, NpzSource):
        members = {m.key: m for m in source.members if m is not source.images and m.shape[:1] == (len(source),)}
        numbers = [key for key, m in members.items() if m.dtype.kind in "iu" and m.shape[1:] in ((), (1,))]
        return _choose(members, numbers, source.path, [member.describe() for member in source.members])
    schema = source.files[0].schema
    classes = [name for name, feature in features_of(schema).items() if feature.get("_type") == "ClassLabel"]
    if classes:
        return min(classes, key=lambda name: KEYS.index(name) if name in KEYS else len(KEYS))
    numbers = [field.name for field in schema if pa.types.is_integer(field.type)]
    return _choose(schema.names, numbers, source.path, schema.names)


def square(pixels: Pixels, size: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (size, size, 3) uint8 by area averaging; a longer side is first cut at its center."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    cut = _eight_bit(pixels)[top : top + side, left : left + side]
    if side == size:
        return cut
    image = Image.fromarray(np.ascontiguousarray(cut))
    return np.asarray(
        image.reduce(side // size) if side % size == 0 else image.resize((size, size), Image.Resampling.BOX)
    )


def _eight_bit(pixels: Pixels) -> NDArray[np.uint8]:
    return np.round(pixels / 257).astype(np.uint8) if pixels.dtype == np.uint16 else pixels.astype(np.uint8, copy=False)


def _images(source: Source, n: int, size: int | None, eight_bit: bool) -> tuple[Tensor, list[str]]:
    pixels: NDArray[np.uint8] | None = None
    ids: list[str] = []
    failed: list[str] = []
    for start in range(0, n, CHUNK):
        for loaded in source.load(start, min(start + CHUNK, n)):
            ids.append(loaded.item.id)
            if loaded.picture is None:
                failed.append(str(loaded.error))
                continue
            found = loaded.picture.pixels
            if eight_bit and found.dtype != np.uint8:
                raise InputError(
                    f"{source.path}: {loaded.item.id} has 16 bits a color; convert the set to 8 bits first"
                )
            image = _eight_bit(found) if size is None else square(found, size)
            pixels = np.empty((n, *image.shape), np.uint8) if pixels is None else pixels
            if image.shape != pixels.shape[1:]:
                raise InputError(
                    f"{source.path}: images of different sizes, {_extent(pixels[0])} and (of {loaded.item.id!r}) "
                    f"{_extent(image)}; bring them to one size first (`pureebm train classifier` does by --size)"
                )
            pixels[loaded.item.index] = image
    if failed or pixels is None:
        raise InputError(
            f"{source.path}: {len(failed)} of {n} images cannot be read; the first: {failed[0] if failed else '?'}. "
            "Repair or remove them (`pureebm purify --on-error skip` leaves them out)"
        )
    return torch.from_numpy(pixels), ids


def _extent(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def labels_of(source: Source) -> tuple[Labels, list[str] | None]:
    """Each item's label as it is stored, in or out of range, and the classes' names where the source knows them.

    Raises:
        InputError: the source has no labels, or they are no labels.
    """
    match source:
        case FolderSource() | ArchiveSource():
            return _folder_labels(source)
        case NpzSource():
            return _npz_labels(source)
        case CifarSource():
            return _cifar_labels(source)
        case TableSource():
            return _table_labels(source)
        case CsvSource():
            return _list_labels(source)
        case WebDatasetSource():
            return _text_labels(source, "cls", source.members("cls"))
    raise InputError(f"{source.path}: a source of kind {source.kind!r} has no labels")


def _refuse_bad_labels(source: Source, labels: Labels, names: Sequence[str] | None) -> None:
    bad = np.flatnonzero((labels < 0) | (labels >= (len(names) if names else 2**31)))
    if len(bad):
        item = source.load(int(bad[0]), int(bad[0]) + 1)[0].item.id
        allowed = f"0..{len(names) - 1}" if names else "0 and above"
        raise InputError(
            f"{source.path}: {len(bad)} labels are outside {allowed}; the first is {labels[bad[0]]} of {item!r}"
        )


def _numbered(values: Sequence[str]) -> tuple[Labels, list[str]]:
    """Names -> their places among the sorted names."""
    names, labels = np.unique(np.array(values, dtype=np.str_), return_inverse=True)
    return labels.astype(np.int64), [str(name) for name in names]


def _folder_labels(source: FolderSource | ArchiveSource) -> tuple[Labels, list[str]]:
    ids = [source.item(index).id for index in range(len(source))]
    loose = [name for name in ids if "/" not in name]
    if loose:
        raise InputError(
            f"{source.path}: {len(loose)} of {len(ids)} images lie in no class folder, the first is {loose[0]!r}; "
            "put each into a folder that is named after its class"
        )
    return _numbered([name.partition("/")[0] for name in ids])


def _npz_labels(source: NpzSource) -> tuple[Labels, list[str] | None]:
    key = label_key(source)
    with np.load(source.path, allow_pickle=False) as arrays:
        values = arrays[key]
        named = next((arrays[name] for name in NAME_KEYS if name in arrays and arrays[name].dtype.kind == "U"), None)
    if values.dtype.kind == "U" and values.ndim == 1:
        return _numbered(values.tolist())
    names = None if named is None else [str(name) for name in named.ravel()]
    if values.ndim == 2 and values.shape[1] > 1:
        if not (((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all()):
            raise InputError(f"{source.path}: {key} of shape {values.shape} is not one-hot; give one label an image")
        return values.argmax(axis=1).astype(np.int64), names
    if values.dtype.kind not in "iu" or values.size != len(source):
        raise InputError(f"{source.path}: {key} must hold whole numbers, names or one-hot rows, is {values.dtype}")
    return values.reshape(-1).astype(np.int64), names


def _cifar_labels(source: CifarSource) -> tuple[Labels, list[str] | None]:
    labels: list[Any] = []
    for file in source.files:
        if isinstance(file, BinaryFile):
            records = np.fromfile(file.path, np.uint8).reshape(-1, file.record_bytes)
            labels += records[:, len(file.classes) - 1].tolist()
        else:
            content = _as_text_keys(loads(file.path.read_bytes(), file.path.name))
            column = content.get("fine_labels", content.get("labels"))
            if column is None:
                raise InputError(f"{file.path}: holds no labels; give a CIFAR file as it is published")
            # what is no number is an unreadable image of its own (`CifarSource.load`)
            labels += [int(label) if isinstance(label, int | np.integer) else 0 for label in column]
    return np.clip(np.array(labels, np.int64), 0, None), _cifar_names(source.root)


def _as_text_keys(content: dict[Any, Any]) -> dict[str, Any]:
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _cifar_names(root: Path) -> list[str] | None:
    """The classes' names from the file that is published beside the batches, if it is there."""
    for name in ("batches.meta", "meta"):
        if (root / name).is_file():
            content = _as_text_keys(loads((root / name).read_bytes(), name))
            found = content.get("fine_label_names", content.get("label_names"))
            return found and [one.decode() if isinstance(one, bytes) else str(one) for one in found]
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if (root / name).is_file():
            return (root / name).read_text("utf-8").split()
    return None


def _table_labels(source: TableSource) -> tuple[Labels, list[str] | None]:
    key = label_key(source)
    try:
        values = [value for file in source.files for value in _column(file, key)]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{source.path}: the column {key!r} cannot be read: {error}") from error
    if None in values:
        raise InputError(f"{source.path}: {source.item(values.index(None)).id} has no {key}; remove it or label it")
    if all(isinstance(value, str) for value in values):
        return _numbered(values)
    if not all(isinstance(value, int) for value in values):
        raise InputError(f"{source.path}: the column {key!r} must hold whole numbers or names, one an image")
    names = features_of(source.files[0].schema).get(key, {}).get("names")
    return np.array(values, np.int64), list(map(str, names)) if isinstance(names, list) else None


def _list_labels(source: CsvSource) -> tuple[Labels, list[str] | None]:
    key = next((key for key in KEYS if key in source.header), None)
    if key is None:
        raise InputError(
            f"{source.path}: no column of labels among {', '.join(source.header)}; name it one of {', '.join(KEYS)}"
        )
    return _text_labels(source, key, [value.encode() for value in source.column(key)])


def _text_labels(source: Source, key: str, values: Sequence[bytes | None]) -> tuple[Labels, list[str] | None]:
    """Numbers as they are, else names as sorted."""
    texts = [(value or b"").decode("utf-8", "replace").strip() for value in values]
    if "" in texts:
        item = source.load(texts.index(""), texts.index("") + 1)[0].item.id
        raise InputError(f"{source.path}: {item} has no {key}; remove it or label it")
    if all(text.isdecimal() and len(text) < 10 for text in texts):
        return np.array(texts, np.int64), None
    return _numbered(texts)


def _column(file: TableFile, key: str) -> list[Any]:
    return [value for _, batch in file.batches(columns=[key]) for value in batch.column(0).to_pylist()]


def _choose(names: Collection[str], numbers: Sequence[str], where: Path, found: Sequence[str]) -> str:
    """The name of `KEYS` that is there, else the only one of whole numbers."""
    key = next((key for key in KEYS if key in names), None)
    if key is None and len(numbers) == 1:
        key = numbers[0]
    if key is None:
        raise InputError(
            f"{where}: no labels found: nothing as long as the images is named {', '.join(KEYS)}, or the only one of "
            f"whole numbers; it holds {', '.join(found)}"
        )
    return key
