"""Recognize what kind of data set a path is, by what it holds, and open it."""

from __future__ import annotations

from pathlib import Path

from pureebm.data.archives import ArchiveSource, TarArchive, is_tar, is_tar_name, is_zip
from pureebm.data.arrow import ArrowSource, is_saved_dataset
from pureebm.data.base import Source
from pureebm.data.cifar import CifarSource, is_cifar_file, is_cifar_folder
from pureebm.data.csv_list import CsvSource, is_list
from pureebm.data.folder import FolderSource, is_image_name, list_folder
from pureebm.data.npz import NpzSource, is_npz
from pureebm.data.parquet import ParquetSource, has_image_column, is_parquet, is_parquet_name
from pureebm.data.remote import as_url, fetch, fetch_from_hub, is_hub_name
from pureebm.data.webdataset import WebDatasetSource, holds_samples
from pureebm.errors import InputError

KNOWN = (
    "a folder of images, a .npz file, a CIFAR-10/100 folder or file (python or binary), Parquet files with images, a "
    "folder of `datasets.save_to_disk`, WebDataset tar files, a .zip or .tar(.gz) of images, a .csv or .tsv that names "
    "images, a URL of any of these (s3://, https://, ...), or hf:datasets/owner/name"
)


def open_source(path: Path) -> Source:
    """Open a data set for reading; no image is decoded. What is elsewhere is first copied here.

    Raises:
        InputError: There is nothing, nothing in it, or nothing of a known kind.
    """
    path = _fetched(path)
    try:
        if path.is_dir():
            return _open_folder(path)
        if path.is_file():
            return _open_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; check its permissions") from error
    raise InputError(f"there is no source at {path}; it can be {KNOWN}")


def _fetched(path: Path | str) -> Path:
    """A local path as it is."""
    url = as_url(path)
    if url is not None:
        return fetch(url)
    return fetch_from_hub(str(path)) if is_hub_name(path) else Path(path)


def _open_folder(path: Path) -> Source:
    if is_cifar_folder(path):
        return CifarSource(path)
    if is_saved_dataset(path):
        return ArrowSource(path)
    listing = list_folder(path)
    tables = [name for name in listing.others if is_parquet_name(name)]
    if tables and (not listing.images or has_image_column(path / tables[0])):
        return ParquetSource(path)
    if not listing.images and any(map(is_tar_name, listing.others)):
        return WebDatasetSource(path, listing)
    if not listing.images and not listing.others:
        raise InputError(f"the folder {path} is empty; a source can be {KNOWN}")
    return FolderSource(path, listing)


def _open_file(path: Path) -> Source:
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); a source can be {KNOWN}")
    if is_image_name(path.name):
        raise InputError(f"{path} is a single image; put it into a folder and name the folder")
    if is_parquet(path):
        return ParquetSource(path)
    if is_npz(path):
        return NpzSource(path)
    if is_zip(path):
        return ArchiveSource(path)
    if is_list(path):
        return CsvSource(path)
    if is_cifar_file(path):
        return CifarSource(path)
    if is_tar(path):
        archive = TarArchive(path)
        return WebDatasetSource(path) if holds_samples(archive) else ArchiveSource(path, archive)
    raise InputError(f"{path} is of no known kind; a source can be {KNOWN}")
