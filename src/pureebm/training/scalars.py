"""The numbers of a training over time: JSON lines always, TensorBoard events where it is installed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from pureebm.types import JSON


class ScalarLog:
    """Appends to `scalars.jsonl` in a run's folder; one line a record, each with its "step".

    Args:
        folder: of the run. step: records after it are dropped (they belong to work that is done again).
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "scalars.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._board: Any = _tensorboard(folder / "tensorboard", step)
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Drop the records after `step`."""
        kept = [record for record in read_scalars(self.path) if record["step"] <= step]
        self.path.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")

    def write(self, step: int, values: JSON) -> None:
        """Append one record; nested values are for the file alone."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event files."""
        if self._board is not None:
            self._board.close()


def read_scalars(path: Path) -> list[JSON]:
    """The records of a log, oldest first; a line cut short by a crash is left out."""
    if not path.exists():
        return []
    records: list[JSON] = []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)
