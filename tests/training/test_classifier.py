"""The recipe of victims and surrogates."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.classifiers.networks import replace_head
from pureebm.classifiers.resnet import ResNet
from pureebm.classifiers.small_resnet import SmallResNet
from pureebm.data.augment import PAD, Augmentation
from pureebm.data.ranges import to_pm1
from pureebm.errors import DivergedError, InputError
from pureebm.training.classifier import (
    ClassifierConfig,
    ClassifierTraining,
    predict,
    settle_precision,
    train_classifier,
)
from pureebm.training.workers import Workers
from pureebm.types import EpochData, TrainingData


def test_an_augmented_image_is_a_crop_of_the_zero_padded_image_or_of_its_mirror() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (64, 8, 6, 3), generator=generator).to(torch.uint8)
    out = Augmentation().apply(images, generator)
    found = [_places(image, new) for image, new in zip(images, out, strict=True)]
    assert all(found)  # every one is such a crop
    assert {place for places in found for place in places if place[2]}  # some are mirrored
    assert {place for places in found for place in places if not place[2]}
    assert len({place[:2] for places in found for place in places}) > 2 * PAD  # at many offsets


def _places(image: Tensor, new: Tensor) -> list[tuple[int, int, bool]]:
    padded = torch.zeros(8 + 2 * PAD, 6 + 2 * PAD, 3, dtype=torch.uint8)
    padded[PAD:-PAD, PAD:-PAD] = image
    return [
        (top, left, flipped)
        for top in range(2 * PAD + 1)
        for left in range(2 * PAD + 1)
        for flipped in (False, True)
        if (
            padded[top : top + 8, left : left + 6].flip(1) if flipped else padded[top : top + 8, left : left + 6]
        ).equal(new)
    ]


def test_the_rate_is_a_triangle_with_its_top_after_the_warm_up() -> None:
    config = ClassifierConfig(peak_rate=0.5, warm_up=0.2)
    rates = [config.rate(update, 1000) for update in range(1000)]
    assert rates.index(max(rates)) in (199, 200)
    assert max(rates) == pytest.approx(0.5, rel=0.01)
    assert rates[99] == pytest.approx(0.25, rel=0.01)
    assert rates[599] == pytest.approx(0.25, rel=0.01)
    assert 0 < min(rates) < 0.002


def colors(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Reddish and bluish noise images: learnable in a few updates."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    images = torch.randint(60, 180, (n, 32, 32, 3), generator=generator)
    images[:, :, :, 0] += 40 * (labels == 0).view(n, 1, 1)
    images[:, :, :, 2] += 40 * (labels == 1).view(n, 1, 1)
    return images.to(torch.uint8), labels


def test_training_learns_and_a_seed_repeats_it_bit_by_bit() -> None:
    images, labels = colors(512, seed=0)
    test_images, test_labels = colors(200, seed=1)

    def trained(seed: int) -> nn.Module:
        torch.manual_seed(0)
        return train_classifier(SmallResNet(2, (4, 8, 8)), images, labels, ClassifierConfig(epochs=2), seed=seed)

    first, again, other = trained(0), trained(0), trained(1)
    assert (predict(first, test_images) == test_labels).double().mean() > 0.95
    assert not first.training
    assert all(a.equal(b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not all(a.equal(b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True))


def test_zero_epochs_leave_the_weights_and_training_leaves_the_global_random_state() -> None:
    images, labels = colors(64, seed=0)
    network = SmallResNet(2, (4, 4, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    train_classifier(network, images, labels, ClassifierConfig(epochs=0), seed=0)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    train_classifier(network, images, labels, ClassifierConfig(epochs=1), seed=0)
    assert torch.random.get_rng_state().equal(state)


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    network, images = SmallResNet(5, (4, 4, 4)).eval(), colors(37, seed=0)[0]
    expected = network(to_pm1(images).permute(0, 3, 1, 2)).argmax(dim=1)
    assert predict(network, images, batch_size=10).equal(expected)
    assert predict(network, images[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(64, 3, 32, 32), torch.zeros(64).long(), "must be .* uint8"),
        (torch.zeros(64, 32, 32, 3, dtype=torch.uint8), torch.zeros(63).long(), "64 images, but 63 labels"),
        (torch.zeros(63, 32, 32, 3, dtype=torch.uint8), torch.zeros(63).long(), "fewer than one batch of 64"),
    ],
)
def test_unfit_input_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_classifier(SmallResNet(2, (4, 4, 4)), images, labels, ClassifierConfig(), seed=0)


PLAIN = ClassifierConfig(epochs=2, batch_size=16, pad=0, flip=False)


def small(n_classes: int = 2, *, norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4)][: 1 + norm]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, n_classes))


def extractor() -> ResNet:
    torch.manual_seed(0)
    network = ResNet(2, depths=(1, 1, 1, 1), width=4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    return network


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_default_recipe_is_this_loop_to_the_bit(smoothing: float) -> None:
    images, labels = colors(130, seed=0)
    config = ClassifierConfig(epochs=2, batch_size=32, label_smoothing=smoothing, weight_decay=1e-3)
    found, expected = small(), small()
    losses: list[float] = []
    train_classifier(found, images, labels, config, seed=7, on_epoch=lambda epoch, loss: losses.append(loss))
    generator, total = torch.Generator().manual_seed(7), 0.0
    expected.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for epoch in range(2):
        order, total = torch.randperm(130, generator=generator), 0.0
        for batch in range(4):
            rows = order[batch * 32 : batch * 32 + 32]
            x = to_pm1(Augmentation().apply(images[rows], generator)).permute(0, 3, 1, 2)
            loss = F.cross_entropy(expected(x), labels[rows], label_smoothing=smoothing)
            done = (epoch * 4 + batch + 0.5) / 8
            optimizer.param_groups[0]["lr"] = 0.1 * min(done / 0.2, (1 - done) / 0.8)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
    assert same(found, expected) and losses[-1] == total / 4


def test_the_rate_falls_by_gamma_at_the_milestones() -> None:
    config = ClassifierConfig(epochs=40, schedule="steps", milestones=(3 / 8, 5 / 8, 1 / 1.142), peak_rate=0.2)
    assert config.milestone_epochs() == [15, 25, 35]
    rates = [config.rate(update, 40 * 7) for update in range(40 * 7)]
    falls = [update / 7 for update in range(1, 40 * 7) if rates[update] != rates[update - 1]]
    assert falls == [15, 25, 35] and rates[0] == 0.2
    assert rates[-1] == pytest.approx(2e-4)


def test_a_triangle_may_begin_above_0() -> None:
    config = ClassifierConfig(first_rate=0.2, peak_rate=1.0)
    rates = [config.rate(update, 1000) for update in range(1000)]
    assert rates[0] == pytest.approx(0.2, abs=0.01) and rates[100] == pytest.approx(0.6, abs=0.01)
    assert max(rates) == pytest.approx(1.0, abs=0.01) and rates[999] < 0.002


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_stored_training_goes_on_to_the_same_bits_from_any_update(optimizer: str) -> None:
    images, labels = colors(100, seed=0)
    config = ClassifierConfig(epochs=2, batch_size=32, keep_last=True, optimizer=optimizer, cutout=5, peak_rate=0.01)

    def make() -> ClassifierTraining:
        return ClassifierTraining(small(), images, labels, config, seed=3, workers=Workers("cpu"))

    whole, losses = make(), []
    stored = []
    while whole.epoch < 2:
        stored.append({name: value.clone() for name, value in whole.tensors().items()})
        losses.append(whole.advance())
    assert len(stored) == 8 and [loss is not None for loss in losses] == [False, False, False, True] * 2
    for update in (0, 1, 4, 6):
        other = make()
        other.restore(stored[update])
        ends = [other.advance() for _ in range(8 - update)]
        assert same(other.network, whole.network) and ends[-1] == losses[-1]


def test_the_last_short_batch_is_used_where_the_recipe_says_so() -> None:
    images, labels = colors(40, seed=0)
    seen: list[int] = []
    for keep in (False, True):
        network = small()
        network.register_forward_hook(lambda module, args, out: seen.append(len(out)))
        train_classifier(network, images, labels, replace(PLAIN, epochs=1, keep_last=keep), seed=0)
    assert seen == [16, 16, 16, 16, 8]


def test_a_summed_loss_is_the_mean_one_at_a_rate_by_the_batch_size() -> None:
    images, labels = colors(64, seed=0)
    mean = train_classifier(small(), images, labels, replace(PLAIN, weight_decay=0.0), seed=0)
    config = replace(PLAIN, weight_decay=0.0, sum_loss=True, peak_rate=0.1 / 16)
    summed = train_classifier(small(), images, labels, config, seed=0)
    for a, b in zip(mean.parameters(), summed.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_bias_scaler_speeds_up_batch_norms_parameters_only() -> None:
    # One update of plain SGD from the same gradient: a step is the rate times (gradient + decay * weight), and the
    # decay of the scaled group is divided by the scale, so that a step is scale * rate * gradient + rate * decay * w.
    images, labels = colors(16, seed=0)
    base = replace(PLAIN, epochs=1, momentum=0.0, nesterov=False, weight_decay=0.5)
    start = small()
    plain = train_classifier(small(), images, labels, replace(base, weight_decay=0.0), seed=0)
    scaled = train_classifier(small(), images, labels, replace(base, bias_scaler=8.0), seed=0)
    rate = base.rate(0, 1)
    for (name, old), a, b in zip(start.named_parameters(), plain.parameters(), scaled.parameters(), strict=True):
        scale = 8.0 if name.startswith("1.") else 1.0
        torch.testing.assert_close(old - b, scale * (old - a) + rate * 0.5 * old, rtol=1e-3, atol=1e-6)


def test_frozen_batch_norm_changes_nothing_of_itself_while_the_rest_trains() -> None:
    images, labels = colors(64, seed=0)
    network = small()
    network[1].running_mean.uniform_(-1, 1)
    before = copy.deepcopy(network)
    train_classifier(network, images, labels, replace(PLAIN, batch_norm="frozen"), seed=0)
    assert same(network[1], before[1]) and not network[0].weight.equal(before[0].weight)
    train_classifier(network, images, labels, PLAIN, seed=0)
    assert not network[1].running_mean.equal(before[1].running_mean)


LINEAR = replace(PLAIN, epochs=3, batch_size=32, optimizer="adam", train="head", fresh_head=True, keep_last=True)


def test_linear_transfer_is_the_slow_way_with_features_computed_once() -> None:
    images, labels = colors(150, seed=0)
    network, slow = extractor(), extractor()
    calls: list[int] = []
    network.conv1.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    train_classifier(network, images, labels, LINEAR, seed=4)
    assert calls == [150]
    replace_head(slow, 2, seed=4)
    slow.to(memory_format=torch.channels_last).eval()
    generator = torch.Generator().manual_seed(4)
    optimizer = torch.optim.Adam(slow.head.parameters(), weight_decay=5e-4)
    for epoch in range(3):
        order = torch.randperm(150, generator=generator)
        for batch in range(5):
            rows = order[batch * 32 : batch * 32 + 32]
            logits = slow(to_pm1(images[rows]).permute(0, 3, 1, 2))
            optimizer.param_groups[0]["lr"] = LINEAR.rate(epoch * 5 + batch, 15)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
    for (name, found), expected in zip(network.state_dict().items(), slow.state_dict().values(), strict=True):
        if name.startswith("head"):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        else:
            assert found.equal(expected), name


def test_linear_transfer_with_crops_leaves_the_extractor_and_learns() -> None:
    images, labels = colors(256, seed=0)
    network, before = extractor(), extractor()
    train_classifier(network, images, labels, replace(LINEAR, pad=2, flip=True, peak_rate=0.05), seed=0)
    assert not same(network.head, before.head)
    network.head = before.head
    assert same(network, before)


def test_a_frozen_surrogate_can_be_trained_on() -> None:
    images, labels = colors(64, seed=0)
    network, before = extractor().requires_grad_(False), extractor()
    train_classifier(network, images, labels, PLAIN, seed=0)
    assert not network.conv1.weight.equal(before.conv1.weight)


def test_recipes_for_heads_want_a_network_with_one() -> None:
    images, labels = colors(64, seed=0)
    with pytest.raises(InputError, match="fresh_head need a network with features and a head .* got a Sequential"):
        train_classifier(small(), images, labels, LINEAR, seed=0)


class DropAndBrighten:
    """Keeps the even rows from epoch 1 on, and trains epoch 2 on white images; before all, takes label 1 for 0."""

    def __init__(self) -> None:
        self.modes: list[bool] = []

    def before_training(self, network: nn.Module, data: TrainingData) -> TrainingData:
        self.modes.append(network.training)
        return TrainingData(data.images, torch.zeros_like(data.labels))

    def before_epoch(self, epoch: int, network: nn.Module, data: TrainingData) -> EpochData:
        self.modes.append(network.training)
        assert data.labels.sum() == 0
        rows = torch.arange(0, len(data.labels), 2) if epoch else None
        return EpochData(rows, torch.full_like(data.images, 255) if epoch == 2 else None)


def test_a_defense_inside_of_the_loop_decides_what_an_epoch_sees() -> None:
    images, labels = colors(64, seed=0)
    images[1::2] = 0  # the rows to be dropped
    seen: list[Tensor] = []
    network = small()
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0]) if module.training else None)
    defense = DropAndBrighten()
    train_classifier(network, images, labels, replace(PLAIN, epochs=3), seed=0, defense=defense)
    assert defense.modes == [False] * 4 and not network.training
    assert [len(x) for x in seen] == [16] * 4 + [16] * 2 + [16] * 2
    black = [int((x.flatten(1) == -1).all(dim=1).sum()) for x in seen]
    assert sum(black[:4]) == 32 and sum(black[4:]) == 0
    assert all((x == 1).all() for x in seen[6:]) and not (seen[5] == 1).all()
    assert (predict(network, images) == 0).all()  # the labels were the defense's


def test_features_of_frozen_extractors_follow_a_defenses_images() -> None:
    images, labels = colors(64, seed=0)
    network = extractor()
    calls: list[float] = []
    network.conv1.register_forward_pre_hook(lambda module, args: calls.append(float(args[0].std())))
    train_classifier(network, images, labels, LINEAR, seed=0, defense=DropAndBrighten())
    assert len(calls) == 2 and calls[0] > 0.1  # once for epochs 0 and 1, once for the white images of epoch 2


def test_a_defense_that_keeps_less_than_a_batch_is_an_error() -> None:
    class DropAll(DropAndBrighten):
        def before_epoch(self, epoch: int, network: nn.Module, data: TrainingData) -> EpochData:
            return EpochData(rows=torch.arange(3))

    images, labels = colors(64, seed=0)
    with pytest.raises(InputError, match="kept 3 images, fewer than a batch of 16"):
        train_classifier(small(), images, labels, PLAIN, seed=0, defense=DropAll())


class ThreadWorkers(Workers):
    """Two "processes" that are threads, and meet to average."""

    def __init__(self, rank: int, shared: list[object], barrier: threading.Barrier) -> None:
        super().__init__("cpu")
        self.rank, self.count, self._shared, self._barrier = rank, 2, shared, barrier

    def average(self, tensors: Sequence[Tensor]) -> None:
        self._shared[self.rank] = [tensor.clone() for tensor in tensors]
        self._barrier.wait(timeout=60)
        for tensor, a, b in zip(tensors, *self._shared, strict=True):
            tensor.copy_((a + b) / 2)
        self._barrier.wait(timeout=60)


def train_two(config: ClassifierConfig, *, norm: bool) -> list[nn.Module]:
    images, labels = colors(58, seed=0)  # the last batch of 16 has 10
    shared: list[object] = [None, None]
    barrier, networks = threading.Barrier(2), [small(norm=norm), small(norm=norm)]

    def work(rank: int) -> None:
        workers = ThreadWorkers(rank, shared, barrier)
        train_classifier(networks[rank], images, labels, config, seed=1, workers=workers)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return networks


@pytest.mark.parametrize("sum_loss", [False, True])
def test_processes_share_each_batch_and_train_as_one_does(sum_loss: bool) -> None:
    images, labels = colors(58, seed=0)
    rate = 0.02 if sum_loss else 0.1
    config = ClassifierConfig(epochs=2, batch_size=15, keep_last=True, peak_rate=rate, sum_loss=sum_loss)
    first, second = train_two(config, norm=False)
    alone = train_classifier(small(norm=False), images, labels, config, seed=1)
    assert same(first, second) and not same(first, small(norm=False))
    for a, b in zip(first.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_processes_end_with_the_same_statistics_of_batch_norm() -> None:
    first, second = train_two(ClassifierConfig(epochs=2, batch_size=16), norm=True)
    assert same(first, second)


def test_bfloat16_learns_and_keeps_its_weights_in_float32() -> None:
    images, labels = colors(512, seed=0)
    torch.manual_seed(0)
    network = SmallResNet(2, (4, 8, 8))
    train_classifier(network, images, labels, ClassifierConfig(epochs=2), seed=0, precision="bfloat16")
    assert all(value.dtype == torch.float32 for value in network.parameters())
    test_images, test_labels = colors(200, seed=1)
    assert (predict(network, test_images) == test_labels).double().mean() > 0.9
    assert settle_precision("auto", torch.device("cpu")) in ("float32", "bfloat16")
    with pytest.raises(InputError, match="precision must be auto, float32 or bfloat16, got 'half'"):
        settle_precision("half", torch.device("cpu"))


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    images, labels = colors(64, seed=0)
    with pytest.raises(DivergedError, match="training loss became .* lower peak_rate"):
        train_classifier(small(), images, labels, replace(PLAIN, peak_rate=1e30), seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "rmsprop"}, "optimizer must be sgd or adam, got 'rmsprop'"),
        ({"milestones": (100,)}, "milestones are shares"),
        ({"bias_scaler": 0.0}, "bias_scaler must be above 0"),
        ({"warm_up": 1.0}, "warm_up must lie"),
        ({"epochs": -1}, "epochs must be >= 0"),
    ],
)
def test_unfit_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassifierConfig(**values)
