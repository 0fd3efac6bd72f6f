"""The corpus of the fuzzers: `python -m tests.trust.corpus` writes it to `tests/trust/corpus/PARSER/NAME`.

Small files, committed: `good-*` are valid in different ways, and the fuzzers damage them; `bad-*` are damaged, among
them those by which a parser of this package was once crashed or made to fill the memory. All are read again in every
run of the fuzzers and in the tests.
"""

from __future__ import annotations

import inspect
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

FOLDER = Path(__file__).with_name("corpus")
GOOD = "good-"


def seeds(parser: str) -> dict[str, bytes]:
    """Name -> content of the committed files of a parser."""
    return {path.name: path.read_bytes() for path in sorted((FOLDER / parser).iterdir())}


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, *(shape or (16, 16, 3))), np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    file, picture = io.BytesIO(), Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def npz() -> Iterator[tuple[str, bytes]]:
    for name, arrays in {
        "gray": {"x_train": pixels(3, 8, 8), "y_train": np.arange(3), "x_test": pixels(2, 8, 8)},
        "planes": {"images": pixels(3, 3, 8, 8), "labels": np.eye(3), "names": np.array(["a", "b", "c"])},
    }.items():
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        yield f"{GOOD}{name}", file.getvalue()
    file = io.BytesIO()
    np.savez(file, images=pixels(3, 8, 8), labels=np.array([{"run": 1}, None, "x"], dtype=object))
    yield "bad-pickled-labels", file.getvalue()
    for name, text in {"header-ends-early": "{'descr': ('|u1',", "header-of-a-quote": "'"}.items():
        header, file = text.encode() + b"\n", io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        yield f"bad-{name}", file.getvalue()


def cifar_binary() -> Iterator[tuple[str, bytes]]:
    records = pixels(2, 3073)
    records[:, 0] = 3, 9
    yield f"{GOOD}two", records.tobytes()
    yield "bad-one-byte-short", records.tobytes()[:-1]


def cifar_python() -> Iterator[tuple[str, bytes]]:
    content = {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1, 2], b"coarse_labels": [0, 0]}
    yield f"{GOOD}cifar-100", pickle.dumps(content, 2)
    yield "bad-a-label-too-few", pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, 2)
    yield "bad-no-numbers", pickle.dumps({b"data": "x", b"labels": [1]}, 2)


def unpickler() -> Iterator[tuple[str, bytes]]:
    for protocol in (0, 2, 5):
        value = {"a": [1, (2.5, None)], "b": np.arange(4.0), "c": {"d": b"xyz", "e": [True]}}
        yield f"{GOOD}protocol-{protocol}", pickle.dumps(value, protocol)
    yield "bad-runs-a-command", b"cos\nsystem\n(S'true'\ntR."
    yield "bad-eval", b"cbuiltins\neval\n(V1\ntR."
    yield (
        "bad-array-of-exabytes",
        pickle.dumps(np.zeros(2), 2).replace(b"K\x02\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x0f\x85"),
    )
    yield "bad-deep", b"(" * 3000 + b"t" * 3000 + b"."


def parquet() -> Iterator[tuple[str, bytes]]:
    cells = [{"bytes": encoded(image), "path": f"{number}.png"} for number, image in enumerate(pixels(3))]
    for name, table, options in (
        ("plain", pa.table({"img": cells, "fine_label": [1, None, 2]}), {"compression": "none"}),
        ("groups", pa.table({"image": cells, "note": ["a", "", "ü"]}), {"row_group_size": 1, "compression": "zstd"}),
    ):
        file = io.BytesIO()
        pq.write_table(table, file, **options)  # type: ignore[arg-type]
        yield f"{GOOD}{name}", file.getvalue()
        yield f"bad-{name}-cut", file.getvalue()[:-20]


def _zip(members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, how)
    return file.getvalue()


