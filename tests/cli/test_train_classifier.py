"""`pureebm train classifier` as a user calls it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pureebm.classifiers.networks import NETWORKS, build_network
from pureebm.classifiers.weights import load_classifier
from pureebm.cli import train
from pureebm.cli.main import run
from pureebm.data.labels import read_labeled_source
from pureebm.training import runtime
from pureebm.training.classifier import predict
from pureebm.training.recipes import RECIPES

PLAIN = ["--device", "cpu", "--precision", "float32", "--threads", "1"]


def textures(path: Path, n: int, seed: int) -> str:
    """Three classes of colored stripes in noise, 16 px: each of its own direction and color."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    y, x = np.mgrid[:16, :16]
    waves = np.stack([np.sin(x), np.sin(y), np.sin(x + y)])[labels]
    colors = np.eye(3)[labels][:, None, None] * 30
    pixels = 128 + 50 * waves[..., None] + colors + rng.normal(0, 30, (n, 16, 16, 3))
    np.savez(path, images=pixels.clip(0, 255).astype(np.uint8), labels=labels, class_names=np.array(["a", "b", "c"]))
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return textures(tmp_path_factory.mktemp("set") / "train.npz", 320, 0)


@pytest.fixture(scope="module")
def test_source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return textures(tmp_path_factory.mktemp("set") / "test.npz", 100, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, source: str, test_source: str) -> Path:
    out = tmp_path_factory.mktemp("victim") / "run"
    arguments = ["train", "classifier", source, "--out", str(out), "--epochs", "4", "--test", test_source, *PLAIN]
    assert run(arguments) == 0
    return out


def test_a_run_leaves_a_classifier_that_learned_and_its_card(trained: Path, test_source: str) -> None:
    network, card = load_classifier(trained / "model.safetensors")
    images, labels, names, _ = read_labeled_source(Path(test_source))
    accuracy = float((predict(network, images) == labels).double().mean())
    assert card["test_accuracy"] == accuracy > 0.9 and card["test_images"] == 100
    assert card["class_names"] == names == ["a", "b", "c"] and card["n_classes"] == 3 and card["size"] == 16
    assert (card["network"], card["recipe"], card["epochs"]) == ("small-resnet", "fast", 4)
    assert card["seconds"] > 0 and card["versions"]["torch"] and card["data"]["images"] == 320
    assert not list((trained / "checkpoints").glob("*"))


def test_a_finished_run_is_not_trained_again_and_can_be_tested_anew(trained, source, test_source, capsys) -> None:
    before = (trained / "model.safetensors").stat().st_mtime_ns
    arguments = ["train", "classifier", source, "--out", str(trained), "--epochs", "4", *PLAIN, "--json"]
    assert run([*arguments, "--test", source]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["card"]["test_images"] == 320 and result["test_accuracy"] > 0.9
    assert "holds this classifier already" in printed.err and "right of 320 test images" in printed.err
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    assert run([*arguments, "--seed", "1"]) == 2
    assert "holds another run (seed was 0, now 1); choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("stop_at", [5, 7])
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, source, capsys, monkeypatch, stop_at) -> None:
    arguments = ["train", "classifier", source, "--epochs", "2", *PLAIN, "--out"]
    assert run([*arguments, str(tmp_path / "whole")]) == 0
    made = runtime.Runtime
    asked: list[int] = []

    def stopping(**values: object) -> runtime.Runtime:
        return made(**{**values, "stop": lambda: asked.append(1) or len(asked) == stop_at})  # 5 updates an epoch

    monkeypatch.setattr(runtime, "Runtime", stopping)
    assert run([*arguments, str(tmp_path / "cut")]) == 130
    assert "stopped in epoch 2" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "model.json").exists()
    assert run([*arguments, str(tmp_path / "cut")]) == 0
    printed = capsys.readouterr().err
    assert "going on in epoch 2 of 2" in printed and "epoch 2 of 2: loss" in printed
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_overwrite_begins_again(tmp_path: Path, source: str) -> None:
    arguments = ["train", "classifier", source, "--out", str(tmp_path / "run"), "--epochs", "0", *PLAIN]
    assert run(arguments) == 0
    assert run([*arguments, "--seed", "1"]) == 2
    assert run([*arguments, "--seed", "1", "--overwrite"]) == 0
    network, card = load_classifier(tmp_path / "run" / "model.safetensors")
    assert card["seed"] == 1 and card["train_loss"] is None and card["test_accuracy"] is None
    fresh = build_network("small-resnet", 3, size=16, seed=1)
    assert all(a.equal(b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True))


