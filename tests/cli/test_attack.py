"""`pureebm attack` from end to end on small textures: every kind of data set, its record, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.attacks.worlds import textures

from pureebm.attacks.base import TargetGoal, TriggerGoal
from pureebm.attacks.registry import ATTACKS
from pureebm.attacks.storage import load_attack
from pureebm.data.base import Picture
from pureebm.data.labels import read_labeled_source
from pureebm.data.pictures import encode

DATA = textures(120, seed=0)
CLASSES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "set.npz"
    np.savez(path, images=DATA.images.numpy(), labels=DATA.labels.numpy(), extra=np.arange(120))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "set"
    for index, label in enumerate(DATA.labels.tolist()):
        place = path / CLASSES[label] / f"{index:03}.bmp"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(DATA.images[index].numpy()).save(place)
    return path


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "set.parquet"
    cells = [{"bytes": encode(Picture(image.numpy())), "path": None} for image in DATA.images]
    pq.write_table(pa.table({"image": cells, "label": DATA.labels.tolist()}), path)
    return path


def test_the_list_of_attacks_answers_without_torch(pureebm):
    done = pureebm("attack", "--help")
    assert done.code == 0
    for name, entry in ATTACKS.items():
        assert f"  {name}  " in done.out and entry.summary.split()[0] in done.out
    import subprocess

    code = "import sys; from pureebm.cli.main import run; run(['attack', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_shows_its_options(pureebm, name):
    done = pureebm("attack", name, "--help")
    assert done.code == 0
    for option in ("--verify", "--overwrite", "--test", "--seed"):
        assert option in done.out
    assert "--eps" in done.out or name in ("badnets", "blended", "sig", "wanet")


def test_an_unknown_attack_is_refused_with_the_known_ones(pureebm, npz, tmp_path):
    done = pureebm("attack", "badnet", npz, tmp_path / "out.npz", "--json")
    assert done.code == 2 and "did you mean 'badnets'" in done.json["error"]
    assert "sleeper-agent" in done.json["error"]


def test_a_poisoned_npz_has_the_poisons_where_the_record_says_and_all_else_as_it_was(pureebm, npz, tmp_path):
    target = tmp_path / "out.npz"
    done = pureebm("attack", "badnets", npz, target, "--target-class", 2, "--budget", 0.2, "--json")
    assert done.code == 0, done.err
    attack = load_attack(target)
    assert isinstance(attack.goal, TriggerGoal) and attack.goal.target_class == 2
    rows = attack.rows
    assert len(rows) == 22  # a fifth of 108: a tenth of 120 is held out
    with np.load(target) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
        assert (arrays["extra"] == np.arange(120)).all()
    assert images[rows].equal(attack.goal.trigger.apply(DATA.images[rows]))
    assert (labels[rows] == 2).all()
    rest = torch.ones(120, dtype=torch.bool)
    rest[rows] = False
    assert images[rest].equal(DATA.images[rest]) and labels[rest].equal(DATA.labels[rest])
    record = json.loads((tmp_path / "out.npz.pureebm" / "pureebm-attack.json").read_text())
    assert record == done.json
    assert record["poisons"]["ids"] == [f"images/{row}" for row in rows.tolist()]
    assert record["poisons"]["old_labels"] == DATA.labels[rows].tolist()
    assert record["config"]["budget"] == 0.2 and record["seed"] == 0 and record["attack"] == "badnets"
    assert record["clean_label"] is False and record["source"]["fingerprint"]
    held_out = {int(name.split("/")[1]) for name in record["held_out"]}
    assert len(held_out) == 12 and not held_out & set(rows.tolist())
    assert not list(tmp_path.glob(".*"))


def test_the_seed_decides_the_poisons_and_repeats_them(pureebm, npz, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert pureebm("attack", "blended", npz, tmp_path / f"{name}.npz", "--seed", seed).code == 0
    a, b, c = ((tmp_path / f"{name}.npz").read_bytes() for name in "abc")
    assert a == b and a != c


def test_relabeled_items_of_a_folder_move_to_their_new_class(pureebm, folder, tmp_path):
    target = tmp_path / "out"
    done = pureebm("attack", "badnets", folder, target, "--target-class", 1, "--json")
    assert done.code == 0, done.err
    poisons = done.json["poisons"]
    assert done.json["class_names"] == CLASSES
    for name, old, source in zip(poisons["names"], poisons["old_labels"], poisons["ids"], strict=True):
        assert name.startswith("bee/") and (target / name).is_file()
        assert source.startswith(CLASSES[old] + "/")
    images, labels, names, ids = read_labeled_source(target)
    assert len(images) == 120 and names == CLASSES
    assert {Path(name).suffix for name in ids} == {".png"}
    assert (labels == 1).sum() == 30 + sum(old != 1 for old in poisons["old_labels"])


def test_parquet_and_cifar_keep_their_kind(pureebm, parquet, tmp_path):
    done = pureebm("attack", "sig", parquet, tmp_path / "out.parquet", "--target-class", 3, "--json")
    assert done.code == 0, done.err
    images, labels, _, _ = read_labeled_source(tmp_path / "out.parquet")
    rows = load_attack(tmp_path / "out.parquet").rows
    assert labels.equal(DATA.labels) and (labels[rows] == 3).all() and done.json["clean_label"]
    assert (images != DATA.images).flatten(1).any(dim=1).nonzero().squeeze(1).equal(rows)
    cifar = tmp_path / "cifar"
    cifar.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3072), dtype=np.uint8)
    records = np.column_stack([np.arange(50, dtype=np.uint8) % 10, pixels])
    (cifar / "data_batch_1.bin").write_bytes(records.tobytes())
    (cifar / "test_batch.bin").write_bytes(records[:5].tobytes())
    assert pureebm("attack", "wanet", cifar, tmp_path / "cout", "--target-class", 4).code == 0
    attack = load_attack(tmp_path / "cout")
    after = np.frombuffer((tmp_path / "cout" / "data_batch_1.bin").read_bytes(), np.uint8).reshape(50, 3073)
    assert (after[attack.rows, 0] == attack.labels.numpy()).all()
    assert (after[:, 0] != records[:, 0]).sum() <= 5
    assert (tmp_path / "cout" / "test_batch.bin").read_bytes() == (cifar / "test_batch.bin").read_bytes()


def test_a_poisoned_set_is_an_ordinary_one_that_purify_takes(pureebm, npz, tiny_model, tmp_path):
    assert pureebm("attack", "badnets", npz, tmp_path / "bad.npz").code == 0
    done = pureebm("purify", tmp_path / "bad.npz", tmp_path / "good.npz", "--model", tiny_model, "--json")
    assert done.code == 0 and done.json["counts"]["purified"] == 120


def test_purify_and_attack_replace_each_others_folders_but_no_foreign_one(pureebm, folder, tiny_model, tmp_path):
    target, command = tmp_path / "out", ["purify", folder, tmp_path / "out", "--model", tiny_model]
    assert pureebm("attack", "badnets", folder, target).code == 0
    refused = pureebm(*command)
    assert refused.code == 2 and "exists and is complete" in refused.err
    assert load_attack(target).record["attack"] == "badnets"
    assert pureebm(*command, "--overwrite").code == 0
    assert (target / "pureebm-run.json").is_file() and not list(target.glob("pureebm-attack.*"))
    assert pureebm("attack", "badnets", folder, target, "--overwrite").code == 0
    assert load_attack(target).record["attack"] == "badnets" and not (target / "pureebm-run.json").exists()
    (target / "pureebm-attack.json").unlink()
    refused = pureebm(*command, "--overwrite")
    assert refused.code == 2 and "not ours to overwrite" in refused.err
    assert "no pureebm-run.json or pureebm-attack.json" in refused.err


def test_verify_tells_success_and_floor_to_people_and_to_the_record(pureebm, npz, tmp_path):
    options = ["--patch-size", 5, "--budget", 0.3, "--verify", "--victim-epochs", 2]
    done = pureebm("attack", "badnets", npz, tmp_path / "out.npz", *options)
    assert (done.code, done.out) == (0, "")
    assert "attack success" in done.err and "floor, by the clean victim" in done.err
    assert "images with the trigger are read as class 0" in done.err
    assert "held out: 12 images" in done.err
    verified = load_attack(tmp_path / "out.npz").record["verified"]
    assert verified["victim"]["epochs"] == 2
    assert verified["success"] == verified["poisoned"]["success"] and 0 <= verified["floor"] <= 1


def test_with_a_test_set_nothing_is_held_out_and_targets_come_from_there(pureebm, npz, tmp_path):
    test = textures(40, seed=9)
    np.savez(tmp_path / "test.npz", images=test.images.numpy(), labels=test.labels.numpy())
    done = pureebm(
        "attack", "gradient-matching", npz, tmp_path / "out.npz", "--test", tmp_path / "test.npz", "--eps", 8,
        "--budget", 0.1, "--restarts", 1, "--n-steps", 2, "--surrogate-epochs", 1, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["held_out"] == []
    goal = load_attack(tmp_path / "out.npz").goal
    assert isinstance(goal, TargetGoal)
    assert (test.images == goal.images[0]).flatten(1).all(dim=1).any()
    after = np.load(tmp_path / "out.npz")
    assert np.abs(after["images"].astype(int) - DATA.images.numpy().astype(int)).max() <= 8
    assert (after["labels"] == DATA.labels.numpy()).all()


def test_narcissus_without_public_images_says_what_to_give(pureebm, npz, tmp_path):
    done = pureebm("attack", "narcissus", npz, tmp_path / "out.npz", "--json")
    assert done.code == 2 and "--public" in done.json["error"]
    assert not list(tmp_path.glob("*out*"))


def test_a_class_without_images_is_named(pureebm, tmp_path):
    kept = DATA.labels != 1
    np.savez(tmp_path / "gap.npz", images=DATA.images[kept].numpy(), labels=DATA.labels[kept].numpy())
    done = pureebm("attack", "sig", tmp_path / "gap.npz", tmp_path / "out.npz", "--target-class", 1, "--json")
    assert done.code == 2 and "class 1 has no images in the training set" in done.json["error"]


def test_of_a_list_it_is_told_that_the_target_is_a_folder(pureebm, folder, tmp_path):
    names = sorted(path.relative_to(tmp_path).as_posix() for path in folder.rglob("*.bmp"))
    rows = [f"{name},{CLASSES.index(name.split('/')[1])}" for name in names]
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    done = pureebm("attack", "sig", tmp_path / "list.csv", tmp_path / "bad.csv")
    assert done.code == 0, done.err
    assert f"{tmp_path / 'bad.csv'}, a folder with list.csv in it" in done.err
    assert (tmp_path / "bad.csv" / "list.csv").is_file()


def test_limit_takes_the_first_images_only(pureebm, npz, tmp_path):
    assert pureebm("attack", "blended", npz, tmp_path / "out.npz", "--limit", 50).code == 0
    assert len(np.load(tmp_path / "out.npz")["images"]) == 50


def test_an_existing_target_stays_unless_it_is_ours_and_overwritten(pureebm, folder, npz, tmp_path):
    target = tmp_path / "out"
    assert pureebm("attack", "badnets", folder, target).code == 0
    first = (target / "pureebm-attack.json").read_text()
    refused = pureebm("attack", "sig", folder, target)
    assert refused.code == 2 and "exists" in refused.err
    assert (target / "pureebm-attack.json").read_text() == first
    assert pureebm("attack", "sig", folder, target, "--overwrite").code == 0
    assert load_attack(target).record["attack"] == "sig"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    assert pureebm("attack", "sig", folder, foreign, "--overwrite").code == 2
    assert (foreign / "mine.txt").read_text() == "keep"
    assert pureebm("attack", "sig", npz, tmp_path / "one.npz").code == 0
    assert pureebm("attack", "badnets", npz, tmp_path / "one.npz", "--overwrite").code == 0
    assert load_attack(tmp_path / "one.npz").record["attack"] == "badnets"
    inside = pureebm("attack", "sig", folder, folder / "cat" / "out")
    assert inside.code == 2 and "inside the source" in inside.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "budget must be above 0"),
        (["--budget", "2"], "budget is a share"),
        (["--budget", "1e-9"], "names none; give at least 0.0093, which is one"),
        (["--target-class", "4"], "class 4 is not among 0 .. 3"),
        (["--patch-size", "40"], "does not fit"),
        (["--test", "nowhere.npz"], "nowhere.npz"),
        (["--device", "abacus"], "--device 'abacus' is not here"),
        (["--surrogate", "resnet17"], "did you mean 'resnet18'"),
        (["--victim", "resnet17"], "unknown network 'resnet17'"),
        (["--extractor", "nowhere.safetensors"], "leave --extractor out for badnets"),
    ],
)
def test_a_bad_option_is_named_and_nothing_is_written(pureebm, npz, tmp_path, options, message):
    done = pureebm("attack", "badnets", npz, tmp_path / "out.npz", *options, "--json")
    assert done.code == done.json["exit_code"] == 2
    assert message in done.json["error"]
    assert not list(tmp_path.glob("*out*"))
