"""`pureebm attack import` from end to end: files of other programs, made here, into data sets that purify takes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.attacks.importers.files import dump, moved, picture
from tests.attacks.importers.test_backdoorbench import state
from tests.attacks.importers.test_bullseye import normalized
from tests.attacks.worlds import textures

from pureebm.attacks.base import LabeledSet, TargetGoal, TriggerGoal
from pureebm.attacks.importers import FORMATS, options_of
from pureebm.attacks.storage import load_attack
from pureebm.data.labels import read_labeled_source
from pureebm.purify.baselines import JPEGStage
from pureebm.purify.job import JobConfig, run

BASE, TEST = textures(80, seed=0), textures(24, seed=1)
ROWS = [42, 10, 2]  # of class 2


def stored(path: Path, data: LabeledSet) -> Path:
    np.savez(path, images=data.images.numpy(), labels=data.labels.numpy())
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return stored(tmp_path / "base.npz", BASE)


@pytest.fixture
def test(tmp_path: Path) -> Path:
    return stored(tmp_path / "test.npz", TEST)


def benchmark(folder: Path, base: LabeledSet = BASE, rows: list[int] = ROWS, eps: int = 8) -> torch.Tensor:
    """Writes a poison folder that wants test image 5, of class 1, to be read as class 2; the poisons of `rows`."""
    poisons = moved(base, rows, eps)
    dump(folder / "poisons.pickle", [(picture(image), 2) for image in poisons])
    dump(folder / "base_indices.pickle", np.array(rows))
    dump(folder / "target.pickle", (picture(TEST.images[5]), 1))
    return poisons


def after(path: Path) -> LabeledSet:
    images, labels, _, _ = read_labeled_source(path)
    return LabeledSet(images, labels, 4)


def test_the_help_lists_every_format_with_its_options(pureebm):
    shown = pureebm("attack", "--help").out
    assert "  import  Describe their poisons" in shown and shown.index("ntga") < shown.index("import")
    done = pureebm("attack", "import", "--help")
    assert done.code == 0
    words = " ".join(done.out.split())
    for name, summary in FORMATS.items():
        assert f"{name} {summary} (" in words
        one = pureebm("attack", "import", name, "--help")
        assert one.code == 0
        for option, text in options_of(name).items():
            if option not in ("base", "test", "seed"):
                assert f"--{option.replace('_', '-')}" in one.out and text.split()[0] in one.out
        assert all(flag in one.out for flag in ("--verify", "--test", "--overwrite", "--json", "--goal-image"))
    assert "--index" in words and "--split-file" in words and "--set" in words


def test_without_a_source_the_files_are_described(pureebm, tmp_path):
    benchmark(tmp_path / "poisons")
    done = pureebm("attack", "import", "benchmark", tmp_path / "poisons", "--eps", 8, "--json")
    assert done.code == 0, done.err
    (setup,) = done.json["setups"]
    assert setup["poisons"] == 3 and setup["labels"] == {"2": 3} and setup["size"] == [16, 16]
    assert setup["split"] == "train" and setup["eps"] == 8 and setup["max_change"] is None
    assert setup["goal"] == {"kind": "targets", "true_classes": [1], "intended_classes": [2]}
    sums = [hashlib.sha256((tmp_path / "poisons" / Path(f["file"]).name).read_bytes()) for f in setup["files"]]
    assert [one["sha256"] for one in setup["files"]] == [found.hexdigest() for found in sums] and len(sums) == 3
    told = pureebm("attack", "import", "benchmark", tmp_path / "poisons")
    assert (told.code, told.out) == (0, "")
    for text in ("3 poisons of 16 x 16, 3 of class 2", "an image of class 1 is read as 2", "give SOURCE to measure"):
        assert text in told.err
    assert sums[0].hexdigest() in told.err


def test_with_a_source_but_no_target_the_change_is_measured_and_nothing_written(pureebm, source, tmp_path):
    benchmark(tmp_path / "poisons", eps=7)
    before = sorted(tmp_path.rglob("*"))
    done = pureebm("attack", "import", "benchmark", tmp_path / "poisons", source)
    assert done.code == 0 and "the largest change is 7/255" in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_target_holds_exactly_the_poisons_in_the_places_of_their_bases(pureebm, source, tmp_path):
    poisons, target = benchmark(tmp_path / "poisons"), tmp_path / "out.npz"
    done = pureebm("attack", "import", "benchmark", tmp_path / "poisons", source, target, "--eps", 8, "--json")
    assert done.code == 0, done.err
    wanted = BASE.images.clone()
    wanted[ROWS] = poisons
    assert after(target).images.equal(wanted) and after(target).labels.equal(BASE.labels)
    attack = load_attack(target)
    assert attack.rows.tolist() == [2, 10, 42] and attack.record == done.json
    assert isinstance(attack.goal, TargetGoal) and attack.goal.images.equal(TEST.images[5:6])
    assert attack.goal.true_classes.tolist() == [1] and attack.goal.intended_classes.tolist() == [2]
    record = done.json
    assert record["attack"] == "import benchmark" and record["kind"] == "triggerless" and record["clean_label"]
    assert record["import"]["format"] == "benchmark" and record["import"]["max_change"] == 8
    assert record["config"] == {"eps": 8.0, "split": "train"} and record["held_out"] == []
    assert record["poisons"]["ids"] == ["images/2", "images/10", "images/42"] and record["poisons"]["relabeled"] == 0


def test_poisons_go_into_a_class_folder_which_purify_takes_and_replaces(pureebm, tmp_path):
    names = ["ant", "bee", "cat", "dog"]
    for index, label in enumerate(BASE.labels.tolist()):
        place = tmp_path / "base" / names[label] / f"{index:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(BASE.images[index].numpy()).save(place)
    images, labels, _, ids = read_labeled_source(tmp_path / "base")
    rows = [ids.index(f"cat/{row:03}.png") for row in ROWS]
    poisons = benchmark(tmp_path / "poisons", LabeledSet(images, labels, 4), rows)
    target = tmp_path / "out"
    done = pureebm("attack", "import", "benchmark", tmp_path / "poisons", tmp_path / "base", target)
    assert done.code == 0 and "an image of class 1 (bee) is read as 2 (cat)" in done.err
    wanted = images.clone()
    wanted[rows] = poisons
    assert after(target).images.equal(wanted) and read_labeled_source(target)[3] == ids
    record = run(target, tmp_path / "pure", JPEGStage(50), JobConfig())
    assert record.counts["purified"] == 80
    assert after(tmp_path / "pure").labels.equal(labels)
    assert (after(tmp_path / "pure").images[rows] != poisons).any()
    assert run(tmp_path / "base", target, JPEGStage(50), JobConfig(overwrite=True)).counts["purified"] == 80
    assert not (target / "pureebm-attack.json").exists()  # a purified set took the place of the poisoned one


def test_of_several_setups_one_is_chosen_by_its_number(pureebm, source, tmp_path):
    poisons = [benchmark(tmp_path / "all" / str(n), rows=[2 + 4 * n]) for n in range(3)]
    listed = pureebm("attack", "import", "benchmark", tmp_path / "all", "--json").json["setups"]
    assert [Path(one["files"][0]["file"]).parent.name for one in listed] == ["0", "1", "2"]
    refused = pureebm("attack", "import", "benchmark", tmp_path / "all", source, tmp_path / "out.npz")
    assert refused.code == 2 and "holds 3 setups; choose one by --index" in refused.err
    assert not list(tmp_path.glob("*out*"))
    assert (
        pureebm("attack", "import", "benchmark", tmp_path / "all", source, tmp_path / "out.npz", "--index", 1).code == 0
    )
    changed = (after(tmp_path / "out.npz").images != BASE.images).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [6] and after(tmp_path / "out.npz").images[6].equal(poisons[1][0])


def test_a_narcissus_trigger_poisons_the_last_images_of_its_class_or_those_of_a_seed(pureebm, source, tmp_path):
    noise = np.random.default_rng(0).uniform(-16 / 255, 16 / 255, (1, 3, 16, 16)).astype(np.float32)
    noise[0, 0, 0, 0] = 16 / 255
    np.save(tmp_path / "best_noise_lab3.npy", noise)
    path, options = tmp_path / "best_noise_lab3.npy", ["--eps", 8, "--budget", 0.05, "--json"]
    done = pureebm("attack", "import", "narcissus", path, source, tmp_path / "out.npz", *options, "--multiplier", 3)
    assert done.code == 0, done.err
    attack = load_attack(tmp_path / "out.npz")
    assert attack.rows.tolist() == [67, 71, 75, 79] and done.json["kind"] == "triggered"
    assert isinstance(attack.goal, TriggerGoal) and attack.goal.target_class == 3
    assert attack.goal.trigger.multiplier == 3
    exact = BASE.images[attack.rows].numpy() + 127.5 * noise[0].transpose(1, 2, 0)
    assert after(tmp_path / "out.npz").images[attack.rows].numpy().tolist() == np.rint(exact.clip(0, 255)).tolist()
    seeds = []
    for seed in (0, 0, 1):
        more = ["--choose", "random", "--seed", seed, "--overwrite"]
        assert pureebm("attack", "import", "narcissus", path, source, tmp_path / "out.npz", *options, *more).code == 0
        seeds.append(load_attack(tmp_path / "out.npz").rows.tolist())
    assert seeds[0] == seeds[1] != seeds[2]


def test_the_split_of_bullseye_polytope_becomes_a_source_and_its_target_is_held_out(pureebm, tmp_path):
    pairs = [(picture(image), label) for image, label in zip(BASE.images, BASE.labels.tolist(), strict=True)]
    torch.save({"clean_train": pairs[:8], "others": pairs}, tmp_path / "CIFAR10_TRAIN_Split.pth")
    others, split = tmp_path / "others.npz", tmp_path / "CIFAR10_TRAIN_Split.pth"
    told = pureebm("attack", "import", "sets", split)
    assert told.code == 0 and "others: 80 images of 16 x 16, 20 of class 0" in told.err
    assert "choose one by --set" in pureebm("attack", "import", "sets", split, others).err
    assert pureebm("attack", "import", "sets", split, others, "--set", "others").code == 0
    assert after(others).images.equal(BASE.images) and after(others).labels.equal(BASE.labels)
    assert pureebm("attack", "import", "sets", split, others, "--set", "others").code == 2  # it is there already
    images = moved(BASE, ROWS, 20)
    torch.save({"poison": [(image, 2) for image in normalized(images)], "idx": ROWS}, tmp_path / "poison_00799.pth")
    target, options = tmp_path / "out.npz", ["--eps", 25.5, "--json"]
    command = ["attack", "import", "bullseye-polytope", tmp_path / "poison_00799.pth", others, target, *options]
    refused = pureebm(*command)
    assert refused.code == 2 and "has no goal" in refused.json["error"]
    refused = pureebm(*command, "--target", 0)
    assert refused.code == 2 and "target must be" in refused.json["error"]  # it has no class 6
    more = LabeledSet(BASE.images.repeat(12, 1, 1, 1)[:240], torch.arange(240) % 4, 4)
    stored(others, more)  # 60 images of each class: target 3 is image 1 + 4 * 53 of class 1, and shown thrice
    done = pureebm(*command, "--target", 3, "--target-class", 1)
    assert done.code == 0, done.err
    assert after(target).images[ROWS].equal(images)
    assert done.json["held_out"] == [f"images/{row}" for row in (53, 133, 213)]
    assert load_attack(target).goal.images[0].equal(BASE.images[53])


def test_backdoorbench_poisons_bring_their_labels(pureebm, source, tmp_path):
    record = {
        "num_classes": 4, "img_size": (16, 16, 3), "clean_data": "cifar10", "model": {},
        "bd_train": state(BASE, [5, 17], None, "train", list(range(80))),
        "bd_test": state(TEST, [1, 2, 5], None, "test", list(range(24))),
    }  # fmt: skip
    torch.save(record, tmp_path / "attack_result.pt")
    done = pureebm("attack", "import", "backdoorbench", tmp_path / "attack_result.pt", source, tmp_path / "out.npz")
    assert done.code == 0, done.err
    assert "2 of 80 images poisoned, 2 of them with new labels" in done.err
    assert "2 images of class 1 are read as 0; an image of class 2 is read as 0" in done.err
    wanted = BASE.labels.clone()
    wanted[[5, 17]] = 0
    assert after(tmp_path / "out.npz").labels.equal(wanted)
    assert load_attack(tmp_path / "out.npz").record["clean_label"] is False


def test_a_goal_that_the_files_do_not_tell_comes_from_the_test_set(pureebm, source, test, tmp_path):
    delta = np.full((2, 3, 16, 16), 0.01, np.float32)
    torch.save([torch.from_numpy(delta), torch.tensor([6, 2])], tmp_path / "poisons_packed_today.pth")
    command = ["attack", "import", "gradient-matching", tmp_path / "poisons_packed_today.pth", source]
    told = pureebm(*command)
    assert told.code == 0 and "not told by the files; a packed export does not say its target" in told.err
    command.append(tmp_path / "out.npz")
    assert "no goal: a packed export" in pureebm(*command).err
    assert "--goal-image 24 is a place in the test set" in pureebm(*command, "--goal-image", 24, "--test", test).err
    assert "(--test); there is none" in pureebm(*command, "--goal-image", 4).err
    done = pureebm(*command, "--goal-image", 5, "--test", test, "--json")
    assert done.code == 0, done.err
    goal = load_attack(tmp_path / "out.npz").goal
    assert isinstance(goal, TargetGoal) and goal.images.equal(TEST.images[5:6])
    assert goal.true_classes.tolist() == [1] and goal.intended_classes.tolist() == [2]
    assert done.json["import"]["goal_image"] == 5 and "no_goal" not in done.json["import"]
    benchmark(tmp_path / "poisons")
    known = pureebm("attack", "import", "benchmark", tmp_path / "poisons", "--test", test, "--goal-image", 5)
    assert known.code == 2 and "the files say what the poisons are for" in known.err


def test_verify_trains_victims_of_the_imported_set_and_needs_a_test_set(pureebm, source, test, tmp_path):
    benchmark(tmp_path / "poisons")
    command = ["attack", "import", "benchmark", tmp_path / "poisons", source, tmp_path / "out.npz", "--verify"]
    refused = pureebm(*command)
    assert refused.code == 2 and "give them by --test" in refused.err and not (tmp_path / "out.npz").exists()
    done = pureebm(*command, "--test", test, "--victim-epochs", 1)
    assert done.code == 0 and "attack success" in done.err
    verified = load_attack(tmp_path / "out.npz").record["verified"]
    assert verified["victim"]["epochs"] == 1 and len(verified["poisoned"]["predicted"]) == 1


def test_setups_hold_nothing_to_put_into_a_source(pureebm, source, test, tmp_path):
    setup = {"target class": 1, "target index": 5, "base class": 2, "base indices": np.array(ROWS)}
    dump(tmp_path / "setups.pickle", [setup, setup])
    command = ["attack", "import", "benchmark-setups", tmp_path / "setups.pickle"]
    told = pureebm(*command, source, "--test", test, "--json")
    assert [one["target_index"] for one in told.json["setups"]] == [5, 5]
    assert "give the training set (SOURCE, base)" in pureebm(*command).err
    refused = pureebm(*command, source, tmp_path / "out.npz", "--test", test, "--index", 0)
    assert refused.code == 2 and "holds 3 untouched images to poison: there is nothing to put" in refused.err


class Calls:
    def __reduce__(self):
        return os.system, ("touch never",)


def test_a_hostile_pickle_is_refused_and_not_run(pureebm, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark(tmp_path / "poisons")
    dump(tmp_path / "poisons" / "target.pickle", Calls())
    done = pureebm("attack", "import", "benchmark", tmp_path / "poisons", source, tmp_path / "out.npz", "--json")
    assert done.code == done.json["exit_code"] == 2
    assert "refused, and not run: it asks for 'posix.system'" in done.json["error"]
    dump(tmp_path / "evil.pth", Calls())
    assert pureebm("attack", "import", "sets", tmp_path / "evil.pth").code == 2
    assert not (tmp_path / "never").exists() and not list(tmp_path.glob("*out*"))


def test_bad_input_is_named_and_nothing_is_written(pureebm, source, tmp_path):
    benchmark(tmp_path / "poisons")
    shuffled = stored(tmp_path / "other.npz", LabeledSet(BASE.images, BASE.labels.roll(1), 4))
    three = LabeledSet(BASE.images[:3], BASE.labels[:3], 4)
    for arguments, message in [
        (["benchmrk", "poisons"], "did you mean 'benchmark'"),
        (["benchmark", "nowhere"], "nowhere: no such file or folder"),
        (["benchmark", "poisons", source, "out.npz", "--eps", 4], "more than eps = 4"),
        (["benchmark", "poisons", shuffled, "out.npz"], "another data set or order"),
        (["benchmark", "poisons", stored(tmp_path / "few.npz", three), "out.npz"], "beyond the 3 images"),
        (["benchmark", "poisons", source, "out.npz", "--victim", "resnet17"], "unknown network 'resnet17'"),
        (["benchmark", "poisons", source, "out.npz", "--extractor", "no.safetensors"], "no.safetensors"),
        (["benchmark", "poisons", source, source], "the source itself"),
        (["benchmark", "poisons", source, "--overwrite"], "nothing is written"),
        (["sets", "nowhere.pth"], "nowhere.pth: no such file"),
    ]:
        place = [tmp_path / one if one in ("poisons", "out.npz") else one for one in arguments]
        done = pureebm("attack", "import", *place, "--json")
        assert done.code == done.json["exit_code"] == 2, arguments
        assert message in done.json["error"]
    assert not list(tmp_path.glob("*out*"))
