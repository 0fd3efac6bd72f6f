"""The whole story in a real browser: at desktop width, at phone width, and by keyboard alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from tests.web.helpers import archive

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PATIENCE = 90.0
BEGUN = r"/^[1-9][\d,]* of 1,200 images/.test(document.querySelector('[data-progress]').textContent)"


class Server:
    """`pureebm serve` as a user starts it."""

    def __init__(self, config) -> None:
        self.command = [sys.executable, "-m", "pureebm.cli.main", "serve", "--json", "--port", "0", "--threads", "1"]
        for name in ("root", "workspace", "results", "model"):
            self.command += [f"--{name}", str(getattr(config, name))]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Its address."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, env=os.environ)
        return json.loads(self.process.stdout.readline())["url"]

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def server(config):
    server = Server(config)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(chromium, request):
    """A page that fails the test when the browser complains of anything."""
    width, height = SIZES[request.param]
    page = chromium.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
    page.set_default_timeout(1000 * PATIENCE)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    yield page
    page.close()
    assert [text for text in complaints if "net::ERR_CONNECTION" not in text] == []  # one test kills its server


def until(page, condition: str, *argument: object) -> None:
    """Wait for a condition; Playwright's own way would evaluate text, which the page forbids."""
    end = time.monotonic() + PATIENCE
    while not page.evaluate(condition, *argument):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(30)


def fits(page) -> None:
    """Nothing is wider than the window."""
    page.wait_for_load_state()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), page.url


def settled(page) -> None:
    until(page, "!document.querySelector('[aria-busy]') && !document.body.innerText.includes('…')")


def test_the_story_from_a_folder_to_the_download(page, server, tmp_path):
    page.goto(server.start())
    fits(page)
    page.get_by_role("link", name="images").click()
    page.get_by_role("link", name="Use this folder").click()
    settled(page)
    fits(page)
    assert page.locator(".thumbs li").count() == 24 and page.locator(".pairs li").count() == 16
    assert page.locator("svg rect.bar").count() > 5

    before = page.locator(".pairs img").nth(1).get_attribute("src")
    page.get_by_label("Steps").fill("6")
    until(page, "(old) => document.querySelectorAll('.pairs img')[1].src !== old", before)
    settled(page)

    page.locator(".pairs a").first.click()
    page.locator("[data-mark]").wait_for()
    fits(page)
    look_at_one_image(page)
    page.go_back()

    settled(page)
    page.get_by_label("Steps").fill("2")
    page.get_by_role("button", name="Start the job").click()
    page.get_by_role("link", name="Download the purified set").wait_for()
    fits(page)
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download the purified set").click()
    with zipfile.ZipFile(coming.value.path()) as result:
        assert sum(name.endswith(".png") for name in result.namelist()) == 64
    page.get_by_role("link", name="See the report").click()
    assert page.get_by_role("heading", name="Purified: images").is_visible()
    assert page.locator("section").first.evaluate("one => getComputedStyle(one).borderRadius") == "10px"


def look_at_one_image(page) -> None:
    """The wipe, the steps, the trajectory, the difference."""
    after = page.locator("[data-after]")
    page.locator("[data-wipe]").fill("20")
    assert after.evaluate("image => image.style.clipPath") == "inset(0px 0px 0px 20%)"
    step, told = page.locator("[data-step]"), page.locator("[data-told]")
    assert told.inner_text().startswith("step 6, energy ")
    marked = page.locator("[data-mark]").get_attribute("cx")
    step.fill("0")
    assert told.inner_text().startswith("before, energy ")
    assert page.locator("[data-mark]").get_attribute("cx") != marked
    page.get_by_role("button", name="Play").click()
    until(page, "document.querySelector('[data-told]').textContent.startsWith('step 6')")
    until(page, "document.querySelector('[data-play]').textContent === 'Play'")
    page.locator("[data-gain]").select_option("16")
    until(page, "document.querySelector('[data-difference]').src.includes('frame=6&gain=16')")
    until(page, "document.querySelector('[data-difference]').naturalWidth === 32")
    until(page, "document.querySelector('[data-after]').naturalWidth === 32")


