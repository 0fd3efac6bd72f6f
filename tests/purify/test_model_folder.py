"""A purifier saved as a model folder and loaded again is the same purifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pureebm import BlurStage, LangevinConfig, Purifier
from pureebm.energy.student import Student
from pureebm.energy.weights import load_model, save_model
from pureebm.errors import InputError, ModelError


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_saved_purifier_comes_back_with_its_own_sampler(
    tiny_model: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    config = LangevinConfig(n_steps=2, step_size=0.03, temperature=0.01, initial_noise=0.1)
    purifier = Purifier.from_pretrained(tiny_model, config=config, precision="float32")
    folder = purifier.save_pretrained(tmp_path / "tiny")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = Purifier.from_pretrained(folder, precision="float32")
    assert torch.equal(again(images), purifier(images)) and not torch.equal(again(images), images)
    card = load_model(folder).card
    assert card["data"] == "none: random weights" and card["sampler"]["initial_noise"] == 0.1
    again.save_pretrained(tmp_path / "twice")
    assert (tmp_path / "twice" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_saved_student_comes_back(images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Student((4,), (1,))
    torch.nn.init.normal_(student.head.weight, std=0.1)
    save_model(tmp_path / "student.safetensors", student, {})
    purifier = Purifier.from_pretrained(tmp_path / "student.safetensors", precision="float32")
    again = Purifier.from_pretrained(purifier.save_pretrained(tmp_path / "folder"), precision="float32")
    assert torch.equal(again(images), purifier(images))


def test_the_readme_tells_people_what_the_card_tells_programs(tiny_model: Path, tmp_path: Path) -> None:
    Purifier.from_pretrained(tiny_model).save_pretrained(tmp_path / "my-model")
    text = (tmp_path / "my-model" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: pureebm\n") and "\n# my-model\n" in text
    assert "| training data | none: random weights |" in text


def test_a_damaged_or_foreign_folder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model.safetensors"):
        load_model(tmp_path)
    folder = Purifier.from_pretrained(tiny_model).save_pretrained(tmp_path / "folder")
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    with pytest.raises(ModelError, match="its card says 0000"):
        load_model(folder)


def test_what_is_no_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a BlurStage"):
        Purifier(BlurStage(1.0)).save_pretrained(tmp_path / "folder")
    with pytest.raises(InputError, match="only the networks of this package"):
        Purifier.from_energy(lambda x: x.flatten(1).sum(1)).save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_push_uploads_the_three_files(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, dict[str, object]]] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            calls.append(("api", {"token": token}))

        def create_repo(self, repo_id: str, **options: object) -> str:
            calls.append(("create", {"repo_id": repo_id} | options))
            return f"https://hub/{repo_id}"

        def upload_folder(self, *, folder_path: Path, **options: object) -> None:
            calls.append(("upload", {"files": sorted(path.name for path in folder_path.iterdir())} | options))

    monkeypatch.setattr(hub, "HfApi", Api)
    assert Purifier.from_pretrained(tiny_model).push_to_hub("me/it", token="t") == "https://hub/me/it"
    (_, api), (_, create), (_, upload) = calls
    assert api == {"token": "t"} and create == {"repo_id": "me/it", "private": True, "exist_ok": True}
    assert upload["files"] == ["README.md", "config.json", "model.safetensors"] and upload["repo_id"] == "me/it"


def test_a_hub_that_refuses_is_told_in_words(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Api:
        def __init__(self, token: str | None) -> None:
            pass

        def create_repo(self, repo_id: str, **options: object) -> str:
            raise OSError("no network")

    monkeypatch.setattr(hub, "HfApi", Api)
    with pytest.raises(InputError, match="did not take 'me/it': no network"):
        Purifier.from_pretrained(tiny_model).push_to_hub("me/it")
