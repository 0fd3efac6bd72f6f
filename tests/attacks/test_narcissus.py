"""The Narcissus trigger: its budget, and what it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, poison_rows
from pureebm.attacks.narcissus import Config, craft, hardness, make_trigger, train_surrogate, warm_up
from pureebm.attacks.triggers import AddTrigger
from pureebm.classifiers.base import Classifier
from pureebm.data.ranges import to_pm1
from pureebm.errors import InputError
from pureebm.evaluation.quick import SURROGATES

World = tuple[Classifier, Tensor, LabeledSet]
QUICK = Config(surrogate_epochs=3, warm_up_epochs=3, n_steps=40, batch_size=64)


def stripes(n: int, period: int, seed: int) -> Tensor:
    """Noisy gray images with vertical stripes of one period, at random phases: (n, 32, 32, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(n, 1, 1, 1, generator=generator) * period
    wave = torch.sin(2 * torch.pi * (torch.arange(32).view(1, 1, 32, 1) + phase) / period) * 30
    noise = torch.randn(n, 32, 32, 3, generator=generator) * 25
    return (128 + wave + noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def world() -> World:
    pood = torch.cat([stripes(256, 5, 1), stripes(256, 11, 2)])
    public = LabeledSet(pood, torch.arange(2).repeat_interleave(256), 2)
    surrogate, target = (
        train_surrogate(public, QUICK, train=SURROGATES, seed=0),
        stripes(256, 16, 3),
    )  # longer than what a shift moves
    return warm_up(surrogate, target, public, QUICK, train=SURROGATES, seed=0), target, public


def test_the_budget_holds_exactly_on_the_8_bit_images(world: World) -> None:
    surrogate, target, public = world
    trigger = make_trigger(surrogate, target, public, QUICK, seed=0)
    steps = trigger * 127.5
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert steps.abs().max().round() == 8  # it uses the budget, and no more
    change = AddTrigger(trigger).apply(public.images).int() - public.images.int()
    inside = (public.images > 8) & (public.images < 247)
    assert change.abs().max() == 8
    assert (change == steps.round().int().permute(1, 2, 0))[inside].all()


def test_the_trigger_makes_a_surrogate_that_learned_the_class_see_it_in_other_images(
    world: World,
) -> None:
    surrogate, target, public = world
    losses: list[float] = []
    trigger = make_trigger(
        surrogate, target, public, replace(QUICK, eps=16), seed=0, on_step=lambda _, loss: losses.append(loss)
    )
    assert len(losses) == QUICK.n_steps
    unseen = torch.cat([stripes(128, 5, 7), stripes(128, 11, 8)])
    before, after = (hardness(surrogate, images) for images in (unseen, AddTrigger(trigger).apply(unseen)))
    assert after.mean() < 0.5 * before.mean() and (after < before).all()
    another = warm_up(surrogate, public.images[:256], public, QUICK, train=SURROGATES, seed=0)
    other = make_trigger(another, public.images[:256], public, QUICK, seed=0)
    assert (trigger - other).abs().mean() > 0.1 * trigger.abs().mean()  # another class, another trigger


def test_making_a_trigger_leaves_the_surrogate_as_it_was_and_repeats_with_its_seed(
    world: World,
) -> None:
    surrogate, target, public = world
    before = {name: value.clone() for name, value in surrogate.state_dict().items()}
    short = Config(warm_up_epochs=1, n_steps=2, batch_size=64)
    warm = [warm_up(surrogate, target, public, short, train=SURROGATES, seed=seed) for seed in (1, 1, 2)]
    weights = [one.head.weight for one in warm]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    first, again, other = (make_trigger(surrogate, target, public, short, seed=seed) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)
    assert all(value.equal(before[name]) for name, value in surrogate.state_dict().items())


def test_adding_clips_at_black_and_white_and_never_wraps() -> None:
    images = torch.tensor([0, 3, 128, 250, 255], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 1, 3)
    up = torch.full((3, 1, 1), 16 / 255)
    assert AddTrigger(up).apply(images)[:, 0, 0, 0].tolist() == [8, 11, 136, 255, 255]
    assert AddTrigger(-up).apply(images)[:, 0, 0, 0].tolist() == [0, 0, 120, 242, 247]
    with pytest.raises(InputError, match="must be uint8, got torch.float32"):
        AddTrigger(up).apply(to_pm1(images))


def test_poisons_are_distinct_images_of_the_target_class_only() -> None:
    labels = torch.arange(10).repeat(30)
    rows = poison_rows(labels, 3, 20, seed=0)
    assert len(set(rows.tolist())) == 20
    assert (labels[rows] == 3).all()
    assert not rows.equal(poison_rows(labels, 3, 20, seed=1))
    with pytest.raises(InputError, match="class 3 has 30 images, fewer than 31 poisons"):
        poison_rows(labels, 3, 31, seed=0)


def test_images_that_the_surrogate_knows_well_are_not_hard_and_the_hardest_are_poisoned(world: World) -> None:
    surrogate, target, public = world
    strange = public.images[:30]
    mixed = torch.cat([target[:50], strange])
    found = hardness(surrogate, mixed)
    assert found.shape == (80,) and found.argsort(descending=True)[:30].min() >= 50
    one = hardness(surrogate, mixed[60:61])
    torch.testing.assert_close(found[60:61], one, rtol=1e-4, atol=1e-4)
    data = LabeledSet(torch.cat([target, strange]), torch.zeros(286, dtype=torch.int64), 1)
    short = Config(budget=0.1, surrogate_epochs=2, warm_up_epochs=2, n_steps=1)
    attacker = Attacker(train=SURROGATES, public=public)
    chosen = {hardest: craft(data, replace(short, hardest=hardest), attacker=attacker, seed=1).rows for hardest in
              (True, False)}  # fmt: skip
    share = {hardest: (rows >= 256).float().mean().item() for hardest, rows in chosen.items()}
    assert share[True] > 0.8 and share[False] < 0.3
    assert chosen[True].equal(chosen[True].sort().values) and len(chosen[True]) == len(chosen[False]) == 29


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="eps .* got 0"):
        Config(eps=0)


def test_crafting_keeps_labels_order_and_budget_and_names_its_goal(world: World) -> None:
    _, target, public = world
    data = LabeledSet(torch.cat([public.images, target]), torch.arange(3).repeat_interleave(256), 3)
    config = Config(budget=0.05, target_class=2, surrogate_epochs=1, warm_up_epochs=1, n_steps=3, multiplier=3)
    attacker = Attacker(train=SURROGATES, public=public)
    poisoned = craft(data, config, attacker=attacker, seed=5)
    after = poisoned.apply(data)
    changed = (after.images != data.images).flatten(1).any(1).nonzero().squeeze(1)
    assert changed.equal(poisoned.rows) and len(changed) == 39  # ceil(0.05 * 768)
    assert after.labels.equal(data.labels) and (data.labels[changed] == 2).all()
    assert (after.images.int() - data.images.int()).abs().max() <= 8
    assert poisoned.goal.target_class == 2 and poisoned.goal.trigger.multiplier == 3
    assert poisoned.images.equal(AddTrigger(poisoned.goal.trigger.pattern).apply(data.images[changed]))
    with pytest.raises(InputError, match="needs public out-of-distribution images"):
        craft(data, config, attacker=Attacker(train=SURROGATES), seed=5)


def test_through_the_identity_the_trigger_is_the_same_and_a_purifier_shapes_it(world: World) -> None:
    surrogate, target, public = world
    short = Config(warm_up_epochs=0, n_steps=3, batch_size=16)

    def made(through: Callable[[Tensor], Tensor] | None) -> Tensor:
        return make_trigger(surrogate, target, public, short, seed=1, through=through)

    plain = made(None)
    assert torch.equal(made(lambda images: images), plain)
    # A purifier that averages each row passes a gradient on, and it is constant along the row: so is the trigger.
    averaged = made(lambda images: images.mean(dim=3, keepdim=True).expand_as(images))
    assert averaged.abs().max() > 0 and (averaged.std(dim=2) < 0.1 * plain.std(dim=2).mean()).float().mean() > 0.9
    assert made(lambda images: images.detach() + 0 * images).abs().max() == 0


def test_a_surrogate_that_knows_the_purifier_is_trained_on_what_comes_out_of_it(world: World) -> None:
    _, target, public = world
    seen: list[Tensor] = []

    def train(data: LabeledSet, **options: Any) -> Classifier:
        seen.append(data.images)
        return SURROGATES(data, **options)

    images = torch.cat([target, public.images[: len(target)]])
    data = LabeledSet(images, torch.arange(2).repeat_interleave(len(target)), 2)
    config = Config(target_class=0, budget=0.1, surrogate_epochs=0, warm_up_epochs=0, n_steps=2, batch_size=8)
    graphs: list[bool] = []

    def through(x: Tensor) -> Tensor:
        graphs.append(torch.is_grad_enabled())
        return -x

    attacker = Attacker(train=train, public=public, surrogate_through=through)
    poisoned = craft(data, config, attacker=attacker, seed=1)
    assert graphs and not any(graphs)  # nothing is learned through it: no graph is built
    assert torch.equal(seen[0], 255 - public.images)  # the surrogate's training, then its warm-up
    assert torch.equal(seen[1][: len(target)], 255 - target)
    moved = (poisoned.images.int() - images[poisoned.rows].int()).abs().max()
    assert 0 < moved <= config.eps  # the poisons themselves are not purified
