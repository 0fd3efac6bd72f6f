"""Scenarios and suites: what is attacked, how, with what, and which defenses are tried; plain data, read from TOML.

A suite is a file of defaults, a list of defense names, and scenarios:

    title = "What two cores do in some hours"
    defenses = ["none", "jpeg-75", "pureebm"]

    [[scenario]]
    name = "narcissus-eps8"
    attack = "narcissus"
    config = { eps = 8 }
    budget = 0.01
    data = "cifar10-20000"
    victim = "small-resnet"
    recipe = "fast"
    classes = [0, 1, 2]
    seeds = [0]

Knows names only: whether an attack, a network, a recipe or a defense of that name exists is asked when it is run. One
thing is looked up: the purifier that an attacker knows, since a changed model makes another result.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pureebm.errors import InputError
from pureebm.types import JSON

BUNDLED = ("smoke", "cpu", "claims", "mid-run", "paper")
"""Suites of the package: `suites/NAME.toml`."""


AWARE: Mapping[str, tuple[str, ...]] = {
    "through_in": ("generation", "surrogate", "both"),
    "through_noise": ("fresh", "fixed"),
    "through_gradient": ("exact", "straight"),
}
"""Fields of a scenario with a defense-aware attacker, and their values, the default first."""

FIRST_PURIFIERS: Mapping[str, str] = {
    "residual-32": "2ec45896",
    "student": "c61ddf83",
}
"""Digests of the purifiers that attackers knew before keys held more than a name: with these a key is what it was."""


@dataclass(frozen=True, slots=True)
class AimedAt:
    """One goal of the attacker: changes of its config, and the seed of its draws."""

    name: str
    overrides: Mapping[str, int]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row of a result table. Everything here but name, goals, seeds and defenses enters `key`."""

    name: Annotated[str, "for people and for --only; changes no result"]
    attack: Annotated[str, "a name of `attacks.registry.ATTACKS`"]
    config: Annotated[Mapping[str, Any], "fields of the attack's Config that differ from its defaults"] = field(
        default_factory=dict
    )
    budget: Annotated[float, "share of the training set that the attacker may change"] = 0.01
    data: Annotated[str, "training and test set, as `arrays.Shelf.load` reads it"] = "cifar10"
    victim: Annotated[str, "a name of `classifiers.networks.NETWORKS`"] = "small-resnet"
    recipe: Annotated[str, "a name of `training.recipes.RECIPES`: from scratch, linear transfer or fine-tune"] = "fast"
    recipe_overrides: Annotated[Mapping[str, Any], "fields of the recipe that differ"] = field(default_factory=dict)
    pretrain_data: Annotated[str | None, "transfer: what the victim's extractor was trained on"] = None
    pretrain_recipe: Annotated[str, "transfer: how"] = "fast"
    pretrain_overrides: Annotated[Mapping[str, Any], "transfer: fields of that recipe that differ"] = field(
        default_factory=dict
    )
    surrogates: Annotated[
        tuple[str, ...], "transfer: the attacker's extractors as NETWORK@SEED; the victim's own is VICTIM@0 (white-box)"
    ] = ()
    surrogate: Annotated[str | None, "network that the attacker trains itself; None: the victim's (gray-box)"] = None
    surrogate_recipe: Annotated[str | None, "how it is trained; None: as the victim, or in transfer as extractors"] = (
        None
    )
    through: Annotated[str | None, "a defense-aware attacker: the energy or student that it optimizes through"] = None
    through_steps: Annotated[int | None, "updates of an energy's chain that it goes through; None: all"] = None
    through_in: Annotated[str, "where: generation of the trigger, surrogate (trained on what comes out), or both"] = (
        "generation"
    )
    through_noise: Annotated[str, "fresh at every step of the attacker, or fixed: the same at all"] = "fresh"
    through_gradient: Annotated[str, "exact, or straight: the attacker takes none, as if nothing were purified"] = (
        "exact"
    )
    attack_seed: Annotated[
        int,
        "of triggers, poisons, targets and the attacker's networks; every goal adds its own number. Far from "
        "`seeds`, or the attacker's network has the victim's weights",
    ] = 1000
    classes: Annotated[tuple[int, ...], "triggered attacks: one goal for each target class"] = ()
    joint: Annotated[bool, "all goals poison one training set, each with its budget, and share its victim"] = False
    targets: Annotated[int, "triggerless attacks: how many targets, one goal each"] = 0
    seeds: Annotated[tuple[int, ...], "of the victims' weights and order of training"] = (0,)
    defenses: Annotated[tuple[str, ...], "instead of the suite's"] = ()

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise InputError(f"scenario {self.name!r}: budget is a share above 0 and at most 1, got {self.budget}")
        if self.classes and self.targets:
            raise InputError(
                f"scenario {self.name!r}: give classes (triggered) or targets (triggerless), or neither (availability)"
            )
        if self.targets < 0 or any(seed < 0 for seed in (*self.seeds, *self.classes, self.attack_seed)):
            raise InputError(f"scenario {self.name!r}: targets, classes and seeds must be 0 or more")
        if self.through_steps is not None and self.through is None:
            raise InputError(f"scenario {self.name!r}: through_steps are of the purifier that through names; give one")
        for name, known in AWARE.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"scenario {self.name!r}: {name} is one of {', '.join(known)}, got {value!r}")
            if self.through is None and value != known[0]:
                raise InputError(f"scenario {self.name!r}: {name} is of the purifier that through names; give one")
        own = sorted({"budget", "target_class", "intended_class"} & self.config.keys())
        if own:
            raise InputError(f"scenario {self.name!r}: {', '.join(own)} in config: the scenario says it by itself")
        if not self.seeds:
            raise InputError(f"scenario {self.name!r}: seeds is empty: no victim would be trained")

    def goals(self) -> list[AimedAt]:
        """One for each class or target; a single one named "all" for an attack on availability.

        Targets that share a victim have intended classes of their own, 0, 1, ...: they poison no image twice.
        """
        if self.classes:
            return [
                AimedAt(f"class{label}", {"target_class": label}, self.attack_seed + label) for label in self.classes
            ]
        if self.targets:
            numbers = range(self.targets)
            own: list[dict[str, int]] = [{"intended_class": number} if self.joint else {} for number in numbers]
            return [AimedAt(f"target{number}", own[number], self.attack_seed + number) for number in numbers]
        return [AimedAt("all", {}, self.attack_seed)]

    def victim_settings(self) -> JSON:
        """All that a victim of the clean set depends on but its seed."""
        own = ("data", "victim", "recipe", "recipe_overrides", "pretrain_data", "pretrain_recipe", "pretrain_overrides")
        return {name: _plain(getattr(self, name)) for name in own}

    def settings(self) -> JSON:
        """All that a result depends on but the goal, the seed and the defense."""
        own = ("attack", "config", "budget", "surrogates", "surrogate", "surrogate_recipe", "attack_seed")
        joint = {"joint": [goal.name for goal in self.goals()]} if self.joint else {}
        aware = {"through": self.through, "through_steps": self.through_steps} if self.through else {}
        aware |= self.awareness() | self.purifier()
        return {name: _plain(getattr(self, name)) for name in own} | joint | aware | self.victim_settings()

    def awareness(self) -> dict[str, str]:
        """How a defense-aware attacker differs from one that makes its trigger with fresh noise and exact gradients."""
        return {name: getattr(self, name) for name, known in AWARE.items() if getattr(self, name) != known[0]}

    def purifier(self) -> JSON:
        """Weights and sampler of the purifier that the attacker knows; nothing for the first ones of their name.

        Raises `ModelError` if there is no such purifier.
        """
        if self.through is None:
            return {}
        found = known_purifier(self.through)
        return {} if FIRST_PURIFIERS.get(self.through) == digest(found)[:8] else {"through_model": found}

    def key(self) -> str:
        """A folder's name for the cards of this scenario, equal for equal settings. Raises as `purifier`."""
        return f"{self.attack}-{digest(self.settings())[:8]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Scenarios times defenses."""

    name: str
    title: str
    scenarios: tuple[Scenario, ...]
    defenses: tuple[str, ...]
    about: str = ""

    def defenses_of(self, scenario: Scenario) -> tuple[str, ...]:
        """Its own or the suite's; "none" comes first, always."""
        listed = scenario.defenses or self.defenses
        return ("none", *(name for name in dict.fromkeys(listed) if name != "none"))


