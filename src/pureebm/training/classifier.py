"""Train a classifier on labeled uint8 images: its recipe, the loop, and where defenses act inside it.

The recipe is the victim's and the surrogate's alike. It names no defense and no attack: what it gets are images and
labels. Nothing here draws from the global random state, and a training can be stored and gone on with at any update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.classifiers.base import Classifier
from pureebm.classifiers.networks import replace_head
from pureebm.data.augment import PAD, Augmentation
from pureebm.data.ranges import to_pm1
from pureebm.errors import DivergedError, InputError
from pureebm.purify.stages import has_fast_bfloat16
from pureebm.training.workers import Workers
from pureebm.types import TrainingData, TrainingDefense

_FEATURE_BATCH = 500
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig:
    """How a classifier is trained. The defaults are a short run of SGD under a triangular rate."""

    epochs: Annotated[int, "passes over the training set"] = 8
    batch_size: Annotated[int, "images an update"] = 64
    keep_last: Annotated[bool, "use the last, short batch of a pass; else it is left out"] = False
    optimizer: Annotated[Literal["sgd", "adam"], "what makes the updates"] = "sgd"
    momentum: Annotated[float, "of SGD"] = 0.9
    nesterov: Annotated[bool, "Nesterov's form of the momentum"] = True
    schedule: Annotated[Literal["triangle", "steps"], "up and down linearly, or constant between milestones"] = (
        "triangle"
    )
    peak_rate: Annotated[float, "learning rate at the top"] = 0.1
    warm_up: Annotated[float, "triangle: share of all updates until the top"] = 0.2
    first_rate: Annotated[float, "triangle: the rate that it begins with, as a share of the top"] = 0.0
    milestones: Annotated[tuple[float, ...], "steps: when the rate falls, as shares of the epochs, rounded down"] = ()
    gamma: Annotated[float, "steps: factor of the rate at a milestone"] = 0.1
    weight_decay: Annotated[float, "l2 penalty on all weights"] = 5e-4
    bias_scaler: Annotated[float, "batch norm's own parameters: rate times this, penalty divided by it"] = 1.0
    label_smoothing: Annotated[float, "0 is plain cross-entropy"] = 0.0
    sum_loss: Annotated[bool, "sum the loss over a batch; else its mean"] = False
    pad: Annotated[int, "pixels by which an image is shifted at most"] = PAD
    reflect: Annotated[bool, "what is shifted in mirrors the image; else it is black"] = False
    flip: Annotated[bool, "mirror every other image, by chance"] = True
    cutout: Annotated[int, "side of a square that is covered; 0 for none"] = 0
    train: Annotated[Literal["all", "head"], "head: only the linear head learns, all before it is frozen"] = "all"
    fresh_head: Annotated[bool, "draw a new linear head first (transfer learning)"] = False
    batch_norm: Annotated[
        Literal["train", "frozen"], "frozen: batch norm keeps the statistics, scales and biases it came with"
    ] = "train"

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise InputError(f"epochs must be >= 0 and batch_size >= 1, got {self.epochs} and {self.batch_size}")
        if not 0 < self.warm_up < 1:
            raise InputError(f"warm_up must lie between 0 and 1, got {self.warm_up}")
        if not all(0 < share < 1 for share in self.milestones):
            raise InputError(f"milestones are shares of the epochs, between 0 and 1, got {list(self.milestones)}")
        if not self.bias_scaler > 0:
            raise InputError(f"bias_scaler must be above 0, got {self.bias_scaler}")
        allowed = {"optimizer": ("sgd", "adam"), "schedule": ("triangle", "steps")}
        allowed |= {"train": ("all", "head"), "batch_norm": ("train", "frozen")}
        for name, known in allowed.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(pad=self.pad, reflect=self.reflect, flip=self.flip, cutout=self.cutout)

    def milestone_epochs(self) -> list[int]:
        """After how many epochs the rate falls."""
        return [int(share * self.epochs) for share in self.milestones]

    def rate(self, update: int, n_updates: int) -> float:
        """Learning rate of update 0 .. n_updates-1."""
        if self.schedule == "steps":
            epoch = update * self.epochs // n_updates
            return self.peak_rate * self.gamma ** sum(epoch >= milestone for milestone in self.milestone_epochs())
        done = (update + 0.5) / n_updates
        up = self.first_rate + (1 - self.first_rate) * (done / self.warm_up)
        return self.peak_rate * min(up, (1 - done) / (1 - self.warm_up))


def train_classifier(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    *,
    seed: int,
    device: str = "cpu",
    precision: str = "float32",
    workers: Workers | None = None,
    defense: TrainingDefense | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train `network` in place and return it, in eval mode: the last epoch's weights, never the "best".

    Args:
        network: (N, 3, H, W) in [-1, 1] -> logits. Initialized by the caller.
        images: (N, H, W, 3) uint8.
        labels: (N,) int64.
        config: the recipe.
        seed: of order, crops, flips and a fresh head.
        precision: "float32", "bfloat16", or "auto": bfloat16 where the processor has it.
        workers: the processes that train together, and their device; they share each batch.
        defense: acts inside of the loop.
        on_epoch: called with the epoch (from 1) and its mean training loss.

    Raises:
        InputError: `images` are not uint8 NHWC, there are fewer than a batch, or labels differ in number.
        DivergedError: the loss is no longer finite.
    """
    training = ClassifierTraining(
        network, images, labels, config, seed=seed, workers=workers or Workers(device), precision=precision,
        defense=defense,
    )  # fmt: skip
    while training.epoch < config.epochs:
        loss = training.advance()
        if loss is not None and on_epoch:
            on_epoch(training.epoch, loss)
    return network.eval()


