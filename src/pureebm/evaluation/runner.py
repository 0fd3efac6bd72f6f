"""Run a suite: every goal, seed and defense of its scenarios becomes one card, one victim's measured fate.

Order: the clean victims of all seeds and defenses (the no-attack rows), then goal by goal all defenses, so that a run
cut short has compared like with like; where goals share a victim (`joint`), defense by defense. A card that exists is
never computed again; what is expensive on the way (purified images, poisons, surrogates, clean victims) is kept by
content in the `Store`. A killed run repeated goes on.
Knows no attack, network, recipe or defense by name. No test image is ever purified.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from pureebm.attacks.base import Goal, LabeledSet, Poisoned, TargetGoal, TriggerGoal
from pureebm.classifiers.base import Classifier
from pureebm.data.ranges import to_pm1
from pureebm.errors import DivergedError, InputError
from pureebm.evaluation.arrays import DataSet, save_arrays
from pureebm.evaluation.cards import provenance, read_card, write_card
from pureebm.evaluation.cost import Cost
from pureebm.evaluation.defenses import Defense, find_defense
from pureebm.evaluation.metrics import accuracy, mean_l2, psnr, triggered_rates
from pureebm.evaluation.scenarios import AimedAt, Scenario, Suite, digest, known_purifier
from pureebm.evaluation.store import set_hash
from pureebm.evaluation.victims import (
    Bench,
    check_scenario,
    clean_victim,
    poisons,
    regime,
    settled_precision,
    train_victim,
    victim_label,
)
from pureebm.purify.stages import Highest
from pureebm.training.classifier import predict
from pureebm.types import JSON

log = logging.getLogger(__name__)

N_SHOWN, N_ENERGIES = 4, 256


@dataclass(frozen=True, slots=True)
class Job:
    """One card. goal: None for the victim of the clean set."""

    scenario: Scenario
    goal: AimedAt | None
    seed: int
    defense: str

    @property
    def name(self) -> str:
        return f"{self.scenario.name}/{self.goal.name if self.goal else 'no-attack'}/seed{self.seed}/{self.defense}"


@dataclass(frozen=True, slots=True)
class _Trained:
    """A victim, its accuracy, the poisoned set as the defense left it, how far it moved, and what both cost."""

    purified: LabeledSet
    distortion: JSON
    victim: Classifier
    natural: float
    purifying: Cost
    training: Cost


@dataclass(slots=True)
class Outcome:
    """What a run did: names of jobs; `failed` with the reason of each."""

    made: list[str] = field(default_factory=list)
    existed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def jobs(suite: Suite, only: str | None = None) -> Iterator[Job]:
    """All jobs in their order; with `only`, the one of that name, or those whose name holds the pattern (* and ? as in
    a shell)."""
    every = list(_every_job(suite))
    named = [job for job in every if job.name == only]
    yield from named or (job for job in every if only is None or fnmatch.fnmatchcase(job.name, f"*{only}*"))


def _every_job(suite: Suite) -> Iterator[Job]:
    seen: set[tuple[str, int, str]] = set()
    for scenario in suite.scenarios:
        defenses, clean = suite.defenses_of(scenario), digest(scenario.victim_settings())
        every = [Job(scenario, None, seed, name) for name in defenses for seed in scenario.seeds]
        every = [job for job in every if (clean, job.seed, job.defense) not in seen]
        seen |= {(clean, job.seed, job.defense) for job in every}
        goals = scenario.goals()
        pairs = list(product(goals, defenses))
        if scenario.joint:
            pairs.sort(key=lambda pair: defenses.index(pair[1]))
        yield from every
        yield from (Job(scenario, goal, seed, name) for seed in scenario.seeds for goal, name in pairs)


class Runner:
    """Makes the cards of a suite in `out`/SUITE.

    Args:
        suite: what is run; `asked` is how the user named it, for the command in the cards.
        bench: data sets, kept things, device and precision of victims and purifiers.
    """

    def __init__(
        self,
        suite: Suite,
        *,
        bench: Bench,
        out: Path,
        asked: str | None = None,
    ) -> None:
        self.suite, self.bench, self.store, self.out = suite, bench, bench.store, out / suite.name
        self.asked, self.device = asked or suite.name, bench.device
        self._joint: tuple[tuple[str, int, str], _Trained] | None = None  # the last victim of several goals
        self._floors: dict[tuple[str, str, int], tuple[float | None, float | None]] = {}
        self._load = lru_cache(maxsize=2)(bench.shelf.load)
        self._defense = lru_cache(maxsize=None)(
            lambda name: find_defense(name, device=bench.device, precision=bench.precision)
        )

    def run(self, *, only: str | None = None, max_minutes: float | None = None) -> Outcome:
        """Make every card that is missing. A job that cannot be run is reported, and the others go on.

        Raises:
            InputError: no job has a name like `only`, or a scenario of one names an attack, a setting, a network or a
                recipe that there is not.
        """
        end = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        outcome, todo = Outcome(), list(jobs(self.suite, only))
        if not todo:
            known = ", ".join(scenario.name for scenario in self.suite.scenarios)
            raise InputError(f"no job of suite {self.suite.name!r} is like {only!r}; its scenarios are: {known}")
        for scenario in {job.scenario.name: job.scenario for job in todo}.values():
            check_scenario(scenario)
        for number, job in enumerate(todo, start=1):
            if end is not None and time.monotonic() >= end:
                outcome.left = [rest.name for rest in todo[number - 1 :] if not self._is_done(rest)]
                break
            try:
                made = self._make(job, f"{number}/{len(todo)}")
            except (InputError, DivergedError) as error:
                outcome.failed[job.name] = str(error)
                log.warning("%s: %s", job.name, error)
            else:
                (outcome.made if made else outcome.existed).append(job.name)
        return outcome

    def path(self, job: Job) -> Path:
        """Where the card of a job stands, the same for equal settings. Raises `InputError` as `find_defense`."""
        folder = job.scenario.key() if job.goal else clean_key(job.scenario)
        defense = self._defense(job.defense)
        name = f"{_slug(defense.name)}-{identity(defense)}"
        return self.out / folder / name / f"{job.goal.name if job.goal else 'no-attack'}-seed{job.seed}.json"

    def _is_done(self, job: Job) -> bool:
        try:
            return self.path(job).is_file()
        except InputError:
            return False

    def _make(self, job: Job, place: str) -> bool:
        path = self.path(job)
        if path.is_file():
            self._check_precision(path)
            return False
        if (known := self._known(path)) is not None:
            own = {"suite": self.suite.name, "scenario": job.scenario.name, "command": self._command(job)}
            write_card(path, known | own | {"taken_from": known["suite"]})
            return True
        log.info("%s %s", place, job.name)
        begin = time.perf_counter()
        card = self.measure(job)
        write_card(path, card | {"wall_seconds": round(time.perf_counter() - begin, 1)})
        return True

    def _known(self, path: Path) -> JSON | None:
        """The card of the very same job in another suite of this folder."""
        for twin in sorted(self.out.parent.glob(f"*/{path.relative_to(self.out)}")):
            card = read_card(twin)
            if self.bench.precision in ("auto", card.get("precision")):
                return card
        return None

    def _check_precision(self, path: Path) -> None:
        """A card stands for every precision; one that is asked for by name must be its own."""
        if self.bench.precision != "auto" and (known := read_card(path).get("precision")) != self.bench.precision:
            raise InputError(f"its card was made in {known}; give another --out for cards in {self.bench.precision}")

    def measure(self, job: Job) -> JSON:
        """Poison, purify, train, test: the card of a job."""
        scenario, goal, defense = job.scenario, job.goal, self._defense(job.defense)
        data = self._load(scenario.data)
        attack = None if goal is None else poisons(scenario, goal, data, bench=self.bench)
        if attack is not None and scenario.joint:
            key = scenario.key(), job.seed, identity(defense)
            if self._joint is None or self._joint[0] != key:
                every = [poisons(scenario, one, data, bench=self.bench) for one in scenario.goals()]
                self._joint = key, self._train(job, defense, data, joined(every))
            trained = self._joint[1]
        else:
            trained = self._train(job, defense, data, attack)
        train, victim = trained.purified, trained.victim
        card = self._head(job, defense, data, attack) | trained.distortion
        card |= {"natural_accuracy": trained.natural, **self._rates(job, victim, data, attack)}
        if attack is not None and job.goal == scenario.goals()[0] and job.seed == scenario.seeds[0]:
            self._exhibit(job, defense, data.train.images[attack.rows], attack.images, train.images[attack.rows])
        costs = (("defence", trained.purifying), ("train", trained.training))
        for kind, cost in costs:
            card |= {f"{kind}_seconds": round(cost.seconds, 2), f"{kind}_peak_mb": round(cost.peak_mb, 1)}
        return card

    def _train(self, job: Job, defense: Defense, data: DataSet, attack: Poisoned | None) -> _Trained:
        given = data.train if attack is None else attack.apply(data.train)
        purified, purifying = self._purify(defense, data, attack)
        victim, training = self._victim(job, defense, purified)
        natural = accuracy(predict(victim, data.test.images, device=self.device), data.test.labels)
        return _Trained(purified, _distortion(given.images, purified.images), victim, natural, purifying, training)

    def _purify(self, defense: Defense, data: DataSet, attack: Poisoned | None) -> tuple[LabeledSet, Cost]:
        """The training set; only the images of highest energy are new where that is the defense.

        All are purified for that, since base sets are shared by attacks: the seconds told are those of the share.
        """
        purified, cost = self._purify_all(defense, data, attack)
        if not isinstance(defense.stage, Highest):
            return purified, cost
        given = data.train if attack is None else attack.apply(data.train)
        images, ranking = self.store.highest(defense.stage, given.images, purified.images)
        seconds = defense.stage.share * cost.seconds + ranking.seconds
        return replace(purified, images=images), Cost(seconds, max(cost.peak_mb, ranking.peak_mb))

    def _purify_all(self, defense: Defense, data: DataSet, attack: Poisoned | None) -> tuple[LabeledSet, Cost]:
        """The base set, purified once for all attacks, and the purified poisons in place of their originals.

        An image has one id, so one noise, in both.
        """
        if attack is None:
            images, cost = self.store.purified(defense, data.train.images, data.ids)
            return LabeledSet(images, data.train.labels, data.train.n_classes), cost
        cost = Cost()
        poisons, more = self.store.purified(defense, attack.images, [data.ids[row] for row in attack.rows.tolist()])
        images = data.train.images
        if len(attack.rows) < len(data.train):
            images, cost = self.store.purified(defense, images, data.ids)
        images, labels = images.clone(), data.train.labels.clone()
        images[attack.rows], labels[attack.rows] = poisons, attack.labels
        whole = Cost(cost.seconds + more.seconds, max(cost.peak_mb, more.peak_mb))
        return LabeledSet(images, labels, data.train.n_classes), whole

    def _victim(self, job: Job, defense: Defense, train: LabeledSet) -> tuple[Classifier, Cost]:
        if job.goal is None and defense.stage is None and defense.training is None:
            return clean_victim(job.scenario, train, seed=job.seed, bench=self.bench)
        return train_victim(job.scenario, train, seed=job.seed, bench=self.bench, defense=defense)

    def _rates(self, job: Job, victim: Classifier, data: DataSet, attack: Poisoned | None) -> JSON:
        """Success and what is still read right, of this victim and of the one of the clean, undefended set."""
        keys = ("poison_success", "still_true", "clean_floor", "clean_still_true")
        if attack is None or job.goal is None:
            return dict.fromkeys(keys)
        own = goal_rates(victim, attack.goal, data.test, seed=job.goal.seed, device=self.device)
        if own == (None, None):
            return dict.fromkeys(keys)
        place = job.scenario.key(), job.goal.name, job.seed
        if place not in self._floors:
            clean, _ = clean_victim(job.scenario, data.train, seed=job.seed, bench=self.bench)
            self._floors[place] = goal_rates(clean, attack.goal, data.test, seed=job.goal.seed, device=self.device)
        return dict(zip(keys, (*own, *self._floors[place]), strict=True))

    def _head(self, job: Job, defense: Defense, data: DataSet, attack: Poisoned | None) -> JSON:
        scenario, goal = job.scenario, job.goal
        config = attack.record.get("config", {}) if attack else {}
        return {
            "suite": self.suite.name,
            "scenario": scenario.name,
            "key": scenario.key() if goal else clean_key(scenario),
            "clean_key": clean_key(scenario),
            "attack": scenario.attack if goal else "none",
            "eps": config.get("eps"),
            "budget": len(attack.rows) / len(data.train) if attack else 0.0,
            "data": scenario.data,
            "victim": victim_label(scenario),
            "regime": regime(scenario),
            "kind": _kind(attack.goal) if attack else "none",
            "defence": defense.name,
            "defence_hash": identity(defense),
            "settings": defense.settings(),
            "protocol": scenario.settings() if goal else scenario.victim_settings(),
            "goal": goal.name if goal else "no-attack",
            "target_class": attack.goal.target_class if attack and isinstance(attack.goal, TriggerGoal) else None,
            "seed": job.seed,
            "attack_seed": goal.seed if goal else None,
            "attack_record": attack.record if attack else None,
            "through_model": known_purifier(scenario.through) if goal and scenario.through else None,
            "n_train": len(data.train),
            "n_poisons": len(attack.rows) if attack else 0,
            "sharing": len(scenario.goals()) if attack and scenario.joint else 1,
            "hashes": {"clean_set": set_hash(data.train), "poisons": _sha256(attack.images) if attack else None},
            "quoted": False,
            "command": self._command(job),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self.device,
            "precision": settled_precision(self.bench),
            **provenance(),
        }

    def _command(self, job: Job) -> str:
        """What makes the card again."""
        words = ["pureebm", "bench", "run", "--suite", self.asked, "--defence", job.defense, "--only", job.name]
        words += [] if self.bench.precision == "auto" else ["--precision", self.bench.precision]
        return shlex.join(words)

    def _exhibit(self, job: Job, defense: Defense, clean: Tensor, poisoned: Tensor, purified: Tensor) -> None:
        """Keep what the report shows of a defense: a few poisons before and after, and energies where it has them."""
        shown = {"clean": clean[:N_SHOWN], "poisoned": poisoned[:N_SHOWN], "purified": purified[:N_SHOWN]}
        for name, images in (("clean", clean), ("poisoned", poisoned), ("purified", purified)):
            values = _energies(defense, images[:N_ENERGIES])
            if values is not None:
                shown[f"energy/{name}"] = values
        save_arrays(exhibit_path(self.store.folder, job.scenario.key(), identity(defense)), **shown)


def joined(attacks: Sequence[Poisoned]) -> Poisoned:
    """The poisons of several goals in one set; goal and record are the first one's. Raises `InputError` if two goals
    poison the same image."""
    rows, order = torch.cat([attack.rows for attack in attacks]).sort()
    if (rows[1:] == rows[:-1]).any():
        raise InputError("joint: two goals poison the same image; leave out joint, or give them other classes")
    images, labels = torch.cat([one.images for one in attacks]), torch.cat([one.labels for one in attacks])
    return replace(attacks[0], rows=rows, images=images[order], labels=labels[order])


def exhibit_path(cache: Path, key: str, defense: str) -> Path:
    """Where the pictures of a scenario and defense stand, both by their hashed names."""
    return cache / "exhibits" / key / f"{defense}.npz"


def clean_key(scenario: Scenario) -> str:
    """The folder of the no-attack cards that belong to a scenario."""
    return f"no-attack-{digest(scenario.victim_settings())[:8]}"


def identity(defense: Defense) -> str:
    """A short hash of a defense's settings, without where and how exactly it computes, and without words."""
    return digest(_without(defense.settings(), ("device", "precision", "engine", "intended_use", "limits")))[:8]


