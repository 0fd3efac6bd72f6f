"""Does a poison work? Two small victims tell: one of the clean set, one of the poisoned set, alike in all else.

The clean victim's success is the floor: what happens without any poison. Knows goals, no attack by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from pureebm.attacks.base import Goal, LabeledSet, Poisoned, TargetGoal, TriggerGoal
from pureebm.classifiers.base import Classifier
from pureebm.classifiers.networks import build_network, replace_head
from pureebm.evaluation.metrics import accuracy, triggered_rates
from pureebm.training.classifier import ClassifierConfig, predict, train_classifier
from pureebm.training.recipes import find_recipe
from pureebm.types import JSON

VICTIM_SEED = 1_000_000
"""Added to the seed: with the attacker's own seeds, a victim would be its surrogate, weight for weight."""


def verify(
    poisoned: Poisoned,
    data: LabeledSet,
    test: LabeledSet,
    *,
    network: str = "small-resnet",
    recipe: str | None = None,
    epochs: int | None = None,
    extractor: Classifier | None = None,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> JSON:
    """Train a victim on `data` and one on the poisoned set, with the same seed, no surrogate's, and ask both.

    Args:
        data: the training set before the attack.
        test: untouched images that no victim trains on.
        network, recipe, epochs: the victims', by name; recipe None: "fast", with an extractor "linear-transfer"; epochs
            None: the recipe's.
        extractor: transfer instead: both victims are this network with a fresh head; the recipe says what is trained.
        seed: the attack's.

    Returns:
        "clean" and "poisoned", each with "accuracy" on `test` and, but for availability, "success" in 0..1 and
        "still_true" (attacked images that are still read as what they show); "success" and "floor" again on top;
        for targets, "predicted" classes; "victim": how they were trained.
    """
    recipe = recipe or ("fast" if extractor is None else "linear-transfer")
    seed += VICTIM_SEED
    config = find_recipe(recipe, epochs=epochs)
    config = replace(config, batch_size=min(config.batch_size, max(1, len(data) // 4)))
    result: JSON = {"victim": {"network": network, "recipe": recipe, "epochs": config.epochs, "seed": seed}}
    if extractor is not None:
        result["victim"] |= {"network": type(extractor).__name__}
    for name, training_set in (("clean", data), ("poisoned", poisoned.apply(data))):
        victim = _train(training_set, network, config, extractor, seed, device)
        result[name] = {
            "accuracy": accuracy(predict(victim, test.images, device=device), test.labels),
            **_fate(victim, poisoned.goal, test, seed, device),
        }
        report(f"{name} victim: " + ", ".join(f"{k} {v:.3f}" for k, v in result[name].items() if isinstance(v, float)))
    if "success" in result["poisoned"]:
        result |= {"success": result["poisoned"]["success"], "floor": result["clean"]["success"]}
    return result


def _train(
    data: LabeledSet, network: str, config: ClassifierConfig, extractor: Classifier | None, seed: int, device: str
) -> Classifier:
    if extractor is None:
        victim = build_network(network, data.n_classes, size=data.images.shape[1], seed=seed)
    else:
        victim = copy.deepcopy(extractor).requires_grad_(True)
        replace_head(victim, data.n_classes, seed=seed)
    train_classifier(victim, data.images, data.labels, config, seed=seed, device=device)
    return victim


def _fate(victim: Classifier, goal: Goal, test: LabeledSet, seed: int, device: str) -> JSON:
    """How far the attacker's goal is reached with this victim."""
    if isinstance(goal, TriggerGoal):
        predicted = predict(victim, goal.trigger.apply(test.images, seed=seed), device=device)
        wanted = goal.wanted(test.labels, test.n_classes)
        success, still_true = triggered_rates(predicted, test.labels, wanted, goal.aims_at(test.labels))
        return {"success": success, "still_true": still_true}
    if isinstance(goal, TargetGoal):
        predicted = predict(victim, goal.images, device=device)
        return {
            "success": accuracy(predicted, goal.intended_classes),
            "still_true": accuracy(predicted, goal.true_classes),
            "predicted": predicted.tolist(),
        }
    return {}
