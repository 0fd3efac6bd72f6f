"""WebDataset: a folder of tar shards, or one of them, in which neighbors that share a key are a sample.

The key of `a/0001.seg.png` is `a/0001`, its extension `seg.png`. One image of a sample is purified: that with an
extension without dots, of several the first. What else a sample holds is passed on byte for byte, other images too
(masks, say); their extensions are counted in `describe`. A sample whose image leaves, leaves as a whole. Shards, their
names, their samples and the order of all stay as they are; `0001.jpg` becomes `0001.png`.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from pureebm.data.archives import (
    Entry,
    Part,
    Reader,
    TarArchive,
    folders_of,
    is_tar_name,
    load_entries,
    read_or_none,
    shown,
    target_name,
)
from pureebm.data.base import Item, Loaded, Result, Stored
from pureebm.data.cells import CellChunks, Cells
from pureebm.data.durable import copy_file, sync_folder, sync_tree, write_file
from pureebm.data.folder import Listing, fingerprint_of, is_image_name, list_folder, odd_target_names, readable
from pureebm.errors import InputError
from pureebm.types import JSON


class Shard:
    """One tar file: its entries, which of them belong to which sample, and each sample's image."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises `InputError` if it is damaged or unsafe."""
        self.name = name
        self.archive = TarArchive(path)
        self.images: list[Entry] = []
        self.sample_of: list[int | None] = []  # entry -> number of the image whose fate it shares
        self.unpurified: Counter[str] = Counter()  # extensions of the other images
        for run in _runs(self.archive.entries):
            image = _image_of(run)
            self.sample_of += [None if image is None else len(self.images)] * len(run)
            if image is not None:
                self.images.append(image)
            self.unpurified.update(_split(entry.name)[1] for entry in run if _is_image(entry) and entry is not image)
        every = [entry.name for entry in self.archive.entries if _is_image(entry)]
        odd = odd_target_names(every, folders_of(self.archive.entries))
        self._odd_targets = {every[index]: name for index, name in odd.items()}

    def target_name(self, number: int) -> str:
        name = self.images[number].name
        return target_name(name, self._odd_targets.get(name))


class WebDatasetSource:
    """The samples of all shards, by shard. Memory: the names, and the range that is loaded."""

    kind = "webdataset"

    def __init__(self, path: Path, listing: Listing | None = None) -> None:
        """`listing` is what `list_folder` said. Raises `InputError` if a shard is damaged, or none holds an image."""
        self.path = path
        self.single_file = path.is_file()
        self.root = path.parent if self.single_file else path
        listing = listing or (Listing(others=[path.name]) if self.single_file else list_folder(path))
        self.shards = [
            Shard(self.root / name, name) for name in listing.others if is_tar_name(name) or self.single_file
        ]
        self.passed_on = sorted({*listing.images, *listing.others} - {shard.name for shard in self.shards})
        self.left_out = listing.left_out
        self.starts = [0]
        for shard in self.shards:
            self.starts.append(self.starts[-1] + len(shard.images))
        if not len(self):
            raise InputError(f"no images in the tar files of {path}; a sample's image is named like 0001.jpg")
        self._reader = ShardReader(self)

    def __len__(self) -> int:
        return self.starts[-1]

    def place(self, index: int) -> tuple[int, int]:
        """(which shard, number of the image in it)."""
        which = bisect_right(self.starts, index) - 1
        return which, index - self.starts[which]

    def item(self, index: int) -> Item:
        which, number = self.place(index)
        shard = self.shards[which]
        prefix = readable(shard.name)
        return Item(index, f"{prefix}/{shard.images[number].name}", f"{prefix}/{shard.target_name(number)}")

    def load(self, start: int, stop: int) -> list[Loaded]:
        loaded: list[Loaded] = []
        stop = min(stop, len(self))
        while start < stop:
            which, number = self.place(start)
            end = min(stop, self.starts[which + 1])
            images = self.shards[which].images[number : number + end - start]
            pairs = zip((self.item(index) for index in range(start, end)), images, strict=True)
            loaded += load_entries(pairs, self._reader.of(which))
            start = end
        return loaded

    def members(self, extension: str) -> list[bytes | None]:
        """The bytes that each sample has under an extension, such as "cls"; None where it has none."""
        found: list[bytes | None] = [None] * len(self)
        for shard, start in zip(self.shards, self.starts, strict=False):
            reader = shard.archive.reader()
            for entry, number in zip(shard.archive.entries, shard.sample_of, strict=True):
                if number is not None and _split(entry.name)[1] == extension:
                    found[start + number] = read_or_none(reader, entry)
        return found

    def describe(self) -> JSON:
        fingerprint, n_bytes = fingerprint_of(self.root, [shard.name for shard in self.shards] + self.passed_on)
        unpurified = sum((shard.unpurified for shard in self.shards), Counter[str]())
        links = [
            e.name for shard in self.shards for e in shard.archive.entries if e.kind == "link" and not _is_image(e)
        ]
        return {
            "kind": self.kind,
            "images": len(self),
            "bytes": n_bytes,
            "files": {readable(shard.name): len(shard.images) for shard in self.shards},
            "unpurified_images": dict(sorted(unpurified.items())),
            "passed_on": shown([readable(name) for name in self.passed_on]),
            "left_out": shown([readable(name) for name in self.left_out] + links),
            "fingerprint": fingerprint,
        }

    def open_sink(self, staging: Path) -> WebDatasetSink:
        return WebDatasetSink(self, staging)


