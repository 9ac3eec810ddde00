"""What `deit export` found out about a model, over HTTP: when to abstain, where it looks, and its features."""

import base64
import io

import numpy as np
import onnxruntime
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from deit.calibration import entropy_bits
from deit.model_input import model_input
from deit.pictures import PictureLimits
from export.config import ExportConfig
from export.pipeline import export_models
from serving.client import Client
from serving.gateway.inside import heat_map
from tests.browser import chromium, find_chromium
from tests.conftest import encoded, photograph
from tests.serving.conftest import running, write_model
from tests.training.conftest import TINY
from training.images import open_images

PICTURES = [encoded(photograph(48, 32, seed=seed)) for seed in range(6)]
TOKENS = ("class", "distillation")


@pytest.fixture(scope="module")
def repository(checkpoint, labelled, tmp_path_factory):
    """`tiny` with labels and a second graph, and `plain`, of which nothing is known."""
    folder = tmp_path_factory.mktemp("explained")
    export_models(
        ExportConfig(
            checkpoint=str(checkpoint),
            images=labelled,
            repository=folder,
            name="tiny",
            engine="onnxruntime",
            parity_images=64,
            false_refusals=0.5,
            explain=True,
        )
    )
    write_model(folder / "plain")
    return folder


@pytest.fixture(scope="module")
def server(repository):
    with running(
        *("--model-repository", repository, "--default-model=tiny", "--max-wait-s=60", "--request-timeout-s=60")
    ) as process:
        yield process.wait_until_ready()


@pytest.fixture(scope="module")
def inside(repository):
    """inside(picture) -> the outputs of the second graph by name, in this process."""
    session = onnxruntime.InferenceSession(repository / "tiny_explain" / "1" / "model.onnx")
    names = [each.name for each in session.get_outputs()]

    def ask(content):
        pixels = model_input(content, TINY, PictureLimits(max_pixels=10**7))
        return pixels, {
            name: value[0] for name, value in zip(names, session.run(names, {"images": pixels[None]}), strict=True)
        }

    return ask


def test_explain_shows_where_each_token_looked(client, inside):
    answer = client.post("/classify", params={"explain": True}, content=PICTURES[0])
    assert answer.status_code == 200, answer.text
    pixels, found = inside(PICTURES[0])
    explanation = answer.json()["explanation"]
    for token in TOKENS:
        kind, _, content = explanation[token].partition(",")
        assert kind == "data:image/png;base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)
        np.testing.assert_allclose(shown, heat_map(pixels, found[f"{token}_relevance"]), atol=1)
    assert explanation["class"] != explanation["distillation"]
    assert "explain;dur=" in answer.headers["server-timing"]


def test_embedding_holds_what_the_heads_read(client, inside):
    answer = client.post("/classify", params={"embedding": True}, content=PICTURES[1])
    _, found = inside(PICTURES[1])
    for token, text in answer.json()["embedding"].items():
        features = np.frombuffer(base64.b64decode(text), "<f4")
        np.testing.assert_allclose(features, found[f"{token}_features"], atol=1e-5)
    assert "explanation" not in answer.json()


def test_the_python_client_opens_what_was_asked_for(server, inside):
    with Client(server.url, timeout_s=60) as client:
        answer = client.classify(PICTURES[1], explain=True, embedding=True, pixels=True)
        plain = client.classify(PICTURES[1])
    pixels, found = inside(PICTURES[1])
    np.testing.assert_array_equal(Image.open(io.BytesIO(answer.pixels)), pixels)
    for token in TOKENS:
        np.testing.assert_allclose(getattr(answer.embedding, f"{token}_token"), found[f"{token}_features"], atol=1e-5)
        shown = Image.open(io.BytesIO(getattr(answer.explanation, f"{token}_token")))
        assert shown.size == pixels.shape[1::-1]
    assert (plain.explanation, plain.embedding, plain.pixels, plain.abstained) == (None, None, None, False)


