"""POST /classify with several images: a result for each, errors of one that leave the others alone, streaming."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from deit.model_input import model_input
from deit.pictures import PictureLimits
from tests.conftest import encoded, photograph
from tests.serving.conftest import PREPROCESSING


@pytest.fixture(scope="module")
def pictures():
    return [encoded(photograph(96, 64, seed)) for seed in range(20)]


def form(pictures):
    return [("image", (f"{index}.jpg", content, "image/jpeg")) for index, content in enumerate(pictures)]


def alone(client, picture):
    return client.post("/classify", content=picture).json()


@pytest.mark.parametrize(
    ("accept", "is_streamed"),
    [
        ("application/x-ndjson", True),
        ("text/html, Application/X-NDJSON; q=0.5", True),
        ("application/x-ndjson;q=0", False),
        ("application/json, application/x-ndjson; charset=utf-8; Q = 0.000", False),
        ("*/*", False),
    ],
)
def test_results_are_streamed_to_whoever_accepts_that(client, pictures, accept, is_streamed):
    answer = client.post("/classify", files=form(pictures[:2]), headers={"Accept": accept})
    assert answer.status_code == 200
    assert (answer.headers["content-type"] == "application/x-ndjson") is is_streamed


def test_each_image_has_the_result_that_it_has_alone_in_order(client, pictures):
    answer = client.post("/classify", files=form(pictures))
    assert answer.status_code == 200
    assert (answer.headers["x-model"], answer.headers["x-model-version"]) == ("tiny", "1")
    body = answer.json()
    assert list(body) == ["model", "results"]
    assert [result["filename"] for result in body["results"]] == [f"{index}.jpg" for index in range(20)]
    for result, picture in zip(body["results"], pictures, strict=True):
        expected = alone(client, picture)["predictions"]
        assert [p["label"] for p in result["predictions"]] == [p["label"] for p in expected]


def test_broken_images_do_not_fail_the_others(client, pictures):
    broken = [pictures[0][:500], b"", b"no image", pictures[1]]
    answer = client.post("/classify", files=form(broken))
    assert answer.status_code == 200
    *refused, good = answer.json()["results"]
    assert [result["problem"]["type"] for result in refused] == [
        "/problems/undecodable-image",
        "/problems/malformed-request",
        "/problems/unsupported-type",
    ]
    assert all("predictions" not in result for result in refused)
    assert good["predictions"][0] == pytest.approx(alone(client, pictures[1])["predictions"][0])


def test_parameters_hold_for_every_image(client, pictures):
    parameters = {"top_k": 2, "heads": True, "min_probability": 0}
    for result in client.post("/classify", params=parameters, files=form(pictures[:3])).json()["results"]:
        assert len(result["predictions"]) == len(result["heads"]["class"]) == 2
        assert result["abstained"] is False


def test_each_image_comes_with_the_pixels_that_the_model_read(client, pictures):
    results = client.post("/classify", params={"pixels": True}, files=form(pictures[:3])).json()["results"]
    for picture, result in zip(pictures, results, strict=False):
        start, _, content = result["pixels"].partition(",")
        assert start == "data:image/png;base64"
        read = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        expected = model_input(picture, PREPROCESSING, PictureLimits(max_pixels=10**6))
        np.testing.assert_array_equal(read, expected)
    assert "pixels" not in client.post("/classify", content=pictures[0]).json()


def test_more_images_than_the_limit_are_400(client, pictures):
    answer = client.post("/classify", files=form(pictures[:1] * 65))
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed-request")
    assert "64" in answer.json()["detail"]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/html, Application/X-NDJSON;q=0.9"])
def test_results_are_streamed_as_lines(client, pictures, accept):
    headers = {"Accept": accept}
    with client.stream("POST", "/classify", files=form([*pictures, b"x"]), headers=headers) as answer:
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        assert answer.headers["x-model"] == "tiny"
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert sorted(line["index"] for line in lines) == list(range(21))
    assert all(line["filename"] == f"{line['index']}.jpg" for line in lines)
    together = client.post("/classify", files=form([*pictures, b"x"])).json()["results"]
    for line in lines:
        other = together[line["index"]]
        assert line.get("problem") == other.get("problem")
        assert [p["label"] for p in line.get("predictions", [])] == [p["label"] for p in other.get("predictions", [])]


def test_one_image_can_be_streamed_too(client, pictures):
    answer = client.post("/classify", content=pictures[0], headers={"Accept": "application/x-ndjson"})
    (line,) = answer.text.splitlines()
    assert json.loads(line)["index"] == 0