class ShardReader:
    """A reader that keeps one shard open."""

    def __init__(self, source: WebDatasetSource) -> None:
        self._source = source
        self._open: tuple[int, Reader] | None = None

    def of(self, which: int) -> Reader:
        if self._open is None or self._open[0] != which:
            self._open = which, self._source.shards[which].archive.reader()
        return self._open[1]

    def read(self, index: int) -> bytes | None:
        which, number = self._source.place(index)
        return read_or_none(self.of(which), self._source.shards[which].images[number])


class WebDatasetSink:
    """Finished images in chunk files; the new shards are the old ones with their images exchanged."""

    def __init__(self, source: WebDatasetSource, staging: Path) -> None:
        self._source = source
        self._chunks = CellChunks(staging, ShardReader(source).read)  # its own, as the source reads in another thread

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        return self._chunks.write(chunk, results)

    def assemble(self, target: Path, n_chunks: int) -> None:
        source, cells = self._source, self._chunks.read(n_chunks)
        aside, tree = self._chunks.staging / "assembled", self._chunks.staging / "tree"
        if not source.single_file:
            for name in source.passed_on:
                (tree / readable(name)).parent.mkdir(parents=True, exist_ok=True)
                copy_file(source.path / name, tree / readable(name), aside=aside)
        for which, shard in enumerate(source.shards):
            place = target if source.single_file else tree / readable(shard.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_file(place, self._filler(which, cells), aside=aside)
        if not source.single_file:
            sync_tree(tree)
            os.rename(tree, target)
        sync_folder(target.parent)

    def _filler(self, which: int, cells: Cells) -> Callable[[IO[bytes]], None]:
        return lambda file: self._source.shards[which].archive.write(file, self._parts(which, cells))

    def _parts(self, which: int, cells: Cells) -> Iterator[Part]:
        shard, offset = self._source.shards[which], self._source.starts[which]
        last, cell = -1, list[tuple[int, bytes | None]]()  # of the sample at hand; no cell: it leaves
        for entry, number in zip(shard.archive.entries, shard.sample_of, strict=True):
            if number is not None and number != last:
                last, cell = number, list(cells.before(offset + number + 1))
            if entry.kind == "link" or (number is not None and not cell):
                continue
            new = cell[0][1] if number is not None and entry is shard.images[number] else None
            name = entry.stored if new is None else entry.written_as(shard.target_name(last))
            yield Part(entry, readable(name), new)


def holds_samples(archive: TarArchive) -> bool:
    """Some image has a neighbor with its key that is no image, such as a label."""
    for run in _runs(archive.entries):
        if _image_of(run) is not None and not all(map(_is_image, run)):
            return True
    return False


def _runs(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Neighbors with the same key; what has none stands alone."""
    run: list[Entry] = []
    for entry in entries:
        key = _split(entry.name)[0]
        if run and (not key or key != _split(run[0].name)[0] or entry.kind == "folder"):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _image_of(run: Sequence[Entry]) -> Entry | None:
    images = [entry for entry in run if _is_image(entry)]
    return min(images, key=lambda entry: "." in _split(entry.name)[1], default=None)


def _is_image(entry: Entry) -> bool:
    return entry.kind != "folder" and is_image_name(entry.name)


def _split(name: str) -> tuple[str, str]:
    """(key, extension); ("", "") of what belongs to no sample."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (f"{folder}{slash}{stem}", extension) if stem and dot else ("", "")
