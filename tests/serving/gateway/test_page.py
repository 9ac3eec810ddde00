"""The page at `/`, used in a real Chromium as people use it."""

import base64
import io

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from deit.model_input import model_input
from deit.pictures import PictureLimits
from tests.browser import chromium, find_chromium
from tests.conftest import encoded, photograph
from tests.drawings import airplane, ship
from tests.serving.conftest import IMAGE_SIZE, PREPROCESSING, running, write_model

KEY = "key-of-somebody-with-a-browser-01"

PHOTOGRAPH = encoded(ship())
BROKEN = PHOTOGRAPH[: len(PHOTOGRAPH) // 3]

# A second on an idle machine; another job may have the cores.
TIMEOUT_MS = 60_000

DROP = """({files}) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type: "image/jpeg"}));
  }
  for (const type of ["dragover", "drop"]) {
    document.getElementById("drop").dispatchEvent(new DragEvent(type, {bubbles: true, dataTransfer: transfer}));
  }
}"""


@pytest.fixture(scope="module")
def browser():
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium (Debian, Ubuntu: apt install chromium)")
    with chromium(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two models, the second with two versions."""
    repository = tmp_path_factory.mktemp("two models")
    write_model(repository / "first")
    write_model(repository / "second", seed=10, versions=2)
    with running("--model-repository", repository, "--max-wait-s=60", "--request-timeout-s=60") as server:
        yield server.wait_until_ready()


@pytest.fixture
def page(browser, served):
    """The page in a fresh browser profile. Nothing may fail in it, and nothing may be asked of another server."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None
    )
    page.on("request", lambda request: requests.append(request.url))
    page.goto(served.url)
    page.locator("#model option").first.wait_for(state="attached")  # until then a picture is not sent
    yield page
    context.close()
    assert not errors
    assert all(url.startswith((served.url, "blob:", "data:")) for url in requests)


def drop(page, **files):
    page.evaluate(DROP, {"files": [[f"{name}.jpg", base64.b64encode(each).decode()] for name, each in files.items()]})


def wait_for_answer(page):
    page.locator("#answer[aria-busy=false]").wait_for()


def said_by_api(served, **query):
    answer = served.post("/classify", params=query, content=PHOTOGRAPH).json()
    best = answer["predictions"][0]
    return best["label"], f"{best['probability'] * 100:.1f} %"


def said_by_page(page):
    wait_for_answer(page)
    return page.inner_text("#top-label"), page.inner_text("#top-percent")


def test_a_dropped_photograph_gets_its_label_both_heads_and_the_times(page, served):
    drop(page, photo=PHOTOGRAPH)
    assert said_by_page(page) == said_by_api(served)
    (best, *_) = page.locator("#bars li").all()
    assert best.locator(".track").count() == 3
    assert page.locator("#agreement").inner_text().startswith(("Both heads agree.", "The heads disagree."))
    assert "bit apart" in page.inner_text("#agreement")
    assert "model and its queue" in page.inner_text("#stage-times")
    assert "photo.jpg: " in page.inner_text("#status")  # what a screen reader says


def test_it_shows_the_very_pixels_that_the_model_read(page):
    drop(page, photo=PHOTOGRAPH)
    wait_for_answer(page)
    _, _, content = page.get_attribute("#seen", "src").partition(",")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    expected = model_input(PHOTOGRAPH, PREPROCESSING, PictureLimits(max_pixels=10**7))
    np.testing.assert_array_equal(seen, expected)
    assert f"{IMAGE_SIZE} \N{MULTIPLICATION SIGN} {IMAGE_SIZE} pixels" in page.inner_text("#seen-size")


def test_switching_the_model_and_the_version_asks_again(page, served):
    drop(page, photo=PHOTOGRAPH)
    assert said_by_page(page) == said_by_api(served, model="first")
    page.select_option("#model", "second")
    assert said_by_page(page) == said_by_api(served, model="second", version="2")
    page.select_option("#version", "1")
    assert said_by_page(page) == said_by_api(served, model="second", version="1")
    assert "model=second&version=1" in page.inner_text("#curl")
    assert "second, version 1" in page.inner_text("#card-name")


def test_a_broken_file_gets_a_clear_message_and_leaves_the_others_alone(page, served):
    drop(page, torn=BROKEN, photo=PHOTOGRAPH, words=b"no picture")
    wait_for_answer(page)  # the first is shown
    assert page.locator("#problem").inner_text().startswith("The image cannot be decoded.")
    page.locator(".tile").nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert said_by_page(page) == said_by_api(served)
    page.keyboard.press("ArrowRight")
    wait_for_answer(page)
    assert page.locator("#problem").inner_text().startswith("Not a JPEG, PNG, WebP or AVIF image.")
    page.get_by_role("button", name="Remove words.jpg").click()
    assert said_by_page(page) == said_by_api(served)
    assert page.locator(".tile").count() == 2


def test_a_chosen_and_a_pasted_picture_do_as_well(page):
    page.set_input_files("#files", [{"name": "chosen.jpg", "mimeType": "image/jpeg", "buffer": PHOTOGRAPH}])
    wait_for_answer(page)
    page.evaluate(
        """(content) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
          transfer.items.add(new File([bytes], "pasted.jpg", {type: "image/jpeg"}));
          document.dispatchEvent(new ClipboardEvent("paste", {bubbles: true, clipboardData: transfer}));
        }""",
        base64.b64encode(encoded(airplane())).decode(),
    )
    wait_for_answer(page)
    assert page.inner_text("#original-name") == "pasted.jpg"
    assert page.locator(".tile").count() == 2


def test_it_says_which_classes_there_are_and_that_an_address_is_no_picture(page):
    page.get_by_text(
        "The model knows 10 classes, and assigns every image to one of them: airplane, car: blue,"
    ).wait_for()
    page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.setData("text/uri-list", "https://example.org/ship.jpg");
          document.getElementById("drop").dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer: transfer}));
        }"""
    )
    page.get_by_role("alert").get_by_text("a link or text, not a file").wait_for()
    drop(page, photo=PHOTOGRAPH)
    wait_for_answer(page)
    assert not page.locator("#not-a-file").is_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_barrier_and_a_phone_needs_no_sideways_scrolling(page, theme):
    drop(page, photo=PHOTOGRAPH, torn=BROKEN, other=encoded(photograph(300, 900)))
    wait_for_answer(page)
    page.set_viewport_size({"width": 360, "height": 740})
    while page.inner_text("#theme-name") != theme:
        page.click("#theme")
    page.locator("#card summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
    assert not found.response["violations"], found.generate_report()
    page.reload()
    assert page.inner_text("#theme-name") == theme


def test_the_explanation_of_the_api_needs_no_other_server(page, served):
    page.goto(f"{served.url}/docs")
    page.locator(".opblock-summary-path", has_text="/classify").click()
    page.get_by_text("The most probable classes of each image, best first.").wait_for()


def test_a_key_is_asked_for_and_kept_for_this_tab_alone(browser, model_repository):
    with (
        running("--model-repository", model_repository, environment={"DEIT_API_KEYS": KEY}) as server,
        browser.new_context() as context,
    ):
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.goto(server.wait_until_ready().url)
        page.fill("#key", "another-key-that-nobody-knows")
        page.keyboard.press("Enter")
        page.get_by_text("does not accept this key").wait_for()
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.locator("#model option").wait_for(state="attached")
        drop(page, photo=PHOTOGRAPH)
        wait_for_answer(page)
        assert page.inner_text("#top-percent").endswith("%")
        assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
        assert not page.locator("#key-form").is_visible()
        other_tab = context.new_page()
        other_tab.goto(server.url)
        other_tab.locator("#key-form").wait_for()
