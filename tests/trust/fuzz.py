"""Longer fuzzing of every parser of untrusted bytes: `python -m tests.trust.fuzz --examples 2000`.

First the committed corpus (`tests/trust/corpus.py`) is handed to each parser as it is, with the bugs of the past; then
valid files are damaged (bytes changed, cut out, put in, doubled; the end cut off; values of JSON exchanged). A parser
may accept, or refuse with an error of this package; anything else is a crash, and so are a dead process and one that
runs out of memory. Each runs in a process of its own with a limit on memory. Counts go to `results/trust/fuzz.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import pickle
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.trust.corpus import GOOD, seeds
from tests.trust.faults import ROOT, card_path, png, told_command

from pureebm.data import torch_files
from pureebm.data.archives import ArchiveSource, TarArchive
from pureebm.data.arrow import ArrowSource
from pureebm.data.cifar import CifarSource
from pureebm.data.csv_list import CsvSource
from pureebm.data.labels import labels_of
from pureebm.data.npz import NpzSource
from pureebm.data.parquet import ParquetSource
from pureebm.data.pictures import decode
from pureebm.data.unpickle import dumps, loads
from pureebm.data.webdataset import WebDatasetSource
from pureebm.energy.networks import LocalEnergy
from pureebm.energy.weights import load_model, save_model
from pureebm.errors import ItemError, PureebmError
from pureebm.purify.manifest import MANIFEST_NAME, RECORD_NAME, SCHEMA, write_manifest
from pureebm.purify.verify import read_finished, verify
from pureebm.web.unpack import Limits, receive

N = 12
MEMORY = 6 * 2**30
"""Address space of a parser's process."""


# Each parser: what a valid file is, and what is done with a damaged one


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), np.uint8)


def read_all(source: object) -> None:
    """As a job would: every picture, and what is recorded."""
    source.load(0, len(source))  # type: ignore[attr-defined,arg-type]
    source.describe()  # type: ignore[attr-defined]


def npz() -> tuple[bytes, Callable[[Path], object], str]:
    file = io.BytesIO()
    np.savez_compressed(file, images=images(), labels=np.arange(N))
    return file.getvalue(), lambda path: read_all(NpzSource(path)), "set.npz"


def cifar_binary() -> tuple[bytes, Callable[[Path], object], str]:
    records = np.random.default_rng(0).integers(0, 10, (4, 3073), np.uint8)
    return records.tobytes(), lambda path: read_all(CifarSource(path)), "data_batch_1.bin"


def cifar_python() -> tuple[bytes, Callable[[Path], object], str]:
    content = {b"data": np.zeros((3, 3072), np.uint8), b"labels": [1, 2, 3], b"filenames": [b"a", b"b", b"c"]}
    return pickle.dumps(content, 2), lambda path: read_all(CifarSource(path)), "data_batch_1"


def unpickler() -> tuple[bytes, Callable[[Path], object], str]:
    content = {"a": [1, 2.5, None, True], "b": (np.arange(6.0).reshape(2, 3), b"xyz"), "c": {"d": [(1,), "e"]}}

    def read(path: Path) -> None:
        value = loads(path.read_bytes(), path.name)
        if isinstance(value, dict):
            dumps(value)

    return pickle.dumps(content, 4), read, "file.pkl"


def parquet() -> tuple[bytes, Callable[[Path], object], str]:
    file = io.BytesIO()
    cells = [{"bytes": png(image), "path": f"{number}.png"} for number, image in enumerate(images())]
    pq.write_table(pa.table({"image": cells, "label": list(range(N))}), file)
    return file.getvalue(), lambda path: read_all(ParquetSource(path)), "set.parquet"


def zip_archive() -> tuple[bytes, Callable[[Path], object], str]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, image in enumerate(images()[:3]):
            archive.writestr(f"c{number % 2}/{number}.png", png(image))
        archive.writestr("notes.txt", b"read me")
    return file.getvalue(), lambda path: read_all(ArchiveSource(path)), "set.zip"


