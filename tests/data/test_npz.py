from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.data_job import invert, pass_through

from pureebm.data.npz import NpzSource
from pureebm.data.rows import picture_of, row_of
from pureebm.errors import InputError


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    "shape", [(20, 9, 8, 3), (20, 3, 9, 8), (20, 9, 8), (20, 9, 8, 1), (20, 1, 9, 8), (20, 4, 9, 8)]
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_layout_makes_the_round_trip_and_only_colors_change(tmp_path: Path, shape: tuple[int, ...], save) -> None:
    before = images(*shape)
    save(tmp_path / "in.npz", images=before, labels=np.arange(20), names=np.array(["a"] * 20))
    pass_through(tmp_path / "in.npz", tmp_path / "out.npz", change=invert)
    expected = 255 - before
    if 4 in shape:
        expected[:, 3] = before[:, 3]  # alpha
    with np.load(tmp_path / "out.npz") as after:
        assert list(after) == ["images", "labels", "names"]
        assert np.array_equal(after["images"], expected)
        assert np.array_equal(after["labels"], np.arange(20)) and list(after["names"]) == ["a"] * 20
    with zipfile.ZipFile(tmp_path / "in.npz") as old, zipfile.ZipFile(tmp_path / "out.npz") as new:
        assert [i.compress_type for i in old.infolist()] == [i.compress_type for i in new.infolist()]


@pytest.mark.parametrize("key", ["images", "x", "x_train", "train_images", "data", "arr_0", "anything"])
def test_the_images_are_found_under_usual_names_or_as_the_only_ones(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / "a.npz", **{"y": np.arange(6), key: images(6, 8, 8, 3)})
    source = NpzSource(tmp_path / "a.npz")
    assert len(source) == 6 and source.load(2, 3)[0].item.id == f"{key}/2"


def test_the_test_images_beside_the_training_images_are_passed_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=images(6, 8, 8, 3), x_test=images(4, 8, 8, 3))
    pass_through(tmp_path / "a.npz", tmp_path / "b.npz", change=invert)
    with np.load(tmp_path / "b.npz") as after:
        assert np.array_equal(after["x_test"], images(4, 8, 8, 3))
        assert np.array_equal(after["x_train"], 255 - images(6, 8, 8, 3))
    assert NpzSource(tmp_path / "a.npz").describe()["passed_on"] == ["x_test (uint8, 4 x 8 x 8 x 3)"]


@pytest.mark.parametrize("key, n", [("labels", 5), ("y", 7), ("train_labels", 1), ("arr_1", 0)])
def test_labels_of_another_number_than_the_images_are_refused(tmp_path: Path, key: str, n: int) -> None:
    np.savez(tmp_path / "a.npz", **{"images": images(6, 8, 8, 3), key: np.arange(n)})
    with pytest.raises(InputError, match=rf"{key} \(int64, {n}\) holds {n} labels for the 6 images"):
        NpzSource(tmp_path / "a.npz")


def test_labels_that_name_no_class_are_told_and_no_others(tmp_path: Path) -> None:
    def told(labels: list[int], **more: np.ndarray) -> object:
        np.savez(tmp_path / "a.npz", images=images(4, 8, 8, 3), labels=np.array(labels), **more)
        return NpzSource(tmp_path / "a.npz").describe().get("labels_out_of_range")

    assert told([0, -1, 900, 3]) is None
    assert told([0, -4, 900, 3]) == {"count": 1, "first": ["labels/1 is -4"]}
    names = {"classes": np.array(["cat", "dog"])}
    assert told([0, 1, -1, 1], **names) is None
    assert told([0, 1, 2, 900], **names) == {"count": 2, "first": ["labels/2 is 2", "labels/3 is 900"]}


def test_labels_that_fit_beside_others_that_do_not_and_names_are_taken(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=images(6, 8, 8, 3), labels=np.arange(6), targets=np.arange(9))
    np.savez(tmp_path / "b.npz", images=images(6, 8, 8, 3), labels=np.array(["cat", "dog"]), y=np.int64(3))
    assert len(NpzSource(tmp_path / "a.npz")) == len(NpzSource(tmp_path / "b.npz")) == 6


def test_a_skipped_row_leaves_every_array_of_that_length_and_no_other(tmp_path: Path) -> None:
    before = images(20, 8, 8, 3)
    matrix = np.asfortranarray(np.arange(40.0).reshape(20, 2))
    np.savez(
        tmp_path / "a.npz", x=before, y=np.arange(20), f=matrix, names=np.arange(20).astype("U"), other=np.arange(5)
    )
    left = [i for i in range(20) if i not in (0, 8, 19)]
    pass_through(
        tmp_path / "a.npz", tmp_path / "b.npz", decide=lambda one: "purified" if one.item.index in left else "skipped"
    )
    with np.load(tmp_path / "b.npz") as after:
        assert np.array_equal(after["x"], before[left]) and np.array_equal(after["y"], left)
        assert np.array_equal(after["f"], matrix[left]) and list(after["names"]) == [str(i) for i in left]
        assert np.array_equal(after["other"], np.arange(5))


