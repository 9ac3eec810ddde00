"""POST /classify over HTTP, against a real `deit serve` with a real Triton."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from deit.model import PROBABILITIES
from deit.model_input import model_input
from deit.pictures import PictureLimits
from serving.gateway.errors import PROBLEMS
from serving.gateway.routes import STATIC
from serving.gateway.schemas import ClassificationBody, ImageResults, StreamedResult
from serving.gateway.uploads import RAW_TYPES
from tests.conftest import encoded, photograph
from tests.serving.conftest import LABELS, PREPROCESSING

PROBLEM = "application/problem+json"
LIMITS = PictureLimits(max_pixels=10**8)


@pytest.fixture(scope="module")
def jpeg():
    return encoded(photograph(96, 64))


def assert_problem(answer, status, name):
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert (answer.status_code, body["type"]) == (status, f"/problems/{name}"), body
    assert body["status"] == status
    assert body["detail"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]
    return body


def served_probabilities(client, content):
    answer = client.post("/classify", params={"top_k": len(LABELS)}, content=content)
    assert answer.status_code == 200, answer.text
    by_index = {p["index"]: p["probability"] for p in answer.json()["predictions"]}
    return np.array([by_index[i] for i in range(len(LABELS))])


def assert_served_as_in_process(client, contents, model_repository):
    session = onnxruntime.InferenceSession(model_repository / "tiny" / "1" / "model.onnx")
    images = np.stack([model_input(content, PREPROCESSING, LIMITS) for content in contents])
    (expected,) = session.run([PROBABILITIES], {"images": images})
    with ThreadPoolExecutor(32) as threads:
        served = list(threads.map(lambda content: served_probabilities(client, content), contents))
    # The batch that Triton forms differs from this one, which may move the last bit of a sum.
    np.testing.assert_allclose(np.stack(served), expected, rtol=0, atol=1e-6)
    assert len({row.tobytes() for row in expected}) == len(contents), "the pictures must tell each other apart"


def test_probabilities_equal_onnxruntime_in_this_process_under_concurrency(client, model_repository):
    contents = [encoded(photograph(90, 60, seed), "WEBP") for seed in range(128)]
    assert_served_as_in_process(client, contents, model_repository)


def test_photographs_are_served_as_onnxruntime_sees_them(client, photographs, model_repository):
    assert_served_as_in_process(client, photographs, model_repository)


def test_an_answer_names_model_version_and_the_five_best_classes(client, jpeg):
    answer = client.post("/classify", files={"image": ("photo.jpg", jpeg, "image/jpeg")})
    assert answer.status_code == 200
    assert (answer.headers["x-model"], answer.headers["x-model-version"]) == ("tiny", "1")
    body = answer.json()
    assert list(body) == ["model", "version", "predictions"]
    assert (body["model"], body["version"]) == ("tiny", "1")
    probabilities = [p["probability"] for p in body["predictions"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(p["label"] == LABELS[p["index"]] for p in body["predictions"])


def test_the_header_server_timing_has_every_stage(client, jpeg):
    timing = client.post("/classify", content=jpeg).headers["server-timing"]
    assert [part.split(";dur=")[0] for part in timing.split(", ")] == [
        *("receive", "wait", "decode", "preprocess", "model")
    ]


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "image/png", "application/octet-stream", "IMAGE/JPEG; charset=x", None]
)
def test_a_raw_body_gives_the_answer_of_a_form(client, jpeg, content_type):
    form = client.post("/classify", files={"image": jpeg}).json()
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert client.post("/classify", content=jpeg, headers=headers).json() == form


def test_a_large_form_is_read_whole(client):
    """Above Starlette's threshold of 1 MiB for temporary files."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8))
    content = encoded(noise, "PNG")
    assert 2**20 < len(content) < 2_000_000
    form = client.post("/classify", files={"image": content})
    assert form.status_code == 200
    assert form.json() == client.post("/classify", content=content).json()


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_top_k_sets_how_many(client, jpeg, top_k):
    answer = client.post("/classify", params={"top_k": top_k}, content=jpeg)
    assert len(answer.json()["predictions"]) == top_k


@pytest.mark.parametrize("top_k", ["0", "-1", "11", "many", "1.5", "99999999999999999999"])
def test_a_bad_top_k_is_422(client, jpeg, top_k):
    answer = client.post("/classify", params={"top_k": top_k}, content=jpeg)
    assert "top_k" in assert_problem(answer, 422, "invalid-parameter")["detail"]


def test_a_model_can_be_named(client, jpeg):
    assert client.post("/classify", params={"model": "tiny"}, content=jpeg).status_code == 200


@pytest.mark.parametrize("name", ["nope", "", "../tiny", "x" * 5000])
def test_an_unknown_model_is_404_and_lists_those_there_are(client, jpeg, name):
    answer = client.post("/classify", params={"model": name}, content=jpeg)
    assert "tiny" in assert_problem(answer, 404, "unknown-model")["detail"]