def _tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def tar_archive() -> tuple[bytes, Callable[[Path], object], str]:
    data = _tar({f"c{number % 2}/{number}.png": png(image) for number, image in enumerate(images()[:3])})
    return data, lambda path: read_all(ArchiveSource(path, TarArchive(path))), "set.tar"


def webdataset() -> tuple[bytes, Callable[[Path], object], str]:
    members = dict[str, bytes]()
    for number, image in enumerate(images()[:3]):
        members |= {f"{number}.png": png(image), f"{number}.cls": b"1", f"{number}.json": b"{}"}

    def read(path: Path) -> None:
        source = WebDatasetSource(path)
        read_all(source)
        labels_of(source)

    return _tar(members), read, "shard.tar"


def csv_list() -> tuple[bytes, Callable[[Path], object], str]:
    rows = "".join(f'{number}.png,"a ""note"", {number}",{number % 2}\n' for number in range(3))

    def read(path: Path) -> None:
        for number in range(3):
            (path.parent / f"{number}.png").write_bytes(png(images()[number]))
        source = CsvSource(path)
        read_all(source)
        labels_of(source)

    return f"file,note,label\n{rows}".encode(), read, "list.csv"


def arrow() -> tuple[bytes, Callable[[Path], object], str]:
    name, file = "data-00000-of-00001.arrow", io.BytesIO()
    cells = [{"bytes": png(image), "path": f"{number}.png"} for number, image in enumerate(images()[:3])]
    rows = pa.table({"image": cells, "label": list(range(3))})
    with pa.ipc.new_stream(file, rows.schema) as stream:
        stream.write_table(rows)

    def read(path: Path) -> None:
        (path.parent / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        (path.parent / "dataset_info.json").write_text("{}")
        source = ArrowSource(path.parent)
        read_all(source)
        labels_of(source)

    return file.getvalue(), read, name


def torch_file() -> tuple[bytes, Callable[[Path], object], str]:
    file = io.BytesIO()
    torch.save({"images": torch.arange(48.0).reshape(1, 3, 4, 4), "names": ["a", "b"]}, file)
    return file.getvalue(), torch_files.load, "poisons.pt"


def upload() -> tuple[bytes, Callable[[Path], object], str]:
    """What the web page makes of an archive that a browser sent."""

    def read(path: Path) -> None:
        limits = Limits(files=20, unpacked_bytes=2**20)
        with tempfile.TemporaryDirectory() as folder, open(path, "rb") as sent:
            receive(sent, "photos.zip", Path(folder) / "new", limits)

    return zip_archive()[0], read, "sent"


def picture() -> tuple[bytes, Callable[[Path], object], str]:
    return png(images()[0]), lambda path: decode(path.read_bytes(), path.name), "image.png"


def tiny_model(card: dict[str, object]) -> tuple[bytes, dict[str, object]]:
    """A file of weights, the same everywhere, and its card."""
    network = LocalEnergy(widths=(2,), blocks=(1,))
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(path, network, card)
        return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def safetensors() -> tuple[bytes, Callable[[Path], object], str]:
    """Only the header and a little more is worth damaging: the rest is numbers."""
    data, card = tiny_model({})

    def read(path: Path) -> None:
        own = card | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}  # else the hash refuses everything
        path.with_suffix(".json").write_text(json.dumps(own))
        load_model(path)

    return data, read, "model.safetensors"


def model_card() -> tuple[bytes, Callable[[Path], object], str]:
    data, card = tiny_model({"sampler": {"n_steps": 3}})

    def read(path: Path) -> None:
        path.with_suffix(".safetensors").write_bytes(data)
        load_model(path.with_suffix(".safetensors"))

    return json.dumps(card).encode(), read, "model.json"


