"""Take the pictures of docs/web.md from the page itself: `make web-pictures`; Playwright and Chromium must be there.

The bundled images, some of them with a trigger, are served by `pureebm serve` and looked at in a browser without a
window. `--all FOLDER` keeps every page of the story instead, at the widths of a desktop and of a phone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from pureebm.evaluation.demo import load_sample, write_untrusted

SIZES = {"desktop": (1060, 1130), "phone": (390, 844)}
SECONDS = 600
READY = "!document.querySelector('[aria-busy]') && !document.body.innerText.includes('\u2026')"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", type=Path, help="a folder for pictures of every page, at both widths")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pureebm-pictures-") as name:
        folder = Path(name)
        write_untrusted(folder / "sets" / "scraped", load_sample())
        command = [sys.executable, "-m", "pureebm.cli.main", "serve", "--json", "--port", "0", "--root", "sets"]
        command += ["--workspace", "work", "--results", str(Path(__file__).parents[1] / "results")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
        assert server.stdout is not None
        try:
            address = json.loads(server.stdout.readline())["url"]
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                for width in SIZES if options.all else ("desktop",):
                    page = browser.new_page(viewport=dict(zip(("width", "height"), SIZES[width], strict=True)))
                    page.set_default_timeout(1000 * SECONDS)
                    if options.all:
                        take_all(page, address, options.all / width)
                    else:
                        take(page, address, Path(__file__).parent)
                browser.close()
        finally:
            server.terminate()
            server.wait()


def take(page: Page, address: str, folder: Path) -> None:
    """The two pictures of the documentation."""
    page.goto(f"{address}set?source=files/scraped")
    settled(page)
    page.screenshot(path=folder / "web-set.png")
    open_first(page, ".pairs a")
    page.screenshot(path=folder / "web-image.png")


def take_all(page: Page, address: str, folder: Path) -> None:
    """Every page, whole."""
    folder.mkdir(parents=True, exist_ok=True)

    def shot(name: str) -> None:
        settled(page)
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    page.goto(address)
    shot("1-sets")
    page.goto(f"{address}set?source=files/scraped")
    shot("2-set")
    open_first(page)
    shot("3-image")
    page.go_back()
    settled(page)
    page.get_by_role("button", name="Start the job").click()
    page.screenshot(path=folder / "4-job-begun.png", full_page=True)
    page.get_by_role("link", name="Download the purified set").wait_for()
    shot("5-job-done")
    page.get_by_role("link", name="See the report").click()
    shot("6-report")
    page.goto(f"{address}jobs")
    shot("7-jobs")
    page.goto(f"{address}cards")
    shot("8-benchmarks")
    page.get_by_role("link", name="cpu").first.click()
    shot("9-suite")
    page.locator("a[href^='/card?']").first.click(force=True)
    shot("10-card")


def open_first(page: Page, link: str = ".thumbs a") -> None:
    page.locator(link).first.click()
    page.locator("[data-mark]").wait_for()
    settled(page)
    page.locator("[data-wipe]").fill("50")
    page.locator("[data-wipe]").blur()


def settled(page: Page) -> None:
    """Playwright's own waiting would evaluate text, which the page forbids."""
    page.wait_for_load_state()
    end = time.monotonic() + SECONDS
    while not page.evaluate(READY):
        assert time.monotonic() < end, page.url
        page.wait_for_timeout(100)


if __name__ == "__main__":
    main()