def test_a_version_can_be_named(client, jpeg):
    newest = client.post("/classify", content=jpeg).json()
    assert client.post("/classify", params={"version": "1"}, content=jpeg).json() == newest


@pytest.mark.parametrize("version", ["2", "0", "", "01", "newest", "9" * 99])
def test_an_unknown_version_is_404_and_lists_those_there_are(client, jpeg, version):
    answer = client.post("/classify", params={"version": version}, content=jpeg)
    assert "loaded: 1" in assert_problem(answer, 404, "unknown-model")["detail"]


def test_both_heads_are_told_beside_their_mean(client, jpeg):
    body = client.post("/classify", params={"heads": True, "top_k": 10}, content=jpeg).json()
    joint, by_class, by_distillation = (
        {p["index"]: p["probability"] for p in predictions}
        for predictions in (body["predictions"], body["heads"]["class"], body["heads"]["distillation"])
    )
    for index, probability in joint.items():
        # the graph adds and halves in float32
        assert probability == pytest.approx((by_class[index] + by_distillation[index]) / 2, abs=1e-7)
    assert body["heads"]["agree"] == (max(by_class, key=by_class.get) == max(by_distillation, key=by_distillation.get))
    assert 0 < body["heads"]["jensen_shannon_divergence"] < 1


def test_less_probable_classes_are_left_out_and_none_is_an_abstention(client, jpeg):
    every = client.post("/classify", params={"top_k": 10}, content=jpeg).json()["predictions"]
    second = every[1]["probability"]
    body = client.post("/classify", params={"top_k": 10, "min_probability": second}, content=jpeg).json()
    assert (body["predictions"], body["abstained"]) == (every[:2], False)
    body = client.post("/classify", params={"min_probability": 1}, content=jpeg).json()
    assert (body["predictions"], body["abstained"]) == ([], True)


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "inf", "much"])
def test_a_min_probability_that_is_none_is_422(client, jpeg, value):
    answer = client.post("/classify", params={"min_probability": value}, content=jpeg)
    assert "min_probability" in assert_problem(answer, 422, "invalid-parameter")["detail"]


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "²"])
def test_a_timeout_that_is_none_is_422(client, jpeg, value):
    answer = client.post("/classify", headers={"X-Request-Timeout-Ms": value.encode()}, content=jpeg)
    assert "X-Request-Timeout-Ms" in assert_problem(answer, 422, "invalid-parameter")["detail"]


def test_a_request_that_is_given_no_time_is_504_or_408(client, jpeg):
    answer = client.post("/classify", headers={"X-Request-Timeout-Ms": "1"}, content=encoded(photograph(900, 900)))
    assert answer.status_code in (408, 504)


def test_an_empty_body_is_400(client):
    assert_problem(client.post("/classify", content=b""), 400, "malformed-request")


def test_an_empty_file_in_a_form_is_400(client):
    assert_problem(client.post("/classify", files={"image": b""}), 400, "malformed-request")


def test_a_form_without_the_field_is_400_and_says_how(client, jpeg):
    answer = client.post("/classify", files={"picture": jpeg})
    assert "-F image=@" in assert_problem(answer, 400, "malformed-request")["detail"]


def test_a_text_field_named_image_is_400(client):
    answer = client.post("/classify", data={"image": "a path?"}, files={"other": b"x"})
    assert_problem(answer, 400, "malformed-request")


def test_a_broken_form_is_400(client):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/classify", content=b"--x\r\nnonsense", headers=headers)
    assert_problem(answer, 400, "malformed-request")


def test_a_form_without_boundary_is_400(client):
    answer = client.post("/classify", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert_problem(answer, 400, "malformed-request")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/json", "application/x-www-form-urlencoded", "video/mp4", "\xe9"]
)
def test_a_type_that_cannot_hold_an_image_is_415(client, jpeg, content_type):
    answer = client.post("/classify", content=jpeg, headers={"Content-Type": content_type.encode("latin-1")})
    assert_problem(answer, 415, "unsupported-type")


