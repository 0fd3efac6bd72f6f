"""Hugging Face `datasets`: a function for `Dataset.map`, and a map that goes on where it was cut off.

    purify = PurifyColumn("local-32", column="img")
    clean = dataset.map(purify, batched=True, batch_size=64, with_indices=True)
    clean = purify_dataset(dataset, "cifar10-purified", purify)  # resumable

Files of Parquet need neither: `pureebm purify` takes them as they are. Extra: `pureebm[datasets]`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pureebm.data.durable import sync_tree, write_file
from pureebm.energy.weights import DEFAULT_MODEL, load_model
from pureebm.errors import InputError, MismatchError
from pureebm.purify.purifier import Purifier
from pureebm.sampling.langevin import LangevinConfig

try:
    from datasets import Dataset, concatenate_datasets, load_from_disk
    from datasets.fingerprint import Hasher
except ImportError as error:
    raise InputError("datasets is not installed: pip install 'pureebm[datasets]'") from error


class PurifyColumn:
    """Purifies a column of images; call it through `Dataset.map(..., batched=True, with_indices=True)`.

    Args:
        model: a bundled name, a `.safetensors` file, a model folder or `hf:owner/name`.
        column: of PIL images (the feature `Image`); None stays None.
        id_column: a column of unique names, on which the noise of an image depends; by default its index in the data
            set. With names, shuffling and selecting change nothing.
        config: the sampler; by default the model's own.
        seed: fixes every draw.

    It carries names, numbers and the hash of the weights; the model is loaded in each process when it is first needed.
    Its pickle, and with it the fingerprint of a map, therefore depends on what changes the result and on nothing else.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        column: str = "image",
        id_column: str | None = None,
        config: LangevinConfig | None = None,
        seed: int = 0,
        device: str = "cpu",
        precision: str = "auto",
    ) -> None:
        self.model, self.sha256 = str(model), load_model(model).sha256
        self.column, self.id_column, self.config, self.seed = column, id_column, config, seed
        self.device, self.precision = device, precision
        self._purifier: Purifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_purifier": None}

    def __call__(self, batch: dict[str, list[Any]], indices: Sequence[int], first: int = 0) -> dict[str, list[Any]]:
        """A batch of a map -> its purified column. `first` is the index of the first row in the whole data set."""
        for column in (self.column, self.id_column):
            if column is not None and column not in batch:
                raise InputError(f"there is no column {column!r}; the data set has {', '.join(map(repr, batch))}")
        names = batch[self.id_column] if self.id_column is not None else [first + index for index in indices]
        images = batch[self.column]
        present = [row for row, image in enumerate(images) if image is not None]
        purified = self._loaded()(
            [images[row] for row in present], seed=self.seed, ids=[str(names[r]) for r in present]
        )
        out = list(images)
        for row, image in zip(present, purified, strict=True):
            out[row] = image
        return {self.column: out}

    def _loaded(self) -> Purifier:
        if self._purifier is None:
            purifier = Purifier.from_pretrained(
                self.model, config=self.config, device=self.device, precision=self.precision
            )
            if purifier.stage.settings()["model"]["sha256"] != self.sha256:
                raise MismatchError(f"the weights of {self.model!r} have changed since this map was made")
            self._purifier = purifier
        return self._purifier


def purify_dataset(
    dataset: Dataset,
    folder: str | Path,
    purify: PurifyColumn,
    *,
    rows_per_part: int = 1024,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Map in parts, each kept on disk when it is done; repeated after whatever cut it off, it goes on where it was.

    Args:
        dataset: its other columns, features and order stay.
        folder: of the parts; they stay there, and the result reads them.
        purify: made once with the same settings.
        rows_per_part: what a cut costs at most.
        batch_size: images purified at once.
        progress: called after every part with the rows done and all rows.

    Raises:
        MismatchError: `folder` was begun with another data set or other settings.
    """
    folder = Path(folder)
    _begin(folder, {"dataset": dataset._fingerprint, "map": Hasher.hash(purify), "rows": [rows_per_part, batch_size]})
    parts = []
    for start in range(0, len(dataset), rows_per_part):
        stop = min(start + rows_per_part, len(dataset))
        part = folder / f"{start:09d}"
        if not part.exists():
            rows = dataset.select(range(start, stop))
            options = {"batched": True, "batch_size": batch_size, "with_indices": True, "load_from_cache_file": False}
            _save(rows.map(purify, features=rows.features, fn_kwargs={"first": start}, **options), part)
        parts.append(load_from_disk(str(part)))
        if progress is not None:
            progress(stop, len(dataset))
    return concatenate_datasets(parts) if parts else dataset


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Record what is to be done, or compare with it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    if path.exists():
        recorded = json.loads(path.read_text())
        if changed := [name for name in plan if recorded.get(name) != plan[name]]:
            raise MismatchError(f"{folder} was begun with another {', '.join(changed)}; name a new folder")
    else:
        write_file(path, lambda file: file.write(json.dumps(plan).encode()))


def _save(rows: Dataset, part: Path) -> None:
    """Whole or not at all."""
    aside = part.with_name(part.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    rows.save_to_disk(str(aside))
    sync_tree(aside)
    os.rename(aside, part)