def goal_rates(
    victim: Classifier, goal: Goal, test: LabeledSet, *, seed: int, device: str = "cpu"
) -> tuple[float | None, float | None]:
    """(poison success, share still read as true) of a goal; (None, None) where only accuracy counts."""
    if isinstance(goal, TargetGoal):
        predicted = predict(victim, goal.images, device=device)
        return accuracy(predicted, goal.intended_classes), accuracy(predicted, goal.true_classes)
    if isinstance(goal, TriggerGoal):
        predicted = predict(victim, goal.trigger.apply(test.images, seed=seed), device=device)
        wanted = goal.wanted(test.labels, test.n_classes)
        return triggered_rates(predicted, test.labels, wanted, goal.aims_at(test.labels))
    return None, None


def read_suite_cards(suite: Suite, out: Path) -> list[JSON]:
    """The suite's cards in `out`/SUITE: the no-attack ones first, then by scenario, each in its order of defenses.

    Cards of scenarios that the suite has no more, or of another suite of that name, are left out.
    """
    listed = list(dict.fromkeys(name for scenario in suite.scenarios for name in suite.defenses_of(scenario)))
    folders = {scenario.key(): place for place, scenario in enumerate(suite.scenarios)}
    keys = {*folders, *map(clean_key, suite.scenarios)}
    every = (read_card(path) for path in sorted((out / suite.name).rglob("*.json")))
    cards = [card for card in every if card.get("key") in keys]

    def place(card: JSON) -> tuple[int, int, str]:
        name = card["defence"]
        return (
            -1 if card["attack"] == "none" else folders.get(card["key"], len(folders)),
            listed.index(name) if name in listed else len(listed),
            card["goal"],
        )

    return sorted(cards, key=place)