def _tar(members: dict[str, bytes], mode: str = "w", kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, "/etc/passwd"
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _before_the_archive() -> bytes:
    data = _zip({"a.png": encoded(pixels(1)[0])})
    end = data.rindex(b"PK\x05\x06")
    return data[: end + 16] + b"\xff\xff\xff\x7f" + data[end + 20 :]


def zip_archive() -> Iterator[tuple[str, bytes]]:
    image = encoded(pixels(1)[0])
    yield f"{GOOD}stored", _zip({"cat/ü.png": image, "cat/": b"", "a.txt": b"x"})
    yield "bad-leads-out", _zip({"../a.png": image})
    yield f"{GOOD}begins-before-the-archive", _before_the_archive()  # an unreadable image
    yield "bad-cut", _zip({"a.png": image, "b.png": image}, zipfile.ZIP_DEFLATED)[:-30]


def upload() -> Iterator[tuple[str, bytes]]:
    image = encoded(pixels(1)[0])
    yield f"{GOOD}stored", _zip({"photos/dog/1.png": image, "photos/notes.txt": b"x"})
    yield "bad-begins-before-the-archive", _before_the_archive()
    yield "bad-too-much", _zip({"a.png": image, "b.png": bytes(2**21)}, zipfile.ZIP_DEFLATED)
    yield "bad-absolute", _zip({"/tmp/a.png": image})


def tar_archive() -> Iterator[tuple[str, bytes]]:
    image = encoded(pixels(1)[0])
    yield f"{GOOD}gz", _tar({"cat/1.png": image}, "w:gz")
    yield f"{GOOD}link", _tar({"a.png": b""}, kind=tarfile.SYMTYPE)  # an unreadable image
    yield "bad-leads-out", _tar({"../../a.png": image})
    yield "bad-cut", _tar({"a.png": image})[:700]


def webdataset() -> Iterator[tuple[str, bytes]]:
    image = encoded(pixels(1)[0], "JPEG")
    yield (
        f"{GOOD}jpg-and-mask",
        _tar({"1.jpg": image, "1.left.jpg": image, "1.cls": b"cat", "2.jpg": image, "2.cls": b"3"}),
    )
    yield "bad-cut", _tar({"1.jpg": image, "1.cls": b"1"})[:900]


def csv_list() -> Iterator[tuple[str, bytes]]:
    yield f"{GOOD}mark-and-line-ends", b"\xef\xbb\xbfpath,label\r\n0.png,cat\r\n1.png,dog\r\n0.png,cat\r\n"
    yield "bad-semicolons", b"filename;class\n0.png;1\n"
    yield "bad-leads-out", b"file,label\n../../../etc/passwd,1\n"
    yield "bad-not-utf-8", b"file,label\n\xff\xfe.png,1\n"
    yield "bad-open-quote", b'file,label\n"0.png,1\n'


def arrow() -> Iterator[tuple[str, bytes]]:
    cells = [{"bytes": encoded(image), "path": None} for image in pixels(2)]
    file = io.BytesIO()
    rows = pa.table({"image": cells, "label": [0, 1]})
    with pa.ipc.new_stream(file, rows.schema) as stream:
        for number in range(2):
            stream.write_table(rows.slice(number, 1))
    yield f"{GOOD}two-batches", file.getvalue()
    yield "bad-cut", file.getvalue()[:400]


def torch_file() -> Iterator[tuple[str, bytes]]:
    for name, how in (("zip", True), ("old", False)):
        file = io.BytesIO()
        torch.save(
            {"x": torch.arange(6, dtype=torch.uint8).reshape(2, 3), "n": 1}, file, _use_new_zipfile_serialization=how
        )
        yield f"{GOOD}{name}", file.getvalue()


def picture() -> Iterator[tuple[str, bytes]]:
    image = pixels(1)[0]
    for kind in ("JPEG", "BMP", "GIF", "PPM", "WEBP"):
        yield f"{GOOD}{kind.lower()}", encoded(image, kind)
    for mode in ("P", "L", "RGBA", "LA", "1"):
        yield f"{GOOD}png-{mode.lower()}", encoded(image, "PNG", mode)
    yield f"{GOOD}png-16-bit", encoded(pixels(1, 16, 16)[0].astype(np.uint16) * 257)
    yield f"{GOOD}jpeg-cmyk", encoded(image, "JPEG", "CMYK")
    wide = encoded(image)
    yield "bad-of-4-billion-pixels", wide[:16] + b"\x00\x01\x00\x00" * 2 + wide[24:]


def _tiny() -> tuple[bytes, dict[str, object]]:
    from tests.trust.fuzz import tiny_model

    return tiny_model({"sampler": {"n_steps": 3}})


def safetensors() -> Iterator[tuple[str, bytes]]:
    data, _ = _tiny()
    size = int.from_bytes(data[:8], "little")
    yield "bad-header-of-exabytes", (2**62).to_bytes(8, "little") + data[8:]
    yield (
        "bad-offsets",
        data[:8] + data[8 : 8 + size].replace(b'"data_offsets":[0,', b'"data_offsets":[9,') + data[8 + size :],
    )
    yield "bad-not-json", (4).to_bytes(8, "little") + b"null"


def model_card() -> Iterator[tuple[str, bytes]]:
    """The first four crashed the loader, or made it fill the memory."""
    _, card = _tiny()
    for name, config in {
        "blocks-of-quintillions": {"widths": [2], "blocks": [10**30]},
        "widths-of-a-map": {"widths": {"": {}}, "blocks": [1]},
        "config-is-null": None,
        "config-is-nan": float("nan"),
        "config-is-a-list": [],
        "one-block-more": {"widths": [2], "blocks": [2]},
    }.items():
        yield f"bad-{name}", json.dumps(card | {"config": config}).encode()
    yield "bad-no-object", b"[1]"
    yield "bad-nested", b"[" * 9000
    yield "bad-other-weights", json.dumps(card | {"sha256": "0" * 64}).encode()


def manifest() -> Iterator[tuple[str, bytes]]:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"], "status": ["purified"]}), file)
    yield "bad-columns-missing", file.getvalue()
    yield "bad-no-rows", b"PAR1"


def run_record() -> Iterator[tuple[str, bytes]]:
    """Each of the first five crashed `pureebm verify`, or sent it to load what is no model."""
    from tests.trust.fuzz import record

    whole = json.loads(record())
    stage = whole["settings"]["stage"]
    for name, value in {"n_steps": 1e9, "device": "cp-1u", "engine": 3, "precision": [], "model": "local-32"}.items():
        told = whole["settings"] | {"stage": stage | {name: value}}
        yield f"bad-{name}".replace("_", "-"), json.dumps(whole | {"settings": told}).encode()
    yield "bad-settings", json.dumps(whole | {"settings": [1]}).encode()
    yield "bad-cut", record()[:100]


MAKERS = {name: make for name, make in globals().items() if inspect.isgeneratorfunction(make)}
"""Of each parser in `tests.trust.fuzz`, by its name."""


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for parser, make in MAKERS.items():
        for name, content in make():
            path = FOLDER / parser / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes in {FOLDER}")


if __name__ == "__main__":
    main()
