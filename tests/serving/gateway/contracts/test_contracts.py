"""Clients of other servers, unchanged, get what /classify answers; what is refused comes in the words of /classify."""

import base64
import json

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, IMAGES, PROBABILITIES
from deit.pictures import PictureLimits, read_picture
from deit.preprocessing import resize_and_crop
from serving.gateway.paths import answering_route
from tests.conftest import encoded, photograph
from tests.serving.conftest import IMAGE_SIZE, LABELS, PREPROCESSING, running

KEY = "key-of-a-user-0123456789-0123456789"
PICTURES = [encoded(photograph(96, 64, seed)) for seed in range(3)]
PICTURE = PICTURES[0]
TORN = PICTURE[:700]


def base64_of(content):
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def classified(client):
    """What /classify says of each picture: every class, best first."""
    return [
        client.post("/classify", params={"top_k": len(LABELS)}, content=content).json()["predictions"]
        for content in PICTURES
    ]


@pytest.fixture(scope="module")
def probabilities(classified):
    """The same, (pictures, classes)."""
    return np.array([[p["probability"] for p in sorted(each, key=lambda p: p["index"])] for each in classified])


def scores(predictions):
    return [{"label": p["label"], "score": p["probability"]} for p in predictions]


def problem(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["error"] == body["detail"]
    return answer.status_code, body["type"].removeprefix("/problems/")


# Hugging Face


@pytest.mark.parametrize("path", ["/hf", "/hf/tiny"])
def test_hugging_faces_client_classifies(server, classified, path):
    client = InferenceClient(model=f"{server.url}{path}", token="none", timeout=60)
    found = [(each.label, each.score) for each in client.image_classification(PICTURE)]
    assert found == [(p["label"], p["probability"]) for p in classified[0][:5]]
    two = client.image_classification(PICTURE, top_k=2)  # which sends JSON with base64
    assert [(each.label, each.score) for each in two] == found[:2]
    assert len(client.image_classification(PICTURE, top_k=5000)) == len(LABELS)


def test_hugging_faces_client_shows_why_a_picture_was_refused(server):
    client = InferenceClient(model=f"{server.url}/hf", token="none", timeout=60)
    with pytest.raises(HfHubHTTPError, match="truncated or damaged"):
        client.image_classification(TORN)


def test_a_list_of_pictures_gets_a_list_for_each(client, classified):
    inputs = [base64_of(PICTURES[0]), f"data:image/jpeg;base64,{base64_of(PICTURES[1])}"]
    answer = client.post("/hf", json={"inputs": inputs, "parameters": {"top_k": 3}})
    assert answer.json() == [scores(each[:3]) for each in classified[:2]]
    assert (answer.headers["x-model"], answer.headers["x-model-version"]) == ("tiny", "1")
    assert "decode" in answer.headers["server-timing"]


def test_base64_may_be_written_in_lines(client, classified):
    answer = client.post("/hf", json={"inputs": base64.encodebytes(PICTURE).decode()})
    assert answer.json() == scores(classified[0][:5])


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8080/x.jpg", "https://example.org/x.jpg", "file:///etc/passwd", "gs://bucket/x.jpg"]
)
def test_an_address_is_not_fetched(client, address):
    answer = client.post("/hf", json={"inputs": address})
    assert problem(answer) == (422, "invalid-parameter")
    assert "not fetched" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/hf", b"{", (400, "malformed-request")),
        ("/hf", b"[null, null]", (400, "malformed-request")),
        ("/hf", b'{"inputs": []}', (400, "malformed-request")),
        ("/hf", b"[" * 100_000, (400, "malformed-request")),
        ("/hf", b'{"inputs": [' + b"0," * 600_000 + b"0]}", (400, "malformed-request")),
        ("/hf", b'{"inputs": [' + b'"",' * 20_000 + b'""]}', (400, "malformed-request")),
        ("/v1/models/tiny:predict", b'{"instances": [' + b"{}," * 20_000 + b"{}]}", (400, "malformed-request")),
        ("/v1/models/tiny:predict", b'{"instances": [' + b'"",' * 64 + b'""]}', (400, "malformed-request")),
        ("/hf", b'{"inputs": "***"}', (422, "invalid-parameter")),
        ("/hf", b'{"inputs": "data:image/jpeg,abc"}', (422, "invalid-parameter")),
        ("/hf", b'{"inputs": "", "parameters": {"top_k": 0}}', (422, "invalid-parameter")),
        ("/hf", b'{"inputs": "", "parameters": {"function_to_apply": "sigmoid"}}', (422, "invalid-parameter")),
        ("/hf", b'{"inputs": "aGVsbG8="}', (415, "unsupported-type")),
        ("/hf", json.dumps({"inputs": [base64_of(PICTURE), base64_of(TORN)]}), (422, "undecodable-image")),
        ("/hf", json.dumps({"inputs": [base64_of(PICTURE)] * 65}), (400, "malformed-request")),
        ("/hf/nobody", b"{}", (404, "unknown-model")),
        ("/v1/models/tiny:predict", b'{"instances": []}', (422, "invalid-parameter")),
        ("/v1/models/tiny:predict", b'{"instances": [{"a": {"b": "c"}}]}', (422, "invalid-parameter")),
        ("/v1/models/tiny:predict", b'{"instances": [{"b64": "https://a/b"}]}', (422, "invalid-parameter")),
        ("/v2/models/nobody/infer", b"{}", (404, "unknown-model")),
        ("/v2/models/tiny/versions/9/infer", b'{"inputs": []}', (422, "invalid-parameter")),
    ],
)
def test_what_cannot_be_answered_is_a_problem_as_everywhere(client, path, body, expected):
    assert problem(client.post(path, content=body, headers={"Content-Type": "application/json"})) == expected


