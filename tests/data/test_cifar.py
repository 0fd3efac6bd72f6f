from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from tests.data.data_job import invert, names_below, pass_through

from pureebm.data.cifar import CifarSource
from pureebm.data.open import open_source
from pureebm.data.unpickle import Str8, dumps
from pureebm.errors import InputError

N = 12
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, N, 3072), dtype=np.uint8)
LABELS = np.arange(N) % 10


def python10(root: Path) -> Path:
    """As published: strings of Python 2."""
    root.mkdir()
    for number in (1, 2):
        content = {
            Str8(b"batch_label"): Str8(b"training batch %d of 5" % number),
            Str8(b"labels"): LABELS.tolist(),
            Str8(b"data"): PIXELS[number],
            Str8(b"filenames"): [Str8(b"cat_s_%06d.png" % i) for i in range(N)],
        }
        (root / f"data_batch_{number}").write_bytes(dumps(content))
    (root / "test_batch").write_bytes(dumps({Str8(b"labels"): LABELS.tolist(), Str8(b"data"): PIXELS[0]}))
    (root / "batches.meta").write_bytes(b"never opened")
    return root


def binary10(root: Path) -> Path:
    root.mkdir()
    for name, pixels in {
        "data_batch_1.bin": PIXELS[1],
        "data_batch_2.bin": PIXELS[2],
        "test_batch.bin": PIXELS[0],
    }.items():
        (root / name).write_bytes(np.hstack([LABELS[:, None].astype(np.uint8), pixels]).tobytes())
    (root / "batches.meta.txt").write_text("airplane\n")
    return root


def python100(root: Path) -> Path:
    """As Python 3 would write it: keys are bytes."""
    root.mkdir()
    for name, pixels in {"train": PIXELS[1], "test": PIXELS[0]}.items():
        content = {b"fine_labels": (LABELS * 9).tolist(), b"coarse_labels": LABELS.tolist(), b"data": pixels}
        (root / name).write_bytes(pickle.dumps(content))
    (root / "meta").write_bytes(b"never opened")
    return root


def binary100(root: Path) -> Path:
    root.mkdir()
    for name, pixels in {"train.bin": PIXELS[1], "test.bin": PIXELS[0]}.items():
        records = np.hstack([LABELS[:, None], LABELS[:, None] * 9, pixels])
        (root / name).write_bytes(records.astype(np.uint8).tobytes())
    return root


def unpickled(path: Path, encoding: str = "bytes") -> dict[bytes, object]:
    with open(path, "rb") as file:
        return pickle.load(file, encoding=encoding)


def test_the_python_version_of_cifar10_makes_the_round_trip(tmp_path: Path) -> None:
    source = python10(tmp_path / "cifar-10-batches-py")
    pass_through(source, tmp_path / "out", change=invert)
    for number in (1, 2):
        old, new = (unpickled(root / f"data_batch_{number}") for root in (source, tmp_path / "out"))
        assert np.array_equal(new[b"data"], 255 - PIXELS[number])
        assert {**new, b"data": 0} == {**old, b"data": 0}
        assert set(unpickled(tmp_path / "out" / f"data_batch_{number}", "latin1")) >= {
            "data",
            "labels",
        }  # as torchvision
    assert names_below(tmp_path / "out") == names_below(source)


def test_the_binary_version_of_cifar10_makes_the_round_trip(tmp_path: Path) -> None:
    source = binary10(tmp_path / "any name")
    pass_through(source, tmp_path / "out", change=invert)
    records = np.fromfile(tmp_path / "out/data_batch_2.bin", np.uint8).reshape(N, 3073)
    assert np.array_equal(records[:, 0], LABELS) and np.array_equal(records[:, 1:], 255 - PIXELS[2])
    assert names_below(tmp_path / "out") == names_below(source)


def test_both_versions_of_cifar100_make_the_round_trip(tmp_path: Path) -> None:
    pass_through(python100(tmp_path / "py"), tmp_path / "py-out", change=invert)
    after = unpickled(tmp_path / "py-out/train")
    assert np.array_equal(after[b"data"], 255 - PIXELS[1])
    assert after[b"fine_labels"] == (LABELS * 9).tolist() and after[b"coarse_labels"] == LABELS.tolist()
    pass_through(binary100(tmp_path / "bin"), tmp_path / "bin-out", change=invert)
    records = np.fromfile(tmp_path / "bin-out/train.bin", np.uint8).reshape(N, 3074)
    assert np.array_equal(records[:, 1], LABELS * 9) and np.array_equal(records[:, 2:], 255 - PIXELS[1])