def test_a_job_is_watched_cancelled_survives_the_server_and_is_resumed(page, server, config):
    import numpy as np

    rng = np.random.default_rng(2)
    np.savez(config.root / "many.npz", images=rng.integers(0, 256, (1200, 32, 32, 3), dtype=np.uint8))
    page.goto(server.start() + "set?source=files/many.npz")
    page.get_by_label("Steps").fill("40")
    page.get_by_role("button", name="Start the job").click()
    until(page, BEGUN)
    fits(page)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Resume").wait_for()
    assert page.get_by_text("stopped").is_visible()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Cancel").wait_for()
    until(page, BEGUN)
    job = page.url.rpartition("/")[2]
    page.goto("about:blank")
    server.kill()
    page.goto(server.start() + f"jobs/{job}")
    assert page.get_by_text("It was interrupted").is_visible()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("link", name="Download the purified set").wait_for()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete the job and its result").click()
    page.get_by_text("There is no job yet").wait_for()


def test_an_upload_and_the_benchmarks(page, server, tmp_path, config):
    packed = tmp_path / "packed.zip"
    files = config.root.rglob("00*.png")
    packed.write_bytes(archive({file.name: file.read_bytes() for file in files}).getvalue())
    page.goto(server.start())
    page.locator("input[type=file]").set_input_files(packed)
    page.get_by_role("button", name="Upload").click()
    page.get_by_role("heading", name="packed").wait_for()
    settled(page)
    page.get_by_role("link", name="Benchmarks").click()
    page.get_by_role("link", name="cpu").click()
    fits(page)
    page.get_by_text("All", exact=False).last.click()
    page.locator("a[href^='/card?']").first.click()
    assert page.get_by_role("rowheader", name="natural_accuracy", exact=True).is_visible()
    fits(page)


def press_until(page, matches: str, limit: int = 80) -> None:
    """Tab to the element that matches, and see that the focus shows on every stop."""
    look = """(wanted) => {
        const at = document.activeElement;
        return [at === document.body, getComputedStyle(at).outlineStyle, at.matches(wanted), at.outerHTML.slice(0, 99)];
    }"""
    for _ in range(limit):
        page.keyboard.press("Tab")
        nowhere, outline, found, told = page.evaluate(look, matches)  # at once: a page may still be coming
        if nowhere:
            continue  # past the last element
        assert outline != "none", told
        if found:
            return
    raise AssertionError(f"no Tab leads to {matches}")


def test_the_story_by_keyboard_alone(page, server):
    page.goto(server.start())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    press_until(page, "a[href$='images']")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("path="))
    press_until(page, "a.button")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/set"))
    settled(page)
    press_until(page, ".thumbs a")
    page.keyboard.press("Enter")
    page.locator("[data-mark]").wait_for()
    settled(page)
    press_until(page, "[data-wipe]")
    page.keyboard.press("Home")
    assert page.locator("[data-after]").evaluate("image => image.style.clipPath").endswith(" 0%)")
    press_until(page, "[data-play]")
    press_until(page, "[data-step]")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-told]").inner_text().startswith("step 1")
    page.go_back()
    settled(page)
    press_until(page, "[name=steps]")
    page.keyboard.type("1")
    settled(page)
    press_until(page, "button.main")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Download the purified set").wait_for()
    press_until(page, "a[href$='/result']")


def test_the_token_is_asked_for_once(chromium, config):
    server = Server(config)
    server.command += ["--token", "a-token-of-decent-length"]
    address = server.start()
    try:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(address.partition("?")[0])
        page.get_by_label("Token").fill("a-token-of-decent-length")
        page.get_by_role("button", name="Enter").click()
        page.get_by_role("heading", name="Which images shall be purified?").wait_for()
        page.get_by_role("link", name="Jobs").click()
        page.get_by_role("heading", name="Jobs").wait_for()
        context.close()
    finally:
        server.kill()
