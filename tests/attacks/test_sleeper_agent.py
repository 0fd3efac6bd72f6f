"""Sleeper Agent: what it aims at, whom it chooses, when it retrains, and that the patch works in fresh victims."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.attacks import worlds

from pureebm.attacks.base import LabeledSet, TriggerGoal
from pureebm.attacks.box import as_batch
from pureebm.attacks.sleeper_agent import Aim, Config, _aim, craft, gradient_norms, random_patch
from pureebm.attacks.triggers import PatchTrigger
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError

TINY = Config(
    eps=16, budget=0.1, surrogate_epochs=1, n_steps=6, retrainings=2, shift=2, patch_size=4, networks="4",
    intended_class=1, source_class=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> LabeledSet:
    return worlds.blobs(80, seed=1)


@pytest.fixture(scope="module")
def network(data: LabeledSet) -> Classifier:
    return worlds.train(data, seed=0, epochs=1, network="4")


def one_by_one(network: Classifier, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Each image's gradient over all parameters, through `backward`."""
    twin, found = copy.deepcopy(network).requires_grad_(True), []
    for x, y in zip(as_batch(images), labels, strict=True):
        twin.zero_grad()
        F.cross_entropy(twin(x[None]), y[None]).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in twin.parameters()]))  # type: ignore[union-attr]
    return found


def test_the_aim_is_the_mean_gradient_of_all_patched_source_images(data: LabeledSet, network: Classifier) -> None:
    patch = random_patch(4, corner=None, generator=torch.Generator().manual_seed(0))
    aim = _aim(network, data, TriggerGoal(1, patch, 2), seed=5, device="cpu")
    patched = patch.apply(data.images[data.labels == 2], seed=5)
    each = one_by_one(network, patched, torch.ones(len(patched), dtype=torch.int64))
    torch.testing.assert_close(aim.gradient, torch.stack(each).mean(dim=0), rtol=1e-3, atol=1e-5)
    cut = Aim.at(network, patched, torch.ones(len(patched), dtype=torch.int64), device="cpu", batch_size=7)
    torch.testing.assert_close(cut.gradient, aim.gradient, rtol=1e-3, atol=1e-5)


def test_poisons_are_the_images_of_the_intended_class_with_the_largest_gradients(
    data: LabeledSet, network: Classifier
) -> None:
    norms = gradient_norms(network, data.images, data.labels, device="cpu")
    slow = torch.stack([gradient.norm() for gradient in one_by_one(network, data.images, data.labels)])
    torch.testing.assert_close(norms, slow, rtol=1e-3, atol=1e-5)
    poisoned = craft(data, TINY, attacker=worlds.attacker(), seed=0)
    chosen, own = set(poisoned.rows.tolist()), data.rows_of(1).tolist()
    assert len(chosen) == 8 and chosen <= set(own)
    assert min(norms[list(chosen)]) >= max(norms[[row for row in own if row not in chosen]])


def test_surrogates_are_trained_anew_on_the_poisons_of_the_moment(data: LabeledSet) -> None:
    seen: list[LabeledSet] = []

    def train(data: LabeledSet, **settings: object) -> Classifier:
        seen.append(data)
        return worlds.train(data, **settings)  # type: ignore[arg-type]

    attacker = replace(worlds.attacker(), train=train)
    poisoned = craft(data, TINY, attacker=attacker, seed=0)
    changed = [set((each.images != data.images).flatten(1).any(dim=1).nonzero().flatten().tolist()) for each in seen]
    assert changed == [set(), set(poisoned.rows.tolist()), set(poisoned.rows.tolist())]
    assert not seen[1].images.equal(seen[2].images)
    assert all(each.labels.equal(data.labels) for each in seen)
    craft(data, replace(TINY, retrainings=0), attacker=attacker, seed=0)
    assert len(seen) == 4


def test_the_budget_holds_and_no_poison_carries_the_patch(data: LabeledSet) -> None:
    poisoned = craft(data, TINY, attacker=worlds.attacker(), seed=0)
    change = (poisoned.images.int() - data.images[poisoned.rows].int()).abs()
    assert change.max() == 16 and poisoned.labels.tolist() == [1] * 8
    goal = poisoned.goal
    assert isinstance(goal, TriggerGoal) and (goal.target_class, goal.source_class) == (1, 2)
    assert isinstance(goal.trigger, PatchTrigger) and goal.trigger.corner is None
    assert goal.trigger.patch.shape == (4, 4, 3)
    assert poisoned.record["loss_end"] < poisoned.record["loss_start"]
    assert craft(data, TINY, attacker=worlds.attacker(), seed=0).images.equal(poisoned.images)


def test_classes_are_drawn_apart_and_refused_where_alike(data: LabeledSet) -> None:
    drawn = replace(TINY, intended_class=None, source_class=None, n_steps=1, retrainings=0)
    goals = [craft(data, drawn, attacker=worlds.attacker(), seed=seed).goal for seed in range(6)]
    pairs = {(goal.source_class, goal.target_class) for goal in goals if isinstance(goal, TriggerGoal)}
    assert len(pairs) > 2 and all(source != target for source, target in pairs)
    with pytest.raises(InputError, match="class 2 is not possible here"):
        craft(data, replace(TINY, intended_class=2), attacker=worlds.attacker(), seed=0)
    with pytest.raises(InputError, match="retrainings must be 0 .. 5"):
        replace(TINY, retrainings=6)


@pytest.mark.slow
def test_fresh_victims_obey_the_patch_far_more_often_with_the_poison_than_without() -> None:
    data, test_set = worlds.blobs(400, seed=1), worlds.blobs(400, seed=2)
    config = Config(
        eps=32, budget=0.15, surrogate_epochs=20, n_steps=40, retrainings=1, shift=2, patch_size=5, networks="16"
    )
    clean = worlds.train(data, seed=100, epochs=20, network="16")
    gains = []
    for seed in range(3):
        poisoned = craft(data, config, attacker=worlds.attacker(), seed=seed)
        assert isinstance(poisoned.goal, TriggerGoal)
        victim = worlds.train(poisoned.apply(data), seed=100, epochs=20, network="16")
        gains.append(
            worlds.trigger_success(victim, poisoned.goal, test_set)
            - worlds.trigger_success(clean, poisoned.goal, test_set)
        )
    assert sum(gains) / 3 > 0.4
