"""Bullseye Polytope: its distance, its budget, and that heads on the same extractor fall for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.attacks import worlds

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.bullseye_polytope import FINE_TUNE, Bullseye, Config, Layers, craft, descend, layers_of
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError

TINY = Config(eps=16, n_steps=5)
NO_DRAWS = torch.Generator()


@pytest.fixture(scope="module")
def data() -> LabeledSet:
    return worlds.blobs(200, seed=1)


@pytest.fixture(scope="module")
def test_set() -> LabeledSet:
    return worlds.blobs(200, seed=2)


@pytest.fixture(scope="module")
def small(data: LabeledSet) -> Classifier:
    return worlds.train(data, seed=0, epochs=1)


def slow_miss(network: Classifier, images: torch.Tensor, target: torch.Tensor, layers: Layers) -> float:
    """The definition, one place at a time."""
    with torch.no_grad():
        misses = []
        ours, theirs = layers_of(network, as_batch(images), layers), layers_of(network, as_batch(target), layers)
        for poison, center in zip(ours, theirs, strict=True):
            places = [(0, 0)] if poison.ndim == 2 else [(y, x) for y in range(8) for x in range(8)]
            over = under = 0.0
            for y, x in places:
                at = (slice(None), slice(None)) if poison.ndim == 2 else (slice(None), slice(None), y, x)
                mean = sum(poison[at]) / len(poison)
                over += sum((mean - center[at][0]) ** 2) ** 0.5
                under += sum(center[at][0] ** 2) ** 0.5
            misses.append(float(over / under))
    return sum(misses) / len(misses)


@pytest.mark.parametrize("layers", ["linear", "fine-tune"])
def test_the_loss_is_the_relative_distance_of_means_not_squared(
    layers: Layers, small: Classifier, data: LabeledSet, test_set: LabeledSet
) -> None:
    target, poisons = test_set.images[:1], data.images[:4]
    bullseye = Bullseye.at(small, target, layers, device="cpu")
    miss = bullseye.miss(as_batch(poisons), 0, 1, NO_DRAWS).item()
    assert miss == pytest.approx(slow_miss(small, poisons, target, layers), rel=1e-4)
    assert len(bullseye.centers) == (1 if layers == "linear" else 2)
    on_it = bullseye.miss(as_batch(target).repeat(4, 1, 1, 1), 0, 1, NO_DRAWS).item()
    assert on_it == pytest.approx(0, abs=1e-6)


class Louder(worlds.TinyNet):
    """Features three times as large."""

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [3 * each for each in super().maps(images)]


@pytest.mark.parametrize("layers", ["linear", "fine-tune"])
def test_the_scale_of_an_extractors_features_does_not_matter(
    layers: Layers, small: Classifier, data: LabeledSet, test_set: LabeledSet
) -> None:
    loud = Louder().eval()
    loud.load_state_dict(small.state_dict())
    soft, hard = (Bullseye.at(net, test_set.images[:1], layers, device="cpu") for net in (small, loud))
    x = as_batch(data.images[:4])
    assert hard.miss(x, 0, 1, NO_DRAWS).item() == pytest.approx(soft.miss(x, 0, 1, NO_DRAWS).item(), rel=1e-5)


def test_many_draws_of_dropout_average_to_none_and_few_do_not(
    small: Classifier, data: LabeledSet, test_set: LabeledSet
) -> None:
    bullseye, x = Bullseye.at(small, test_set.images[:1], "fine-tune", device="cpu"), as_batch(data.images[:4])
    without = bullseye.miss(x, 0, 1, NO_DRAWS).item()
    many, one = (bullseye.miss(x, 0.25, n, torch.Generator().manual_seed(0)).item() for n in (3000, 1))
    assert many == pytest.approx(without, rel=0.02)
    assert abs(one - without) > 0.02 * without


def test_several_targets_are_aimed_at_by_their_mean_feature(
    small: Classifier, data: LabeledSet, test_set: LabeledSet
) -> None:
    bullseye = Bullseye.at(small, test_set.images[:3], "linear", device="cpu")
    features = small.features(as_batch(test_set.images[:3]))
    torch.testing.assert_close(bullseye.centers[0][0], features.mean(dim=0))
    config = replace(TINY, n_targets=3, target_index=5, intended_class=0)
    poisoned = craft(data, config, attacker=worlds.attacker(test_set, extractors=[small]), seed=0)
    goal = poisoned.goal
    assert isinstance(goal, TargetGoal) and goal.images.shape == (3, 16, 16, 3)
    assert goal.true_classes.tolist() == [1, 1, 1] and goal.intended_classes.tolist() == [0, 0, 0]
    assert goal.images[0].equal(test_set.images[5])
    assert len(set(poisoned.record["target_index"])) == 3


def test_several_extractors_count_alike_and_the_budget_holds(
    small: Classifier, data: LabeledSet, test_set: LabeledSet
) -> None:
    other = worlds.train(data, seed=1, epochs=1, network="4")
    both = worlds.attacker(test_set, extractors=[small, other])
    poisoned = craft(data, replace(TINY, intended_class=1), attacker=both, seed=0)
    assert isinstance(poisoned.goal, TargetGoal)
    clean = data.images[poisoned.rows]
    each = [slow_miss(network, clean, poisoned.goal.images, "linear") for network in (small, other)]
    assert poisoned.record["loss_start"] == pytest.approx(sum(each) / 2, rel=1e-4)
    assert poisoned.record["loss_end"] < 0.9 * poisoned.record["loss_start"]
    assert (poisoned.images.int() - clean.int()).abs().max() <= 16
    assert len(poisoned.rows) == 20 and poisoned.labels.tolist() == [1] * 20
    assert data.labels[poisoned.rows].equal(poisoned.labels)


def test_nearest_bases_are_nearer_than_random_ones(small: Classifier, data: LabeledSet, test_set: LabeledSet) -> None:
    attacker = worlds.attacker(test_set, extractors=[small])
    starts = {}
    for nearest in (False, True):
        config = replace(TINY, intended_class=1, nearest=nearest, n_steps=1)
        poisoned = craft(data, config, attacker=attacker, seed=0)
        assert len(poisoned.rows) == 20 and (data.labels[poisoned.rows] == 1).all()
        starts[nearest] = poisoned.record["loss_start"]
    assert starts[True] < starts[False]


def test_an_image_that_is_led_outside_the_box_stays_at_its_wall() -> None:
    pixels = torch.tensor([0, 3, 128, 250, 255], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 1, 3)
    box = Box.around(pixels, 8)
    for sign, expected in ((-1, [8, 11, 136, 255, 255]), (1, [0, 0, 120, 242, 247])):
        images, losses = descend(lambda x, sign=sign: sign * x.mean(), box, 20, 0.02, report=lambda _: None)
        assert box.rounded(images)[:, 0, 0, 0].tolist() == expected
        assert len(losses) == 21 and losses[-1] < losses[0]


def test_heads_on_the_same_extractor_read_most_targets_as_intended(data: LabeledSet, test_set: LabeledSet) -> None:
    known = worlds.extractor()
    attacker, clean = worlds.attacker(test_set, extractors=[known]), worlds.transfer(known, data, seed=0)
    hits, floor = 0.0, 0.0
    for seed in range(3):
        poisoned = craft(data, replace(TINY, n_steps=30), attacker=attacker, seed=seed)
        assert isinstance(poisoned.goal, TargetGoal)
        floor += worlds.target_success(clean, poisoned.goal)
        hits += worlds.target_success(worlds.transfer(known, poisoned.apply(data), seed=0), poisoned.goal)
    assert hits >= floor + 2


def test_fine_tuned_victims_read_most_targets_as_intended(data: LabeledSet, test_set: LabeledSet) -> None:
    known = worlds.extractor()
    attacker = worlds.attacker(test_set, extractors=[known])
    clean = worlds.transfer(known, data, seed=0, all_weights=True)
    config = replace(FINE_TUNE, eps=16, n_steps=30, budget=0.1)
    hits, floor = 0.0, 0.0
    for seed in range(3):
        poisoned = craft(data, config, attacker=attacker, seed=seed)
        assert isinstance(poisoned.goal, TargetGoal)
        floor += worlds.target_success(clean, poisoned.goal)
        victim = worlds.transfer(known, poisoned.apply(data), seed=0, all_weights=True)
        hits += worlds.target_success(victim, poisoned.goal)
    assert hits >= floor + 2


def test_an_attacker_without_extractors_is_told_so(data: LabeledSet, test_set: LabeledSet) -> None:
    with pytest.raises(InputError, match="needs a pretrained extractor; give at least one"):
        craft(data, TINY, attacker=worlds.attacker(test_set), seed=0)
    with pytest.raises(InputError, match="layers must be 'linear' or 'fine-tune', got 'both'"):
        Config(layers="both")  # type: ignore[arg-type]
