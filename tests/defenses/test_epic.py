"""EPIC: the greedy selection against numbers from elsewhere and a slow restatement; the schedule; what is dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tests.attacks.worlds import TinyNet, textures
from torch import Tensor, nn

from pureebm.defenses import epic
from pureebm.defenses.epic import PRESETS, Config, Epic, class_budgets, last_layer_gradients, medoids
from pureebm.errors import InputError
from pureebm.training.classifier import ClassifierConfig, train_classifier
from pureebm.types import EpochData, TrainingData

ALWAYS = Config(share=0.2, every=1, drop_after=0)


def test_the_selection_is_that_of_the_reference_implementation() -> None:
    points = torch.tensor([(0, 0), (0.1, 0), (1, 1), (1.1, 1), (5, 5), (0.05, 0.1)])
    found = medoids(points, 3)
    assert found.order == [5, 4, 2]
    assert found.gains == pytest.approx([3.942634, 0.969271, 0.930589], abs=2e-6)
    assert found.owner.tolist() == [0, 0, 2, 2, 1, 0]  # sizes 3, 1, 2: point 4 stands alone


def similarities(points: Tensor) -> NDArray[np.float64]:
    x = points.double().numpy()
    return np.exp(-np.linalg.norm(x[:, None] - x[None], axis=2) / x.shape[1])


@pytest.mark.parametrize(
    ("n", "dim", "budget", "spread"), [(40, 2, 12, 1.0), (60, 10, 60, 3.0), (50, 4, 10, 0.1), (1, 3, 1, 1)]
)
def test_each_medoid_is_the_best_that_a_brute_force_finds(n: int, dim: int, budget: int, spread: float) -> None:
    # Two points that are each other's only gain tie but for rounding: 1 - cover_i + s_ij - cover_j. So not the order
    # is compared, but that the chosen one is as good as the best of all, in every round.
    for seed in range(5):
        points = spread * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
        found, similar, cover = medoids(points, budget), similarities(points), np.zeros(n)
        assert len(set(found.order)) == len(found.gains) == budget
        for place, gain in zip(found.order, found.gains, strict=True):
            gains = [np.maximum(similar[j], cover).sum() - cover.sum() for j in range(n)]
            assert gain == pytest.approx(gains[place], abs=1e-5) and gain > max(gains) - 1e-5
            cover = np.maximum(cover, similar[place])
        assert found.owner.tolist() == similar[found.order].argmax(axis=0).tolist()


def test_of_equal_points_the_lowest_is_chosen_and_the_first_medoid_owns_all() -> None:
    found = medoids(torch.zeros(5, 2), 3)
    assert (found.order, found.gains, found.owner.tolist()) == ([0, 1, 2], [5, 0, 0], [0] * 5)


def test_a_class_too_large_for_a_matrix_is_selected_from_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
    whole = medoids(points, 25)
    monkeypatch.setattr(epic, "WHOLE", 10)
    by_rows = medoids(points, 25)
    assert (by_rows.order, by_rows.gains) == (whole.order, whole.gains)
    assert torch.equal(by_rows.owner, whole.owner)


def test_budgets_sum_to_the_total_and_stay_within_one_of_the_exact_parts() -> None:
    draw = np.random.default_rng(0)
    seen = set()
    for seed in range(50):
        sizes = draw.integers(1, 40, size=7).tolist()
        total = int(0.3 * sum(sizes))
        budgets = class_budgets(sizes, total, torch.Generator().manual_seed(seed))
        assert sum(budgets) == total
        for size, budget in zip(sizes, budgets, strict=True):
            assert abs(budget - size * total / sum(sizes)) <= 1 and budget >= 0
    for seed in range(20):
        seen.add(tuple(class_budgets([5, 5, 5], 7, torch.Generator().manual_seed(seed))))
    assert seen == {(3, 2, 2), (2, 3, 2), (2, 2, 3)}
    assert class_budgets([5000] * 10, 5000, torch.Generator()) == [500] * 10  # exact: no rounding of floats


@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_cross_entropy_at_the_logits(bias: bool) -> None:
    data, network = world(60), fresh()
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([2.0, -1.0, 0.5, 0.0]))
    x = data.images.permute(0, 3, 1, 2).float() / 127.5 - 1
    logits = (network.features(x) @ network.head.weight.T + (network.head.bias if bias else 0)).detach()
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, data.labels, reduction="sum"), logits)
    found = last_layer_gradients(network, data, bias=bias)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("config", "epochs"),
    [
        (PRESETS["puregen"], [10, 20, 30, 40, 50, 60, 70]),
        (PRESETS["original"], [10, 20, 30, 40, 50, 60, 70]),
        (PRESETS["original-40"], list(range(10, 36, 2))),
        (PRESETS["short"], [2, 3, 4, 5, 6, 7]),
        (Config(every=5, drop_after=6, stop_after=20), [10, 15]),
        (Config(every=1, drop_after=0, stop_after=3), [0, 1, 2]),
    ],
)
def test_images_are_dropped_at_the_epochs_of_the_schedule_only(config: Config, epochs: list[int]) -> None:
    assert [epoch for epoch in range(80) if config.selects(epoch)] == epochs


def test_before_the_first_selection_all_images_train_and_between_two_the_kept_ones_stay() -> None:
    data, defense = world(80), Epic(Config(share=0.3, every=2, drop_after=2), seed=0)
    seen = [defense.before_epoch(epoch, fresh(epoch), data) for epoch in range(5)]
    assert seen[0].rows is None and seen[1].rows is None and all(found.images is None for found in seen)
    assert torch.equal(rows(seen[2]), rows(seen[3]))
    assert len(rows(seen[4])) < len(rows(seen[3])) < 80


def test_an_image_once_dropped_never_returns_though_each_selection_looks_at_all() -> None:
    # 20 images a class and a share of 0.2: budgets come out even, so that a selection is a function of the network
    data, networks = world(80), [fresh(seed) for seed in range(4)]
    alone = [Epic(ALWAYS, seed=0).before_epoch(0, network, data) for network in networks]
    together = Epic(ALWAYS, seed=0)
    for count, network in enumerate(networks, start=1):
        found = together.before_epoch(count - 1, network, data)
        kept = set.intersection(*(set(rows(one).tolist()) for one in alone[:count]))
        assert set(rows(found).tolist()) == kept
    assert len(kept) < min(len(rows(one)) for one in alone)  # some would have come back


def test_exactly_the_medoids_that_attract_no_other_image_of_their_class_are_dropped() -> None:
    data, network = world(80), fresh()
    kept = set(rows(Epic(Config(share=0.5, every=1, drop_after=0), seed=0).before_epoch(0, network, data)).tolist())
    gradients, dropped = last_layer_gradients(network, data, bias=False), set()
    for label in range(4):
        members = (data.labels == label).nonzero()[:, 0]
        order = medoids(gradients[members], 10).order
        owner = similarities(gradients[members])[order].argmax(axis=0).tolist()
        dropped |= {int(members[order[place]]) for place in range(10) if owner.count(place) == 1}
    assert dropped and kept == set(range(80)) - dropped


def test_mislabeled_images_are_dropped_first_and_the_network_is_left_as_it_is() -> None:
    data, flipped = world(400), torch.arange(0, 400, 20)
    labels = data.labels.clone()
    labels[flipped] = (labels[flipped] + torch.arange(20) % 3 + 1) % 4
    defense, network = Epic(Config(share=0.2, every=1, drop_after=3), seed=0), fresh()
    trained = train_classifier(
        network, data.images, labels, ClassifierConfig(epochs=6, batch_size=32), seed=0, defense=defense
    )
    assert defense.kept is not None
    lost = ~defense.kept
    assert lost[flipped].float().mean() > 3 * lost.float().mean()
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    Epic(ALWAYS, seed=0).before_epoch(0, trained, TrainingData(data.images, labels))
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert not trained.training


def test_a_network_without_a_head_is_refused() -> None:
    with pytest.raises(InputError, match="needs a network with features and a head .* got a Flatten"):
        Epic(ALWAYS, seed=0).before_epoch(0, nn.Flatten(), world(8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"share": 1.0}, "share must lie between 0 and 1, got 1.0"), ({"every": 0}, "every must be >= 1 .* got 0 and 10")],
)
def test_settings_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**fields)  # type: ignore[arg-type]


def world(n: int) -> TrainingData:
    made = textures(n, seed=0)
    return TrainingData(made.images, made.labels)


def fresh(seed: int = 0) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TinyNet().eval()
        nn.init.normal_(network.head.weight, std=3)
    return network


def rows(found: EpochData) -> Tensor:
    assert found.rows is not None
    return found.rows