def test_linear_transfer_trains_a_new_head_on_the_extractor(trained, tmp_path, test_source, capsys) -> None:
    out = tmp_path / "linear"
    arguments = ["train", "classifier", test_source, "--out", str(out), "--recipe", "linear-transfer", *PLAIN]
    assert run(arguments) == 2
    assert "goes on from a trained network; name it by --extractor FILE" in capsys.readouterr().err
    arguments += ["--extractor", str(trained / "model.safetensors"), "--test", test_source]
    assert run(arguments) == 0
    old, (new, card) = load_classifier(trained / "model.safetensors")[0], load_classifier(out / "model.safetensors")
    assert card["test_accuracy"] > 0.9 and card["network"] == "small-resnet" and len(card["extractor"]) == 64
    for (name, before), after in zip(old.state_dict().items(), new.state_dict().values(), strict=True):
        assert before.equal(after) != name.startswith("head"), name


def test_a_published_checkpoint_is_an_extractor_whatever_its_classes(tmp_path: Path, test_source: str) -> None:
    state = {k.replace("head.", "linear."): v for k, v in build_network("mobilenet-v2", 7, seed=0).state_dict().items()}
    torch.save({"net": state, "acc": 90.0}, tmp_path / "ckpt.t7")
    out = tmp_path / "run"
    arguments = [
        "train",
        "classifier",
        test_source,
        "--out",
        str(out),
        "--recipe",
        "fine-tune",
        "--epochs",
        "0",
        *PLAIN,
    ]
    assert run([*arguments, "--extractor", str(tmp_path / "ckpt.t7"), "--network", "mobilenet-v2"]) == 0
    network, card = load_classifier(out / "model.safetensors")
    assert card["n_classes"] == 3 and network.conv1.weight.equal(state["conv1.weight"])


def test_class_folders_train_and_the_network_may_be_chosen(image_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["train", "classifier", str(image_folder), "--out", str(tmp_path / "run"), "--network", "hlb-small"]
    assert run([*arguments, "--epochs", "0", "--size", "16", *PLAIN, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)["card"]
    assert (card["network"], card["class_names"], card["size"]) == ("hlb-small", ["cat", "dog"], 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "resnet19"], "unknown network 'resnet19'; did you mean 'resnet18'"),
        (["--recipe", "slow"], "unknown recipe 'slow'"),
        (["--extractor", "nowhere.safetensors"], "nowhere.safetensors: no classifier with a card"),
        (["--test", "nowhere.npz"], "there is no source at nowhere.npz"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_no_folder(source, tmp_path, capsys, arguments, words) -> None:
    out = tmp_path / "run"
    assert run(["train", "classifier", source, "--out", str(out), *PLAIN, *arguments]) == 2
    assert words in capsys.readouterr().err and not out.exists()


def test_sets_that_do_not_fit_are_refused(source: str, image_folder: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "run")
    one = str(image_folder / "cat")
    (image_folder / "cat" / "only").mkdir()
    for path in (image_folder / "cat").glob("*.png"):
        path.rename(path.parent / "only" / path.name)
    assert run(["train", "classifier", one, "--out", out, *PLAIN]) == 2
    assert "all images are of one class" in capsys.readouterr().err
    assert run(["train", "classifier", source, "--out", out, "--test", str(image_folder), *PLAIN]) == 2
    assert "images of (32, 32), those of training have (16, 16)" in capsys.readouterr().err
    assert run(["train", "classifier", source, "--out", out, "--test", str(image_folder), "--size", "16", *PLAIN]) == 2
    assert "its classes ['cat', 'dog'].. are not those of training" in capsys.readouterr().err


def test_help_names_every_network_and_recipe_and_does_not_import_torch() -> None:
    assert train.NETWORKS == tuple(NETWORKS) and train.RECIPES == tuple(RECIPES)
    code = "import sys; from pureebm.cli.main import run; run(['train', 'classifier', '--help']); "
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    shown = "".join(done.stdout.split())
    assert done.returncode == 0 and ",".join(NETWORKS) in shown and ",".join(RECIPES) in shown


@pytest.mark.slow
def test_two_processes_train_one_classifier(source: str, test_source: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pureebm.cli.main", "train", "classifier", source, "--out", str(tmp_path / "run")]
    command += ["--epochs", "8", "--test", test_source, "--accelerate", "--json", *PLAIN]
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    answers = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, answers, strict=True):
        assert process.returncode == 0, errors.decode()
    card = json.loads(answers[0][0])["card"]
    assert card["processes"] == 2 and card["test_accuracy"] > 0.9 and not answers[1][0]
