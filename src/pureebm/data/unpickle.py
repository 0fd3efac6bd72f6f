"""Python pickles of plain data, read without running them, and written again.

A pickle is a program for a small stack machine, and Python's own machine lets it call functions. This one cannot: it
knows the opcodes that make numbers, strings, lists, tuples, dicts, and four calls, which are recognized by name
and carried out here: numpy arrays, numpy dtypes, numpy scalars, and Python 3's way to write bytes. Anything else is
refused. Memory is bounded by the file's size and the number of its opcodes.

Strings of Python 2 (as in the official CIFAR files) stay `Str8`, and are written as such, so that every reader
sees what it saw in the original: bytes or text, as its `encoding` says.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pureebm.errors import InputError

MAX_OPCODES = 5_000_000
MAX_DEPTH = 100
_DTYPES = frozenset(
    f"{kind}{size}" for kind, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248"}.items() for size in sizes
)
_LATIN1_OPCODES = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})
_VALUE_OPCODES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}


class Str8(bytes):
    """A string of Python 2: bytes or text, as the reader likes."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pickle asks for by name; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True)
class _DType:
    """A dtype under construction: the name, then its byte order."""

    code: str
    order: str = "<"

    def build(self, state: object) -> None:
        order = _text(state[1]) if isinstance(state, tuple) and len(state) >= 2 else ""
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"dtype state {state!r:.80}")
        self.order = order

    @property
    def numpy(self) -> np.dtype[np.generic]:
        return np.dtype(self.order + self.code)


@dataclass(slots=True)
class _Array:
    """An array under construction: empty, then filled by its state."""

    value: NDArray[Any] | None = None

    def build(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _DType() as dtype, bool() | int() as fortran, bytes() as data):
                self.value = _array(data, dtype, shape, "F" if fortran else "C")
            case _:
                raise ValueError("an array that does not hold plain numbers")


_NAMES = {
    f"{package}.{rest}": kind
    for package in ("numpy.core", "numpy._core")
    for rest, kind in {
        "multiarray._reconstruct": "array",
        "multiarray.scalar": "scalar",
        "numeric._frombuffer": "buffer",
    }.items()
} | {
    "numpy.dtype": "dtype",
    "numpy.ndarray": "ndarray",
    "_codecs.encode": "bytes",
    "__builtin__.bytes": "bytes",
    "builtins.bytes": "bytes",
}


def loads(data: bytes, name: str) -> Any:
    """The plain data that a pickle describes; nothing in it is run.

    Raises:
        InputError: It is damaged, or asks for anything but plain data; the text begins with `name`.
    """
    try:
        return _Finisher().finish(_Machine().run(data))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{name}: refused as a pickle of plain data, and not run: {error}") from error


def dumps(value: object) -> bytes:
    """Plain data, as `loads` gives them -> a pickle (protocol 2; 3 where there are Python 3 bytes). Deterministic."""
    out = io.BytesIO()
    _write(value, out)
    body = out.getvalue()
    return (b"\x80\x03" if _has_bytes(value) else b"\x80\x02") + body + b"."