class ClassifierTraining:
    """A training between two updates: `advance` makes the next; `tensors` is all that the later ones depend on.

    A defense's own memory is not part of it: a training with a defense is not gone on with.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        config: ClassifierConfig,
        *,
        seed: int,
        workers: Workers,
        precision: str = "float32",
        defense: TrainingDefense | None = None,
    ) -> None:
        _check(images, labels, config, workers)
        self.network, self.config, self.workers, self.defense = network, config, workers, defense
        device = workers.device
        self.bfloat16 = settle_precision(precision, device) == "bfloat16"
        if config.fresh_head:
            replace_head(_classifier(network), _classifier(network).head.out_features, seed=seed)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator = torch.Generator().manual_seed(seed)
        self.augmentation = config.augmentation
        self.data = TrainingData(images.to(device), labels.to(device))
        self.optimizer, self.parameters = _optimizer(network, config)
        self.epoch, self.batch = 0, 0
        self.total: Tensor | float = 0.0  # loss of this epoch's updates
        self.order: Tensor | None = None  # of this epoch, None between two
        self.images = self.data.images
        self.features: Tensor | None = None  # of all images, where they never change
        if defense and config.epochs:
            self.data = defense.before_training(network.eval(), self.data)

    def advance(self) -> float | None:
        """One update. Returns the epoch's mean loss if it was its last one."""
        if self.order is None:
            self._begin_epoch()
        assert self.order is not None
        config, n_batches = self.config, _n_batches(len(self.order), self.config, self.workers)
        rows = self.order[self.batch * config.batch_size : (self.batch + 1) * config.batch_size]
        self._set_rate(config.rate(self.epoch * n_batches + self.batch, config.epochs * n_batches))
        self._update(rows)
        self.batch += 1
        return self._end_epoch(n_batches) if self.batch == n_batches else None

    def tensors(self) -> dict[str, Tensor]:
        """The state, by name: weights, optimizer, generator, and where in which epoch it stands."""
        found = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{index}/{name}": value for name, value in values.items() if value is not None}
        found["generator"] = self.generator.get_state()
        found["place"] = torch.tensor([self.epoch, self.batch], dtype=torch.int64)
        found["total"] = torch.tensor([float(self.total)], dtype=torch.float64)
        if self.order is not None:
            found["order"] = self.order
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave, in a training that was made with the same arguments."""
        prefix = "network/"
        self.network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.generator.set_state(tensors["generator"])
        self.epoch, self.batch = tensors["place"].tolist()
        self.total = float(tensors["total"])
        self.order = tensors["order"].to(self.workers.device) if "order" in tensors else None
        if self.order is not None:
            self._prepare()

    def _begin_epoch(self) -> None:
        rows, images = None, None
        if self.defense:
            chosen = self.defense.before_epoch(self.epoch, self.network.eval(), self.data)
            rows, images = chosen.rows, chosen.images
        changed = self.data.images if images is None else images.to(self.workers.device)
        if changed is not self.images:
            self.images, self.features = changed, None
        n = len(self.data.labels) if rows is None else len(rows)
        order = torch.randperm(n, generator=self.generator).to(self.workers.device)
        self.order = order if rows is None else rows.to(order.device)[order]
        if not _n_batches(n, self.config, self.workers):
            raise InputError(f"the defense kept {n} images, fewer than a batch of {self.config.batch_size}")
        self._prepare()

    def _prepare(self) -> None:
        """Modes of the layers; and the features, where they never change again."""
        config = self.config
        self.network.train(config.train == "all")
        if config.batch_norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, _NORMS):
                    module.eval()
        if config.train == "head" and self.augmentation.is_none and self.features is None:
            starts = range(0, len(self.images), _FEATURE_BATCH)
            batches = [self._frozen_features(self.images[start : start + _FEATURE_BATCH]) for start in starts]
            self.features = torch.cat(batches)

    def _end_epoch(self, n_batches: int) -> float:
        total = torch.as_tensor(self.total, dtype=torch.float64, device=self.workers.device).view(1)
        self.workers.average([total])
        self._share_statistics()
        self.epoch, self.batch, self.order, self.total = self.epoch + 1, 0, None, 0.0
        loss = float(total) / n_batches
        if not torch.isfinite(total):
            raise DivergedError(f"the training loss became {loss} in epoch {self.epoch}; lower peak_rate")
        return loss

    def _share_statistics(self) -> None:
        """Each process saw other images: their batch norms' statistics are averaged."""
        if self.workers.count > 1:
            floats = [value for value in self.network.buffers() if value.is_floating_point()]
            self.workers.average(floats)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def _update(self, rows: Tensor) -> None:
        config, workers = self.config, self.workers
        logits, labels = self._logits(rows)
        loss = F.cross_entropy(
            logits, labels, label_smoothing=config.label_smoothing, reduction="sum" if config.sum_loss else "mean"
        )
        if workers.count > 1:  # so that the mean over processes is the loss of the whole batch
            loss = loss * (workers.count if config.sum_loss else workers.count * len(labels) / len(rows))
        self.optimizer.zero_grad()
        loss.backward(inputs=self.parameters)  # type: ignore[no-untyped-call]
        workers.average([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        self.optimizer.step()
        self.total = self.total + loss.detach().double() / (len(rows) if config.sum_loss else 1)

    def _logits(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """This process's share of a batch: logits in float32, and labels."""
        mine = slice(self.workers.rank, None, self.workers.count)
        labels = self.data.labels[rows][mine]
        if self.features is not None:
            return _classifier(self.network).head(self.features[rows[mine]]), labels
        pixels = self.augmentation.apply(self.images[rows], self.generator)[mine]  # all draw what all draw
        if self.config.train == "head":
            return _classifier(self.network).head(self._frozen_features(pixels)), labels
        with self._autocast():
            logits: Tensor = self.network(to_pm1(pixels).permute(0, 3, 1, 2))
        return logits.float(), labels

    @torch.no_grad()
    def _frozen_features(self, pixels: Tensor) -> Tensor:
        with self._autocast():
            return _classifier(self.network).features(to_pm1(pixels).permute(0, 3, 1, 2)).float()

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.workers.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()


def settle_precision(precision: str, device: torch.device) -> str:
    """ "auto" -> "bfloat16" where the processor multiplies it in hardware, else "float32". Raises `InputError`."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    if precision == "auto":
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    return precision


def _optimizer(network: nn.Module, config: ClassifierConfig) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """The optimizer over what trains, and that: the rest neither moves nor is frozen for other users of the network."""
    norms = {id(p) for m in network.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    learning = _classifier(network).head if config.train == "head" else network
    parameters = [p for p in learning.parameters() if config.batch_norm == "train" or id(p) not in norms]
    for parameter in parameters:
        parameter.requires_grad_(True)
    groups: list[dict[str, object]] = [{"params": parameters, "scale": 1.0}]
    if config.bias_scaler != 1:
        decay = config.weight_decay / config.bias_scaler
        own = [p for p in parameters if id(p) in norms]
        groups = [{"params": [p for p in parameters if id(p) not in norms], "scale": 1.0}]
        groups.append({"params": own, "scale": config.bias_scaler, "weight_decay": decay})
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=config.weight_decay), parameters
    sgd = torch.optim.SGD(
        groups, lr=0.1, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
    )
    return sgd, parameters


def _classifier(network: nn.Module) -> Classifier:
    if not isinstance(network, Classifier):
        raise InputError(
            "train='head' and fresh_head need a network with features and a head (`Classifier`), got a "
            f"{type(network).__name__}"
        )
    return network


def _check(images: Tensor, labels: Tensor, config: ClassifierConfig, workers: Workers) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"images must be (N, H, W, 3) uint8, got {tuple(images.shape)} {images.dtype}")
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images, but {len(labels)} labels")
    if config.batch_size < workers.count:
        raise InputError(f"a batch of {config.batch_size} cannot be shared by {workers.count} processes")
    if not _n_batches(len(images), config, workers):
        raise InputError(f"{len(images)} images are fewer than one batch of {config.batch_size}; give more images")


def _n_batches(n_images: int, config: ClassifierConfig, workers: Workers) -> int:
    """Updates of an epoch. A last, short batch must give every process an image."""
    whole, rest = divmod(n_images, config.batch_size)
    return whole + (config.keep_last and rest >= workers.count)


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, *, batch_size: int = 500, device: str = "cpu") -> Tensor:
    """Predicted classes, int64 (N,) on the CPU, of (N, H, W, 3) uint8 images."""
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    classes = [network(to_pm1(batch.to(device)).permute(0, 3, 1, 2)).argmax(dim=1).cpu() for batch in batches]
    return torch.cat(classes) if classes else torch.empty(0, dtype=torch.int64)


def fit(network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, peak_rate: float, seed: int) -> None:
    """`train_classifier` as an attack calls it for its surrogate (`attacks.narcissus.Fit`)."""
    train_classifier(network, images, labels, ClassifierConfig(epochs=epochs, peak_rate=peak_rate), seed=seed)