# Open Inference Protocol


@pytest.fixture(scope="module")
def triton(server):
    with InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def bytes_input(pictures, *, is_binary=True):
    tensor = InferInput(IMAGES, [len(pictures)], "BYTES")
    contents = pictures if is_binary else [base64_of(each) for each in pictures]
    tensor.set_data_from_numpy(np.array(contents, dtype=object), binary_data=is_binary)
    return tensor


def test_tritons_client_finds_server_and_model(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("tiny")
    assert triton.is_model_ready("tiny", "1")
    assert not triton.is_model_ready("tiny", "9")
    assert not triton.is_model_ready("nobody")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    metadata = triton.get_model_metadata("tiny")
    assert metadata["inputs"] == [{"name": IMAGES, "datatype": "UINT8", "shape": [-1, IMAGE_SIZE, IMAGE_SIZE, 3]}]
    assert {each["name"] for each in metadata["outputs"]} >= {PROBABILITIES, CLASS_PROBABILITIES}
    assert metadata == triton.get_model_metadata("tiny", "1")


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
def test_tritons_client_sends_pictures(triton, probabilities, is_binary):
    outputs = [InferRequestedOutput(PROBABILITIES, binary_data=is_binary)]
    found = triton.infer("tiny", [bytes_input(PICTURES, is_binary=is_binary)], outputs=outputs, request_id="a")
    np.testing.assert_allclose(found.as_numpy(PROBABILITIES), probabilities, atol=1e-6)  # another batch
    response = found.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("tiny", "1", "a")


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
def test_tritons_client_asks_for_the_best_classes(triton, classified, is_binary):
    outputs = [InferRequestedOutput(PROBABILITIES, binary_data=is_binary, class_count=2)]
    found = triton.infer("tiny", [bytes_input(PICTURES)], outputs=outputs).as_numpy(PROBABILITIES)
    written = [each if isinstance(each, str) else each.decode() for each in found.reshape(-1)]
    assert [text.split(":", 2)[2] for text in written] == [p["label"] for each in classified for p in each[:2]]


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "JSON"])
def test_tritons_client_sends_pixels(triton, probabilities, is_binary):
    limits = PictureLimits(max_pixels=10**6)
    pixels = np.stack([resize_and_crop(read_picture(each, limits).image, PREPROCESSING) for each in PICTURES])
    tensor = InferInput(IMAGES, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=is_binary)
    found = triton.infer("tiny", [tensor], model_version="1")
    np.testing.assert_allclose(found.as_numpy(PROBABILITIES), probabilities, atol=1e-6)
    heads = [found.as_numpy(name) for name in (CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES)]
    np.testing.assert_allclose(np.mean(heads, axis=0), found.as_numpy(PROBABILITIES), atol=1e-6)


