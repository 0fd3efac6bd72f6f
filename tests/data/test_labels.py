"""Labels of every kind of source."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pureebm.data.labels import read_labeled_source, square
from pureebm.errors import InputError

N = 12
LABELS = np.arange(N) * 5 % 3


def pictures(n: int = N, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def check(path: Path, names: list[str] | None, labels: np.ndarray = LABELS) -> list[str]:
    """Images and labels are those of `pictures` and `labels`; the ids."""
    images, found, found_names, ids = read_labeled_source(path)
    assert images.dtype == torch.uint8 and found.dtype == torch.int64
    assert np.array_equal(images.numpy(), pictures())
    assert found.tolist() == labels.tolist() and found_names == names
    assert len(set(ids)) == N
    return ids


def test_the_class_of_a_folders_image_is_its_first_folder(tmp_path: Path) -> None:
    names = ["bird", "cat", "dog"]
    for index, label in enumerate(LABELS):
        path = tmp_path / names[label] / "deeper" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pictures()[index]))
    images, labels, found, ids = read_labeled_source(tmp_path)
    order = sorted(range(N), key=lambda index: (LABELS[index], index))
    assert found == names and labels.tolist() == sorted(LABELS)
    assert np.array_equal(images.numpy(), pictures()[order])
    assert ids[0] == "bird/deeper/000.png"
    images, labels, found, ids = read_labeled_source(tmp_path, limit=5)
    assert images.shape[0] == len(labels) == len(ids) == 5 and found == names
    (tmp_path / "loose.png").write_bytes(png(pictures()[0]))
    with pytest.raises(InputError, match="1 of 13 images lie in no class folder, the first is 'loose.png'"):
        read_labeled_source(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": pictures(), "labels": LABELS.astype(np.uint8)},
        {"images": pictures().transpose(0, 3, 1, 2), "labels": LABELS[:, None]},
        {"x_train": pictures(), "y_train": np.eye(3)[LABELS], "other": np.arange(N)},
        {"images": pictures(), "species": LABELS.astype(np.int32), "weights": np.ones(N)},
    ],
)
def test_an_npz_has_labels_under_a_known_name_or_as_its_only_whole_numbers(tmp_path: Path, arrays) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    check(tmp_path / "set.npz", None)
    np.savez(tmp_path / "set.npz", **arrays, class_names=np.array(["a", "b", "c"]))
    assert check(tmp_path / "set.npz", ["a", "b", "c"])[1].endswith("/1")


def test_names_as_labels_become_their_places_among_the_sorted_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=pictures(), label=np.array(["owl", "ant", "cow"])[LABELS])
    check(tmp_path / "set.npz", ["ant", "cow", "owl"], np.array([2, 0, 1])[LABELS])


def rows(label_bytes: int = 1) -> np.ndarray:
    """CIFAR's binary records; with two label bytes the first is the coarse one."""
    columns = [np.full(N, 7)] * (label_bytes - 1) + [LABELS]
    return np.concatenate([np.stack(columns, 1), pictures().transpose(0, 3, 1, 2).reshape(N, -1)], 1).astype(np.uint8)


def test_cifar_gives_its_labels_and_the_names_that_lie_beside(tmp_path: Path) -> None:
    (tmp_path / "ten").mkdir()
    (tmp_path / "ten" / "data_batch_1.bin").write_bytes(rows()[:5].tobytes())
    (tmp_path / "ten" / "data_batch_2.bin").write_bytes(rows()[5:].tobytes())
    check(tmp_path / "ten", None)
    (tmp_path / "ten" / "batches.meta.txt").write_text("a\nb\nc\n\n")
    assert check(tmp_path / "ten", ["a", "b", "c"])[5] == "data_batch_2.bin/0"
    (tmp_path / "train.bin").write_bytes(rows(2).tobytes())
    check(tmp_path / "train.bin", None)


@pytest.mark.parametrize("key", [b"labels", b"fine_labels"])
def test_cifars_pickles_give_the_fine_labels(tmp_path: Path, key: bytes) -> None:
    content = {b"data": rows()[:, 1:], key: LABELS.tolist()}
    if key == b"fine_labels":
        content[b"coarse_labels"] = [3] * N
    (tmp_path / "train").write_bytes(pickle.dumps(content, protocol=2))
    check(tmp_path / "train", None)
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"x", b"y", b"z"]}, protocol=2))
    check(tmp_path / "train", ["x", "y", "z"])


def parquet(path: Path, labels: pa.Array, column: str, features: dict[str, object] | None = None) -> Path:
    cells = pa.array([{"bytes": png(one), "path": None} for one in pictures()])
    table = pa.table({"image": cells, "note": pa.array(["n"] * N), column: labels})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_parquet_has_a_label_column(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    features = {"image": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}
    check(parquet(path, pa.array(LABELS), "kind", features), ["a", "b", "c"])
    assert check(parquet(path, pa.array(LABELS), "kind"), None)[3] == "set.parquet/3"
    words = pa.array([("owl", "ant", "cow")[label] for label in LABELS])
    check(parquet(path, words, "label"), ["ant", "cow", "owl"], np.array([2, 0, 1])[LABELS])
    with pytest.raises(InputError, match="set.parquet/4 has no label"):
        read_labeled_source(parquet(path, pa.array([1, 2, 0, 1, None, *LABELS[5:]]), "label"))


def test_a_set_without_labels_or_with_bad_ones_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=pictures(), a=LABELS, b=LABELS)
    with pytest.raises(InputError, match="no labels found"):
        read_labeled_source(path)
    np.savez(path, images=pictures(), labels=LABELS - 1)
    with pytest.raises(InputError, match="4 labels are outside 0 and above; the first is -1 of 'images/0'"):
        read_labeled_source(path)
    np.savez(path, images=pictures(), labels=LABELS, class_names=np.array(["a", "b"]))
    with pytest.raises(InputError, match=r"4 labels are outside 0..1; the first is 2 of 'images/1'"):
        read_labeled_source(path)
    np.savez(path, images=pictures(), labels=np.eye(3)[LABELS] * 0.5)
    with pytest.raises(InputError, match="not one-hot"):
        read_labeled_source(path)


def test_unreadable_images_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    for index in range(4):
        path = tmp_path / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(pictures()[index]) if index < 2 else b"no image")
    with pytest.raises(InputError, match=r"2 of 4 images cannot be read; the first: a/2.png: not an image"):
        read_labeled_source(tmp_path)


def test_different_sizes_are_refused_unless_one_is_asked_for(tmp_path: Path) -> None:
    for name, size in (("a", 32), ("b", 16)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(pictures(1, size)[0]))
    with pytest.raises(InputError, match=r"32 x 32 and \(of 'b/1.png'\) 16 x 16"):
        read_labeled_source(tmp_path)
    images = read_labeled_source(tmp_path, size=16)[0].numpy()
    halved = pictures(1, 32)[0].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(images[0] - halved).max() <= 0.5
    assert np.array_equal(images[1], pictures(1, 16)[0])


def test_a_square_is_cut_from_the_center_and_sixteen_bits_become_eight() -> None:
    wide = np.zeros((8, 12, 3), np.uint16)
    wide[:, 2:10] = 65535
    assert (square(wide, 8) == 255).all() and square(wide, 4).shape == (4, 4, 3)
    assert square(pictures(1, 30)[0], 8).shape == (8, 8, 3)