def load_suite(name: str | Path) -> Suite:
    """A bundled suite by name, or a TOML file.

    Raises:
        InputError: no such suite or file, not TOML, a key that is not known, a value of the wrong type. All faults of
            a file are told at once.
    """
    path = Path(name)
    if str(name) in BUNDLED:
        path = Path(str(resources.files("pureebm") / "evaluation" / "suites" / f"{name}.toml"))
    elif path.suffix != ".toml" or not path.is_file():
        raise InputError(
            f"unknown suite {str(name)!r}: no such .toml file, and the bundled ones are {', '.join(BUNDLED)}"
        )
    try:
        return parse_suite(tomllib.loads(path.read_text()), name=path.stem, where=path.name)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not TOML: {error}") from error


def parse_suite(table: Mapping[str, Any], *, name: str, where: str) -> Suite:
    """The suite that a TOML table says. Raises `InputError` with every fault, each beginning with `where`."""
    faults = _unknown(table, ("title", "about", "defenses", "defaults", "scenario"), where)
    defaults, entries = table.get("defaults", {}), table.get("scenario", [])
    if not (isinstance(defaults, dict) and isinstance(entries, list) and all(isinstance(e, dict) for e in entries)):
        raise InputError(f"{where}: [defaults] must be a table, and each scenario a [[scenario]]")
    scenarios = []
    for number, entry in enumerate(entries):
        here = f"{where}: scenario {entry.get('name', number + 1)!r}"
        values = {**defaults, **entry}
        wrong = _unknown(values, [one.name for one in fields(Scenario)], here) + _wrong_types(values, here)
        missing = [f"{here} has no {key!r}" for key in ("name", "attack") if key not in values]
        faults += wrong + missing
        if not wrong and not missing:
            try:
                scenarios.append(Scenario(**{key: _frozen(value) for key, value in values.items()}))
            except InputError as error:
                faults.append(f"{where}: {error}")
    defenses = table.get("defenses", ["none"])
    if not _is_list_of(defenses, str):
        faults.append(f"{where}: defenses must be a list of names, got {defenses!r}")
    if not entries:
        faults.append(f"{where} has no [[scenario]]")
    twice = {one.name for one in scenarios if sum(other.name == one.name for other in scenarios) > 1}
    faults += [f"{where}: two scenarios are named {one!r}" for one in sorted(twice)]
    if faults:
        raise InputError("; ".join(faults))
    title, about = str(table.get("title", name)), str(table.get("about", ""))
    return Suite(name=name, title=title, about=about, scenarios=tuple(scenarios), defenses=tuple(defenses))


