"""Python pickles of plain data, read without running them, and written again.

A pickle is a program for a small stack machine, and Python's own machine lets it call functions. This one cannot: it
knows the opcodes that make numbers, strings, lists, tuples, dicts, and four calls, which are recognized by name
and carried out here: numpy arrays, numpy dtypes, numpy scalars, and Python 3's way to write bytes. Anything else is
refused. Memory is bounded by the file's size and the number of its opcodes.

A file of another kind (`torch_files`) brings a `Vocabulary`: more names, each with a function of our own that is
carried out in its place. Nothing that a pickle names is ever looked up or imported.

Strings of Python 2 (as in the official CIFAR files) stay `Str8`, and are written as such, so that every reader
sees what it saw in the original: bytes or text, as its `encoding` says.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


class Unfinished:
    """What one of the calls made: it may be given a state, and is exchanged for data at the end."""

    def build(self, state: object) -> None:
        raise ValueError("it changes an object that takes no state")

    def finished(self) -> Any:
        """The data: plain, or lists and tuples of unfinished things. Raises ValueError."""
        raise ValueError("it holds something unfinished in the place of data")


class _Ordered(dict[Any, Any], Unfinished):
    """An OrderedDict; its attributes (PyTorch's `_metadata`) are dropped."""

    def build(self, state: object) -> None:
        if not isinstance(state, dict):
            raise ValueError("an OrderedDict with a state that is no dict")

    def finished(self) -> Any:
        return dict(self)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a pickle may ask for beyond plain data.

    calls: full name -> what is done here with the arguments; raises ValueError for arguments that it does not know.
    symbols: names that may only stand as arguments. persistent: makes something of a persistent id. objects: whether
    numpy arrays of objects are read, as nested lists. max_opcodes: None for `MAX_OPCODES`. says: what is allowed, for
    the error.
    """

    calls: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    symbols: frozenset[str] = frozenset()
    persistent: Callable[[Any], object] | None = None
    objects: bool = False
    max_opcodes: int | None = None
    says: str = "arrays, numbers, strings and containers"


PLAIN = Vocabulary()


@dataclass(slots=True)
class _DType(Unfinished):
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
class _Array(Unfinished):
    """An array under construction: empty, then filled by its state. One of objects becomes a list."""

    value: NDArray[Any] | list[Any] | None = None

    def build(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _DType(code="O8"), bool() | int(), list() as items):
                self.value = _nested(items, shape)
            case (int(), tuple() as shape, _DType() as dtype, bool() | int() as fortran, bytes() as data):
                self.value = _array(data, dtype, shape, "F" if fortran else "C")
            case _:
                raise ValueError("an array that does not hold plain numbers")

    def finished(self) -> Any:
        if self.value is None:
            raise ValueError("it holds an array that was never filled")
        return self.value


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
    "collections.OrderedDict": "ordered",
}


DAMAGE = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)
"""What a damaged or hostile pickle raises in `run` and `finish`."""


def loads(data: bytes, name: str) -> Any:
    """The plain data that a pickle describes; nothing in it is run.

    Raises:
        InputError: It is damaged, or asks for anything but plain data; the text begins with `name`.
    """
    try:
        return finish(run(io.BytesIO(data), PLAIN))
    except DAMAGE as error:
        raise InputError(f"{name}: refused as a pickle of plain data, and not run: {error}") from error


def run(stream: io.BytesIO, vocabulary: Vocabulary) -> Any:
    """What the next pickle of a stream builds, unfinished; the stream then stands behind it. Raises `DAMAGE`."""
    start = stream.tell()
    n_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(start)
    return _Machine(vocabulary, n_bytes).run(stream)


def finish(value: Any) -> Any:
    """What `run` built -> data. Raises `DAMAGE`."""
    return _Finisher().finish(value)


def dumps(value: object) -> bytes:
    """Plain data, as `loads` gives them -> a pickle (protocol 2; 3 where there are Python 3 bytes). Deterministic."""
    out = io.BytesIO()
    _write(value, out)
    body = out.getvalue()
    return (b"\x80\x03" if _has_bytes(value) else b"\x80\x02") + body + b"."


class _Machine:
    """The stack machine. Nothing on its stack can be called."""

    def __init__(self, vocabulary: Vocabulary, n_bytes: int) -> None:
        self.vocabulary = vocabulary
        self.n_encodable = n_bytes  # each text is encoded once in an honest file, so no more than its size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        limit = self.vocabulary.max_opcodes or MAX_OPCODES
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > limit:
                raise ValueError(f"more than {limit:,} opcodes")
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
            self.stack.append(self.known(Name(*argument.split(" ", 1))))
        elif opcode == "STACK_GLOBAL":
            module, name = self.pop(2)
            self.stack.append(self.known(Name(_text(module), _text(name))))
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
            case "REDUCE" | "NEWOBJ":
                function, arguments = self.pop(2)
                self.stack.append(self.call(_as(Name, function), _as(tuple, arguments)))
            case "BUILD":
                (state,) = self.pop(1)
                _as(Unfinished, self.stack[-1]).build(state)
            case "BINPERSID" if self.vocabulary.persistent:
                (key,) = self.pop(1)
                self.stack.append(self.vocabulary.persistent(key))
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

    def known(self, name: Name) -> Name:
        words = self.vocabulary
        if not any(str(name) in names for names in (_NAMES, words.calls, words.symbols)):
            raise ValueError(f"it asks for {str(name)!r}; only {words.says} are allowed")
        return name

    def call(self, function: Name, arguments: tuple[Any, ...]) -> object:
        if str(function) in self.vocabulary.calls:
            return self.vocabulary.calls[str(function)](*arguments)
        made = _call(function, arguments, objects=self.vocabulary.objects)
        self.n_encodable -= len(made) if isinstance(made, bytes) else 0
        if self.n_encodable < 0:
            raise ValueError("it encodes more text than it holds")
        return made


def _call(function: Name, arguments: tuple[Any, ...], *, objects: bool) -> object:
    """The few calls that make plain data."""
    match _NAMES.get(str(function)), arguments:
        case "array", (Name() as kind, tuple(), _) if _NAMES.get(str(kind)) == "ndarray":
            return _Array()
        case "dtype", (code, *_) if objects and _text(code) in ("O8", "|O8", "O"):
            return _DType("O8", "|")
        case "ordered", ():
            return _Ordered()
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


def _nested(items: list[Any], shape: tuple[Any, ...]) -> list[Any]:
    """A flat list -> lists in lists; numpy writes objects in C order, however they lie in memory."""
    if not items or math.prod(shape) != len(items):
        raise ValueError(f"an array of shape {shape!r:.80} with {len(items):,} objects")
    places: list[Any] = np.arange(len(items)).reshape(shape).tolist()

    def fill(place: Any) -> Any:
        return items[place] if isinstance(place, int) else [fill(inner) for inner in place]

    return [fill(place) for place in places]


class _Finisher:
    """Exchanges what was built of arrays for arrays, and measures the whole as a tree: a pickle may refer to one list
    many times, or to itself, and so be far larger than its file."""

    def __init__(self) -> None:
        self.n_values = 0

    def finish(self, value: Any, depth: int = 0) -> Any:
        self.n_values += 1
        if self.n_values > MAX_OPCODES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_OPCODES:,} values, or nested deeper than {MAX_DEPTH}")
        if isinstance(value, Name):
            raise ValueError("it holds something unfinished in the place of data")
        if isinstance(value, Unfinished):
            return self.finish(value.finished(), depth + 1)
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
