"""The runner on colored stripes: what is poisoned and purified, what is counted, what is kept, what is told.

Most victims here are untrained (`epochs = 0`): these tests are about bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pureebm.attacks.base import AvailabilityGoal, LabeledSet, Poisoned, TargetGoal, TriggerGoal
from pureebm.attacks.triggers import PatchTrigger
from pureebm.classifiers.base import Classifier
from pureebm.data.ranges import to_pm1
from pureebm.energy.weights import load_model, save_model
from pureebm.errors import InputError
from pureebm.evaluation import defenses, victims
from pureebm.evaluation import runner as runner_module
from pureebm.evaluation.arrays import Shelf, textures
from pureebm.evaluation.cards import read_card
from pureebm.evaluation.defenses import Defense
from pureebm.evaluation.runner import Runner, goal_rates, identity, jobs, read_suite_cards
from pureebm.evaluation.scenarios import Scenario, Suite, known_purifier, load_suite
from pureebm.evaluation.store import Store
from pureebm.evaluation.tables import make_rows
from pureebm.evaluation.victims import Bench, poisons, regime, surrogates, train_victim
from pureebm.purify.stages import Highest
from pureebm.training.classifier import ClassifierConfig, predict
from pureebm.types import JSON, EpochData, TrainingData

from .conftest import Smoke

UNTRAINED = {"epochs": 0, "batch_size": 20}
SCENARIO = Scenario(
    name="b",
    attack="badnets",
    budget=0.1,
    data="synthetic-60",
    recipe_overrides=UNTRAINED,
    attack_seed=0,
    classes=(1, 2),
    seeds=(0, 1),
)


class Shift:
    """A purifier that adds to every pixel a number drawn from the seed and the id."""

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        steps = [(sum(name.encode()) + seed) % 5 + 1 for name in ids]
        return images + torch.tensor(steps).view(-1, 1, 1, 1) * 2 / 255

    def energies(self, images: Tensor) -> None:
        return None

    def settings(self) -> JSON:
        return {"stage": "shift"}


class Reader(Classifier):
    """Reads the class from the brightness of the corner pixel: 10 steps of 1/255 a class."""

    def __init__(self, n_classes: int = 4) -> None:
        super().__init__()
        self.n_classes = n_classes

    def forward(self, images: Tensor) -> Tensor:
        level = ((images[:, 0, 0, 0] + 1) * 127.5 / 10).round()
        return -(level[:, None] - torch.arange(self.n_classes)).abs()


def suite(*scenarios: Scenario, defenses: tuple[str, ...] = ("none", "jpeg-50")) -> Suite:
    return Suite(name="s", title="t", scenarios=scenarios, defenses=defenses)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Shelf(None, tmp_path / "cache"), Store(tmp_path / "cache"), precision="float32")


@pytest.fixture
def make(tmp_path: Path, bench: Bench):
    return lambda *scenarios, **settings: Runner(suite(*scenarios, **settings), bench=bench, out=tmp_path / "out")


def corners(classes: list[int]) -> Tensor:
    images = torch.zeros(len(classes), 16, 16, 3, dtype=torch.uint8)
    images[:, 0, 0] = 10 * torch.tensor(classes, dtype=torch.uint8)[:, None]
    return images


def test_the_smoke_suite_gives_a_card_for_every_job_and_repeats_nothing(
    smoke: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [job.name for job in jobs(smoke.suite)]
    assert smoke.outcome.made == every and not smoke.outcome.failed and not smoke.outcome.left
    monkeypatch.setattr(runner_module, "train_victim", None)
    monkeypatch.setattr(victims, "craft", None)
    again = Runner(smoke.suite, bench=smoke.bench, out=smoke.out).run()
    assert (again.made, again.existed) == ([], every)


def test_a_card_says_how_it_was_made_and_how_to_make_it_again(smoke: Smoke) -> None:
    cards = {(card["attack"], card["goal"], card["defence"]): card for card in smoke.cards}
    card = cards["badnets", "class1", "jpeg-50"]
    again = "pureebm bench run --suite smoke --defence jpeg-50 --only badnets/class1/seed0/jpeg-50 --precision float32"
    assert card["command"] == again
    assert card["settings"] == {"stage": "jpeg", "quality": 50, "seed": 0}
    assert (card["n_train"], card["n_poisons"], card["budget"], card["target_class"]) == (80, 8, 0.1, 1)
    assert card["protocol"]["recipe_overrides"] == {"epochs": 1, "batch_size": 20}
    assert card["attack_record"]["attack"] == "badnets"
    assert card["versions"]["torch"] == torch.__version__ and len(card["hashes"]["poisons"]) == 64
    assert card["train_seconds"] > 0 and card["train_peak_mb"] > 50 and card["defence_peak_mb"] > 50
    assert 10 < card["psnr"] < 60 and card["l2"] > 0 and card["changed_share"] == 1
    none = cards["badnets", "class1", "none"]
    assert (none["psnr"], none["l2"], none["defence_seconds"]) == (None, 0, 0)
    assert cards["none", "no-attack", "none"]["poison_success"] is None
    assert all(0 <= card["natural_accuracy"] <= 1 for card in cards.values())
    assert cards["gradient-matching", "target0", "none"]["kind"] == "targets"


def test_the_floor_is_the_rate_of_the_clean_undefended_victim_of_the_same_seed(smoke: Smoke) -> None:
    runner = Runner(smoke.suite, bench=smoke.bench, out=smoke.out)
    scenario = smoke.suite.scenarios[0]
    data = smoke.bench.shelf.load(scenario.data)
    goal = scenario.goals()[0]
    attack = poisons(scenario, goal, data, bench=runner.bench)
    clean, _ = victims.clean_victim(scenario, data.train, seed=0, bench=smoke.bench)
    success, true = goal_rates(clean, attack.goal, data.test, seed=goal.seed)
    for card in smoke.cards:
        if card["attack"] == "badnets" and card["goal"] == goal.name:
            assert (card["clean_floor"], card["clean_still_true"]) == (success, true)


def test_poisons_stand_in_the_place_of_their_originals_and_are_purified_with_their_noise(bench: Bench, make) -> None:
    runner, scenario = make(SCENARIO), SCENARIO
    data = bench.shelf.load(scenario.data)
    attack = poisons(scenario, scenario.goals()[0], data, bench=runner.bench)
    clean, _ = runner._purify(Defense("shift", Shift()), data, None)
    dirty, _ = runner._purify(Defense("shift", Shift()), data, attack)
    changed = (dirty.images != clean.images).flatten(1).any(dim=1).nonzero().squeeze(1)
    assert changed.equal(attack.rows) and len(changed) == 6
    assert dirty.labels.equal(attack.apply(data.train).labels)
    moved = dirty.images[changed].int() - clean.images[changed].int()
    unclipped = (attack.images < 250) & (data.train.images[changed] < 250)
    assert (moved == attack.images.int() - data.train.images[changed].int())[unclipped].all()


def test_of_the_poisoned_set_only_the_images_of_highest_energy_are_purified(bench: Bench, make) -> None:
    class Bright(Shift):
        def energies(self, images: Tensor) -> Tensor:
            return images.flatten(1).mean(1)

    runner = make(SCENARIO)
    data = bench.shelf.load(SCENARIO.data)
    attack = poisons(SCENARIO, SCENARIO.goals()[0], data, bench=runner.bench)
    given = attack.apply(data.train).images
    whole, _ = runner._purify(Defense("shift", Shift()), data, attack)
    some, cost = runner._purify(Defense("filt", Highest(Shift(), 0.25, by=Bright())), data, attack)
    chosen = to_pm1(given).flatten(1).mean(1).argsort(descending=True)[:15]
    others = torch.ones(60, dtype=torch.bool).index_fill(0, chosen, False)
    assert some.images[chosen].equal(whole.images[chosen]) and some.images[others].equal(given[others])
    assert (some.images != given).flatten(1).any(1).sum() == 15 and cost.seconds > 0


def test_an_attack_on_every_image_does_not_purify_the_clean_set(bench: Bench, make) -> None:
    data = bench.shelf.load(SCENARIO.data)
    whole = Poisoned(torch.arange(60), 255 - data.train.images, data.train.labels, AvailabilityGoal())
    make(SCENARIO)._purify(Defense("shift", Shift()), data, whole)
    assert len(list((bench.store.folder / "purified").iterdir())) == 1


def test_a_killed_run_goes_on_where_it_was_and_leaves_nothing_broken(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, n_measured = Runner.measure, 0

    def interrupted(self: Runner, job: object) -> JSON:
        nonlocal n_measured
        if n_measured == 3:
            raise KeyboardInterrupt
        n_measured += 1
        return measure(self, job)

    monkeypatch.setattr(Runner, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(SCENARIO).run()
    made = sorted((tmp_path / "out").rglob("*.*"))
    assert len(made) == 3 and all(read_card(path)["natural_accuracy"] is not None for path in made)
    monkeypatch.setattr(Runner, "measure", measure)
    outcome = make(SCENARIO).run()
    assert (len(outcome.existed), len(outcome.made)) == (3, 4 + 8 - 3)


def test_what_cannot_be_run_is_told_and_the_rest_is_run(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defenses, "bundled_path", lambda: Path("nowhere"))
    unknown = replace(SCENARIO, name="c", data="cinic10", seeds=(0,), classes=(1,))
    outcome = make(replace(SCENARIO, seeds=(0,), classes=(1,)), unknown, defenses=("none", "ddpm")).run()
    assert outcome.made == ["b/no-attack/seed0/none", "b/class1/seed0/none"]
    assert outcome.failed["b/class1/seed0/ddpm"].startswith("defense not installed: ddpm")
    assert "no data set 'cinic10' here" in outcome.failed["c/class1/seed0/none"]


def test_no_card_is_begun_after_the_time_is_up_and_what_is_left_is_named(make) -> None:
    outcome = make(SCENARIO).run(max_minutes=0)
    assert outcome.made == [] and len(outcome.left) == 12
    with pytest.raises(InputError, match="no job of suite 's' is like 'z'; its scenarios are: b"):
        make(SCENARIO).run(only="z")


def test_cards_are_read_in_the_order_of_scenarios_and_defenses(make, tmp_path: Path) -> None:
    runner = make(SCENARIO, defenses=("none", "jpeg-75", "jpeg-50"))
    runner.run(only="seed0")
    cards = read_suite_cards(runner.suite, tmp_path / "out")
    ours = [(card["defence"], card["goal"]) for card in cards if card["attack"] == "badnets"]
    assert ours == [(name, goal) for name in ("none", "jpeg-75", "jpeg-50") for goal in ("class1", "class2")]


def test_a_defense_inside_of_the_training_needs_only_a_name(make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    class Inverted:
        def __init__(self, seed: int) -> None:
            self.seed = seed

        def before_training(self, network: object, data: TrainingData) -> TrainingData:
            return TrainingData(255 - data.images, data.labels)

        def before_epoch(self, epoch: int, network: object, data: TrainingData) -> EpochData:
            seen.append((self.seed, epoch))
            return EpochData(rows=torch.arange(40))

    makers = {**defenses.MAKERS, "inverted": lambda asked: Defense(asked.name, None, 0, Inverted, {"name": "inverted"})}
    monkeypatch.setattr(defenses, "MAKERS", makers)
    scenario = replace(SCENARIO, recipe_overrides={"epochs": 2, "batch_size": 20}, classes=(1,))
    runner = make(scenario, defenses=("inverted",))
    outcome = runner.run(only="inverted")
    assert not outcome.failed and seen == [(0, 0), (0, 1), (1, 0), (1, 1)] * 2
    cards = read_suite_cards(runner.suite, runner.out.parent)
    assert {card["settings"]["training"]["name"] for card in cards} == {"inverted"}
    assert {card["changed_share"] for card in cards} == {0}  # the training images were not purified


def test_where_a_purifier_computes_does_not_make_it_another_defense() -> None:
    class Placed(Shift):
        def __init__(self, **settings: str) -> None:
            self.own = settings

        def settings(self) -> JSON:
            return {"stage": "chain", "stages": [{"n": 3, **self.own}]}

    one, other = Placed(device="cpu", precision="float32"), Placed(device="cuda", precision="bfloat16")
    assert identity(Defense("a", one)) == identity(Defense("b", other))
    assert identity(Defense("a", one)) != identity(Defense("a", one, seed=1))
    assert identity(Defense("a", one)) != identity(Defense("a", Shift()))


def test_triggers_are_counted_over_the_images_that_the_attacker_aims_at() -> None:
    test = LabeledSet(corners([0, 1, 2, 3, 3]), torch.tensor([0, 1, 2, 3, 3]), 4)
    paste = PatchTrigger(torch.full((1, 1, 3), 20, dtype=torch.uint8), (0, 0))  # everything is read as 2
    assert goal_rates(Reader(), TriggerGoal(2, paste), test, seed=0) == (1, 0)
    assert goal_rates(Reader(), TriggerGoal(1, paste), test, seed=0) == (0, 1 / 4)  # the true 2 stays one
    aside = PatchTrigger(torch.full((1, 1, 3), 255, dtype=torch.uint8), (5, 5))  # nothing is misread
    assert goal_rates(Reader(), TriggerGoal(2, aside), test, seed=0) == (0, 1)
    assert goal_rates(Reader(), TriggerGoal(2, paste, source_class=3), test, seed=0) == (1, 0)
    successor = TriggerGoal(None, paste)  # all-to-all: 1 is to be read as 2, the others are not
    assert goal_rates(Reader(), successor, test, seed=0) == (1 / 5, 1 / 5)


def test_targets_are_counted_by_their_intended_and_their_true_classes() -> None:
    goal = TargetGoal(corners([0, 1, 2, 3]), torch.tensor([0, 1, 1, 1]), torch.tensor([3, 3, 2, 2]))
    test = LabeledSet(corners([0]), torch.tensor([0]), 4)
    assert goal_rates(Reader(), goal, test, seed=0) == (1 / 4, 2 / 4)
    assert goal_rates(Reader(), AvailabilityGoal(), test, seed=0) == (None, None)


TRANSFER = Scenario(
    name="t",
    attack="bullseye-polytope",
    config={"n_steps": 2},
    budget=0.1,
    data="synthetic-40",
    recipe="linear-transfer",
    recipe_overrides={"epochs": 2, "batch_size": 20},
    pretrain_data="synthetic-80",
    pretrain_overrides={"epochs": 1, "batch_size": 40},
    surrogates=("small-resnet@0", "small-resnet@1"),
    targets=1,
)


def test_a_linear_transfer_victim_keeps_its_extractor_and_a_white_box_attacker_has_that_one(bench: Bench) -> None:
    data = bench.shelf.load(TRANSFER.data)
    own, other = (victims._extractor(TRANSFER, name, bench=bench) for name in TRANSFER.surrogates)
    victim, _ = train_victim(TRANSFER, data.train, seed=3, bench=bench)
    images = to_pm1(data.test.images).permute(0, 3, 1, 2)
    assert victim.features(images).equal(own.features(images))
    assert not victim.features(images).equal(other.features(images))
    assert not victim.head.weight.equal(own.head.weight)
    tuned = replace(TRANSFER, recipe="fine-tune")
    moved, _ = train_victim(tuned, data.train, seed=3, bench=bench)
    assert not moved.features(images).equal(own.features(images))
    assert (regime(TRANSFER), regime(tuned), regime(SCENARIO)) == ("linear transfer", "fine-tune", "scratch")


def test_transfer_scenarios_run_from_pretraining_to_the_card(make) -> None:
    outcome = make(
        TRANSFER, replace(TRANSFER, name="f", recipe="fine-tune", config={"layers": "fine-tune", "n_steps": 1})
    ).run()
    assert not outcome.failed and len(outcome.made) == 8
    with pytest.raises(InputError, match="scenario 't' is a transfer: give pretrain_data"):
        victims._extractor(replace(TRANSFER, pretrain_data=None), "small-resnet@0", bench=make(TRANSFER).bench)
    with pytest.raises(InputError, match="an extractor is NETWORK@SEED"):
        victims._extractor(TRANSFER, "small-resnet", bench=make(TRANSFER).bench)


def test_a_surrogate_is_trained_once_for_equal_settings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ClassifierConfig(epochs=1, batch_size=15)
    train, data = surrogates("small-resnet", recipe, bench), textures(60, 16, seed=5)
    first = train(data, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(victims, "train_classifier", None)
        assert train(data, seed=0).head.weight.equal(first.head.weight)
    assert not any(parameter.requires_grad for parameter in first.parameters()) and not first.training
    before = first.head.weight.clone()
    warmer = train(data, seed=0, start=first, peak_rate=0.5)
    assert not warmer.head.weight.equal(before) and first.head.weight.equal(before)
    for change in ({"seed": 1}, {"epochs": 2}, {"peak_rate": 0.3}, {"start": warmer}):
        assert not train(data, **{"seed": 0, **change}).head.weight.equal(before)


def test_the_goals_of_a_scenario_share_their_surrogates_of_one_number(bench: Bench) -> None:
    recipe, data = ClassifierConfig(epochs=0, batch_size=15), textures(60, 16, seed=5)
    own, others = (surrogates("small-resnet", recipe, bench, shared=(seed, 100)) for seed in (103, 104))
    weights = own(data, seed=103).head.weight
    assert others(data, seed=104).head.weight.equal(weights)  # number 0 of both
    assert not others(data, seed=105).head.weight.equal(weights)  # number 1
    assert not own(data, seed=5000).head.weight.equal(others(data, seed=5001).head.weight)


def test_victims_differ_by_seed_and_a_clean_one_is_the_same_when_it_is_read_again(bench: Bench) -> None:
    scenario = replace(SCENARIO, recipe_overrides={"epochs": 1, "batch_size": 20})
    data = bench.shelf.load(scenario.data)
    first, cost = victims.clean_victim(scenario, data.train, seed=0, bench=bench)
    again, same = victims.clean_victim(scenario, data.train, seed=0, bench=bench)
    other, _ = victims.clean_victim(scenario, data.train, seed=1, bench=bench)
    assert first.head.weight.equal(again.head.weight) and cost.seconds == pytest.approx(same.seconds)
    assert not first.head.weight.equal(other.head.weight)
    fresh, _ = train_victim(scenario, data.train, seed=0, bench=bench)
    assert predict(fresh, data.test.images).equal(predict(first, data.test.images))


def test_unknown_fields_and_names_are_refused_in_words(bench: Bench) -> None:
    goal = SCENARIO.goals()[0]
    with pytest.raises(InputError, match="attack 'badnets' has no field 'speed'; known: budget, target_class"):
        victims.attack_config(replace(SCENARIO, config={"speed": 1}), goal)
    with pytest.raises(InputError, match="recipe 'fast' has no field 'epoch'; known: epochs"):
        victims.recipe_of(replace(SCENARIO, recipe_overrides={"epoch": 1}))
    with pytest.raises(InputError, match="unknown attack 'badnet'"):
        victims.attack_config(replace(SCENARIO, attack="badnet"), goal)
    with pytest.raises(InputError, match="scenario 'b': badnets is triggered: give classes"):
        victims.attack_config(replace(SCENARIO, classes=(), targets=3), goal)
    assert victims.attack_config(SCENARIO, goal)[1].target_class == 1
    assert victims.attack_config(replace(SCENARIO, attack="hidden-trigger"), goal)[1].intended_class == 1


def test_goals_that_share_a_victim_poison_one_set_and_are_counted_each(make, monkeypatch: pytest.MonkeyPatch) -> None:
    joint, trained = replace(SCENARIO, seeds=(0,), joint=True), []
    train = runner_module.train_victim

    def watched(scenario, data, **settings):
        trained.append(data)
        return train(scenario, data, **settings)

    monkeypatch.setattr(runner_module, "train_victim", watched)
    run = make(joint)
    outcome = run.run(only="class")
    assert len(outcome.made) == 4 and len(trained) == 2  # two classes x two defenses, a victim for each defense
    assert len({joint.key(), replace(joint, joint=False).key(), replace(joint, classes=(1,)).key()}) == 3
    alone = {class_: make(replace(SCENARIO, seeds=(0,), classes=(class_,))) for class_ in (1, 2)}
    clean = run.bench.shelf.load(joint.data).train
    changed = [(trained[0].images != clean.images).flatten(1).any(1)]
    for one in alone.values():
        trained.clear()
        one.run(only="class*none")
        changed.append((trained[0].images != clean.images).flatten(1).any(1))
    assert changed[0].equal(changed[1] | changed[2]) and not (changed[1] & changed[2]).any()
    row = next(row for row in make_rows(read_suite_cards(run.suite, run.out.parent)) if row["sharing"] == 2)
    assert (row["runs"], row["goals"], row["natural_accuracy_sd"]) == (1, 2, None)
    assert row["budget"] == pytest.approx(0.1)


def test_an_attacker_draws_its_noise_anew_or_not_and_takes_the_gradient_or_not(bench: Bench, tiny_model: Path) -> None:
    known = replace(SCENARIO, attack="narcissus", through=str(tiny_model))
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def twice(scenario: Scenario) -> tuple[Tensor, Tensor]:
        through = victims._through(scenario, scenario.goals()[0], bench)
        assert through is not None
        return through(x).detach(), through(x).detach()

    fresh, fixed = twice(known), twice(replace(known, through_noise="fixed"))
    assert not torch.equal(*fresh) and torch.equal(*fixed) and torch.equal(fresh[0], fixed[0])
    straight = victims._through(replace(known, through_gradient="straight"), known.goals()[0], bench)
    assert straight is not None
    start = x.clone().requires_grad_()
    end = straight(start)
    assert torch.allclose(end, fresh[0], atol=1e-6)
    assert torch.equal(torch.autograd.grad((3 * end).sum(), start)[0], torch.full_like(x, 3.0))


def test_goals_that_poison_the_same_image_cannot_share_a_victim() -> None:
    one = Poisoned(torch.tensor([1, 3]), torch.zeros(2, 4, 4, 3), torch.tensor([0, 0]), AvailabilityGoal())
    two = Poisoned(torch.tensor([2]), torch.ones(1, 4, 4, 3), torch.tensor([1]), AvailabilityGoal())
    both = runner_module.joined([one, two])
    assert both.rows.tolist() == [1, 2, 3] and both.images[:, 0, 0, 0].tolist() == [0, 1, 0]
    with pytest.raises(InputError, match="same image"):
        runner_module.joined([one, one])


def test_an_attacker_who_knows_the_purifier_makes_other_poisons_under_a_key_of_its_own(
    bench: Bench, tiny_model: Path
) -> None:
    config = {"surrogate_epochs": 0, "warm_up_epochs": 0, "n_steps": 2, "batch_size": 8}
    blind = replace(SCENARIO, attack="narcissus", config=config, classes=(1,))
    knowing = replace(blind, through=str(tiny_model), through_steps=1)
    data = bench.shelf.load(blind.data)
    plain, aware = (victims.craft(one, one.goals()[0], data, bench=bench) for one in (blind, knowing))
    assert (plain.images != aware.images).any()
    assert blind.key() != knowing.key() and "through" not in blind.settings()
    assert victims.attack_settings(knowing)["through"]["steps"] == 1
    usual = replace(knowing, through_in="generation", through_noise="fresh", through_gradient="exact")
    assert usual.settings() == knowing.settings() and usual.key() == knowing.key()
    ways = {"through_in": "surrogate", "through_noise": "fixed", "through_gradient": "straight"}
    others = [replace(knowing, **{name: value}) for name, value in ways.items()]
    assert len({one.key() for one in (knowing, *others)}) == 4
    for one in others:
        assert victims.attack_settings(one) != victims.attack_settings(knowing)
        assert (victims.craft(one, one.goals()[0], data, bench=bench).images != aware.images).any()
    with pytest.raises(InputError, match="only narcissus optimizes through a purifier"):
        victims.craft(replace(SCENARIO, through=str(tiny_model)), SCENARIO.goals()[0], data, bench=bench)


def test_a_changed_purifier_that_the_attacker_knows_makes_another_key_and_the_card_tells_which(
    make, tmp_path: Path, tiny_model: Path
) -> None:
    config = {"surrogate_epochs": 0, "warm_up_epochs": 0, "n_steps": 1, "batch_size": 8}
    keys, told = [], []
    for name, sampler in (("a", 1), ("b", 1), ("c", 2)):
        path, network = tmp_path / name / "model.safetensors", load_model(tiny_model).network
        with torch.no_grad():
            network.head.weight += 0.01 * (name == "b")
        save_model(path, network, {"sampler": {"n_steps": sampler}})
        path.parent.rename(tmp_path / "m")
        known_purifier.cache_clear()
        knowing = replace(SCENARIO, attack="narcissus", config=config, classes=(1,), seeds=(0,))
        knowing = replace(knowing, through=str(tmp_path / "m" / "model.safetensors"))
        keys.append(knowing.key())
        runner = make(knowing, defenses=("none",))
        assert runner.run(only="class1").made == ["b/class1/seed0/none"]
        assert runner.run(only="class1").made == []
        told += [card["through_model"] for card in read_suite_cards(runner.suite, tmp_path / "out")]
        (tmp_path / "m").rename(tmp_path / name)
    known_purifier.cache_clear()
    assert len(set(keys)) == 3 and len({one["sha256"] for one in told}) == 2
    assert [one["sampler"]["n_steps"] for one in told] == [1, 1, 2]


def test_the_keys_of_those_who_knew_a_bundled_purifier_stay_what_they_were() -> None:
    knowing = {one.name: one for one in load_suite("cpu").scenarios if one.through}
    keys = {name: one.key() for name, one in knowing.items()}
    assert keys == {"narcissus-knows-student": "narcissus-a81f74ef", "narcissus-knows-chain": "narcissus-086cc7cd"}
    assert all("through_model" not in one.settings() for one in knowing.values())


def test_a_purifier_that_there_is_not_fails_its_own_jobs_only(make) -> None:
    lost = replace(SCENARIO, name="lost", attack="narcissus", through="nowhere.safetensors", seeds=(0,), classes=(1,))
    outcome = make(lost, replace(SCENARIO, seeds=(0,), classes=(1,)), defenses=("none",)).run(only="class1")
    assert outcome.made == ["b/class1/seed0/none"]
    assert "nowhere.safetensors" in outcome.failed["lost/class1/seed0/none"]


def test_a_whole_name_is_one_job_even_where_other_names_go_on_from_it() -> None:
    listed = suite(SCENARIO, defenses=("none", "pureebm", "pureebm:steps=5"))
    assert [job.name for job in jobs(listed, "b/class1/seed0/pureebm")] == ["b/class1/seed0/pureebm"]
    assert len(list(jobs(listed, "class1/seed0/pureebm"))) == 2


def test_a_victim_that_diverges_is_told_and_the_other_jobs_go_on(bench: Bench, tmp_path: Path) -> None:
    wild = replace(SCENARIO, name="wild", recipe_overrides={"epochs": 1, "batch_size": 20, "peak_rate": 1e30})
    outcome = Runner(suite(wild, SCENARIO, defenses=("none",)), bench=bench, out=tmp_path).run(only="class1/seed0")
    assert list(outcome.failed) == ["wild/class1/seed0/none"] and "lower peak_rate" in str(outcome.failed)
    assert outcome.made == ["b/class1/seed0/none"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": "sigg"}, "sigg"),
        ({"victim": "resnet-18"}, "did you mean 'resnet18'"),
        ({"recipe": "fst"}, "unknown recipe"),
        ({"config": {"epz": 8}}, "no field 'epz'"),
        ({"config": {"patch_size": "3"}}, "patch_size must be a int, got '3'"),
        ({"recipe_overrides": {"epochs": 1.5}}, "epochs must be a int, got 1.5"),
    ],
)
def test_names_and_types_are_checked_before_the_first_victim(
    bench: Bench, tmp_path: Path, change: JSON, message: str
) -> None:
    bad = replace(SCENARIO, name="bad", **change)
    with pytest.raises(InputError, match=message):
        Runner(suite(SCENARIO, bad), bench=bench, out=tmp_path).run()
    assert not list(tmp_path.rglob("*-seed0.json"))


def test_a_card_of_another_precision_than_asked_for_is_not_taken_for_it(bench: Bench, tmp_path: Path) -> None:
    listed = suite(SCENARIO, defenses=("none",))
    Runner(listed, bench=bench, out=tmp_path).run(only="class1/seed0")
    other = Runner(listed, bench=replace(bench, precision="bfloat16"), out=tmp_path).run(only="class1/seed0")
    assert "made in float32; give another --out" in other.failed["b/class1/seed0/none"] and not other.existed


def test_the_card_of_the_same_job_in_another_suite_is_taken_over_with_its_own_command(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = suite(SCENARIO, defenses=("none",))
    Runner(first, bench=bench, out=tmp_path).run(only="class1/seed0")
    monkeypatch.setattr(runner_module, "train_victim", None)
    other = replace(first, name="t", scenarios=(replace(SCENARIO, name="renamed"),))
    outcome = Runner(other, bench=bench, out=tmp_path).run(only="class1/seed0")
    assert outcome.made == ["renamed/class1/seed0/none"] and not outcome.failed
    (old,), (new,) = read_suite_cards(first, tmp_path), read_suite_cards(other, tmp_path)
    assert (new["suite"], new["scenario"], new["taken_from"]) == ("t", "renamed", "s")
    assert "--suite t" in new["command"] and "--only renamed/class1/seed0/none" in new["command"]
    own = ("suite", "scenario", "command", "taken_from")
    assert {k: v for k, v in old.items() if k not in own} == {k: v for k, v in new.items() if k not in own}


def test_cards_of_scenarios_that_left_the_suite_are_not_read(bench: Bench, tmp_path: Path) -> None:
    Runner(suite(SCENARIO, defenses=("none",)), bench=bench, out=tmp_path).run(only="class1/seed0")
    now = suite(replace(SCENARIO, budget=0.2), defenses=("none",))
    assert read_suite_cards(suite(SCENARIO), tmp_path) and not read_suite_cards(now, tmp_path)
