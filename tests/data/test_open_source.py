from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.data_job import noise_image

from pureebm.data.open import open_source
from pureebm.errors import InputError


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_source(path)
    return str(caught.value)


def test_a_missing_an_empty_and_an_unknown_source_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.npz").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("hello")
    assert "there is no source at" in refused(tmp_path / "missing")
    assert "is empty; a source can be a folder of images" in refused(tmp_path / "empty")
    assert "is empty (0 bytes)" in refused(tmp_path / "zero.npz")
    assert "is of no known kind; a source can be a folder of images" in refused(tmp_path / "notes.txt")
    assert "no images in" in refused(tmp_path / "texts") and "found 1 other file" in refused(tmp_path / "texts")


def test_a_single_image_is_answered_with_what_to_do(tmp_path: Path) -> None:
    noise_image(0).save(tmp_path / "a.png")
    assert "put it into a folder" in refused(tmp_path / "a.png")


def test_an_image_folder_with_a_table_of_labels_stays_an_image_folder(tmp_path: Path) -> None:
    noise_image(0).save(tmp_path / "a.png")
    pq.write_table(pa.table({"file_name": ["a.png"], "label": [1]}), tmp_path / "metadata.parquet")
    assert open_source(tmp_path).kind == "folder"


def test_class_folders_named_train_and_test_are_an_image_folder(tmp_path: Path) -> None:
    for name in ("train", "test", "meta"):
        (tmp_path / name).mkdir()
        noise_image(0).save(tmp_path / name / "a.png")
    source = open_source(tmp_path)
    assert source.kind == "folder" and source.describe()["classes"] == ["meta", "test", "train"]


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    with open(tmp_path / "images.zip", "wb") as file:
        np.savez(file, images=np.zeros((2, 8, 8, 3), np.uint8))
    pq.write_table(pa.table({"image": pa.array([{"bytes": b"x", "path": ""}])}), tmp_path / "table")
    assert open_source(tmp_path / "images.zip").kind == "npz"
    assert open_source(tmp_path / "table").kind == "parquet"