def test_several_images_are_looked_into_each_on_its_own(client):
    files = [("image", (f"{index}.jpg", PICTURES[index])) for index in range(3)] + [
        ("image", ("torn.jpg", b"\xff\xd8"))
    ]
    *whole, torn = client.post("/classify", params={"explain": True}, files=files).json()["results"]
    alone = [client.post("/classify", params={"explain": True}, content=each).json() for each in PICTURES[:3]]
    assert [each["explanation"] for each in whole] == [each["explanation"] for each in alone]
    assert "problem" in torn


def test_who_does_not_ask_gets_and_pays_nothing(client):
    answer = client.post("/classify", content=PICTURES[0])
    assert answer.json().keys() == {"model", "version", "predictions"}
    assert "explain" not in answer.headers["server-timing"]


def test_the_bright_end_of_a_heat_map_is_the_most_relevant_patch():
    relevance = np.zeros((4, 4), np.float32)
    relevance[1, 2] = 1
    shown = heat_map(np.full((16, 16, 3), 128, np.uint8), relevance)
    row, column = np.unravel_index(shown.sum(axis=2).argmax(), (16, 16))
    assert (row // 4, column // 4) == (1, 2)
    heat_map(np.zeros((16, 16, 3), np.uint8), np.ones((4, 4), np.float32))  # all patches alike


def test_abstain_refuses_exactly_the_answers_with_too_much_entropy(client, labelled):
    images = open_images(labelled, "test")
    limit = client.get("/models/tiny").json()["provenance"]["calibration"]["entropy_limit_bits"]
    outcomes = set()
    for picture in [images.encoded(index) for index in range(12)]:
        predictions = client.post("/classify", content=picture).json()["predictions"]
        is_refused = entropy_bits(np.array([each["probability"] for each in predictions])) > limit
        answer = client.post("/classify", params={"abstain": True}, content=picture).json()
        assert answer["abstained"] == is_refused
        assert answer["predictions"] == ([] if is_refused else predictions)
        outcomes.add(is_refused)
    assert outcomes == {True, False}
    both = client.post("/classify", params={"abstain": True, "min_probability": 1}, content=PICTURES[0]).json()
    assert both["abstained"] is True


@pytest.mark.parametrize(
    ("parameter", "finding"),
    [
        ("abstain", "the model plain was exported without labelled images"),
        ("explain", "no served model explains plain; export it again with --explain"),
        ("embedding", "no served model explains plain"),
    ],
)
def test_a_model_of_which_nothing_is_known_says_so(client, parameter, finding):
    answer = client.post("/classify", params={"model": "plain", parameter: True}, content=PICTURES[0])
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-parameter"
    assert finding in answer.json()["detail"]


def test_the_list_says_which_models_can_be_asked(client):
    models = {each["name"]: each for each in client.get("/models").json()["models"]}
    can = {name: (each["can_abstain"], each["is_explained"]) for name, each in models.items()}
    assert can == {"plain": (False, False), "tiny": (True, True), "tiny_explain": (True, True)}


def test_the_page_shows_both_heat_maps_and_axe_finds_no_barrier(server):
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium (Debian, Ubuntu: apt install chromium)")
    with chromium(executable) as browser, browser.new_context(viewport={"width": 360, "height": 740}) as context:
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(server.url)
        page.locator("#model option").first.wait_for(state="attached")
        page.set_input_files("#files", [{"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": PICTURES[0]}])
        page.locator("#answer[aria-busy=false]").wait_for()
        maps = page.locator("#heat-maps img")
        assert [each.get_attribute("alt") for each in maps.all()] == [
            "Where the class token looked",
            "Where the distillation token looked",
        ]
        assert all(each.evaluate("image => image.naturalWidth") == TINY.image_size for each in maps.all())
        assert "looking inside the model" in page.inner_text("#stage-times")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
        assert not found.response["violations"], found.generate_report()
        page.select_option("#model", "plain")
        page.locator("#answer[aria-busy=false]").wait_for()
        assert not page.locator("#looks").is_visible()
