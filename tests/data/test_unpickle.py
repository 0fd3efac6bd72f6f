from __future__ import annotations

import collections
import os
import pickle
import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pureebm.data.unpickle import Str8, dumps, loads
from pureebm.errors import InputError

ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.arange(12, dtype=np.int64).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(3, dtype=">u2"),
    np.array([True, False]),
    np.zeros((0, 3072), np.uint8),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype))
def test_arrays_of_every_protocol_are_read_as_numpy_wrote_them(protocol: int, array: np.ndarray) -> None:
    found = loads(pickle.dumps({"data": array, "label": np.int64(7)}, protocol), "a")
    assert found["data"].dtype == array.dtype and np.array_equal(found["data"], array)
    assert found["label"] == 7


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(PLAIN, st.integers(0, 5))
def test_plain_data_are_read_as_python_wrote_them(value: object, protocol: int) -> None:
    assert loads(pickle.dumps(value, protocol), "a") == value


@settings(max_examples=50, deadline=None)
@given(PLAIN)
def test_what_is_written_here_python_reads(value: object) -> None:
    assert pickle.loads(dumps(value)) == value
    assert loads(dumps(value), "a") == value


def test_strings_of_python_2_are_bytes_or_text_as_the_reader_likes() -> None:
    data = dumps({Str8(b"labels"): [1, 2], Str8(b"data"): ARRAYS[0]})
    assert list(pickle.loads(data, encoding="bytes")) == [b"labels", b"data"]
    assert list(pickle.loads(data, encoding="latin1")) == ["labels", "data"]
    assert data[:2] == b"\x80\x02"
    assert dumps(loads(data, "a")) == data


class Calls:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


GLOBAL = b"cnumpy.core.multiarray\n_reconstruct\n"
HOSTILE = {
    "system": pickle.dumps(Calls(os.system, "touch /tmp/never")),
    "eval": pickle.dumps({"data": Calls(eval, "1")}, 2),
    "getattr": pickle.dumps(Calls(getattr, [], "append")),
    "numpy.load": pickle.dumps(Calls(np.load, "x.npy")),
    "numpy.save": pickle.dumps(Calls(np.save, "x.npy", [1])),
    "a class": pickle.dumps(collections.Counter("aab")),
    "an object": pickle.dumps(pickle.PickleError()),
    "an array of objects": pickle.dumps(np.array([{}, []], object)),
    "a codec with effects": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
    "an old instance": b"(ios\nsystem\nS'true'\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pabc\n.",
    "state for a dict": b"}}b.",
    "state for a name": GLOBAL + b"}b.",
    "a name as function of nothing": GLOBAL + b")R.",
    "too large an array": dumps(ARRAYS[0]).replace(b"J\x03\x00\x00\x00J\x04", b"J\x03\x00\x00\x7fJ\x04"),
    "a negative array": dumps(ARRAYS[0]).replace(b"J\x03\x00\x00\x00J\x04", b"J\x03\x00\x00\xffJ\x04"),
    "a missing mark": b"e.",
    "an empty stack": b".",
    "two values": b"NN.",
    "an unhashable key": b"}]Ns.",
    "an odd dict": b"}(Nu.",
    "a list in itself": b"]q\x01h\x01a.",
    "a billion laughs": b"]" + b"".join(b"q%c](" % i + b"h%c" % i * 10 + b"e" for i in range(1, 10)) + b".",
    "a name as data": GLOBAL + b".",
    "an array that was never filled": dumps(ARRAYS[0]).split(b"R(")[0] + b"R.",
    "no end": b"}",
    "nothing": b"",
    "no pickle": b"hello",
    "a huge length": b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "a negative length": b"\x80\x02T" + struct.pack("<i", -5) + b"abc.",
    "an unknown memo": b"h\x05.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_anything_but_plain_data_is_refused_and_not_run(kind: str) -> None:
    with pytest.raises(InputError, match="^data_batch_1: refused as a pickle of plain data, and not run: "):
        loads(HOSTILE[kind], "data_batch_1")


def test_opcodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pureebm.data.unpickle.MAX_OPCODES", 1000)
    with pytest.raises(InputError, match="more than 1,000 opcodes"):
        loads(b"(" + b"]" * 2000 + b"l.", "a")


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # from pickletools
@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_damaged_pickles_never_raise_anything_but_an_input_error(noise: bytes, position: int) -> None:
    data = bytearray(pickle.dumps({"data": ARRAYS[0], "labels": [1, 2, 3]}, 2))
    data[position : position + len(noise)] = noise
    try:
        loads(bytes(data), "a")
    except InputError:
        pass
