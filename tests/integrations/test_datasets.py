"""`Dataset.map` on the real library: fingerprints, names and resuming."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pureebm import LangevinConfig, Purifier
from pureebm.errors import InputError, MismatchError

datasets = pytest.importorskip("datasets")
from datasets.fingerprint import Hasher  # noqa: E402

from pureebm.integrations.datasets import PurifyColumn, purify_dataset  # noqa: E402

MAP = {"batched": True, "batch_size": 4, "with_indices": True}


@pytest.fixture(autouse=True)
def no_bars() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def purify(tiny_model: Path) -> PurifyColumn:
    return PurifyColumn(tiny_model, precision="float32")


def pictures(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.fixture
def dataset() -> Any:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "name": datasets.Value("string")}
    )
    rows = {
        "image": pictures(10),
        "label": [index % 2 for index in range(10)],
        "name": [f"n{index}" for index in range(10)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def pixels(dataset: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in dataset["image"]])


def test_a_map_purifies_by_index_and_keeps_features_and_labels(
    dataset: Any, purify: PurifyColumn, tiny_model: Path
) -> None:
    made = dataset.map(purify, **MAP)
    assert made.features == dataset.features and made["label"] == dataset["label"]
    expected = Purifier.from_pretrained(tiny_model, precision="float32")(pictures(10))
    differing = pixels(made) != np.stack([np.asarray(image) for image in expected])
    assert differing.mean() < 0.001  # another batch shape may change last bits
    assert (pixels(made) != pixels(dataset)).mean() > 0.5


def test_names_make_the_result_of_a_row_independent_of_its_place(dataset: Any, tiny_model: Path) -> None:
    purify = PurifyColumn(tiny_model, id_column="name", precision="float32")
    made = dataset.map(purify, **MAP)
    order = [7, 2, 9, 4]
    moved = dataset.select(order).map(purify, **MAP)
    assert (pixels(moved) == pixels(made)[order]).all()


def test_missing_images_stay_missing(purify: PurifyColumn) -> None:
    images = pictures(3)
    out = purify({"image": [images[0], None, images[2]]}, [0, 1, 2])["image"]
    assert out[1] is None and out[2].size == (16, 16)


def test_the_fingerprint_is_stable_and_depends_on_every_setting(purify: PurifyColumn, tiny_model: Path) -> None:
    before = Hasher.hash(purify)
    purify({"image": pictures(1)}, [0])
    assert Hasher.hash(purify) == before == Hasher.hash(pickle.loads(pickle.dumps(purify)))
    code = (
        "import sys; from datasets.fingerprint import Hasher; from pureebm.integrations.datasets import PurifyColumn;"
        "print(Hasher.hash(PurifyColumn(sys.argv[1], precision='float32')))"
    )
    fresh = subprocess.run([sys.executable, "-c", code, str(tiny_model)], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == before
    others = [{"seed": 1}, {"column": "img"}, {"id_column": "name"}, {"config": LangevinConfig(n_steps=4)}]
    hashes = {Hasher.hash(PurifyColumn(tiny_model, precision="float32", **other)) for other in others}
    assert len(hashes | {before}) == 5


def test_a_cut_off_map_goes_on_and_gives_the_same(dataset: Any, purify: PurifyColumn, tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 6:
            raise Cut

    options = {"rows_per_part": 3, "batch_size": 3}
    with pytest.raises(Cut):
        purify_dataset(dataset, tmp_path / "cut", purify, progress=stop, **options)
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("0*")}
    assert len(stamps) == 2
    made = purify_dataset(dataset, tmp_path / "cut", purify, **options)
    assert all((tmp_path / "cut" / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    whole = purify_dataset(dataset, tmp_path / "whole", purify, **options)
    assert (pixels(made) == pixels(whole)).all() and made.features == dataset.features
    assert (
        pixels(whole) == pixels(dataset.map(purify, **MAP | {"batch_size": 3}))
    ).all()  # the index is the whole set's


def test_another_data_set_or_map_is_refused(
    dataset: Any, purify: PurifyColumn, tiny_model: Path, tmp_path: Path
) -> None:
    purify_dataset(dataset, tmp_path, purify)
    with pytest.raises(MismatchError, match="another map"):
        purify_dataset(dataset, tmp_path, PurifyColumn(tiny_model, seed=1))
    with pytest.raises(MismatchError, match="another dataset"):
        purify_dataset(dataset.select(range(5)), tmp_path, purify)
    with pytest.raises(InputError, match="no column 'img'; the data set has 'image', 'label', 'name'"):
        dataset.map(PurifyColumn(tiny_model, column="img"), **MAP)
