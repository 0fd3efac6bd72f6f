"""The pages themselves: the story without a browser, names that are code, answers to nonsense."""

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.web.helpers import archive, start, wait_for

from pureebm.evaluation.cards import write_card
from pureebm.purify import job as job_module


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No time is spent on measuring batches."""
    monkeypatch.setattr(job_module, "choose_batch_size", lambda *_: 64)


def pictures(page):
    return re.findall(r'src="(data:image/png;base64,[^"]+)"', page)


def test_the_first_page_lists_folders_files_and_uploads(client):
    page = client.get("/").text
    assert "/?path=files%2Fimages" in page and "/set?source=files%2Fnumbers.npz" in page
    inside = client.get("/?path=files/images/cat").text
    assert "32 images here" in inside and "/set?source=files%2Fimages%2Fcat" in inside


def test_an_archive_is_uploaded_looked_at_purified_and_deleted(client):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (200, 10, 10)).save(buffer, "PNG")
    packed = archive({f"red/{index}.png": buffer.getvalue() for index in range(3)})
    answer = client.post("/uploads", files={"file": ("my set.zip", packed)}, follow_redirects=False)
    address = answer.headers["location"]
    source = re.fullmatch(r"/set\?source=(uploads%2F.*)", address).group(1).replace("%2F", "/").replace("+", " ")
    page = client.get(address).text
    assert "<h1>my set</h1>" in page and re.search(r"<dt>images</dt><dd>3</dd>", page)
    assert len(pictures(client.get("/set/energies", params={"source": source}).text)) == 3
    job = start(client, source)
    refused = client.post("/uploads/delete", data={"source": source})
    wait_for(client, job, "done")
    assert refused.status_code in (200, 400)
    with zipfile.ZipFile(io.BytesIO(client.get(f"{job}/result").content)) as result:
        assert {name for name in result.namelist() if name.endswith(".png")} == {
            f"my set/red/{index}.png" for index in range(3)
        }
    client.post("/uploads/delete", data={"source": source})
    assert "my set</a>\n<form" not in client.get("/").text


def test_energies_preview_and_chain_show_pictures(client):
    energies = client.get("/set/energies?source=files/images").text
    assert len(pictures(energies)) == 24 and "<svg" in energies and "all 64 images" in energies
    preview = client.get("/set/preview?source=files/images&steps=2&seed=1").text
    assert len(pictures(preview)) == 32 and "index=" in preview and "steps=2" in preview and "seed=1" in preview
    chain = client.get("/image/chain?source=files/images&index=3&steps=4").text
    assert 'data-names="before,step 1,step 2,step 3,step 4"' in chain
    frames = [client.get(f"/image/frame.png?source=files/images&index=3&steps=4&frame={k}") for k in range(5)]
    drawn = [np.asarray(Image.open(io.BytesIO(frame.content))) for frame in frames]
    assert all(one.shape == (32, 32, 3) for one in drawn) and len({one.tobytes() for one in drawn}) == 5
    changed = client.get("/image/difference.png?source=files/images&index=3&steps=4&frame=4&gain=2").content
    wanted = ((drawn[4].astype(int) - drawn[0]) * 2 + 128).clip(0, 255)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(changed))), wanted)


def test_an_empty_field_is_the_models_own_value_and_shown_as_such(client):
    page = client.get("/set?source=files/images&steps=&step_size=&noise=0&seed=").text
    assert 'name="steps"' in page and 'placeholder="3"' in page
    assert re.search(r'name="noise"[^>]*value="0.0"', page) and re.search(r'name="seed"[^>]*value="0"', page)


@pytest.mark.parametrize(
    "address, status",
    [
        ("/set?source=files/none", 400),
        ("/set?source=files/../..", 400),
        ("/set", 422),
        ("/set/preview?source=files/images&steps=-1", 422),
        ("/set/preview?source=files/images&step_size=nan", 422),
        ("/set/preview?source=files/images&temperature=0", 422),
        ("/set/preview?source=files/images&steps=5000", 400),
        ("/set/preview?source=files/images&step_size=1000000&temperature=1e-300", 400),
        ("/set/preview?source=files/images&step_size=1000&temperature=1e-9", 200),
        ("/image?source=files/images&index=64", 400),
        ("/image/frame.png?source=files/images&index=0&frame=99", 400),
        ("/image/difference.png?source=files/images&index=0&frame=99", 400),
        ("/jobs/20200101-000000-abcd", 400),
        ("/jobs/..%2F..", 404),
        ("/jobs/x/report", 400),
        ("/cards/none", 400),
        ("/card?path=../pyproject.toml", 400),
        ("/card?path=%00", 400),
        ("/nothing", 404),
        ("/uploads", 405),
        ("/docs", 404),
    ],
)
def test_nonsense_is_answered_in_words(client, address, status):
    answer = client.get(address)
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert "That did not work" in answer.text
        part = client.get(address, headers={"x-part": "1"}).text
        assert part.startswith("<p") and "<html" not in part


def test_names_that_are_code_stay_text(client, config):
    evil = '"><script>alert(1)</script>'
    folder = config.root / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / evil.replace("/", "_").replace("script>", "b>" + ".png")[:40].strip())
    for index in range(2):
        Image.new("RGB", (16, 16), (index * 9, 0, 0)).save(folder / f'{index}"><b>.png')
    source = {"source": f"files/{folder.name}"}
    job = start(client, **source)
    wait_for(client, job, "done")
    addresses = ["/", "/jobs", job, f"{job}/report"]
    pages = [client.get(address).text for address in addresses]
    for path in ("/set", "/set/energies", "/set/preview", "/image", "/image/chain"):
        pages.append(client.get(path, params=source | {"index": 0}).text)
    pages.append(client.get("/set", params={"source": "files/<script>alert(1)</script>"}).text)
    for page in pages:
        assert "<img src=x" not in page and '"><b>' not in page and "<script>" not in page
    assert any("&lt;b&gt;" in page for page in pages)


def test_no_page_has_inline_script_style_or_foreign_addresses(client):
    job = start(client)
    wait_for(client, job, "done")
    for address in ("/", "/set?source=files/images", "/image?source=files/images&index=1", "/jobs", job, "/cards",
                    "/cards/cpu", "/set/energies?source=files/images", "/set/preview?source=files/images",
                    "/image/chain?source=files/images&index=1"):  # fmt: skip
        page = client.get(address).text
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=\"/static/)|https?://", page), address


def test_cards_are_browsed_from_the_list_to_one_value(client):
    assert "/cards/cpu" in client.get("/cards").text
    page = client.get("/cards/cpu").text
    assert "poison success" in page and "as published" in page
    card = re.search(r'/card\?path=[^"]+', page).group()
    assert "natural_accuracy" in client.get(card).text
    assert "jpeg-25" in client.get("/cards/quick").text


def test_a_damaged_card_is_told_and_a_strange_one_shown(client, config, tmp_path, monkeypatch):
    site = client.app.state.site
    object.__setattr__(site.config, "results", tmp_path / "results")
    assert "There are no cards" in client.get("/cards").text
    write_card(tmp_path / "results" / "own" / "a.json", {"rate": 0.123456789, "nested": {"<b>": [1]}})
    (tmp_path / "results" / "own" / "b.json").write_text("{")
    (tmp_path / "results" / "quick").mkdir()
    (tmp_path / "results" / "quick" / "c.json").write_text("[]")
    page = client.get("/card?path=own/a.json").text
    assert "0.123457" in page and "&lt;b&gt;" in page
    assert client.get("/cards/own").status_code == 200
    assert "is not a JSON card" in client.get("/card?path=own/b.json").text
    assert client.get("/cards/quick").status_code == 400
    (tmp_path / "results" / "own" / "out.json").symlink_to("/etc/hostname")
    assert client.get("/card?path=own/out.json").status_code == 400


def test_a_job_on_a_set_that_holds_the_workspace_is_refused(client, config):
    site = client.app.state.site
    site.places.root = site.places._bases["files"] = config.workspace.parent.resolve()
    answer = client.post("/jobs", data={"source": "files"})
    assert answer.status_code == 400 and "workspace lies inside that set" in answer.text