@lru_cache(maxsize=16)
def known_purifier(name: str) -> JSON:
    """What makes a purifier another one: {"sha256", "sampler"}; looked up once in a process. Raises `ModelError`."""
    from pureebm.energy.weights import load_model  # brings torch: not for a list of scenarios

    model = load_model(name)
    return {"sha256": model.sha256, "sampler": model.card.get("sampler")}


def digest(value: JSON) -> str:
    """sha256 of the JSON text with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_KINDS: Mapping[str, tuple[str, type]] = {
    **dict.fromkeys(("config", "recipe_overrides", "pretrain_overrides"), ("a table", dict)),
    **dict.fromkeys(("attack_seed", "targets", "through_steps"), ("a whole number", int)),
    "budget": ("a number", float),
    "joint": ("true or false", bool),
}
_LISTS = {"classes": int, "seeds": int, "defenses": str, "surrogates": str}


def _wrong_types(values: Mapping[str, Any], where: str) -> list[str]:
    wrong = []
    for key, value in values.items():
        if key in _LISTS:
            good, wanted = _is_list_of(value, _LISTS[key]), f"a list of {_LISTS[key].__name__}"
        else:
            wanted, kind = _KINDS.get(key, ("a text", str))
            good = isinstance(value, (int, float) if kind is float else kind)
            good = good and isinstance(value, bool) == (kind is bool)
        if not good:
            wrong.append(f"{where}: {key} must be {wanted}, got {value!r}")
    return wrong


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) and not isinstance(one, bool) for one in value)


def _unknown(values: Mapping[str, Any], known: Any, where: str) -> list[str]:
    faults = []
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            faults.append(f"{where} has no field {key!r}{hint} Known: {', '.join(known)}")
    return faults


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
