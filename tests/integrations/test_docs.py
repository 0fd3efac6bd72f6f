"""What docs/integrations.md and docs/scale.md tell to type does run, where the libraries are there."""

from __future__ import annotations

import ast
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tests.docs.pages import blocks

from pureebm.cli.main import run

pytestmark = pytest.mark.slow


def missing(code: str) -> list[str]:
    """What a block imports and this machine has not."""
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(code))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve small images in class folders, in the current folder."""
    rng = np.random.default_rng(0)
    for index in range(12):
        path = tmp_path / "photos" / ("cat", "dog")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "photos"


GIVEN = """
import numpy as np
from PIL import Image
from pathlib import Path
dataset = [(Image.open(path), path.parent.name) for path in sorted(Path("photos").rglob("*.png"))]
x, y = np.random.default_rng(0).random((8, 3, 32, 32), dtype=np.float32), np.array([0, 1] * 4)
"""


@pytest.mark.parametrize("name", ["integrations.md", "scale.md"])
def test_the_code_of_a_page_runs(photos: Path, name: str) -> None:
    counts = dict.fromkeys(("sh", "python", "skipped"), 0)
    for block in blocks(f"docs/{name}"):
        language, code = block.language, block.text
        if language == "sh":
            for line in code.splitlines():
                command = shlex.split(line)
                if "ray" in command and missing("import ray") or "export" in command and missing("import onnx"):
                    continue
                assert command[0] == "pureebm" and run(command[1:]) == 0, line
                counts["sh"] += 1
        elif language == "python" and not missing(code):
            Path("block.py").write_text(GIVEN + code)
            subprocess.run([sys.executable, "block.py"], check=True)
            counts["python"] += 1
        else:
            counts["skipped"] += 1
    assert counts["sh"] >= 3 and counts["python"] >= 2, counts


class Samples(list[dict[str, object]]):
    """A data set of FiftyOne, as far as the page uses it."""

    @classmethod
    def from_dir(cls, folder: str, *, dataset_type: object) -> Samples:
        return cls(Sample(filepath=str(path)) for path in sorted(Path(folder).rglob("*.png")))

    def iter_samples(self, *, autosave: bool) -> Samples:
        assert autosave
        made.append(self)
        return self


class Sample(dict[str, object]):
    @property
    def filepath(self) -> object:
        return self["filepath"]


made: list[Samples] = []


def test_the_scores_reach_the_samples_of_fiftyone_by_their_paths(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("fiftyone")
    library.Dataset, library.types = Samples, SimpleNamespace(ImageDirectory=object)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fiftyone", library)
    (photos / "cat" / "torn.png").write_bytes(b"torn")
    assert run(["score", "photos", "--out", "scores.parquet"]) == 1
    (code,) = [block.text for block in blocks("docs/integrations.md") if "import fiftyone" in block.text]
    exec(compile(code, "integrations.md", "exec"), {})
    energies = {Path(str(sample["filepath"])).name: sample.get("energy") for sample in made.pop()}
    assert energies.pop("torn.png") is None
    assert len(energies) == 12 and all(isinstance(energy, float) for energy in energies.values())