class Rows:
    """A journal of one chunk."""

    def tables(self, chunks: object) -> list[pa.Table]:
        row = dict.fromkeys(SCHEMA.names, "a") | {"status": "purified", "energy_before": 1.0, "energy_after": 1.0}
        return [pa.Table.from_pylist([row | {"psnr": 30.0}] * N, schema=SCHEMA)]


def record() -> bytes:
    model = {"name": "local-32", "sha256": load_model("local-32").sha256}
    sampler = {"n_steps": 1, "step_size": 0.01, "temperature": 0.01, "noise": 1.0}
    stage = {
        "stage": "langevin",
        "model": model,
        "precision": "float32",
        "engine": "exact: a",
        "device": "cpu",
    } | sampler
    source = {"kind": "npz", "images": N}
    told = {"seed": 0, "images": N, "source_name": "x.npz", "stage": stage, "source": source, "versions": {}}
    return json.dumps({"settings": told | {"batch_size": 4, "chunk_items": 8}, "counts": {"total": N}}).encode()


def manifest() -> tuple[bytes, Callable[[Path], object], str]:
    file = io.BytesIO()
    write_manifest(file, Rows(), 1)  # type: ignore[arg-type]

    def read(path: Path) -> None:
        (path.parent / RECORD_NAME).write_bytes(record())
        read_finished(path.parent)

    return file.getvalue(), read, MANIFEST_NAME


def run_record() -> tuple[bytes, Callable[[Path], object], str]:
    file = io.BytesIO()
    write_manifest(file, Rows(), 1)  # type: ignore[arg-type]

    def read(path: Path) -> None:
        (path.parent / MANIFEST_NAME).write_bytes(file.getvalue())
        np.savez(path.parent / "x.npz", images=images())
        verify(path.parent, source=path.parent / "x.npz", n=1, choice=0)

    return record(), read, RECORD_NAME


PARSERS = {
    one.__name__: one
    for one in (
        npz,
        cifar_binary,
        cifar_python,
        unpickler,
        parquet,
        zip_archive,
        tar_archive,
        webdataset,
        csv_list,
        arrow,
        torch_file,
        upload,
        picture,
        safetensors,
        model_card,
        manifest,
        run_record,
    )
}


# Damage, and counting


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """Valid bytes with one to four injuries, mostly near the beginning and the end, where headers and footers are."""
    place = st.one_of(
        st.integers(0, len(data)), st.integers(0, min(300, len(data))), st.integers(max(0, len(data) - 300), len(data))
    )
    number = st.sampled_from([b"\x00" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 8])
    noise = st.one_of(st.binary(min_size=1, max_size=12), number, st.sampled_from([b"-1", b"1e999", b"null", b"[" * 9]))
    injury = st.tuples(place, st.sampled_from(["change", "insert", "remove", "double", "cut"]), noise)
    return st.lists(injury, min_size=1, max_size=4).map(lambda injuries: injured(data, injuries))


ODD = (None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x" * 300, "../../etc", [], [[]], {}, {"": {}}, "\ud800")
"""Values that nobody expects where a JSON file has others."""


def exchanged(data: bytes) -> st.SearchStrategy[bytes]:
    """Valid JSON with one to three of its values exchanged for odd ones."""
    places = list(_places(json.loads(data)))
    injury = st.tuples(st.sampled_from(places), st.sampled_from(ODD))

    def exchange(injuries: list[tuple[tuple[str, ...], object]]) -> bytes:
        value = json.loads(data)
        for place, odd in injuries:
            inner = value
            for key in place[:-1]:
                inner = inner.get(key) if isinstance(inner, dict) else None
            if isinstance(inner, dict):
                inner[place[-1]] = odd
        return json.dumps(value).encode()

    return st.lists(injury, min_size=1, max_size=3).map(exchange)


def _places(value: object, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*above, key)
        yield from _places(inner, (*above, key))


def injuries(data: bytes, file_name: str) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged(data), exchanged(data)) if file_name.endswith(".json") else damaged(data)


