"""New labels in an assembled set of every kind: theirs change, and nothing else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pureebm.data.base import Picture, Result
from pureebm.data.labels import read_labeled_source
from pureebm.data.open import open_source
from pureebm.data.pictures import encode
from pureebm.data.relabel import relabel

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def folder(path: Path) -> Path:
    for index, label in enumerate(LABELS):
        place = path / "abc"[label] / "deep" / f"{index // 3}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[index]).save(place)
    return path


def npz(path: Path, labels: object = LABELS, **more: object) -> Path:
    path = path.with_suffix(".npz")
    np.savez_compressed(path, images=PIXELS, labels=np.array(labels), other=np.arange(6), **more)
    return path


def cifar_binary(path: Path) -> Path:
    path.mkdir()
    for name, part in (("data_batch_1.bin", slice(0, 4)), ("data_batch_2.bin", slice(4, 6))):
        rows = PIXELS[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        (path / name).write_bytes(np.column_stack([np.array(LABELS, np.uint8)[part], rows]).tobytes())
    return path


def cifar_python(path: Path) -> Path:
    path.mkdir()
    content = {
        b"data": PIXELS.transpose(0, 3, 1, 2).reshape(-1, 3072),
        b"fine_labels": list(LABELS),
        b"coarse_labels": [7] * 6,
    }
    (path / "train").write_bytes(pickle.dumps(content))
    return path


def parquet(path: Path, labels: object = LABELS) -> Path:
    path = path.with_suffix(".parquet")
    cells = [{"bytes": encode_png(image), "path": None} for image in PIXELS]
    info = {"info": {"features": {"image": {"_type": "Image"}}}}
    table = pa.table({"image": cells, "label": labels, "note": list("uvwxyz")})
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()}), path)
    return path


def encode_png(image: np.ndarray) -> bytes:
    return encode(Picture(image))


KINDS = {
    "folder": folder,
    "npz": npz,
    "npz-names": lambda path: npz(path, ["abc"[label] for label in LABELS]),
    "npz-one-hot": lambda path: npz(path, np.eye(3, dtype=np.uint8)[LABELS]),
    "cifar-binary": cifar_binary,
    "cifar-python": cifar_python,
    "parquet": parquet,
    "parquet-names": lambda path: parquet(path, ["abc"[label] for label in LABELS]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_labels_given_change_and_no_pixel_and_no_other_label(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path / "in")
    source = open_source(path)
    sink = source.open_sink(tmp_path / "staging")
    sink.write(0, [Result(item.item, "purified", item.picture) for item in source.load(0, 6)])
    target = tmp_path / ("out" + path.suffix)
    sink.assemble(target, 1)
    images, labels, names, ids = read_labeled_source(path)
    moved = relabel(target, source, {1: 2, 5: 0}, names)
    after = read_labeled_source(target)
    wanted = labels.clone()
    wanted[1], wanted[5] = 2, 0
    pairs = sorted((image.numpy().tobytes(), label) for image, label in zip(images, wanted.tolist(), strict=True))
    found = sorted((image.numpy().tobytes(), label) for image, label in zip(after[0], after[1].tolist(), strict=True))
    assert pairs == found
    if kind == "folder":
        assert moved == {1: "c/deep/1-2.png", 5: "a/deep/1-2.png"}
        assert all((target / name).is_file() for name in moved.values())
    else:
        assert moved == {} and after[0].equal(images)
    if kind.startswith("npz"):
        with np.load(target) as arrays:
            assert arrays["other"].tolist() == list(range(6))
    if kind == "cifar-python":
        content = pickle.loads((target / "train").read_bytes(), encoding="bytes")
        assert content[b"coarse_labels"] == [7] * 6
    if kind.startswith("parquet"):
        table = pq.read_table(target)
        assert table["note"].to_pylist() == list("uvwxyz") and b"huggingface" in table.schema.metadata


def test_a_name_that_is_taken_gets_a_number_and_no_image_is_lost(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "in"))
    names = [source.item(index).id for index in range(6)]
    assert names == ["a/deep/0.png", "a/deep/1.png", "b/deep/0.png", "b/deep/1.png", "c/deep/0.png", "c/deep/1.png"]
    sink = source.open_sink(tmp_path / "staging")
    sink.write(0, [Result(item.item, "purified", item.picture) for item in source.load(0, 6)])
    sink.assemble(tmp_path / "out", 1)
    moved = relabel(tmp_path / "out", source, {2: 0, 4: 0}, ["a", "b", "c"])
    assert moved == {2: "a/deep/0-2.png", 4: "a/deep/0-3.png"}
    assert len(list((tmp_path / "out").rglob("*.png"))) == 6


def test_no_changes_touch_nothing(tmp_path: Path) -> None:
    path = npz(tmp_path / "in")
    before = path.read_bytes()
    assert relabel(path, open_source(path), {}, None) == {}
    assert path.read_bytes() == before
