"""From the names of a scenario to networks and poisons: recipes, extractors, victims, the attacker's surrogates.

Three kinds of training, told apart by the recipe: from scratch; linear transfer (only a fresh head learns) and
fine-tune (a fresh head, and everything learns), both starting from an extractor that was trained on `pretrain_data`.
The victim's extractor is VICTIM@0; an attacker who has that one is white-box, another seed gray-box, another network
black-box.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import ModuleType
from typing import Any

import torch

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, check_numbers
from pureebm.attacks.registry import SEE_THROUGH, find_attack
from pureebm.classifiers.base import Classifier
from pureebm.classifiers.networks import build_network, check_network_name, replace_head
from pureebm.energy.weights import load_model
from pureebm.errors import InputError
from pureebm.evaluation.arrays import DataSet, Shelf
from pureebm.evaluation.cost import Cost, measured
from pureebm.evaluation.defenses import Defense
from pureebm.evaluation.scenarios import AimedAt, Scenario
from pureebm.evaluation.store import Store, set_hash
from pureebm.evaluation.surrogates import Surrogates
from pureebm.purify.through import Through, known
from pureebm.training.classifier import ClassifierConfig, settle_precision, train_classifier
from pureebm.training.recipes import find_recipe
from pureebm.types import JSON

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where things come from and are kept, and where and how precisely networks compute."""

    shelf: Shelf
    store: Store
    device: str = "cpu"
    precision: str = "auto"


def surrogates(network: str, recipe: ClassifierConfig, bench: Bench, *, shared: tuple[int, int] = (0, 0)) -> Surrogates:
    """Training on the bench's device that keeps what it made in the bench's store."""
    return Surrogates(
        network=network, recipe=recipe, device=bench.device, precision=bench.precision, store=bench.store, shared=shared
    )


def recipe_of(scenario: Scenario) -> ClassifierConfig:
    """How the scenario's victims are trained. Raises `InputError` for an unknown name or field."""
    return _recipe(scenario.recipe, scenario.recipe_overrides)


def regime(scenario: Scenario) -> str:
    """ "scratch", "linear transfer" or "fine-tune"."""
    recipe = recipe_of(scenario)
    if recipe.train == "head":
        return "linear transfer"
    return "fine-tune" if recipe.fresh_head else "scratch"


def victim_label(scenario: Scenario) -> str:
    """The victim as tables name it."""
    return f"{scenario.victim}, {scenario.recipe}, {recipe_of(scenario).epochs} epochs"


def train_victim(
    scenario: Scenario, train: LabeledSet, *, seed: int, bench: Bench, defense: Defense | None = None
) -> tuple[Classifier, Cost]:
    """A victim of `train` and what its training cost; `seed` decides weights (or the head's) and order."""
    recipe, network = recipe_of(scenario), _fresh(scenario, train, seed=seed, bench=bench)
    acting = defense.training(seed) if defense is not None and defense.training is not None else None
    with measured(bench.device) as cost:
        train_classifier(
            network, train.images, train.labels, recipe, seed=seed, device=bench.device, precision=bench.precision,
            defense=acting,
        )  # fmt: skip
    return network, cost


def clean_victim(scenario: Scenario, clean: LabeledSet, *, seed: int, bench: Bench) -> tuple[Classifier, Cost]:
    """The victim of the clean, undefended set, trained once."""
    made_of = {
        **scenario.victim_settings(),
        "recipe": asdict(recipe_of(scenario)),
        "set": set_hash(clean),
        "seed": seed,
        "precision": settled_precision(bench),
    }
    empty = _build(scenario.victim, clean, seed=seed)
    found, cost = bench.store.network(
        made_of, empty, lambda: train_victim(scenario, clean, seed=seed, bench=bench)[0].cpu()
    )
    found.to(bench.device)
    assert isinstance(found, Classifier)
    return found, cost


def poisons(scenario: Scenario, goal: AimedAt, data: DataSet, *, bench: Bench) -> Poisoned:
    """As of `craft`, from the store where it has been made before."""
    made_of = {
        **attack_settings(scenario),
        "goal": dict(goal.overrides),
        "seed": goal.seed,
        "data": set_hash(data.train),
    }
    return bench.store.poisoned(made_of, lambda: craft(scenario, goal, data, bench=bench))


def craft(scenario: Scenario, goal: AimedAt, data: DataSet, *, bench: Bench) -> Poisoned:
    """Let the attacker work. Raises `InputError` for an unknown attack or field, or as the attack does."""
    log.info("crafting: %s, %s", scenario.attack, goal.name)
    module, config = attack_config(scenario, goal)
    through = _through(scenario, goal, bench)
    attacker = Attacker(
        train=_surrogates(scenario, goal, bench),
        extractors=[_extractor(scenario, name, bench=bench) for name in scenario.surrogates],
        public=bench.shelf.public(scenario.data),
        test=data.test,
        through=through if scenario.through_in != "surrogate" else None,
        surrogate_through=through if scenario.through_in != "generation" else None,
        device=bench.device,
        report=log.debug,
    )
    poisoned: Poisoned = module.craft(data.train, config, attacker=attacker, seed=goal.seed)
    return poisoned


def attack_config(scenario: Scenario, goal: AimedAt) -> tuple[ModuleType, Any]:
    """The attack's module and its Config: the scenario's fields, its budget and the goal's over the defaults."""
    entry = find_attack(scenario.attack)
    asked = "triggered" if scenario.classes else "triggerless" if scenario.targets else "availability"
    if asked != entry.kind:
        needs = {"triggered": "classes", "triggerless": "targets", "availability": "neither classes nor targets"}
        raise InputError(f"scenario {scenario.name!r}: {scenario.attack} is {entry.kind}: give {needs[entry.kind]}")
    module = entry.load()
    own = {one.name for one in fields(module.Config)}
    wanted = {name if name in own else "intended_class": label for name, label in goal.overrides.items()}
    changes = {**scenario.config, **wanted, **({"budget": scenario.budget} if "budget" in own else {})}
    config = _changed(module.Config(), changes, f"attack {scenario.attack!r}")
    check_numbers(config)
    return module, config