def test_a_copied_row_keeps_its_pixels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=images(20, 8, 8, 3))
    pass_through(
        tmp_path / "a.npz",
        tmp_path / "b.npz",
        change=invert,
        decide=lambda one: ("copied", "purified")[one.item.index % 2],
    )
    with np.load(tmp_path / "b.npz") as after:
        assert np.array_equal(after["x"][::2], images(20, 8, 8, 3)[::2])
        assert np.array_equal(after["x"][1::2], 255 - images(20, 8, 8, 3)[1::2])


def test_chunks_and_the_date_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "in.npz", x=images(20, 8, 8, 3), y=np.arange(20))
    pass_through(tmp_path / "in.npz", tmp_path / "a.npz", chunk=3, repeat=True)
    monkeypatch.setattr("time.localtime", lambda *_: (2001, 1, 1, 0, 0, 0, 0, 1, 0))
    pass_through(tmp_path / "in.npz", tmp_path / "b.npz", chunk=20)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_rows_can_be_loaded_in_any_order(tmp_path: Path) -> None:
    before = images(50, 8, 8, 3)
    np.savez_compressed(tmp_path / "a.npz", x=before)
    source = NpzSource(tmp_path / "a.npz")
    for start in (30, 2, 2, 45, 10, 0):
        (loaded,) = source.load(start, start + 1)
        assert loaded.picture is not None and np.array_equal(loaded.picture.pixels, before[start])


class Evil:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_a_pickled_object_in_any_array_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    np.savez(tmp_path / "a.npz", x=images(4, 8, 8, 3), y=np.array([Evil(mark)] * 4, object))
    with pytest.raises(InputError, match="y.npy holds pickled objects"):
        NpzSource(tmp_path / "a.npz")
    assert not mark.exists()


def save(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)


def cut(path: Path) -> None:
    np.savez(path, x=images(4, 8, 8, 3))
    path.write_bytes(path.read_bytes()[:-50])


def lying_header(path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 32, 32, 3)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())


def pickled_header(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", pickle.dumps(1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: save(path, images=images(4, 8, 8, 3) / 255), r"float64.*must be uint8.*astype\(numpy.uint8\)"),
        (lambda path: save(path, images=images(4, 8, 8, 3).astype(np.int64)), "int64.*must be uint8"),
        (lambda path: save(path, a=np.arange(4), b=np.zeros((2, 2))), r"no array of images.*a \(int64, 4\), b"),
        (lambda path: save(path, a=images(4, 8, 8, 3), b=images(4, 8, 8, 3)), "no array of images"),
        (lambda path: save(path), "found nothing"),
        (lambda path: save(path, images=images(0, 8, 8, 3)), "is empty"),
        (lambda path: save(path, images=np.asfortranarray(images(4, 8, 8, 3))), "Fortran order"),
        (cut, "damaged, or not a .npz"),
        (lambda path: path.write_bytes(b"hello"), "damaged, or not a .npz"),
        (lying_header, "do not fit its shape"),
        (pickled_header, "damaged, or not a .npz"),
    ],
)
def test_what_is_no_set_of_uint8_images_is_refused(tmp_path: Path, make, reason: str) -> None:
    make(tmp_path / "a.npz")
    with pytest.raises(InputError, match=reason):
        NpzSource(tmp_path / "a.npz")


@pytest.mark.parametrize("header", ["{'descr': ('|u1',", "  {'descr':\n 1\n}", "{'shape': (1, 2", "'", "\\"])
def test_a_header_that_is_no_text_of_an_array_is_damage(tmp_path: Path, header: str) -> None:
    text = header.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(InputError, match="damaged, or not a .npz file"):
        NpzSource(tmp_path / "a.npz")


def test_damaged_rows_are_reported_as_items(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=images(400, 8, 8, 3))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    (tmp_path / "a.npz").write_bytes(data)
    source = NpzSource(tmp_path / "a.npz")
    loaded = [one for start in range(0, 400, 20) for one in source.load(start, start + 20)]
    assert len(loaded) == 400 and any(one.picture is None for one in loaded)
    assert all("damaged" in str(one.error) for one in loaded if one.picture is None)


@given(
    st.sampled_from([("HW", (5, 4)), ("HWC", (5, 4, 3)), ("CHW", (3, 5, 4)), ("HWC", (5, 4, 4)), ("CHW", (1, 5, 4))])
)
def test_a_row_becomes_a_picture_and_the_same_row_again(case) -> None:
    layout, shape = case
    row = images(*shape)
    picture = picture_of(row, layout)
    assert picture.pixels.shape == (5, 4, 3)
    assert np.array_equal(row_of(picture, layout, shape), row)


def test_images_of_too_many_pixels_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "large.npz", images=np.zeros((1, 40, 40, 3), np.uint8))
    monkeypatch.setattr("pureebm.data.npz.MAX_PIXELS", 1000)
    with pytest.raises(InputError, match="more than 1,000 pixels; make them smaller"):
        NpzSource(tmp_path / "large.npz")
