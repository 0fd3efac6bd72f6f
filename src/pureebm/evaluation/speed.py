"""Speed side by side: the authors' loop restated, the exact engine, the bundled model, a student.

Everything is measured in one run, in turns, so that ratios hold on a machine that does other things; a rate is that
of the median turn. The chains of the paper's network are measured over a few updates and scaled to its 150: an update
costs the same wherever it stands. The network has the paper's width and random weights of a fixed seed, which cost
what trained ones do.

The peak is the faster of a matrix product and a convolution of ordinary shape, measured in the same turns.
"""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pureebm.energy.engine import make_score
from pureebm.energy.networks import SNGANEnergy
from pureebm.energy.weights import DEFAULT_MODEL, STUDENT, load_model
from pureebm.evaluation.cards import provenance, write_card
from pureebm.evaluation.neighbors import neighbors
from pureebm.purify.stages import LangevinStage, has_fast_bfloat16
from pureebm.purify.student import model_stage
from pureebm.sampling.langevin import (
    PAPER_N_STEPS,
    PAPER_STEP_SIZE,
    PAPER_TEMPERATURE,
    LangevinConfig,
    langevin,
)
from pureebm.sampling.noise import CounterNoise
from pureebm.types import JSON, Energy, Stage

PRECISIONS = ("float32", "bfloat16")
TITLES = {
    "plain_loop": "paper's network, authors' loop restated",
    "exact_float32": "paper's network, exact engine, float32",
    "exact_bfloat16": "paper's network, exact engine, bfloat16",
    "default": "bundled model",
    "student": "one-pass student",
    "torchebm": "paper's network, torchebm's sampler",
    "diffusers": "DDPM of the paper's size, diffusers",
    "jpeg-75": "JPEG",
}
"""What people call the contestants. Chains of the paper's network are of 150 updates, the DDPM of 75 steps, both scaled
from fewer."""

PEAK_SIDE = 1024  # of the matrices
PEAK_REPEATS = 4  # so that it lasts as long as what it is compared to, and other work on the machine hits both alike
PEAK_CONVOLUTION = (32, 128, 16, 16)  # images, channels, height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConfig:
    """What is measured, and for how long."""

    width: Annotated[int, "channels of the paper's network"] = 128
    batch: Annotated[int, "images of 32x32 in a batch"] = 64
    steps: Annotated[int, "updates of a measured chain"] = 3
    rounds: Annotated[int, "turns of each contestant"] = 7
    seconds: Annotated[float, "no new turn after so long, once there were two"] = 300.0


QUICK = SpeedConfig(batch=32, steps=1, rounds=4, seconds=12.0)


def plain_loop(energy: Energy, images: Tensor, n_steps: int) -> Tensor:
    """The authors' loop, restated: eager float32, autograd through a fresh graph at every update."""
    x = images.clone().detach().requires_grad_(True)
    for _ in range(n_steps):
        values = energy(x) / PAPER_TEMPERATURE
        gradient = torch.autograd.grad(values.sum(), [x])[0]
        x.data += -0.5 * PAPER_STEP_SIZE**2 * gradient + PAPER_STEP_SIZE * torch.randn_like(x)
    return x.detach()


def measure(
    config: SpeedConfig,
    *,
    model: str = DEFAULT_MODEL,
    student: Stage | None = None,
    others: bool = False,
    device: str = "cpu",
    on_round: Callable[[int], None] | None = None,
) -> JSON:
    """Images per second of each contestant, and the share of the machine's peak that the exact engine reaches.

    Returns:
        "plain_loop", "exact_float32", "exact_bfloat16" (the paper's network, 150 updates), "default" (the bundled
        model with its own sampler), "student" (None where none is given): images per second; with `others`, under
        "neighbors" those of `neighbors` that are installed. "ratios" to the plain loop. "peak_share": of the exact
        engine in the precision that `auto` chooses here; "peak_shares" and "peak_gflops" of both. "score_share": how
        much of a batch's time with the bundled model its score takes.
    """
    place = torch.device(device)
    torch.manual_seed(0)
    network = SNGANEnergy(config.width).eval().requires_grad_(False).to(place)
    images = torch.rand(config.batch, 3, 32, 32, device=place) * 2 - 1
    ids = [str(index) for index in range(config.batch)]
    stage = _bundled(model, place, images)
    work: dict[str, Callable[[], object]] = {"plain_loop": lambda: plain_loop(network, images, config.steps)}
    for precision in PRECISIONS:
        work[f"exact_{precision}"] = _chain(network, precision, images, ids, config.steps)
        work |= {f"{kind}_{precision}": do for kind, do in _peak_work(getattr(torch, precision), place).items()}
    work["default"] = lambda: stage.purify_batch(images, ids, seed=0)
    work["score"] = lambda: stage.score(images)
    if student is not None:
        work["student"] = lambda: student.purify_batch(images, ids, seed=0)
    beside = neighbors(network, images, steps=config.steps, n_steps=PAPER_N_STEPS) if others else {}
    work |= {name: neighbor.do for name, neighbor in beside.items()}
    seconds, rounds = in_turns(work, config, place, on_round)
    result = _rates(seconds, config, exact_flops(network))
    result["neighbors"] = {name: neighbor.images / seconds[name] for name, neighbor in beside.items()}
    result["ratios"] |= {name: rate / result["plain_loop"] for name, rate in result["neighbors"].items()}
    automatic = "bfloat16" if has_fast_bfloat16(place) else "float32"
    return {
        **result,
        "peak_share": result["peak_shares"][automatic],
        "peak_precision": automatic,
        "score_share": min(
            1.0, (stage.config.n_steps + bool(stage.config.adapt_above)) * seconds["score"] / seconds["default"]
        ),
        "device": place.type,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "protocol": asdict(config) | {"n_steps": PAPER_N_STEPS, "scaled_from_steps": config.steps},
        "default_settings": stage.settings(),
    }