def injured(data: bytes, injuries: list[tuple[int, str, bytes]]) -> bytes:
    for at, how, noise in injuries:
        n = len(noise)
        if how == "change":
            data = data[:at] + noise + data[at + n :]
        elif how == "insert":
            data = data[:at] + noise + data[at:]
        elif how == "remove":
            data = data[:at] + data[at + n :]
        elif how == "double":
            data = data[:at] + data[max(0, at - n) :]
        else:
            data = data[:at]
    return data


class OutOfTime(BaseException):
    """No `Exception`, so that hypothesis lets it pass."""


def fuzz_one(name: str, examples: int, number: int, seconds: float, results: Connection) -> None:
    """In a process of its own: sends (accepted, refused) now and then, and each new crash as (message, bytes)."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    data, read, file_name = PARSERS[name]()
    counts = {"accepted": 0, "refused": 0}
    known: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="pureebm-fuzz-") as folder:
        path = Path(folder) / file_name
        path.write_bytes(data)
        read(path)  # the valid file is accepted
        until, corpus = time.monotonic() + seconds, seeds(name)
        valid = [data, *(content for seed_name, content in corpus.items() if seed_name.startswith(GOOD))]

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from(valid).flatmap(lambda one: injuries(one, file_name)))
        def look(content: bytes) -> None:
            if time.monotonic() > until:
                raise OutOfTime
            attempt(content)

        def attempt(content: bytes) -> None:
            path.write_bytes(content)
            results.send(("try", content))
            try:
                read(path)
                counts["accepted"] += 1
            except (PureebmError, ItemError):
                counts["refused"] += 1
            except Exception as error:
                what = f"{type(error).__name__}: {str(error)[:200]}"
                results.send(("crash", what if what not in known else ""))
                known.add(what)

        for content in corpus.values():
            attempt(content)
        try:
            look()
        except OutOfTime:
            pass
    results.send(("done", counts))


def fuzz(name: str, examples: int, number: int, seconds: float = float("inf")) -> dict[str, object]:
    """Counts of one parser, which gets no new example after so long; a process that dies is a crash, too."""
    processes = multiprocessing.get_context("fork")  # everything is imported already
    receiving, sending = processes.Pipe(duplex=False)
    process = processes.Process(target=fuzz_one, args=(name, examples, number, seconds, sending))
    began, tried, crashes, last = time.perf_counter(), 0, 0, b""
    messages: list[str] = []
    counts: dict[str, int] = {}
    process.start()
    sending.close()
    try:
        while not counts:
            kind, content = receiving.recv()
            if kind == "try":
                tried, last = tried + 1, content
            elif kind == "crash":
                crashes += 1
                messages += [f"{content}; first of: {last[:400].hex()}"] if content else []
            else:
                counts = content
    except EOFError:
        process.join()
        crashes += 1
        messages.append(f"the process ended with {process.exitcode}; of: {last[:2000].hex()}")
    process.join()
    told: dict[str, object] = {"examples": tried, **counts, "crashes": crashes, "messages": messages[:20]}
    return told | {"seconds": round(time.perf_counter() - began, 1)}


def main() -> int:
    from pureebm.evaluation.cards import provenance, write_card

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000, help="of each parser (default: 2000)")
    parser.add_argument("--only", choices=sorted(PARSERS), action="append", help="one parser; repeatable")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of each parser; no new examples then")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of cards")
    options = parser.parse_args()
    told: dict[str, dict[str, object]] = {}
    for name in options.only or PARSERS:
        told[name] = fuzz(name, options.examples, options.seed, 60 * options.minutes)
        print(f"{name}: {json.dumps(told[name])}", flush=True)
    totals = {key: sum(int(str(one[key])) for one in told.values()) for key in ("examples", "crashes")}
    card = {"parsers": told, **totals, "seed": options.seed, "memory_limit": MEMORY, **provenance()}
    write_card(card_path("fuzz", options.out), {**card, "command": told_command()})
    return 1 if totals["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
