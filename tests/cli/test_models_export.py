"""`pureebm models export`: a file that says what it is, or a reason why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pureebm.energy.weights import load_model

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


def test_the_command_writes_a_file_that_says_what_it_is(pureebm, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tiny.onnx"
    done = pureebm("models", "export", tiny_model, path, "--what", "sampler", "--steps", 2, "--json")
    assert done.code == 0 and done.json["what"] == "sampler" and done.json["steps"] == 2
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    told = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert told["sha256"] == load_model(tiny_model).sha256 and told["noise_first_step"] == 1
    assert [node.name for node in session.get_inputs()] == ["images", "noise"]
    assert session.get_inputs()[1].shape[0] == 2


def test_a_bad_request_is_refused(pureebm, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    for options, message in (
        (["--size", "32"], "--size must be HxW"),
        (["--what", "sampler", "--steps", 0], "a chain of 0 steps does nothing"),
    ):
        done = pureebm("models", "export", tiny_model, path, *options)
        assert done.code == 2 and message in done.err
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = pureebm("models", "export", tiny_model, path)
    assert done.code == 2 and "pip install 'pureebm[onnx]'" in done.err
    assert not path.exists()