class _Machine:
    """The stack machine. Nothing on its stack can be called."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        (value,) = self.stack
        return value

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _LATIN1_OPCODES:
            self.stack.append(Str8(argument.encode("latin-1")))
        elif opcode in _VALUE_OPCODES:
            self.stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif opcode == "MARK":
            self.marks.append(len(self.stack))
        elif opcode == "GLOBAL":
            self.stack.append(_known(Name(*argument.split(" ", 1))))
        elif opcode == "STACK_GLOBAL":
            module, name = self.pop(2)
            self.stack.append(_known(Name(_text(module), _text(name))))
        elif opcode not in ("PROTO", "FRAME"):
            self.combine(opcode)

    def combine(self, opcode: str) -> None:
        """Opcodes that take values off the stack."""
        match opcode:
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.pop(int(opcode[-1]))))
            case "TUPLE":
                self.stack.append(tuple(self.pop_mark()))
            case "LIST":
                self.stack.append(self.pop_mark())
            case "DICT":
                self.stack.append(_pairs(self.pop_mark()))
            case "APPEND":
                (item,) = self.pop(1)
                _as(list, self.stack[-1]).append(item)
            case "APPENDS":
                items = self.pop_mark()
                _as(list, self.stack[-1]).extend(items)
            case "SETITEM":
                items = self.pop(2)
                _as(dict, self.stack[-1]).update(_pairs(items))
            case "SETITEMS":
                items = self.pop_mark()
                _as(dict, self.stack[-1]).update(_pairs(items))
            case "REDUCE":
                function, arguments = self.pop(2)
                self.stack.append(_call(_as(Name, function), _as(tuple, arguments)))
            case "BUILD":
                (state,) = self.pop(1)
                if not isinstance(self.stack[-1], _Array | _DType):
                    raise ValueError("it changes an object that is no array")
                self.stack[-1].build(state)
            case _:
                raise ValueError(f"opcode {opcode} makes no plain data")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ValueError("its stack runs empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _known(name: Name) -> Name:
    if str(name) not in _NAMES:
        raise ValueError(f"it asks for {str(name)!r}; only arrays, numbers, strings and containers are allowed")
    return name


def _call(function: Name, arguments: tuple[Any, ...]) -> object:
    """The few calls that make plain data."""
    match _NAMES[str(function)], arguments:
        case "array", (Name() as kind, tuple(), _) if _NAMES[str(kind)] == "ndarray":
            return _Array()
        case "dtype", (code, *_) if _text(code).lstrip("<>|=") in _DTYPES:
            text = _text(code)
            return _DType(text.lstrip("<>|="), text[0] if text[0] in "<>|=" else "<")
        case "scalar", (_DType() as dtype, bytes() as data):
            return _array(data, dtype, (), "C")[()]
        case "buffer", (bytes() as data, _DType() as dtype, tuple() as shape, order) if _text(order) in ("C", "F"):
            return _Array(_array(data, dtype, shape, _text(order)))
        case "bytes", ():
            return b""
        case "bytes", (str() as text, encoding) if _text(encoding) in ("latin1", "latin-1"):
            return text.encode("latin-1")
    raise ValueError(f"a call of {function} that makes no plain data")


def _array(data: bytes, dtype: _DType, shape: tuple[Any, ...], order: str) -> NDArray[Any]:
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape!r:.80}")
    if math.prod(shape) * dtype.numpy.itemsize != len(data):
        raise ValueError(f"an array of shape {shape!r:.80} and type {dtype.numpy} with {len(data):,} bytes")
    return np.frombuffer(data, dtype.numpy).reshape(shape, order="F" if order == "F" else "C")


class _Finisher:
    """Exchanges what was built of arrays for arrays, and measures the whole as a tree: a pickle may refer to one list
    many times, or to itself, and so be far larger than its file."""

    def __init__(self) -> None:
        self.n_values = 0

    def finish(self, value: Any, depth: int = 0) -> Any:
        self.n_values += 1
        if self.n_values > MAX_OPCODES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_OPCODES:,} values, or nested deeper than {MAX_DEPTH}")
        if isinstance(value, _Array) and value.value is not None:
            return value.value
        if isinstance(value, _Array | _DType | Name):
            raise ValueError("it holds something unfinished in the place of data")
        if isinstance(value, dict):
            return {self.finish(key, depth + 1): self.finish(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.finish(item, depth + 1) for item in value])
        return value


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value) if isinstance(value, str) else ""


def _as(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where it needs a {kind.__name__}")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _has_bytes(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_bytes(key) or _has_bytes(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return any(map(_has_bytes, value))
    return isinstance(value, bytes) and not isinstance(value, Str8)


def _write(value: object, out: io.BytesIO) -> None:
    match value:
        case None:
            out.write(b"N")
        case bool():
            out.write(b"\x88" if value else b"\x89")
        case int():
            if -(2**31) <= value < 2**31:
                out.write(b"J" + struct.pack("<i", value))
            else:
                out.write(b"I%d\n" % value)
        case float() if not isinstance(value, np.generic):
            out.write(b"G" + struct.pack(">d", value))
        case Str8():
            out.write(
                (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value
            )
        case bytes():
            out.write(
                (b"C" + bytes([len(value)]) if len(value) < 256 else b"B" + struct.pack("<I", len(value))) + value
            )
        case str():
            text = value.encode("utf-8", "surrogatepass")
            out.write(b"X" + struct.pack("<I", len(text)) + text)
        case list() | tuple():
            out.write(b"(" if isinstance(value, tuple) else b"](")
            for item in value:
                _write(item, out)
            out.write(b"t" if isinstance(value, tuple) else b"e")
        case dict():
            out.write(b"}(")
            for key, item in value.items():
                _write(key, out)
                _write(item, out)
            out.write(b"u")
        case np.ndarray():
            _write_array(value, out)
        case np.generic():
            _write(value.item(), out)
        case _:
            raise TypeError(f"{type(value).__name__} is no plain data")


def _write_array(array: NDArray[Any], out: io.BytesIO) -> None:
    """As Python 2 wrote it, which every numpy reads."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    order = Str8(b"|" if array.dtype.itemsize == 1 else b"<")
    out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
    _write((0,), out)
    _write(Str8(b"b"), out)
    out.write(b"\x87R(")
    _write(1, out)
    _write(array.shape, out)
    out.write(b"cnumpy\ndtype\n")
    _write((Str8(f"{array.dtype.kind}{array.dtype.itemsize}".encode()), 0, 1), out)
    out.write(b"R")
    _write((3, order, None, None, None, -1, -1, 0), out)
    out.write(b"b")
    _write(False, out)
    _write(Str8(np.ascontiguousarray(array).tobytes()), out)
    out.write(b"tb")
