"""Run an attack of ours on a whole data set on disk: what it learns from, what it trains, what it changes.

Without a test set of its own, a tenth of the source, chosen by the seed, is held out: the attack takes its targets from
there and `verify` its test images. These images stay in the target as they were; a victim must not train on them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, check_numbers
from pureebm.attacks.registry import SEE_THROUGH, TRANSFER, WITH_EXTRACTORS, find_attack
from pureebm.attacks.targets import choose_goal
from pureebm.classifiers.networks import check_network_name
from pureebm.data.labels import read_labeled_source
from pureebm.data.open import open_source
from pureebm.data.relabel import check_relabels
from pureebm.energy.weights import load_model
from pureebm.errors import InputError
from pureebm.evaluation.poisoned_set import (
    DEFAULT_VICTIM,
    PoisonSettings,
    SourceSet,
    load_extractors,
    refuse_victim_of_transfer,
    write_poisoned,
)
from pureebm.evaluation.scenarios import AWARE
from pureebm.evaluation.store import Store
from pureebm.evaluation.surrogates import Surrogates
from pureebm.purify.through import Through, known
from pureebm.purify.workplace import check_places
from pureebm.training.recipes import find_recipe
from pureebm.types import JSON

HELD_OUT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSettings(PoisonSettings):
    """What an attack on a data set needs besides the attack's own Config."""

    limit: Annotated[int | None, "only the first N images; the target has no others"] = None
    public: Annotated[Path | None, "labeled images of other classes (Narcissus)"] = None
    surrogate: Annotated[str, "network that the attacker trains, a name of `classifiers.networks`"] = "small-resnet"
    surrogate_epochs: Annotated[int | None, "passes of its training, where the attack does not say"] = None
    cache: Annotated[Path | None, "folder that keeps trained surrogates"] = None
    through: Annotated[str | None, "energy or student that the attacker optimizes through (Narcissus)"] = None
    through_steps: Annotated[int | None, "updates of an energy's chain to go through; None: all"] = None
    through_in: Annotated[str, "generation of the trigger, surrogate (trained on what comes out), or both"] = (
        "generation"
    )
    through_noise: Annotated[str, "fresh at every step of the attacker, or fixed: the same at all"] = "fresh"
    through_gradient: Annotated[str, "exact, or straight: the attacker takes none, as if nothing were purified"] = (
        "exact"
    )


def run_attack(
    name: str,
    source: Path,
    target: Path,
    config: Any,
    settings: AttackSettings,
    *,
    report: Callable[[str], None] = lambda line: None,
    command: str = "",
) -> JSON:
    """Poison `source` into `target` and return the record that stands beside it.

    Args:
        name: a name of `attacks.registry.ATTACKS`.
        config: the `Config` of that attack.
        report: told of progress in words.
        command: what makes the same target again; recorded.

    Raises:
        InputError: source, target, means or config are refused; nothing was written.
    """
    began, entry = time.perf_counter(), find_attack(name)
    check_numbers(config)
    if settings.through is not None and name not in SEE_THROUGH:
        raise InputError(f"only {', '.join(SEE_THROUGH)} optimizes through a purifier; leave --through out for {name}")
    for field, values in AWARE.items():
        if getattr(settings, field) not in values:
            raise InputError(f"{field} is one of {', '.join(values)}, got {getattr(settings, field)!r}")
    if settings.through is None and _awareness(settings) != _awareness(AttackSettings()):
        raise InputError("--through-steps, -in, -noise, -gradient are of the purifier that --through names; give one")
    if settings.extractors and name not in WITH_EXTRACTORS:
        raise InputError(f"only {', '.join(WITH_EXTRACTORS)} use an extractor; leave --extractor out for {name}")
    if name in TRANSFER:
        refuse_victim_of_transfer(settings)
    for network in (settings.surrogate, settings.victim or DEFAULT_VICTIM):
        check_network_name(network)
    opened = open_source(source)
    if not entry.clean_label:
        check_relabels(opened)
    there = check_places(opened, target, overwrite=settings.overwrite)
    data = SourceSet.read(opened, test=settings.test, limit=settings.limit, eight_bit=True)
    if data.test is None:
        held_out, _ = hold_out(len(data.ids), seed=settings.seed)
        data = replace(data, held_out=held_out, test=data.part(held_out))
    train = data.part(data.rows)
    if entry.kind == "triggerless":
        _refuse_known_targets(train, data.test, config, seed=settings.seed)
    through, told = _through(settings)
    attacker = replace(
        _attacker(data, settings, report),
        through=through if settings.through_in != "surrogate" else None,
        surrogate_through=through if settings.through_in != "generation" else None,
    )
    report(f"{name}: {len(train):,} training images of {train.n_classes} classes")
    poisoned: Poisoned = entry.load().craft(train, config, attacker=attacker, seed=settings.seed)
    return write_poisoned(
        data,
        there,
        replace(poisoned, rows=data.rows[poisoned.rows]),
        {"attack": name, "config": dataclasses.asdict(config), "crafting": poisoned.record | told},
        settings,
        began=began,
        extractors=attacker.extractors if name in TRANSFER else (),
        recipe="fine-tune" if getattr(config, "layers", None) == "fine-tune" else None,
        report=report,
        command=command,
    )


def hold_out(n: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """A random tenth of 0 .. n-1, at least one, and the rest; both ascending. Raises `InputError` for n < 2."""
    if n < 2:
        raise InputError(f"{n} images are too few to hold any out; give more, or a test set of their own")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    count = max(1, round(HELD_OUT * n))
    return order[:count].sort().values, order[count:].sort().values


def _refuse_known_targets(train: LabeledSet, test: LabeledSet | None, config: Any, *, seed: int) -> None:
    """A victim that trains on a target, under its true label, learns what it shows. Raises `InputError`."""
    n_targets = getattr(config, "n_targets", 1)
    goal, rows = choose_goal(test, config.intended_class, config.target_index, seed=seed, n=n_targets)
    for row, image in zip(rows, goal.images, strict=True):
        if (train.images == image).flatten(1).all(dim=1).any():
            raise InputError(
                f"the target, image {row} of the test set, is a training image too; give a test set of other images, "
                "or another --target-index"
            )


def _through(settings: AttackSettings) -> tuple[Through | None, JSON]:
    """The purifier that is optimized through, and what the record says of it."""
    if settings.through is None:
        return None, {}
    model, aware = load_model(settings.through, settings.device), _awareness(settings)
    through = known(
        model,
        steps=settings.through_steps,
        seed=settings.seed,
        noise=settings.through_noise,
        gradient=settings.through_gradient,
    )
    return through, {"through": {"model": model.describe(), **aware}}


def _awareness(settings: AttackSettings) -> JSON:
    """How a known purifier is used."""
    names = ("steps", "in", "noise", "gradient")
    return {name: getattr(settings, f"through_{name}") for name in names}


def _attacker(data: SourceSet, settings: AttackSettings, report: Callable[[str], None]) -> Attacker:
    public, size = None, data.whole.images.shape[1]
    if settings.public is not None:
        images, labels, names, _ = read_labeled_source(settings.public, size=size)
        public = LabeledSet(images, labels, len(names) if names else int(labels.max()) + 1)
    store = None if settings.cache is None else Store(settings.cache)
    return Attacker(
        train=Surrogates(
            network=settings.surrogate,
            recipe=find_recipe("fast", epochs=settings.surrogate_epochs),
            device=settings.device,
            store=store,
            report=report,
        ),
        extractors=load_extractors(settings, size=size),
        public=public,
        test=data.test,
        device=settings.device,
        report=report,
    )
