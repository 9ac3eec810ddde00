"""`make screenshots`: the page with the model that ships, as docs/images shows it, on a wide screen and on a phone; and
the benchmark's report of the committed results. With another model repository, only the answer of a model that can be
explained.
"""

import sys
from pathlib import Path

from playwright.sync_api import Browser

from benchmark.report import page as report_page
from benchmark.report import read_report
from tests.browser import chromium, find_chromium
from tests.conftest import REPOSITORY_ROOT, encoded
from tests.drawings import airplane, ship
from tests.serving.conftest import running

FOLDER = REPOSITORY_ROOT / "docs" / "images"
RESULTS = REPOSITORY_ROOT / "benchmark" / "results"

# Seconds on an idle machine; another job may have the cores.
TIMEOUT_MS = 120_000


def main() -> None:
    executable = find_chromium()
    if executable is None:
        sys.exit("screenshots need Chromium; install it with: make chromium")
    repository = Path(sys.argv[1])
    with (
        running("--model-repository", repository) as server,
        chromium(executable) as browser,
    ):
        url = server.wait_until_ready().url
        if repository.resolve() != REPOSITORY_ROOT / "model_repository":
            take(browser, url, FOLDER / "page-explain.png", width=1000, scheme="light", part="#answer")
            return
        take(browser, url, FOLDER / "page.png", width=1200, scheme="light")
        take(browser, url, FOLDER / "page-phone.png", width=390, scheme="dark")
        if list(RESULTS.glob("*.jsonl")):
            take_report(browser, FOLDER / "benchmark.png")


def take(browser: Browser, url: str, file: Path, *, width: int, scheme: str, part: str | None = None) -> None:
    """The page, or a part of it, after it has answered two pictures and refused one."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto(url)
    page.locator("#model option").first.wait_for(state="attached")
    jpeg = encoded(ship(), quality=90)
    pictures = {
        "ship.jpg": jpeg,
        "airplane.jpg": encoded(airplane(), quality=90),
        "torn.jpg": jpeg[: len(jpeg) // 3],
    }
    files = [{"name": name, "mimeType": "image/jpeg", "buffer": content} for name, content in pictures.items()]
    page.set_input_files("#files", files)
    for tile in page.locator(".tile").all():
        tile.locator(".tile-answer:not(:empty)").wait_for()
    page.locator("#answer[aria-busy=false]").wait_for()
    page.dispatch_event("#model", "change")  # once more: the first request of a process is slower than all others
    page.locator("#answer[aria-busy=false]").wait_for()
    if part is None:
        page.screenshot(path=file, full_page=True)
    else:
        page.locator(part).screenshot(path=file)
    context.close()


def take_report(browser: Browser, file: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_content(report_page(read_report(RESULTS, "AMD EPYC, 2 cores")))
    page.screenshot(path=file, full_page=True)
    page.close()


if __name__ == "__main__":
    main()