def test_tritons_client_shows_why_a_picture_was_refused(triton):
    with pytest.raises(InferenceServerException, match=r"\[422\] the JPEG image is truncated or damaged"):
        triton.infer("tiny", [bytes_input([PICTURE, TORN])])


def test_tritons_timeout_is_a_deadline(triton):
    with pytest.raises(InferenceServerException, match=r"\[504\]"):
        triton.infer("tiny", [bytes_input([PICTURE])], timeout=1)


def infer(client, tensor, rest=b"", **more):
    text = json.dumps({"inputs": [{"name": IMAGES, **tensor}], **more}).encode()
    length = {"Inference-Header-Content-Length": str(len(text))} if rest else {}
    return client.post("/v2/models/tiny/infer", content=text + rest, headers=length)


ONE = serialize_byte_tensor(np.array([PICTURE], dtype=object)).item()


@pytest.mark.parametrize(
    ("tensor", "rest", "expected"),
    [
        ({"datatype": "BYTES", "shape": [1]}, b"", (400, "malformed-request")),
        ({"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 3}}, ONE, (400, "malformed-request")),
        (
            {"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(ONE) - 9}},
            ONE[:-9],
            (400, "malformed-request"),
        ),
        (
            {"datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(ONE)}},
            ONE,
            (422, "invalid-parameter"),
        ),
        ({"datatype": "BYTES", "shape": [65], "data": [""] * 65}, b"", (400, "malformed-request")),
        ({"datatype": "UINT8", "shape": [65, 1, 1, 3], "data": [0] * 195}, b"", (400, "malformed-request")),
        (
            {"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 1_000_000}},
            bytes(1_000_000),
            (422, "invalid-parameter"),
        ),
        ({"datatype": "BYTES", "shape": [1], "data": [1]}, b"", (422, "invalid-parameter")),
        ({"datatype": "BYTES", "shape": [0], "data": []}, b"", (400, "malformed-request")),
        ({"datatype": "FP32", "shape": [1], "data": [1]}, b"", (422, "invalid-parameter")),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}, b"", (422, "invalid-parameter")),
        ({"datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0, 0, 0]}, b"", (422, "invalid-parameter")),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 256, 0]}, b"", (422, "invalid-parameter")),
        ({"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [[0], [1, 2]]}, b"", (422, "invalid-parameter")),
        ({"datatype": "UINT8", "shape": [2**40, 32, 32, 3], "data": [0]}, b"", (422, "invalid-parameter")),
    ],
)
def test_a_tensor_that_does_not_fit_is_a_problem(client, tensor, rest, expected):
    assert problem(infer(client, tensor, rest)) == expected


def test_pixels_may_be_lists_within_lists(client):
    black = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    tensor = {"datatype": "UINT8", "shape": list(black.shape)}
    nested, plain = (infer(client, {**tensor, "data": data}).json() for data in (black.tolist(), [0] * black.size))
    assert nested["outputs"][0]["data"] == pytest.approx(plain["outputs"][0]["data"])


@pytest.mark.parametrize(
    "output",
    [{"name": "logits"}, {"name": PROBABILITIES, "parameters": {"classification": 0}}],
    ids=["name", "classes"],
)
def test_an_output_that_is_not_there_is_a_problem(client, output):
    tensor = {"datatype": "BYTES", "shape": [1, 1], "data": [[base64_of(PICTURE)]]}
    assert infer(client, tensor, outputs=[{"name": PROBABILITIES}]).status_code == 200
    assert problem(infer(client, tensor, outputs=[output])) == (422, "invalid-parameter")


@pytest.mark.parametrize("length", ["x", "-1", "99999999", "99999999999999999999"])
def test_a_length_that_does_not_fit_the_body_is_a_problem(client, length):
    answer = client.post("/v2/models/tiny/infer", content=b"{}", headers={"Inference-Header-Content-Length": length})
    assert problem(answer) == (400, "malformed-request")


# Vertex AI, TensorFlow Serving, SageMaker


@pytest.mark.parametrize("path", ["/v1/models/tiny:predict", "/v1/endpoints/12/deployedModels/34:predict"])
def test_instances_get_predictions(client, classified, path):
    instances = [
        {"content": base64_of(PICTURES[0])},
        {"b64": base64_of(PICTURES[1])},
        {"image_bytes": {"b64": base64_of(PICTURES[2])}},
        base64_of(PICTURES[0]),
    ]
    answer = client.post(path, json={"instances": instances, "parameters": {"maxPredictions": 2}})
    assert answer.json()["deployedModelId"] == "tiny"
    for found, expected in zip(answer.json()["predictions"], [*classified, classified[0]], strict=True):
        assert found["displayNames"] == [p["label"] for p in expected[:2]]
        assert found["ids"] == [str(p["index"]) for p in expected[:2]]
        np.testing.assert_allclose(found["confidences"], [p["probability"] for p in expected[:2]], atol=1e-6)


def test_a_threshold_leaves_classes_out(client):
    parameters = {"confidenceThreshold": 1}
    answer = client.post("/v1/models/tiny:predict", json={"instances": [base64_of(PICTURE)], "parameters": parameters})
    assert answer.json()["predictions"] == [{"ids": [], "displayNames": [], "confidences": []}]


def test_sagemaker_asks_as_its_container_is_asked(client, classified):
    assert client.get("/ping").status_code == 200
    answer = client.post("/invocations", content=PICTURE, headers={"Content-Type": "image/jpeg"})
    assert answer.json() == scores(classified[0][:5])
    assert client.post("/invocations", json={"inputs": base64_of(PICTURE)}).json() == scores(classified[0][:5])


# All of them


CLASSIFYING = {
    "/hf": {"inputs": base64_of(PICTURE)},
    "/hf/tiny": {"inputs": base64_of(PICTURE)},
    "/invocations": {"inputs": base64_of(PICTURE)},
    "/v1/models/tiny:predict": {"instances": [base64_of(PICTURE)]},
    "/v1/endpoints/1/deployedModels/2:predict": {"instances": [base64_of(PICTURE)]},
    "/v2/models/tiny/infer": {
        "inputs": [{"name": IMAGES, "datatype": "BYTES", "shape": [1], "data": [base64_of(PICTURE)]}]
    },
}


def metric(client, line):
    found = [each for each in client.get("/metrics").text.splitlines() if each.startswith(line + " ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


@pytest.mark.parametrize("path", CLASSIFYING)
def test_images_are_counted_whatever_the_contract(client, path):
    line = 'deit_images_total{model="tiny",version="1"}'
    before = metric(client, line)
    assert client.post(path, json=CLASSIFYING[path]).status_code == 200
    assert metric(client, line) == before + 1


@pytest.mark.parametrize("path", CLASSIFYING)
def test_a_deadline_holds_whatever_the_contract(client, path):
    answer = client.post(path, json=CLASSIFYING[path], headers={"X-Request-Timeout-Ms": "1"})
    assert answer.status_code in (408, 504)


@pytest.fixture(scope="module")
def guarded(model_repository):
    with running(
        *("--model-repository", model_repository, "--rate-limit=0.01", "--no-contracts"),
        environment={"DEIT_API_KEYS": KEY},
    ) as process:
        yield process.wait_until_ready()


def test_one_option_turns_them_off(guarded):
    with httpx.Client(base_url=guarded.url, timeout=60, headers={"X-API-Key": KEY}) as client:
        assert client.get("/ping").status_code == 404
        assert client.get("/v2/health/live").status_code == 404
        assert client.post("/hf", content=PICTURE).status_code == 404
        assert not any(
            path.startswith(("/hf", "/v", "/ping", "/inv")) for path in client.get("/openapi.json").json()["paths"]
        )


@pytest.mark.parametrize("path", CLASSIFYING)
def test_each_asks_for_a_key_before_the_body(guarded, path):
    answer = guarded.post(path, content=b"")
    assert problem(answer) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/classify", "/classify"),
        ("/hf/tiny", "/hf/{name}"),
        ("/v2/models/tiny/versions/1/infer", "/v2/models/{name}/versions/{version}/infer"),
        ("/v1/models/tiny:predict", "/v1/models/{name}:predict"),
        ("/v2/models/tiny", None),
        ("/hff", None),
        ("/models", None),
    ],
)
def test_limits_know_every_path_that_takes_pictures(path, route):
    assert answering_route(path) == route
