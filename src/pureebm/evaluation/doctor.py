"""Is this machine fit for the work, and does every fast path give what the slow one gives?

Each check compares with something known: published test vectors, autograd, float32, a card's sha256, its own result in
another order. Knows no data set.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from PIL import features
from torch import nn

from pureebm.data.durable import sync_folder, write_file
from pureebm.data.open import open_source
from pureebm.data.ranges import stack
from pureebm.diffusion.weights import DEFAULT_DDPM, StoredDDPM, read_ddpm
from pureebm.energy.engine import CHECK_LIMIT, make_score, median_error
from pureebm.energy.networks import SNGANEnergy
from pureebm.energy.weights import DEFAULT_MODEL, MODELS, LoadedModel, load_model
from pureebm.evaluation.speed import processor
from pureebm.purify.stages import SELF_CHECK_LIMIT, LangevinStage, has_fast_bfloat16
from pureebm.purify.vq import DEFAULT_VQ, load_vq
from pureebm.sampling.langevin import LangevinConfig, energy_and_gradient
from pureebm.sampling.noise import philox4x32
from pureebm.types import JSON

PHILOX_VECTORS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
"""Counter, key, words of Philox4x32-10, as published with Random123."""

N_IMAGES = 8

Status = Literal["ok", "absent", "failed"]
Told = tuple[Status, str]


@dataclass(frozen=True, slots=True)
class Check:
    """ok; absent: something optional is not here; failed: results could be wrong, or work would fail."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    environment: JSON
    checks: list[Check]

    @property
    def exit_code(self) -> int:
        """1 if a check failed, else 0."""
        return int(any(check.status == "failed" for check in self.checks))

    def to_json(self) -> JSON:
        return {
            "healthy": self.exit_code == 0,
            "environment": self.environment,
            "checks": [asdict(check) for check in self.checks],
        }


def examine(*, device: str = "cpu", compiled: bool = False) -> Diagnosis:
    """Run all checks, seconds on one core; `compiled` adds the engine through torch.compile, about a minute."""
    place = torch.device(device)
    named: list[tuple[str, Callable[[], Told]]] = [(f"extra {name}", partial(_extra, name)) for name in extras()]
    named += [(f"format {name}", partial(_format, name)) for name in ("jpg", "zlib", "webp")]
    named += [(f"model {name}", partial(_model, load_model, name)) for name in MODELS]
    named += [(f"model {DEFAULT_DDPM}", partial(_model, read_ddpm, DEFAULT_DDPM))]
    named += [(f"model {DEFAULT_VQ}", partial(_model, load_vq, DEFAULT_VQ))]
    named += [("files", _files), ("noise", _noise), ("one image, one result", partial(_invariance, place))]
    images = _images(place)
    for name, energy in _networks(place):
        named.append((f"exact engine, {name}", partial(_exact, energy, images)))
        named.append((f"bfloat16, {name}", partial(_bfloat16, energy, images)))
        if compiled:
            named.append((f"compiled, {name}", partial(_exact, energy, images, compiled=True)))
    return Diagnosis(environment(place), [_checked(name, check) for name, check in named])


def environment(device: torch.device) -> JSON:
    """What the results of this machine depend on."""
    requirements = importlib.metadata.requires("pureebm") or []
    core = [_name_of(line) for line in requirements if "extra ==" not in line]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor_features": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_in_hardware": has_fast_bfloat16(device),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in ["pureebm", *core]},
    }


def extras() -> dict[str, list[str]]:
    """The optional parts of this package -> the packages that each needs."""
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("pureebm") or []:
        match = re.search(r"extra == ['\"]([\w.-]+)['\"]", line)
        if match and match[1] != "dev" and _name_of(line) != "pureebm":
            found.setdefault(match[1], []).append(_name_of(line))
    return found


