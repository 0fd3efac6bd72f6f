"""Purifiers as ONNX files, for programs without PyTorch. Extra: `pureebm[onnx]`.

    export_score(energy, "score.onnx")              images -> energy, gradient
    export_sampler(energy, config, "chain.onnx")    images, noise -> purified
    export_student(student, "student.onnx")         images, start, later, level -> purified

Images are (N, 3, H, W) float32 in [-1, 1]. The gradient is the exact engine's explicit graph: no runtime needs
autograd. The chain is one update inside a Loop, with one noise (N, 3, H, W) an update as an input; `CounterNoise` makes
those that `pureebm purify` draws. Batches are free, and so are sizes (in steps of the network's stride) but for one
with whitened coordinates, whose filter is made for one size.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pureebm.data.durable import write_file
from pureebm.energy.coordinates import Whitening
from pureebm.energy.engine import ExactScore, make_score
from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.energy.student import Student
from pureebm.energy.weights import LoadedModel
from pureebm.errors import InputError
from pureebm.sampling.langevin import LangevinConfig, adapted
from pureebm.types import JSON

EXAMPLE_SIDE = 32
Size = tuple[int, int]


class ScoreGraph(nn.Module):
    """(N, 3, H, W) -> (N,) energies and the (N, 3, H, W) gradient of their sum."""

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        score = make_score(energy, engine="exact")
        assert isinstance(score, ExactScore)
        self.graph, self.whitening = score.graph, score.whitening

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        values, gradient = self.graph(self.whitening.whiten(images) if self.whitening else images, True)
        return values, self.whitening.whiten(gradient) if self.whitening else gradient


class UpdateGraph(nn.Module):
    """One Langevin update: x, its noise z, three numbers, and (N, 1, 1, 1) how much stronger an image's noise is -> the
    next x and the same strengths. Those that are 0 are found here, as `langevin` finds them at the start. `fade` is
    their power in this update.
    """

    def __init__(self, energy: nn.Module, config: LangevinConfig) -> None:
        super().__init__()
        self.score, self.config = ScoreGraph(energy), config
        if config.adapt_above and not getattr(energy, "residual", False):
            raise InputError("adapt_above needs an energy that measures a residual, such as LocalEnergy(residual=True)")

    def forward(
        self, x: Tensor, z: Tensor, drift: Tensor, scale: Tensor, fade: Tensor, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        values, gradient = self.score(x)
        whitening, above = self.score.whitening, self.config.adapt_above
        fresh = torch.ones_like(level)
        if above:
            residual = (2 * values / (x.shape[1] * x.shape[2] * x.shape[3])).sqrt()
            fresh = adapted(residual, above, self.config.adapt_power, self.config.adapt_most)[:, None, None, None]
        level = torch.where(level > 0, level, fresh)
        if whitening:
            gradient, z = whitening.color(whitening.color(gradient)), whitening.color(z)
        return x - drift * gradient + scale * level.pow(fade) * z, level


def export_score(energy: nn.Module, path: Path, *, size: Size | None = None, about: JSON | None = None) -> None:
    """Write E and grad E.

    Args:
        energy: of a known architecture.
        path: replaced if it exists.
        size: height and width, fixed; None leaves them free where the network can.
        about: kept in the file's metadata.

    Raises:
        InputError: the extra is missing, or the network has no explicit graph.
    """
    size = _size(energy, size)
    graph = ScoreGraph(energy)
    _write(_exported(graph, {"images": 4}, ["energy", "gradient"], size, _multiple(energy)), path, about)


def export_sampler(
    energy: nn.Module, config: LangevinConfig, path: Path, *, size: Size | None = None, about: JSON | None = None
) -> None:
    """Write the whole chain; see `export_score`.

    The input `noise` is (steps, N, 3, H, W): what `CounterNoise` gives for the steps 1, 2, ..., or 0, 1, 2, ... where
    the sampler has an initial noise.
    """
    if config.n_steps < 1:
        raise InputError("a chain of 0 steps does nothing: there is nothing to export")
    size = _size(energy, size)
    inputs = {"x": 4, "z": 4, "drift": 0, "scale": 0, "fade": 0, "level": 2}
    update = _exported(UpdateGraph(energy, config), inputs, ["next", "next_level"], size, _multiple(energy))
    about = (about or {}) | {"noise_first_step": 0 if config.initial_noise else 1}
    _write(_looped(update, _schedule(config)), path, about)


def export_student(student: Student, path: Path, *, size: Size | None = None, about: JSON | None = None) -> None:
    """Write a one-pass student; see `export_score`. `start` and `later` are the noises of the steps 0 and 1."""
    size = _size(student, size)
    inputs = {"images": 4, "start": 4, "later": 4, "level": 1}
    _write(_exported(student.float(), inputs, ["purified"], size, student.multiple), path, about)


def export_model(
    model: LoadedModel,
    path: Path,
    *,
    config: LangevinConfig | None = None,
    what: str = "auto",
    size: Size | None = None,
) -> JSON:
    """Write a loaded model; return what the file says of it.

    Args:
        config: of the chain; None: the model's own sampler.
        what: "score" or "sampler" of an energy; "auto": the score, or the student.
    """
    if path.suffix != ".onnx":
        raise InputError(f"the file must be named .onnx, got {path}")
    about: JSON = model.describe() | {"range": "[-1, 1]"}
    if isinstance(model.network, Student):
        if what != "auto":
            raise InputError(f"{model.name!r} is a one-pass student: it has no {what}")
        export_student(model.network, path, size=size, about=about)
        return about | {"what": "student"}
    if what in ("auto", "score"):
        export_score(model.network, path, size=size, about=about)
        return about | {"what": "score"}
    if what != "sampler":
        raise InputError(f"what must be auto, score or sampler, got {what!r}")
    config = config or LangevinConfig(**model.card.get("sampler", {}))
    about["steps"] = config.n_steps
    export_sampler(model.network, config, path, size=size, about=about)
    return about | {"what": "sampler"}


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise InputError("the ONNX exporter is not installed: pip install 'pureebm[onnx]'") from error
    return onnx


def _multiple(network: nn.Module) -> int:
    return 4 if isinstance(network, SNGANEnergy) else int(network.multiple)  # type: ignore[arg-type]


def _size(network: nn.Module, size: Size | None) -> Size | None:
    if not isinstance(network, SNGANEnergy | LocalEnergy | Student):
        raise InputError(f"only the networks of this package can be exported, got {type(network).__name__}")
    if size is not None and min(size) < 16:
        raise InputError(f"images must be at least 16 px high and wide, got {size[0]}x{size[1]}")
    whitening: Whitening | None = getattr(network, "whitening", None)
    return (EXAMPLE_SIDE, EXAMPLE_SIDE) if size is None and whitening else size


def _exported(
    network: nn.Module, inputs: dict[str, int], outputs: Sequence[str], size: Size | None, multiple: int
) -> Any:
    """An ONNX model of a network. `inputs`: name -> 4 for images, 1 for a number an image, 2 for (N, 1, 1, 1), 0."""
    onnx = _onnx()
    network.eval().requires_grad_(False)
    shape = (2, 3, *(size or (EXAMPLE_SIDE, EXAMPLE_SIDE)))
    examples = tuple(torch.ones((2, 1, 1, 1) if kind == 2 else shape[:kind]) for kind in inputs.values())
    network(*examples)  # fills the filters' cache with true numbers, before tensors are symbols
    batch = torch.export.Dim("batch")
    free: dict[int, Any] = {0: batch}
    if size is None:
        least = -(-16 // multiple)
        free |= {
            2: multiple * torch.export.Dim("rows", min=least),
            3: multiple * torch.export.Dim("columns", min=least),
        }
    shapes = tuple(
        {place: free[place] for place in free if place < (kind if kind != 2 else 1)} for kind in inputs.values()
    )
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            network,
            examples,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
        assert program is not None
        program.save(f"{folder}/model.onnx", external_data=False)
        return onnx.load(f"{folder}/model.onnx")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own words on torch's internals and on packages that are not there."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _schedule(config: LangevinConfig) -> dict[str, list[float]]:
    """The numbers of each pass of the loop; an initial noise is a pass without drift."""
    rates = [config.at(step) for step in range(config.n_steps)]
    drift = [step_size**2 / (2 * temperature) for step_size, temperature in rates]
    scale = [config.noise * step_size for step_size, _ in rates]
    schedule = {"drift": drift, "scale": scale, "fade": [config.fade(step) for step in range(config.n_steps)]}
    first = {"drift": 0.0, "scale": config.initial_noise, "fade": 1.0}
    return {name: [first[name], *rest] for name, rest in schedule.items()} if config.initial_noise else schedule


def _looped(update: Any, schedule: dict[str, list[float]]) -> Any:
    """The model of one update -> that of all of them: (images, noise) -> purified."""
    onnx = _onnx()
    helper, kinds, graph = onnx.helper, onnx.TensorProto, update.graph
    dimensions = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    picture = ("x", kinds.FLOAT, dimensions)
    body = helper.make_graph(
        [
            *(
                helper.make_node("Gather", [f"{name}_of_loop", "pass"], [made], axis=0)
                for name, made in {"noise": "z", **{name: name for name in schedule}}.items()
            ),
            *graph.node,
            helper.make_node("Identity", ["go_on"], ["go_on_too"]),
        ],
        "update",
        [
            helper.make_tensor_value_info("pass", kinds.INT64, []),
            helper.make_tensor_value_info("go_on", kinds.BOOL, []),
            helper.make_tensor_value_info(*picture),
            helper.make_tensor_value_info("level", kinds.FLOAT, [dimensions[0], 1, 1, 1]),
        ],
        [
            helper.make_tensor_value_info("go_on_too", kinds.BOOL, []),
            helper.make_tensor_value_info("next", *picture[1:]),
            helper.make_tensor_value_info("next_level", kinds.FLOAT, [dimensions[0], 1, 1, 1]),
        ],
    )
    count = len(schedule["drift"])
    whole = helper.make_graph(
        [
            helper.make_node("Identity", ["noise"], ["noise_of_loop"]),
            helper.make_node("Mul", ["images", "nothing"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros", "of_an_image"], ["no_level"], keepdims=1),
            helper.make_node("Loop", ["passes", "", "images", "no_level"], ["purified", "last_level"], body=body),
        ],
        "sampler",
        [
            helper.make_tensor_value_info("images", *picture[1:]),
            helper.make_tensor_value_info("noise", kinds.FLOAT, [count, *dimensions]),
        ],
        [helper.make_tensor_value_info("purified", *picture[1:])],
        [
            *graph.initializer,
            helper.make_tensor("passes", kinds.INT64, [], [count]),
            helper.make_tensor("nothing", kinds.FLOAT, [], [0.0]),
            helper.make_tensor("of_an_image", kinds.INT64, [3], [1, 2, 3]),
            *(helper.make_tensor(f"{name}_of_loop", kinds.FLOAT, [count], made) for name, made in schedule.items()),
        ],
    )
    return helper.make_model(whole, opset_imports=update.opset_import, ir_version=update.ir_version)


def _write(model: Any, path: Path, about: JSON | None) -> None:
    onnx = _onnx()
    model.producer_name = "pureebm"
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in (about or {}).items()})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(model.SerializeToString()))