def _kind(goal: Goal) -> str:
    return {TriggerGoal: "trigger", TargetGoal: "targets"}.get(type(goal), "availability")


def _distortion(given: Tensor, train: Tensor) -> JSON:
    """What the defense did to the pictures: mean l2 in [0, 1] units, PSNR in dB of those that it changed."""
    changed = (given != train).flatten(1).any(dim=1)
    return {
        "l2": mean_l2(train, given),
        "psnr": psnr(train[changed], given[changed]) if changed.any() else None,
        "changed_share": changed.double().mean().item(),
    }


def _energies(defense: Defense, images: Tensor) -> Tensor | None:
    if defense.stage is None:
        return None
    return defense.stage.energies(to_pm1(images).permute(0, 3, 1, 2).contiguous())


def _without(value: JSON, names: Sequence[str]) -> JSON:
    def walk(part: object) -> object:
        if isinstance(part, dict):
            return {key: walk(inner) for key, inner in part.items() if key not in names}
        return [walk(inner) for inner in part] if isinstance(part, list | tuple) else part

    return {key: walk(inner) for key, inner in value.items() if key not in names}


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name)[:60]


__all__ = ["Job", "Outcome", "Runner", "clean_key", "exhibit_path", "goal_rates", "jobs", "read_suite_cards"]
