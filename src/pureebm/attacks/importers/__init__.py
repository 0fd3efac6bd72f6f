"""Poisons that other programs made, read without running anything of them. One file a family of formats.

Images come back as uint8 whatever they were stored in, with the training rows that they replace, what they are for, and
a record of the files. Pickles and PyTorch files go through `data.torch_files`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pureebm.attacks.base import LabeledSet
from pureebm.attacks.importers import backdoorbench, benchmark, bullseye, gradient_matching, narcissus, puregen
from pureebm.attacks.importers.imported import OTHERS, TRAIN, ImportedPoisons
from pureebm.errors import InputError

__all__ = ["FORMATS", "OTHERS", "TRAIN", "ImportedPoisons", "import_poisons", "import_sets", "options_of", "reader_of"]

FORMATS: Mapping[str, str] = {
    "benchmark": "a poison folder of the Poisoning Benchmark, or a folder of numbered ones",
    "benchmark-setups": "poison_setups/*.pickle of the Poisoning Benchmark: what to poison, and for which target",
    "gradient-matching": "an export of Gradient Matching: packed .pth, limited, full, numpy or benchmark",
    "bullseye-polytope": "poison_xxxxx.pth of Bullseye Polytope",
    "narcissus": "a trigger in a .npy file",
    "puregen": "anything in PureGen_Poisons, or poisons in PureGen_PurifiedData",
    "ntga": "x_train_.._ntga_...npy of NTGA",
    "backdoorbench": "attack_result.pt of BackdoorBench",
}

_READERS: Mapping[str, Callable[..., ImportedPoisons | list[ImportedPoisons]]] = {
    "benchmark": benchmark.read_folder,
    "benchmark-setups": benchmark.read_setups,
    "gradient-matching": gradient_matching.read_export,
    "bullseye-polytope": bullseye.read_poisons,
    "narcissus": narcissus.read_trigger,
    "puregen": puregen.read_any,
    "ntga": puregen.read_ntga,
    "backdoorbench": backdoorbench.read_result,
}


def import_poisons(format: str, path: Path, **options: Any) -> ImportedPoisons | list[ImportedPoisons]:
    """Read what another program made.

    Args:
        format: A name of `FORMATS`.
        path: The file or folder.
        options: Those of the format (`options_of`); None stands for not given.

    Raises:
        InputError: Unknown format or option, a path that is not there, or files that are not what the format says.
    """
    allowed = options_of(format)
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := given.keys() - allowed.keys():
        raise InputError(f"{format} takes no option {sorted(unknown)[0]!r}; it takes {', '.join(allowed)}")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return reader_of(format)(path, **given)


def import_sets(path: Path) -> dict[str, LabeledSet]:
    """Whole sets of images: `CIFAR10_TRAIN_Split.pth` of Bullseye Polytope, or a purified `<data key>.pt` of PureGen.

    Raises:
        InputError: It is neither.
    """
    return bullseye.read_sets(path) if "Split" in path.stem else {path.stem: puregen.read_set(path)}


def options_of(format: str) -> dict[str, str]:
    """The options of a format, each with what its reader's docstring says of it."""
    reader = reader_of(format)
    told, name = dict.fromkeys(inspect.signature(reader).parameters, ""), ""
    section = (inspect.getdoc(reader) or "").partition("Args:\n")[2].partition("\n\n")[0]
    for line in textwrap.dedent(section).splitlines():
        if not line.startswith(" "):
            name, _, line = line.partition(":")
        told[name] = f"{told[name]} {line.strip()}".strip()
    return {name: text for name, text in told.items() if name != "path"}


def reader_of(format: str) -> Callable[..., ImportedPoisons | list[ImportedPoisons]]:
    """The function that reads a format. Raises `InputError`, listing the formats, for an unknown one."""
    if format not in _READERS:
        near = get_close_matches(format, _READERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"unknown format {format!r}{hint} Known: {', '.join(FORMATS)}")
    return _READERS[format]