@pytest.mark.parametrize(
    ("make", "passed_on"),
    [
        (python10, ["batches.meta", "test_batch"]),
        (binary10, ["batches.meta.txt", "test_batch.bin"]),
        (python100, ["meta", "test"]),
        (binary100, ["test.bin"]),
    ],
)
def test_the_official_test_split_is_passed_on_byte_for_byte_and_named(
    tmp_path: Path, make, passed_on: list[str]
) -> None:
    source = make(tmp_path / "in")
    pass_through(source, tmp_path / "out", change=invert)
    described = open_source(source).describe()
    assert described["passed_on"] == passed_on and described["test_split"] == passed_on[-1:]
    for name in passed_on:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("make", "name"), [(python10, "test_batch"), (binary10, "data_batch_2.bin"), (binary100, "test.bin")]
)
def test_a_file_that_is_named_itself_is_purified(tmp_path: Path, make, name: str) -> None:
    source = make(tmp_path / "in")
    pass_through(source / name, tmp_path / "out", change=invert)
    before, after = CifarSource(source / name), CifarSource((tmp_path / "out").rename(tmp_path / name))
    assert before.single_file and np.array_equal(after.rows(0, N), 255 - before.rows(0, N))


@pytest.mark.parametrize("make", [python10, binary10, python100, binary100])
def test_skipped_records_leave_with_their_labels(tmp_path: Path, make) -> None:
    source = make(tmp_path / "in")
    pass_through(source, tmp_path / "out", decide=lambda one: "skipped" if one.item.index in (0, 5, 11) else "purified")
    left = [i for i in range(N) if i not in (0, 5, 11)]
    after = CifarSource(tmp_path / "out")
    assert np.array_equal(after.files[0].rows(0, len(left)), PIXELS[1][left].reshape(-1, 3, 32, 32))
    if make is python10:
        content = unpickled(tmp_path / "out/data_batch_1")
        assert content[b"labels"] == LABELS[left].tolist() and len(content[b"filenames"]) == len(left)
    if make is binary10:
        records = np.fromfile(tmp_path / "out/data_batch_1.bin", np.uint8).reshape(-1, 3073)
        assert np.array_equal(records[:, 0], LABELS[left])


@pytest.mark.parametrize("make", [python10, binary10])
def test_chunks_change_no_byte(tmp_path: Path, make) -> None:
    source = make(tmp_path / "in")
    pass_through(source, tmp_path / "a", chunk=5, repeat=True)
    pass_through(source, tmp_path / "b", chunk=100)
    for name in names_below(source):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    if make is binary10:  # nothing was changed, so nothing differs
        assert all((tmp_path / "a" / name).read_bytes() == (source / name).read_bytes() for name in names_below(source))


def test_planes_become_pictures_with_their_colors_in_place(tmp_path: Path) -> None:
    (loaded,) = open_source(binary10(tmp_path / "in")).load(N, N + 1)
    assert loaded.item.id == "data_batch_2.bin/0" and loaded.picture is not None
    assert loaded.picture.pixels[3, 5].tolist() == [PIXELS[2, 0, plane * 1024 + 3 * 32 + 5] for plane in range(3)]


def test_a_label_out_of_range_is_an_error_of_its_item_with_file_and_record(tmp_path: Path) -> None:
    source = binary10(tmp_path / "in")
    data = bytearray((source / "data_batch_2.bin").read_bytes())
    data[7 * 3073] = 11
    (source / "data_batch_2.bin").write_bytes(data)
    loaded = open_source(source).load(0, 2 * N)
    assert [one.item.index for one in loaded if one.picture is None] == [N + 7]
    assert str(loaded[N + 7].error) == (
        "data_batch_2.bin: label 11 in record 7 is outside 0..9; the file is damaged or not CIFAR-10 (binary version)"
    )
    broken = python100(tmp_path / "py")
    content = unpickled(broken / "train") | {b"fine_labels": [100] * N}
    (broken / "train").write_bytes(pickle.dumps(content))
    assert "train: label 100 in record 0 is outside 0..99" in str(open_source(broken).load(0, 1)[0].error)


def hostile(root: Path) -> None:
    (root / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")


@pytest.mark.parametrize(
    ("make", "spoil", "reason"),
    [
        (
            binary10,
            lambda root: (root / "data_batch_1.bin").write_bytes(b"x" * 5000),
            "5,000 bytes are not a whole number",
        ),
        (binary10, lambda root: (root / "data_batch_1.bin").write_bytes(b""), "0 bytes are not a whole number"),
        (binary10, lambda root: (root / "data_batch_3.bin").write_bytes(bytes(3074)), "a mixture of"),
        (python10, hostile, "asks for 'os.system'"),
        (python10, lambda root: (root / "data_batch_1").write_bytes(b""), "refused as a pickle"),
        (python10, lambda root: (root / "data_batch_1").write_bytes(pickle.dumps({"a": 1})), "holds no 'data'"),
        (
            python10,
            lambda root: (root / "data_batch_1").write_bytes(pickle.dumps({b"data": np.zeros((4, 3072))})),
            "'data' must be uint8",
        ),
        (
            python10,
            lambda root: (root / "data_batch_1").write_bytes(pickle.dumps({b"data": PIXELS[0], b"labels": [1]})),
            "12 images, but labels is no list of as many",
        ),
    ],
)
def test_a_damaged_or_hostile_file_is_refused(tmp_path: Path, make, spoil, reason: str) -> None:
    root = make(tmp_path / "in")
    spoil(root)
    with pytest.raises(InputError, match=reason):
        open_source(root)
