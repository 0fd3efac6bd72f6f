"""Narcissus: a clean-label backdoor with one universal trigger for a class.

The trigger rho of class y is the most inward-pointing feature of y that a surrogate knows:

    rho = argmin over |rho|_inf <= eps of  mean over x of  CE(surrogate(clip(x + rho)), y)

A victim that was trained on a few images of y carrying rho, labels untouched, then takes any image
with rho for y. The attacker has the training images of y and public out-of-distribution images (POOD).

Source: Zeng et al., arXiv 2204.05255; the setting of PureGen (eps = 8/255, 1 % of the training set,
the trigger as it is at test time: multiplier 1, where the original multiplies by 3), arXiv 2405.18627.
Value space: the trigger lives in [-1, 1] units, so eps = 8 is an amplitude of 16/255 there.
Differs: the surrogate is the attacker's small network of few epochs, trained once on the public images and shared
by the classes; the warm-up shows it class y as one more class beside public images (the original shows y alone,
under a label that collides with a public class); the trigger is fitted on images of y and on public images in equal
parts, by a few hundred projected Adam steps at a falling rate; the shift and flip of training come after the trigger
and move it along, as in the victim's training (the original moves the image under a trigger that stays). All of it
makes a stronger trigger for the same seconds. The poisons are the images of y that the surrogate recognizes least, so
that a short training needs the trigger to learn them (the original draws them at random: `hardest` False).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, TrainSurrogate, TriggerGoal, choose_rows, within
from pureebm.attacks.triggers import AddTrigger
from pureebm.classifiers.base import Classifier
from pureebm.data.augment import Augmentation
from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.errors import InputError

_SCORED = 500  # images that are scored at once
_PURIFIED = 100  # images that go through a purifier at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The budget and how long the attacker works."""

    eps: Annotated[int, "largest change of a pixel, in steps of 1/255 of the [0, 1] range"] = 8
    budget: Annotated[float, "share of the training set that carries the trigger"] = 0.01
    target_class: Annotated[int, "class whose images are poisoned, and what triggered images are to be read as"] = 0
    hardest: Annotated[bool, "poison the images of y that the surrogate recognizes least; else random ones"] = True
    multiplier: Annotated[float, "times the trigger at test time: 1 as PureGen, 3 as the original"] = 1.0
    surrogate_epochs: Annotated[int, "passes of the surrogate over the public images"] = 4
    warm_up_epochs: Annotated[int, "passes over images of y and as many public images"] = 2
    n_steps: Annotated[int, "updates of the trigger"] = 250
    step_size: Annotated[float, "Adam's first rate for the trigger, in [-1, 1] units; it falls to 0"] = 0.02
    batch_size: Annotated[int, "images an update of the trigger"] = 128

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 255:
            raise InputError(f"eps is in steps of 1/255 and must be 1 to 255, got {self.eps}")
        if not self.multiplier > 0:
            raise InputError(f"multiplier must be above 0, got {self.multiplier}")


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison images of the target class with the trigger made for it.

    Raises:
        InputError: the attacker has no public images, or the class too few images for the budget.
    """
    began = time.perf_counter()
    if attacker.public is None:
        raise InputError("narcissus needs public out-of-distribution images of the set's size; give them by --public")
    if attacker.public.images.shape[1:] != data.images.shape[1:]:
        sizes = f"{tuple(attacker.public.images.shape[1:3])} and {tuple(data.images.shape[1:3])}"
        raise InputError(f"the public images and the training set must be of one size, got {sizes}")
    target, device = data.check_class(config.target_class), attacker.device
    rows = choose_rows(data, target, config.budget, seed=seed)
    class_rows = data.rows_of(target)
    mine = data.images[class_rows]
    seen, public = mine, attacker.public
    if attacker.surrogate_through is not None:
        attacker.report(f"narcissus: {len(public) + len(mine)} images through the purifier")
        seen = _purified(mine, attacker.surrogate_through, device)
        others = _purified(public.images, attacker.surrogate_through, device)
        public = LabeledSet(others, public.labels, public.n_classes)
    attacker.report(f"narcissus: surrogate on {len(public)} public images")
    surrogate = train_surrogate(public, config, train=attacker.train, seed=seed)
    surrogate = warm_up(surrogate, seen, public, config, train=attacker.train, seed=seed)
    if config.hardest:
        rows = class_rows[hardness(surrogate, seen).argsort(descending=True, stable=True)[: len(rows)]].sort().values
    losses: list[float] = []
    pattern = make_trigger(
        surrogate, mine, attacker.public, config, seed=seed, device=device,
        through=attacker.through, on_step=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    poisons = within(AddTrigger(pattern).apply(data.images[rows]), data.images[rows], config.eps)
    record = {"attack": "narcissus", "config": asdict(config), "seed": seed, "trigger_space": "pm1"}
    record |= {"loss_first": losses[0], "loss_last": losses[-1], "seconds": time.perf_counter() - began}
    goal = TriggerGoal(target, AddTrigger(pattern, multiplier=config.multiplier))
    return Poisoned(rows, poisons, data.labels[rows], goal, record)


def train_surrogate(public: LabeledSet, config: Config, *, train: TrainSurrogate, seed: int) -> Classifier:
    """A classifier of public images with one more logit, the last, for the class to be attacked."""
    room = LabeledSet(public.images, public.labels, public.n_classes + 1)
    return train(room, seed=seed, epochs=config.surrogate_epochs)


def warm_up(
    surrogate: Classifier, target: Tensor, public: LabeledSet, config: Config, *, train: TrainSurrogate, seed: int
) -> Classifier:
    """A frozen copy of `train_surrogate`'s that has seen the target class under its last logit."""
    generator = torch.Generator().manual_seed(seed)
    last = surrogate.head.out_features - 1
    rows = torch.randperm(len(public), generator=generator)[: len(target)]
    images = torch.cat([target, public.images[rows]])
    classes = torch.cat([torch.full((len(target),), last), public.labels[rows]])
    draw = int(torch.randint(2**31, (), generator=generator))
    both = LabeledSet(images, classes, last + 1)
    return train(both, seed=draw, epochs=config.warm_up_epochs, start=surrogate, peak_rate=0.03)