def _name_of(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checked(name: str, check: Callable[[], Told]) -> Check:
    """A check that raises has failed."""
    try:
        return Check(name, *check())
    except Exception as error:
        return Check(name, "failed", f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")


def _extra(name: str) -> Told:
    lacking = [package for package in extras()[name] if _version(package) is None]
    if lacking:
        return "absent", f"without {', '.join(lacking)}: pip install 'pureebm[{name}]'"
    return "ok", ", ".join(f"{package} {_version(package)}" for package in extras()[name])


def _format(name: str) -> Told:
    version = features.version(name)
    return ("ok", f"{version}") if features.check(name) else ("absent", "this Pillow cannot read it")


def _files() -> Told:
    """Rename, flush and lock, as a job needs them, in the folder for temporary files."""
    with tempfile.TemporaryDirectory(prefix="pureebm-doctor-") as folder:
        path, began = Path(folder) / "file", time.perf_counter()
        write_file(path, lambda file: file.write(b"whole"))
        sync_folder(Path(folder))
        seconds = time.perf_counter() - began
        with open(path, "rb") as one, open(path, "rb") as other:
            fcntl.flock(one, fcntl.LOCK_EX)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return "failed", "a lock does not keep others out: two processes could work on one target"
            except BlockingIOError:
                pass
        whole = path.read_bytes() == b"whole"
    return ("ok" if whole else "failed"), f"written, flushed, renamed in {seconds * 1000:.1f} ms; locks hold"


def _model(load: Callable[[str], LoadedModel | StoredDDPM], name: str) -> Told:
    return "ok", f"sha256 {load(name).sha256}, as its card says"


def _noise() -> Told:
    for counter, key, expected in PHILOX_VECTORS:
        c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
        if tuple(int(word) for word in philox4x32((c0, c1, c2, c3), key)) != expected:
            return "failed", f"Philox4x32-10 of counter {counter} and key {key} is not as published"
    return "ok", f"{len(PHILOX_VECTORS)} published vectors of Philox4x32-10"


def _networks(device: torch.device) -> list[tuple[str, nn.Module]]:
    """The bundled network, and a narrow one of the paper's with random weights of a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        paper = SNGANEnergy(16).eval().requires_grad_(False).to(device)
    return [(DEFAULT_MODEL, load_model(DEFAULT_MODEL, device).energy), ("paper's network", paper)]


def _images(device: torch.device) -> torch.Tensor:
    """(8, 3, 32, 32) of the bundled real pictures in [-1, 1]."""
    sample = resources.files("pureebm") / "data" / "demo" / "cifar10-sample.npz"
    images = [loaded.picture.pixels for loaded in open_source(Path(str(sample))).load(0, N_IMAGES) if loaded.picture]
    return stack(images).to(device, memory_format=torch.channels_last)


def _exact(energy: nn.Module, images: torch.Tensor, *, compiled: bool = False) -> Told:
    score = make_score(energy, engine="exact", compiled=compiled)
    error = median_error(score(images)[1], energy_and_gradient(energy, images)[1])
    good = error <= CHECK_LIMIT["float32"]
    return ("ok" if good else "failed"), f"gradient within {error:.1e} of autograd's (at most {CHECK_LIMIT['float32']})"


def _bfloat16(energy: nn.Module, images: torch.Tensor) -> Told:
    """In bfloat16 the engine may be as far from float32 as twice what autograd is in bfloat16."""
    reference = energy_and_gradient(energy, images)[1]
    errors = [
        median_error(make_score(energy, "bfloat16", engine=engine)(images)[1], reference)
        for engine in ("exact", "eager")
    ]
    good = errors[0] <= max(CHECK_LIMIT["bfloat16"], 2 * errors[1])
    used = has_fast_bfloat16(images.device) and errors[0] <= SELF_CHECK_LIMIT
    return "ok" if good else "failed", (
        f"gradient within {errors[0]:.2g} of float32's (autograd: {errors[1]:.2g}); on such images "
        f"--precision auto computes in {'bfloat16' if used else 'float32'}"
    )


def _invariance(device: torch.device) -> Told:
    """The bundled model on eight images, in reverse order, and on one of them alone in a batch of eight."""
    loaded = load_model(DEFAULT_MODEL, device)
    stage = LangevinStage(loaded.energy, LangevinConfig(**loaded.card["sampler"]), device=device)
    images = _images(device)
    ids = [str(index) for index in range(N_IMAGES)]
    whole = stage.purify_batch(images, ids, seed=0)
    turned = stage.purify_batch(images.flip(0), ids[::-1], seed=0).flip(0)
    alone = stage.purify_batch(images[5:6].expand_as(images).contiguous(), ids[5:6] * N_IMAGES, seed=0)[:1]
    if not (torch.equal(whole, turned) and torch.equal(whole[5:6], alone)):
        return "failed", "an image's result depends on its place or its neighbors"
    return "ok", "the same bytes in another order, and alone"
