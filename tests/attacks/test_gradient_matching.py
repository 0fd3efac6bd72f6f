"""Gradient Matching: what it minimizes, its budget, and that victims trained from scratch fall for it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.attacks import worlds

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.gradient_matching import Aim, Augmentation, Config, craft, final_loss, match, noise
from pureebm.errors import InputError

TINY = Config(eps=16, budget=0.1, surrogate_epochs=2, n_steps=12, restarts=3, shift=2, networks="4")


@pytest.fixture(scope="module")
def data() -> LabeledSet:
    return worlds.blobs(80, seed=1)


@pytest.fixture(scope="module")
def test_set() -> LabeledSet:
    return worlds.blobs(80, seed=2)


def test_the_loss_is_0_where_the_poison_is_the_target(data: LabeledSet, test_set: LabeledSet) -> None:
    network = worlds.train(data, seed=0, epochs=1)
    target, intended = test_set.images[:1], torch.tensor([3])
    aim = Aim.at(network, target, intended, device="cpu")
    x = as_batch(target)
    assert aim.mismatch(x, intended).item() == pytest.approx(0, abs=1e-6)
    assert aim.mismatch(x.repeat(5, 1, 1, 1), intended.repeat(5)).item() == pytest.approx(0, abs=1e-5)
    assert aim.mismatch(x, torch.tensor([0])).item() > 0.5
    assert final_loss(target, intended, [aim], replace(TINY, shift=-1), seed=0) == pytest.approx(0, abs=1e-6)


def test_the_loss_is_one_minus_the_cosine_of_all_parameters_at_once(data: LabeledSet, test_set: LabeledSet) -> None:
    network = worlds.train(data, seed=0, epochs=1)
    aim = Aim.at(network, test_set.images[:1], torch.tensor([3]), device="cpu")
    twin = copy.deepcopy(network).requires_grad_(True)

    def gradients(images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        twin.zero_grad()
        F.cross_entropy(twin(images), labels).backward()
        return [parameter.grad.clone() for parameter in twin.parameters()]  # type: ignore[union-attr]

    wanted = gradients(as_batch(test_set.images[:1]), torch.tensor([3]))
    got = gradients(as_batch(data.images[:6]), data.labels[:6])
    inner = sum((a * b).sum() for a, b in zip(wanted, got, strict=True))
    norms = [sum(a.square().sum() for a in side) ** 0.5 for side in (wanted, got)]
    loss = aim.mismatch(as_batch(data.images[:6]), data.labels[:6]).item()
    assert loss == pytest.approx(1 - (inner / (norms[0] * norms[1])).item(), abs=1e-5)
    assert all(not parameter.requires_grad for parameter in network.parameters())  # a private copy worked


def test_the_gradient_is_that_of_a_finite_difference(data: LabeledSet, test_set: LabeledSet) -> None:
    network = worlds.train(data, seed=0, epochs=1, network="4").double()
    aim = Aim.at(network, test_set.images[:1], torch.tensor([3]), device="cpu")
    aim = Aim(aim.network.double(), aim.gradient.double())
    images, labels = as_batch(data.images[:3]).double().requires_grad_(True), data.labels[:3]
    (gradient,) = torch.autograd.grad(aim.mismatch(images, labels), images)
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(images.shape, generator=g, dtype=torch.float64)
        h = 1e-6
        up, down = (aim.mismatch(images.detach() + sign * h * direction, labels).item() for sign in (1, -1))
        assert (gradient * direction).sum().item() == pytest.approx((up - down) / (2 * h), rel=1e-3, abs=1e-6)


def test_the_augmentation_shifts_and_flips_as_victims_do_and_can_be_derived() -> None:
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    still = Augmentation.draw(images, 0, torch.Generator().manual_seed(0)).apply(images)
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(still, images, strict=True)]
    turned = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(still, images, strict=True)]
    assert all(a or b for a, b in zip(kept, turned, strict=True))
    assert 16 < sum(kept) < 48
    white = torch.ones(256, 3, 9, 9)
    moved = Augmentation.draw(white, 2, torch.Generator().manual_seed(0)).apply(white)
    lost = (1 - moved[:, 0].mean(dim=1).clamp(max=1)) / 2  # share of each column that came from outside: black
    assert torch.allclose(moved[:, :, 3:6, 3:6], torch.ones(()))  # never further than 2 pixels
    assert lost.min() >= 0 and 1.5 / 9 < lost[:, 4].max() <= 2 / 9 + 1e-5
    assert Augmentation.draw(images, -1, torch.Generator()).apply(images) is images


def test_poisons_keep_the_budget_exactly_and_labels_and_rows(data: LabeledSet, test_set: LabeledSet) -> None:
    poisoned = craft(data, replace(TINY, intended_class=2), attacker=worlds.attacker(test_set), seed=3)
    assert poisoned.rows.tolist() == sorted(set(poisoned.rows.tolist())) and len(poisoned.rows) == 8
    assert (data.labels[poisoned.rows] == 2).all()
    assert poisoned.labels.equal(data.labels[poisoned.rows])
    change = (poisoned.images.int() - data.images[poisoned.rows].int()).abs()
    assert poisoned.images.dtype == torch.uint8 and change.max() == 16
    assert change.float().mean() > 4
    assert isinstance(poisoned.goal, TargetGoal)
    assert poisoned.goal.intended_classes.tolist() == [2] and poisoned.goal.true_classes[0] != 2
    assert poisoned.goal.images.equal(test_set.images[[poisoned.record["target_index"]]])


def test_the_restart_with_the_lowest_last_loss_is_kept(data: LabeledSet, test_set: LabeledSet) -> None:
    said: list[str] = []
    attacker = worlds.attacker(test_set, report=said.append)
    poisoned = craft(data, TINY, attacker=attacker, seed=0)
    losses = poisoned.record["restart_losses"]
    assert len(set(losses)) == 3 and poisoned.record["loss_end"] == min(losses)
    surrogate = worlds.train(data, seed=0, epochs=2, network="4")
    aim = Aim.at(surrogate, poisoned.goal.images, poisoned.goal.intended_classes, device="cpu")  # type: ignore[union-attr]
    assert final_loss(poisoned.images, poisoned.labels, [aim], TINY, seed=0) == pytest.approx(min(losses), abs=1e-5)
    assert min(losses) < 0.8 * poisoned.record["loss_start"]
    assert any(line.startswith("restart 3/3, step 12/12: loss 0.") for line in said)
    again = craft(data, TINY, attacker=attacker, seed=0)
    assert again.images.equal(poisoned.images) and again.rows.equal(poisoned.rows)


def test_an_ensemble_averages_losses_each_to_its_own_target_gradient(data: LabeledSet, test_set: LabeledSet) -> None:
    config = replace(TINY, n_surrogates=2, networks="4, 8", restarts=1, batch_size=3, n_steps=2)
    box = Box.around(data.images[:8], 16)
    networks = [worlds.train(data, seed=seed, epochs=1, network=width) for seed, width in ((0, "4"), (1, "8"))]
    aims = [Aim.at(network, test_set.images[:1], torch.tensor([1]), device="cpu") for network in networks]
    plain = replace(config, shift=-1, batch_size=8)
    each = [final_loss(data.images[:8], data.labels[:8], [aim], plain, seed=0) for aim in aims]
    both = final_loss(data.images[:8], data.labels[:8], aims, plain, seed=0)
    assert both == pytest.approx(sum(each) / 2, rel=1e-5)

    def first(images: torch.Tensor, config: Config) -> float:
        g = torch.Generator().manual_seed(0)
        return match(images, data.labels[:8], lambda *_: aims, config, box, generator=g, report=lambda *_: None)[1]

    assert first(box.start(), plain) == pytest.approx(both, rel=1e-5)
    poisoned = craft(data, config, attacker=worlds.attacker(test_set), seed=0)
    assert poisoned.record["surrogates"] == ["4, clean", "8, clean"]


def test_the_rate_falls_at_the_published_steps() -> None:
    config = Config(n_surrogates=2)
    rates = [config.rate(step) / config.rate(0) for step in range(250)]
    drops = [step for step in range(1, 250) if rates[step] < rates[step - 1] / 2]
    assert drops == [93, 156, 218]
    assert config.rate(0) == pytest.approx(0.025) and rates[-1] == pytest.approx(1e-3)


def test_noise_is_of_the_budgets_size() -> None:
    box = Box.around(torch.full((50, 8, 8, 3), 128, dtype=torch.uint8), 8)
    assert noise(box, torch.Generator().manual_seed(0)).std().item() == pytest.approx(16 / 255, rel=0.02)


def test_targets_that_are_not_there_are_refused(data: LabeledSet, test_set: LabeledSet) -> None:
    with pytest.raises(InputError, match="no test set"):
        craft(data, TINY, attacker=worlds.attacker(None), seed=0)
    with pytest.raises(InputError, match=r"0 \.\. 79.*got 80"):
        craft(data, replace(TINY, target_index=80), attacker=worlds.attacker(test_set), seed=0)
    with pytest.raises(InputError, match="class 1 is not possible here; classes are 0 .. 3 other than 1"):
        craft(data, replace(TINY, target_index=1, intended_class=1), attacker=worlds.attacker(test_set), seed=0)
    with pytest.raises(InputError, match="class 9 is not possible here; classes are 0 .. 3"):
        craft(data, replace(TINY, intended_class=9), attacker=worlds.attacker(test_set), seed=0)


@pytest.mark.slow
def test_fresh_victims_flip_far_more_often_with_the_poison_than_without() -> None:
    # Targets that networks read right, but not with all certainty; the floor is that of other clean victims.
    data, test_set = worlds.blobs(400, seed=1), worlds.blobs(400, seed=2)
    known, *clean = (worlds.train(data, seed=seed, epochs=20, network="16") for seed in (0, 100, 101))
    shares = known(as_batch(test_set.images)).softmax(dim=1)
    true = shares.gather(1, test_set.labels[:, None])[:, 0]
    second = shares.scatter(1, test_set.labels[:, None], 0).max(dim=1)
    targets = torch.where(true > 0.7, second.values, 0).topk(6).indices.tolist()
    config = Config(eps=16, budget=0.2, n_steps=40, restarts=1, shift=2)
    attacker = replace(worlds.attacker(test_set), train=lambda *_, **__: known)
    hits, floor = 0.0, 0.0
    for target in targets:
        aim = replace(config, target_index=target, intended_class=int(second.indices[target]))
        poisoned = craft(data, aim, attacker=attacker, seed=0)
        assert isinstance(poisoned.goal, TargetGoal)
        victim = worlds.train(poisoned.apply(data), seed=100, epochs=20, network="16")
        hits += worlds.target_success(victim, poisoned.goal)
        floor += sum(worlds.target_success(network, poisoned.goal) for network in clean) / 2
    assert hits >= floor + 3