@torch.no_grad()
def _purified(images: Tensor, through: Callable[[Tensor], Tensor], device: str) -> Tensor:
    """(N, H, W, 3) uint8 as they come out of a purifier."""
    done = []
    for batch in torch.split(images, _PURIFIED):
        out = through(to_pm1(batch.to(device)).permute(0, 3, 1, 2))
        done.append(to_uint8(out.cpu()).permute(0, 2, 3, 1))
    return torch.cat(done)


@torch.no_grad()
def hardness(surrogate: Classifier, images: Tensor) -> Tensor:
    """(N,): how little the warmed-up surrogate takes each of (N, H, W, 3) uint8 images for the target class."""
    device = surrogate.head.weight.device
    batches = [to_pm1(batch.to(device)).permute(0, 3, 1, 2) for batch in torch.split(images, _SCORED)]
    logits = torch.cat([surrogate(batch).cpu() for batch in batches])
    return F.cross_entropy(logits, torch.full((len(logits),), logits.shape[1] - 1), reduction="none")


def make_trigger(
    surrogate: Classifier,
    target_images: Tensor,
    public: LabeledSet,
    config: Config,
    *,
    seed: int,
    device: str = "cpu",
    through: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Tensor:
    """The trigger of the class that `target_images` show.

    Args:
        surrogate: as from `warm_up`; left unchanged.
        target_images: (N, H, W, 3) uint8, training images of the class, the attacker's own.
        public: what the surrogate was trained on.
        seed: of every draw.
        through: a purifier that the surrogate sees the images through, with gradients: a trigger made to survive it.

    Returns:
        (3, H, W) float32 in [-1, 1] units on the CPU, whole multiples of 2/255 and at most 2 * eps / 255 in size, so
        that the budget holds exactly for uint8 images.
    """
    generator = torch.Generator().manual_seed(seed)
    surrogate = surrogate.to(device)
    images = torch.cat([target_images, _draw(public.images, len(target_images), generator)])
    target = torch.full((config.batch_size,), surrogate.head.out_features - 1, device=device)
    height, width = images.shape[1:3]
    trigger, budget = torch.zeros(3, height, width, device=device, requires_grad=True), 2 * config.eps / 255
    optimizer = torch.optim.Adam([trigger], lr=config.step_size)
    for step in range(config.n_steps):
        batch = to_pm1(_draw(images, config.batch_size, generator).to(device))
        seen = (batch.permute(0, 3, 1, 2) + trigger).clamp(-1, 1)
        seen = seen if through is None else through(seen).clamp(-1, 1)
        moved = Augmentation().apply(seen.permute(0, 2, 3, 1) + 1, generator) - 1  # it pads with 0: black
        loss = F.cross_entropy(surrogate(moved.permute(0, 3, 1, 2)), target)
        trigger.grad = torch.autograd.grad(loss, trigger)[0]
        optimizer.param_groups[0]["lr"] = config.step_size * (1 - step / config.n_steps)
        optimizer.step()
        with torch.no_grad():
            trigger.clamp_(-budget, budget)
        on_step(step, loss.item())
    return ((trigger.detach() * 127.5).round() / 127.5).cpu()


def _draw(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return images[torch.randint(len(images), (n,), generator=generator)]