def bundled_student(device: str = "cpu") -> Stage:
    """One pass of the bundled student."""
    return model_stage(load_model(STUDENT, device), device=device)


def _bundled(model: str, device: torch.device, images: Tensor) -> LangevinStage:
    loaded = load_model(model, device)
    config = LangevinConfig(**loaded.card.get("sampler", {}))
    stage = LangevinStage(loaded.energy, config, device=device, model=loaded.describe())
    stage.prepare(images)
    return stage


def in_turns(
    work: Mapping[str, Callable[[], object]],
    config: SpeedConfig,
    device: torch.device,
    on_round: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], int]:
    """Median seconds of each piece of work, and how many turns: each is done once unmeasured, then all take turns."""
    for do in work.values():
        do()
    taken: dict[str, list[float]] = {name: [] for name in work}
    began = time.perf_counter()
    for number in range(config.rounds):
        if number >= 2 and time.perf_counter() - began > config.seconds:
            break
        for name, do in work.items():
            taken[name].append(_seconds(do, device))
        if on_round is not None:
            on_round(number + 1)
    return {name: statistics.median(values) for name, values in taken.items()}, len(taken["plain_loop"])


def _seconds(do: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _chain(network: SNGANEnergy, precision: str, images: Tensor, ids: list[str], steps: int) -> Callable[[], Tensor]:
    x, score = images.to(memory_format=torch.channels_last), make_score(network, precision)
    noise, config = CounterNoise(0, ids, device=images.device), LangevinConfig(n_steps=steps)
    return lambda: langevin(network, x, config, noise=noise, score=score)


def _peak_work(dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Matrix products, and convolutions of the kind that a processor does best."""
    left, right = (torch.rand(PEAK_SIDE, PEAK_SIDE, device=device).to(dtype) for _ in range(2))
    shapes = PEAK_CONVOLUTION, (PEAK_CONVOLUTION[1], PEAK_CONVOLUTION[1], 3, 3)
    maps, weight = (torch.rand(shape, device=device).to(dtype, memory_format=torch.channels_last) for shape in shapes)

    def repeated(do: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: [do() for _ in range(PEAK_REPEATS)][-1]

    return {
        "product": repeated(lambda: left @ right),
        "convolution": repeated(lambda: F.conv2d(maps, weight, padding=1)),
    }


def _peak_flops() -> dict[str, float]:
    n, channels, height, width = PEAK_CONVOLUTION
    once = {"product": 2.0 * PEAK_SIDE**3, "convolution": 2.0 * 9 * n * channels**2 * height * width}
    return {kind: PEAK_REPEATS * count for kind, count in once.items()}


def exact_flops(network: SNGANEnergy) -> float:
    """Floating point operations of one gradient of one 32x32 image by the exact engine, as torch counts them."""
    score = make_score(network)
    with FlopCounterMode(display=False) as counted:
        score(torch.zeros(1, 3, 32, 32, device=next(network.parameters()).device))
    return float(counted.get_total_flops())


def _rates(seconds: Mapping[str, float], config: SpeedConfig, flops: float) -> JSON:
    """Images per second from the seconds of a batch, and shares of the peak."""
    paper = config.batch * config.steps / PAPER_N_STEPS
    rates: JSON = {name: paper / seconds[name] for name in ("plain_loop", "exact_float32", "exact_bfloat16")}
    rates["default"] = config.batch / seconds["default"]
    rates["student"] = config.batch / seconds["student"] if "student" in seconds else None
    peaks = {
        precision: max(count / seconds[f"{kind}_{precision}"] for kind, count in _peak_flops().items())
        for precision in PRECISIONS
    }
    return {
        **rates,
        "ratios": {name: rate / rates["plain_loop"] for name, rate in rates.items() if rate is not None},
        "peak_shares": {p: rates[f"exact_{p}"] * PAPER_N_STEPS * flops / peaks[p] for p in PRECISIONS},
        "peak_gflops": {p: peaks[p] / 1e9 for p in PRECISIONS},
        "gflop_per_image_step": flops / 1e9,
    }


def write_speed_card(folder: Path, measured: JSON, *, command: str) -> Path:
    """The card of a measurement and its picture: one a processor and number of threads; a new one replaces it."""
    card = {**measured, **provenance(), "processor": processor(), "command": command}
    kind = "-".join(re.findall(r"[a-z0-9.]+", processor().lower()))
    path = folder / "speed" / f"{measured['device']}-{torch.get_num_threads()}-threads-{kind}.json"
    write_card(path, card)
    draw_speed(path.with_suffix(".png"), measured, title=f"{processor()}, {torch.get_num_threads()} threads")
    return path


def draw_speed(path: Path, measured: JSON, *, title: str) -> None:
    """Images per second of every contestant as bars on a logarithmic axis, the slowest at the top."""
    from matplotlib.figure import Figure

    rates = {name: measured[name] for name in TITLES if measured.get(name)} | measured["neighbors"]
    names = sorted(rates, key=lambda name: -rates[name])
    figure = Figure(figsize=(7.2, 0.8 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    ours = ("exact_float32", "exact_bfloat16", "default", "student")
    colors = ["#1f6f8b" if name in ours else "#b9c2ca" for name in names]
    values = [rates[name] for name in names]
    bars = axes.barh([TITLES.get(name, name) for name in names], values, color=colors)
    axes.bar_label(bars, [f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in values], padding=4, fontsize=9)
    axes.set(xscale="log", xlabel="images of 32 px a second", xlim=(None, 4 * max(rates.values())))
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