@pytest.mark.parametrize("content", [b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\0" * 99])
def test_a_body_that_is_no_image_is_415(client, content):
    assert_problem(client.post("/classify", content=content), 415, "unsupported-type")


def test_a_parameter_that_does_not_exist_or_is_in_the_form_is_refused(client, jpeg):
    """The caller would believe that it was followed."""
    answer = client.post("/classify?topk=3", content=jpeg)
    assert (
        "there is no parameter 'topk'; there are: model, version, top_k"
        in assert_problem(answer, 422, "invalid-parameter")["detail"]
    )
    answer = client.post("/classify", files={"image": jpeg}, data={"model": "tiny"})
    assert "/classify?model=" in assert_problem(answer, 400, "malformed-request")["detail"]


def test_another_image_format_is_415_whatever_it_is_called(client):
    gif = encoded(photograph(96, 64), "GIF")
    answer = client.post("/classify", files={"image": ("photo.jpg", gif, "image/jpeg")})
    assert_problem(answer, 415, "unsupported-type")


def test_a_compressed_body_is_415(client, jpeg):
    answer = client.post("/classify", content=jpeg, headers={"Content-Encoding": "gzip"})
    assert_problem(answer, 415, "unsupported-type")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_truncated_image_is_422(client, file_format):
    content = encoded(photograph(300, 200), file_format)
    answer = client.post("/classify", content=content[: len(content) // 2])
    assert_problem(answer, 422, "undecodable-image")


def test_a_declared_body_over_the_limit_is_413(client):
    answer = client.post("/classify", content=b"\xff\xd8" + b"x" * 2_000_000)
    assert "2000000" in assert_problem(answer, 413, "body-too-large")["detail"]


def test_a_chunked_body_over_the_limit_is_413(client):
    chunks = (b"x" * 100_000 for _ in range(30))
    assert_problem(client.post("/classify", content=chunks), 413, "body-too-large")


def test_a_chunked_form_over_the_limit_is_413(client):
    def form():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(30):
            yield b"x" * 100_000

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_problem(client.post("/classify", content=form(), headers=headers), 413, "body-too-large")


def test_the_limit_holds_on_every_path(client):
    assert_problem(client.post("/nope", content=b"x" * 2_000_001), 413, "body-too-large")


def test_too_many_pixels_are_413(client):
    content = encoded(Image.new("1", (1001, 1000)), "PNG")
    assert len(content) < 1000
    assert "1001 x 1000" in assert_problem(client.post("/classify", content=content), 413, "image-too-large")["detail"]


def test_the_server_answers_on_after_every_refusal(client, jpeg):
    assert client.post("/classify", content=jpeg).status_code == 200


def test_paths_and_methods_that_are_not_there_are_problems(client):
    assert_problem(client.get("/nope"), 404, "not-found")
    answer = client.get("/classify")
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


def test_the_request_id_is_echoed_when_it_is_harmless(client):
    given = client.get("/healthz", headers={"X-Request-ID": "a-B_c.1"})
    assert given.headers["x-request-id"] == "a-B_c.1"
    for bad in ("", "x" * 129, "a b", "a\tb", "é".encode()):
        assert client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"] not in (bad, "")


def test_the_server_is_alive_and_ready(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_models_are_listed_as_triton_describes_them(client):
    body = client.get("/models").json()
    assert body["default"] == "tiny"
    (model,) = body["models"]
    assert (model["name"], model["version"], tuple(model["labels"])) == ("tiny", "1", LABELS)
    assert model["preprocessing"] == json.loads(PREPROCESSING.to_json())
    assert (model["versions"], model["input_shape"], model["has_heads"]) == (["1"], [32, 32, 3], True)
    assert client.get("/models/tiny").json() == model
    assert_problem(client.get("/models/huge"), 404, "unknown-model")


def test_the_page_and_its_files_come_from_this_server_alone(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("static/app.js", "static/style.css", "static/icon.svg"):
        assert path in page.text
        assert client.get(path).status_code == 200
    for file in STATIC.iterdir():
        assert "://" not in file.read_text().replace("http://www.w3.org/2000/svg", "")


def test_the_api_description_has_both_bodies_and_every_error(client):
    api = client.get("/openapi.json").json()
    classify = api["paths"]["/classify"]["post"]
    assert {"multipart/form-data", *RAW_TYPES} == set(classify["requestBody"]["content"])
    assert set(classify["responses"]) == {
        *("200", "400", "404", "408", "413", "415", "422", "429", "500", "503", "504"),
    }
    assert all(PROBLEM in answer["content"] for status, answer in classify["responses"].items() if status != "200")
    types = api["components"]["schemas"]["ProblemBody"]["properties"]["type"]["pattern"]
    assert all(re.search(types, f"{root}/problems/{name}") for name in PROBLEMS for root in ("", "/vision"))
    assert not re.search(types, "/problems/nobody")
    assert "HTTPValidationError" not in json.dumps(api)
    assert client.get("/docs").status_code == 200


def test_the_examples_of_the_api_are_answers(client):
    answer = client.get("/openapi.json").json()["paths"]["/classify"]["post"]["responses"]["200"]["content"]
    for example in answer["application/json"]["examples"].values():
        (schema,) = [
            kind for kind in (ClassificationBody, ImageResults) if kind.model_fields.keys() >= example["value"].keys()
        ]
        schema.model_validate(example["value"])
    for line in answer["application/x-ndjson"]["example"].splitlines():
        StreamedResult.model_validate_json(line)


def test_the_type_of_a_problem_resolves_to_its_explanation(client):
    explanation = client.get(client.get("/nope").json()["type"])
    assert explanation.status_code == 200
    assert "404" in explanation.text
    assert_problem(client.get("/problems/unheard-of"), 404, "not-found")
