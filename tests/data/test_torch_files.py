from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pureebm.data import torch_files
from pureebm.data.torch_files import loads
from pureebm.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


def saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


TENSORS = {
    "float": torch.arange(12.0).reshape(3, 4),
    "a slice": torch.arange(24).reshape(4, 6)[1:, ::2],
    "transposed": torch.arange(12, dtype=torch.int16).reshape(3, 4).T,
    "a number": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "bool": torch.tensor([True, False]),
    "half": torch.tensor([0.5, -2.0]).half(),
    "uint8": torch.from_numpy(PIXELS),
}
WRITERS: dict[str, Callable[[object], bytes]] = {
    "zip": saved,
    "zip of protocol 4": lambda value: saved(value, pickle_protocol=4),
    "sequence": lambda value: saved(value, _use_new_zipfile_serialization=False),
    **{f"pickle {protocol}": lambda value, p=protocol: pickle.dumps(value, p) for protocol in range(2, 6)},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_tensors_come_back_as_arrays_of_the_same_numbers(writer: str) -> None:
    found = loads(WRITERS[writer](TENSORS), "a")
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.numpy().dtype and found[name].shape == tuple(tensor.shape), name
        assert np.array_equal(found[name], tensor.numpy()), name


@pytest.mark.parametrize("writer", WRITERS)
def test_images_come_back_as_their_pixels(writer: str) -> None:
    grey = Image.fromarray(PIXELS[..., 0])
    found = loads(WRITERS[writer]([(Image.fromarray(PIXELS), 3), (grey, np.int64(4)), (grey, torch.tensor(5))]), "a")
    assert found[0][0].dtype == np.uint8 and np.array_equal(found[0][0], PIXELS)
    assert np.array_equal(found[1][0], np.repeat(PIXELS[..., :1], 3, axis=2))
    assert [int(label) for _, label in found] == [3, 4, 5]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_images_that_pillow_opened_from_a_file_are_read_too(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as image:
        data, pixels = pickle.dumps(image, 4), np.array(image)
    assert np.array_equal(loads(data, "a"), pixels)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_state_dict_is_read_as_a_dict_of_arrays(writer: str) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    found = loads(WRITERS[writer]({"net": network.state_dict(), "acc": 93.5, "size": torch.Size([1, 2])}), "a")
    assert type(found["net"]) is dict and found["acc"] == 93.5 and found["size"] == (1, 2)
    for name, tensor in network.state_dict().items():
        assert np.array_equal(found["net"][name], tensor.numpy()), name


def test_tensors_of_another_device_are_read_as_well() -> None:
    assert loads(SEQUENCE.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:1"), "a").tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]


def test_parameters_are_read_as_their_numbers() -> None:
    assert loads(saved([torch.nn.Parameter(torch.ones(2))]), "a")[0].tolist() == [1, 1]
    assert loads(saved(OrderedDict(a=1)), "a") == {"a": 1}


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_objects_come_back_as_nested_lists(order: str) -> None:
    array = np.empty((2, 3), object, order=order)
    for place in np.ndindex(2, 3):
        array[place] = (place, torch.tensor(place[1]))
    found = loads(pickle.dumps(array, 4), "a")
    assert [[cell[0] for cell in row] for row in found] == [[(i, j) for j in range(3)] for i in range(2)]
    assert [[int(cell[1]) for cell in row] for row in found] == [[0, 1, 2]] * 2


class Calls:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch never",), "posix.system"),
        (eval, ("1",), "builtins.eval|__builtin__.eval"),
        (torch.load, ("never",), "torch.serialization.load"),
        (Image.open, ("never",), "PIL.Image.open"),
        (getattr, ([], "append"), "builtins.getattr|__builtin__.getattr"),
        (np.load, ("never",), "numpy.load"),
    ],
)
def test_calls_are_refused_by_their_name(
    writer: str,
    function: Callable[..., object],
    arguments: tuple[object, ...],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = WRITERS[writer]({"poison": [torch.zeros(2), Calls(function, *arguments)]})
    with pytest.raises(InputError, match=f"^a: refused, and not run: it asks for '({name})'"):
        loads(data, "a")
    assert not list(tmp_path.iterdir())


class Forged:
    """Anything in the place of a tensor: what a hostile writer would let torch rebuild."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[object, ...]:
        storage = torch.arange(6.0).untyped_storage()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (typed, *self.arguments, False, OrderedDict())


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ((0, (7,), (1,)), "reaches outside"),
        ((1, (6,), (1,)), "reaches outside"),
        ((0, (2, 2), (5, 1)), "reaches outside"),
        ((-1, (2,), (1,)), "a tensor with start -1"),
        ((0, (2,), (-1,)), "strides"),
        ((0, (2**40,), (0,)), "reaches outside"),
        ((0, (2**62, 2**62), (0, 0)), "reaches outside"),
        ((0, (2,), (1, 1)), "strides"),
        ((0, (-3,), (1,)), "shape"),
        ((0, [6], [1]), "shape"),
        ((0.0, (6,), (1,)), "start"),
    ],
)
def test_a_tensor_must_lie_within_its_storage(writer: str, arguments: tuple[object, ...], wrong: str) -> None:
    with pytest.raises(InputError, match=f"^a: refused, and not run: .*{wrong}"):
        loads(WRITERS[writer]([Forged(*arguments)]), "a")
    assert loads(WRITERS[writer]([Forged(1, (2, 2), (3, 1))]), "a")[0].tolist() == [[1, 2], [4, 5]]


def edited(data: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None], **options: object) -> bytes:
    """A zip archive with its files renamed, changed or (None) left out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", **options) as new:
        for info in old.infolist():
            if (file := change(info.filename, old.read(info))) is not None:
                new.writestr(*file)
    return out.getvalue()


ARCHIVE = saved({"a": torch.arange(6.0)})
HOSTILE_ARCHIVES = {
    "leads out": edited(ARCHIVE, lambda n, d: (n.replace("archive/version", "archive/../../version"), d)),
    "is absolute": edited(ARCHIVE, lambda n, d: ("/" + n, d)),
    "has two roots": edited(ARCHIVE, lambda n, d: (n.replace("archive/version", "other/version"), d)),
    "has no pickle": edited(ARCHIVE, lambda n, d: None if n.endswith("pkl") else (n, d)),
    "lacks a storage": edited(ARCHIVE, lambda n, d: None if n.endswith("data/0") else (n, d)),
    "has a short storage": edited(ARCHIVE, lambda n, d: (n, d[:-4] if n.endswith("data/0") else d)),
    "is compressed": edited(ARCHIVE, lambda n, d: (n, d), compression=zipfile.ZIP_DEFLATED),
    "is a bomb": edited(ARCHIVE, lambda n, d: (n, bytes(10**7)), compression=zipfile.ZIP_DEFLATED),
    "has a damaged storage": ARCHIVE.replace(struct.pack("<f", 5.0), struct.pack("<f", 6.0)),
    "is cut": ARCHIVE[: len(ARCHIVE) // 2],
}


@pytest.mark.parametrize("how", HOSTILE_ARCHIVES)
def test_an_archive_is_refused_that(how: str) -> None:
    with pytest.raises(InputError, match="^a: refused, and not run: "):
        loads(HOSTILE_ARCHIVES[how], "a")


def test_a_size_in_an_archive_larger_than_the_file_is_refused() -> None:
    # The declared sizes of data/0 stand in the central directory: one entry of 2 GiB in a file of 1 kB.
    start = ARCHIVE.rindex(b"PK\x01\x02", 0, ARCHIVE.rindex(b"archive/data/0"))
    huge = bytearray(ARCHIVE)
    huge[start + 20 : start + 28] = struct.pack("<II", 2**31, 2**31)
    with pytest.raises(InputError, match="files are larger than itself"):
        loads(bytes(huge), "a")


SEQUENCE = saved(torch.arange(6.0), _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("count", [7, 2**62, -1, 0])
def test_a_wrong_size_in_a_sequence_is_refused(count: int) -> None:
    assert SEQUENCE.count(struct.pack("<q", 6)) == 1
    with pytest.raises(InputError, match="another size than said"):
        loads(SEQUENCE.replace(struct.pack("<q", 6), struct.pack("<q", count)), "a")


def test_a_huge_storage_that_is_not_there_is_refused() -> None:
    huge = SEQUENCE.replace(b"K\x06Nt", b"J\xff\xff\xff\x7fNt").replace(
        struct.pack("<q", 6), struct.pack("<q", 2**31 - 1)
    )
    assert huge != SEQUENCE
    with pytest.raises(InputError, match="^a: refused, and not run: a storage of 2,147,483,647 values"):
        loads(huge, "a")


def test_a_storage_within_a_storage_is_refused() -> None:
    inner = pickle.dumps(Calls(torch.storage._load_from_bytes, b""), 2)
    magic = SEQUENCE[:15]
    outer = SEQUENCE[: SEQUENCE.index(b"ctorch")].rsplit(b"\x80\x02", 1)[0] + inner
    assert outer.startswith(magic)
    with pytest.raises(InputError, match="asks for 'torch.storage._load_from_bytes'"):
        loads(pickle.dumps(Calls(torch.storage._load_from_bytes, outer), 2), "a")


DEEP = b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b"."
HOSTILE = {
    "deep nesting": (DEEP, "deeper than 100"),
    "deep lists": (b"\x80\x02]" + b"]" * 5000 + b"a" * 5000 + b".", "deeper than 100"),
    "a class of images as data": (b"\x80\x02cPIL.Image\nImage\n.", "unfinished"),
    "an image without state": (b"\x80\x02cPIL.Image\nImage\n)\x81.", "without pixels"),
    "an image with arguments": (b"\x80\x02cPIL.Image\nImage\n(K\x01K\x02t\x81.", "argument"),
    "an image of another mode": (pickle.dumps(Image.new("RGBA", (2, 2))), "mode 'RGBA'"),
    "an image larger than its data": (
        pickle.dumps(Image.fromarray(PIXELS), 4).replace(b"K\x04K\x05\x86", b"M\xff\xffM\xff\xff\x86"),
        "65535 x 65535 in 60 bytes",
    ),
    "a codec bomb": (
        b"\x80\x02c_codecs\nencode\nq\x00X\x64\x00\x00\x00" + b"a" * 100 + b"X\x06\x00\x00\x00latin1\x86q\x01R"
        b"(" + b"h\x00h\x01R" * 100 + b"t\x86.",
        "encodes more text",
    ),
    "bytes that are no storage": (pickle.dumps(Calls(torch.storage._load_from_bytes, b"PK"), 2), "no saved storage"),
    "a tar file": (b"x" * 257 + b"ustar" + b"x" * 300, "torch.save it again"),
    "a sparse tensor": (saved(torch.eye(2).to_sparse()), "it asks for 'torch._utils._rebuild_sparse_tensor'"),
    "brain floats": (saved(torch.zeros(2, dtype=torch.bfloat16)), "it asks for 'torch.BFloat16Storage'"),
    "a network": (saved(torch.nn.Linear(1, 1)), "it asks for 'torch.nn.modules.linear.Linear'"),
    "nothing": (b"", "exhausted"),
    "objects out of bytes": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01tcnumpy\ndtype\n"
        b"(X\x02\x00\x00\x00O8K\x00K\x01tRK\x00C\x08" + bytes([65] * 8) + b"tb.",
        "OBJECT array",
    ),
    "an object scalar": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tRC\x08"
        + bytes([65] * 8)
        + b"tR.",
        "OBJECT array",
    ),
    "an array of objects of a wrong size": (
        pickle.dumps(np.array([None] * 3), 2).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
        "with 3 objects",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_data_is_refused_with_the_reason(kind: str) -> None:
    data, reason = HOSTILE[kind]
    with pytest.raises(InputError, match=f"^a: refused, and not run: .*{reason}"):
        loads(data, "a")


def test_files_are_named_in_errors_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="none.pth: cannot be read"):
        torch_files.load(tmp_path / "none.pth")
    (tmp_path / "a.pth").write_bytes(ARCHIVE)
    assert torch_files.load(tmp_path / "a.pth")["a"].tolist() == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr("pureebm.data.torch_files.MAX_BYTES", 100)
    with pytest.raises(InputError, match="a.pth: larger than"):
        torch_files.load(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # from pickletools
@pytest.mark.parametrize("data", [ARCHIVE, SEQUENCE, pickle.dumps([(Image.fromarray(PIXELS), torch.ones(2))], 4)])
@settings(deadline=None, max_examples=60)
@given(noise=st.binary(max_size=20), position=st.floats(0, 1))
def test_damaged_files_never_raise_anything_but_an_input_error(data: bytes, noise: bytes, position: float) -> None:
    damaged = bytearray(data)
    start = int(position * len(data))
    damaged[start : start + len(noise)] = noise
    try:
        loads(bytes(damaged), "a")
    except InputError:
        pass