def check_scenario(scenario: Scenario) -> None:
    """Raises `InputError` for an attack, a field of its config, a recipe or a network that there is not."""
    for goal in scenario.goals()[:1]:
        attack_config(scenario, goal)
    recipe_of(scenario)
    check_network_name(scenario.victim)
    _surrogate(scenario)
    if scenario.pretrain_data is not None:
        _pretraining(scenario)


def attack_settings(scenario: Scenario) -> JSON:
    """All that poisons depend on but the data, the goal and its seed."""
    recipe, network = _surrogate(scenario)
    pretraining = (
        {"data": scenario.pretrain_data, "recipe": asdict(_pretraining(scenario))} if scenario.surrogates else None
    )
    aware: JSON = {}
    if scenario.through:
        model = load_model(scenario.through)
        told = {"weights": model.sha256, "sampler": model.card.get("sampler"), "steps": scenario.through_steps}
        aware = {"through": told | scenario.awareness()}
    return aware | {
        "attack": scenario.attack,
        "config": dict(scenario.config),
        "budget": scenario.budget,
        "network": network,
        "recipe": asdict(recipe),
        "extractors": list(scenario.surrogates),
        "pretraining": pretraining,
    }


def _through(scenario: Scenario, goal: AimedAt, bench: Bench) -> Through | None:
    """The purifier of a defense-aware attacker. Raises `InputError` for an attack that knows none."""
    if scenario.through is None:
        return None
    if scenario.attack not in SEE_THROUGH:
        raise InputError(f"scenario {scenario.name!r}: only {', '.join(SEE_THROUGH)} optimizes through a purifier")
    return known(
        load_model(scenario.through, bench.device),
        steps=scenario.through_steps,
        seed=goal.seed,
        noise=scenario.through_noise,
        gradient=scenario.through_gradient,
    )


def _surrogates(scenario: Scenario, goal: AimedAt, bench: Bench) -> Surrogates:
    recipe, network = _surrogate(scenario)
    return surrogates(network, recipe, bench, shared=(goal.seed, scenario.attack_seed))


def _surrogate(scenario: Scenario) -> tuple[ClassifierConfig, str]:
    """Recipe and network of what the attacker trains."""
    if scenario.surrogate_recipe is not None:
        recipe = find_recipe(scenario.surrogate_recipe)
    else:
        recipe = recipe_of(scenario) if regime(scenario) == "scratch" else _pretraining(scenario)
    return recipe, scenario.surrogate or scenario.victim


def _pretraining(scenario: Scenario) -> ClassifierConfig:
    return _recipe(scenario.pretrain_recipe, scenario.pretrain_overrides)


def _recipe(name: str, overrides: Mapping[str, Any]) -> ClassifierConfig:
    changed: ClassifierConfig = _changed(find_recipe(name), overrides, f"recipe {name!r}")
    return changed


def _fresh(scenario: Scenario, train: LabeledSet, *, seed: int, bench: Bench) -> Classifier:
    """What a victim's training starts from: random weights, or its extractor with a new head."""
    if regime(scenario) == "scratch":
        return _build(scenario.victim, train, seed=seed)
    network = copy.deepcopy(_extractor(scenario, f"{scenario.victim}@0", bench=bench)).requires_grad_(True)
    replace_head(network, train.n_classes, seed=seed)
    return network


def _extractor(scenario: Scenario, name: str, *, bench: Bench) -> Classifier:
    """NETWORK@SEED, pretrained as the scenario says; trained once for all scenarios that say the same."""
    network, at, seed = name.partition("@")
    if not at or not seed.isdecimal():
        raise InputError(f"scenario {scenario.name!r}: an extractor is NETWORK@SEED, such as resnet18@1, got {name!r}")
    if scenario.pretrain_data is None:
        raise InputError(f"scenario {scenario.name!r} is a transfer: give pretrain_data")
    data = bench.shelf.load(scenario.pretrain_data).train
    return surrogates(network, _pretraining(scenario), bench)(data, seed=int(seed))


def _build(name: str, data: LabeledSet, *, seed: int) -> Classifier:
    return build_network(name, data.n_classes, size=data.images.shape[1], seed=seed)


def settled_precision(bench: Bench) -> str:
    """What "auto" means on the bench's device."""
    return settle_precision(bench.precision, torch.device(bench.device))


def _changed(config: Any, changes: Mapping[str, Any], whose: str) -> Any:
    """A frozen dataclass with fields replaced; lists become tuples. Raises `InputError` for unknown fields, and for
    values of another type than the field's."""
    known = [one.name for one in fields(config)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise InputError(f"{whose} has no field {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    for name, value in changes.items():
        if not _fits(value, getattr(config, name)):
            wanted = type(getattr(config, name)).__name__.replace("tuple", "list")
            raise InputError(f"{whose}: {name} must be a {wanted}, got {value!r}")
    return replace(config, **{name: tuple(v) if isinstance(v, list) else v for name, v in changes.items()})


def _fits(value: Any, default: Any) -> bool:
    """Whether a value from TOML may stand where the default does; None tells no type."""
    if default is None:
        return not isinstance(value, dict)
    if isinstance(default, tuple):
        return isinstance(value, list | tuple)
    kinds = (int, float) if isinstance(default, float) else type(default)
    return isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
