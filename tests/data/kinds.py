"""A small labeled image set in every kind that came after the first four, written and read by the kind's own library.

Twelve images in order, one of them (number `BAD`) no image if asked for; two classes; a note in each place that can
hold one.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.data_job import noise_image

N, BAD = 12, 5
CLASSES = ("cat", "dög")


@dataclass(frozen=True)
class Row:
    """One image as a training program gets it."""

    name: str
    pixels: np.ndarray | None  # None: not an image
    label: str
    extension: str


@dataclass(frozen=True)
class Kind:
    make: Callable[[Path, bool], Path]  # (an empty folder, with a bad image) -> the source
    read: Callable[[Path], list[Row]]
    target: str  # a name that fits
    source_kind: str


def image(index: int, bad: bool) -> tuple[str, bytes]:
    """(name without class, bytes): PNG and BMP in turn."""
    extension = ("png", "bmp")[index % 2]
    buffer = io.BytesIO()
    noise_image(index).save(buffer, extension)
    return f"{index:03d}.{extension}", b"no image" if bad and index == BAD else buffer.getvalue()


def images(bad: bool) -> Iterator[tuple[str, bytes, str]]:
    """(name, bytes, class)."""
    for index in range(N):
        name, data = image(index, bad)
        yield name, data, CLASSES[index % 3 == 0]


def pixels(data: bytes) -> np.ndarray | None:
    return None if data == b"no image" else np.asarray(Image.open(io.BytesIO(data)))


def row(name: str, data: bytes, label: str) -> Row:
    return Row(Path(name).stem, pixels(data), label, Path(name).suffix)


def _tree(bad: bool) -> list[tuple[str, bytes]]:
    """A class folder set as archives hold it, in their order."""
    return [("notes.txt", b"read me"), *sorted((f"{label}/{name}", data) for name, data, label in images(bad))]


def make_folder(root: Path, bad: bool) -> Path:
    for name, data in _tree(bad):
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / name).write_bytes(data)
    return root / "in"


def read_folder(path: Path) -> list[Row]:
    """As torchvision's ImageFolder: classes are the sorted folders, images the sorted files below each."""
    rows = []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        rows += [row(file.name, file.read_bytes(), folder.name) for file in sorted(folder.rglob("*"))]
    return rows


def make_zip(root: Path, bad: bool) -> Path:
    with zipfile.ZipFile(root / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _tree(bad):
            archive.writestr(name, data)
    return root / "in.zip"


def read_zip(path: Path) -> list[Row]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return _rows((name, archive.read(name)) for name in archive.namelist())


def make_tar(root: Path, bad: bool, name: str = "in.tar") -> Path:
    with tarfile.open(root / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for entry, data in _tree(bad):
            add(archive, entry, data)
    return root / name


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1_700_000_000
    archive.addfile(info, io.BytesIO(data))


def read_tar(path: Path) -> list[Row]:
    with tarfile.open(path) as archive:
        return _rows((info.name, archive.extractfile(info).read()) for info in archive.getmembers())  # type: ignore[union-attr]


def _rows(entries: Iterator[tuple[str, bytes]]) -> list[Row]:
    first, *rest = entries
    assert first == ("notes.txt", b"read me")
    return [row(name, data, name.partition("/")[0]) for name, data in rest]


def make_webdataset(root: Path, bad: bool) -> Path:
    """Three shards; the label follows the image, and a note stands before it."""
    (root / "in" / "train").mkdir(parents=True)
    (root / "in" / "README.md").write_text("read me")
    for index, (name, data, label) in enumerate(images(bad)):
        path = root / "in" / "train" / f"shard-{index // 5:04d}.tar"
        with tarfile.open(path, "a") as archive:
            stem, extension = name.split(".")
            add(archive, f"s/{stem}.a.json", json.dumps({"note": stem}).encode())
            add(archive, f"s/{stem}.{extension}", data)
            add(archive, f"s/{stem}.cls", label.encode())
    return root / "in"


def read_webdataset(path: Path) -> list[Row]:
    """By the library's own iterators; its `WebDataset` leaves the shards open."""
    tariterators = pytest.importorskip("webdataset").tariterators
    assert (path / "README.md").read_text() == "read me"
    shards = sorted((path / "train").iterdir())
    assert len(shards) == 3
    rows = []
    for shard in shards:
        with open(shard, "rb") as stream:
            files = tariterators.tar_file_expander([{"url": str(shard), "stream": stream}])
            for sample in tariterators.group_by_keys(files):
                name = sample["__key__"].removeprefix("s/")
                assert json.loads(sample["a.json"])["note"] == name
                extension = next(one for one in ("png", "bmp") if one in sample)
                rows.append(row(f"{name}.{extension}", sample[extension], sample["cls"].decode()))
    return rows


def make_saved_dataset(root: Path, bad: bool) -> Path:
    """Two splits, the first of two files."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=list(CLASSES)),
            "image": datasets.Image(),
            "note": datasets.Value("string"),
        }
    )
    rows = [
        {"label": CLASSES.index(label), "image": {"bytes": data, "path": name}, "note": name.split(".")[0]}
        for name, data, label in images(bad)
    ]
    parts = {"train": rows[:9], "test": rows[9:]}
    sets = {
        name: datasets.Dataset.from_list(part, features=features, split=datasets.NamedSplit(name))
        for name, part in parts.items()
    }
    datasets.DatasetDict(sets).save_to_disk(root / "in", num_shards={"train": 2, "test": 1})
    return root / "in"


def read_saved_dataset(path: Path) -> list[Row]:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_from_disk(str(path))
    assert list(loaded) == ["train", "test"]
    rows = []
    for part in loaded.values():
        assert part.features["label"].names == list(CLASSES)
        for cells in part.cast_column("image", datasets.Image(decode=False)):
            found = row(cells["image"]["path"], cells["image"]["bytes"], CLASSES[cells["label"]])
            assert found.name == cells["note"]
            rows.append(found)
    return rows


def make_csv(root: Path, bad: bool) -> Path:
    folder = root / "in"
    (folder / "images").mkdir(parents=True)
    with open(folder / "list.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "File", "label", "note"])
        for index, (name, data, label) in reversed(list(enumerate(images(bad)))):
            (folder / "images" / name).write_bytes(data)
            writer.writerow([index, f"images/{name}", label, f'a "note", of {index}'])
    return folder / "list.csv"


def read_csv(path: Path) -> list[Row]:
    path = path / "list.csv" if path.is_dir() else path
    rows = []
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            assert list(line) == ["id", "File", "label", "note"] and line["note"] == f'a "note", of {line["id"]}'
            rows.append(row(line["File"], (path.parent / line["File"]).read_bytes(), line["label"]))
    return rows


KINDS = {
    "folder": Kind(make_folder, read_folder, "out", "folder"),
    "zip": Kind(make_zip, read_zip, "out.zip", "zip"),
    "tar": Kind(make_tar, read_tar, "out.tar", "tar"),
    "tar.gz": Kind(lambda root, bad: make_tar(root, bad, "in.tar.gz"), read_tar, "out.tar.gz", "tar"),
    "webdataset": Kind(make_webdataset, read_webdataset, "out", "webdataset"),
    "arrow": Kind(make_saved_dataset, read_saved_dataset, "out", "arrow"),
    "csv": Kind(make_csv, read_csv, "out", "csv"),
}
