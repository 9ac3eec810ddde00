"""`deit serve --triton-decode cpu`: JPEGs are decoded in Triton, and nobody can see that in an answer."""

import os
import random
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from deit.model import IMAGES, PROBABILITIES
from deit.pictures import PictureLimits, read_picture
from deit.preprocessing import resize_and_crop
from deit.repository.layout import ONNX_FILE
from tests.conftest import encoded, photograph
from tests.deit.test_hostile_pictures import expected_outcomes, hostile_files
from tests.serving.conftest import MODEL, PREPROCESSING, eventually, is_alive, running
from tests.serving.gateway.test_hostile_uploads import BUSY, PROMISED, assert_survives

pytest.importorskip("nvidia.nvimgcodec", reason="needs nvidia-nvimgcodec-cu13, which `make` installs")


@pytest.fixture(scope="module")
def server(model_repository):
    """Images share requests, as on a GPU."""
    with running(
        *("--model-repository", model_repository, "--triton-decode=cpu", "--images-per-request=8"),
        *("--max-wait-s=60", "--request-timeout-s=60", "--no-log-requests"),
    ) as process:
        yield process.wait_until_ready()


@pytest.fixture(scope="module")
def expected(model_repository):
    """expected(content) -> the probabilities for the exact pixels."""
    session = onnxruntime.InferenceSession(model_repository / MODEL / "1" / ONNX_FILE)

    def ask(content):
        picture = read_picture(content, PictureLimits(max_pixels=25_000_000))
        pixels = resize_and_crop(picture.image, PREPROCESSING, exact=True)
        return session.run([PROBABILITIES], {IMAGES: pixels[np.newaxis]})[0][0]

    return ask


def counted(server):
    """JPEGs that Triton was asked to decode, by what became of them."""
    lines = server.get("/metrics").text
    counts = re.findall(r'^deit_triton_jpegs_total{outcome="(\w+)"} (\S+)$', lines, re.MULTILINE)
    return {"decoded": 0.0} | {outcome: float(count) for outcome, count in counts}


def probabilities(result):
    return [each["probability"] for each in sorted(result["predictions"], key=lambda each: each["index"])]


def jpegs():
    """Of several sizes and samplings, turned in every way."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = photograph(150 + 10 * orientation, 140, seed=orientation)
        yield encoded(picture, exif=exif, subsampling=orientation % 3, progressive=orientation % 2 == 0)


def test_pictures_of_different_sizes_in_one_request_are_answered_as_exactly_decoded_ones(server, expected):
    before = counted(server)["decoded"]
    files, damaged = list(jpegs()), encoded(photograph(96, 64))[:-200]
    fields = [("image", each) for each in [*files[:5], encoded(photograph(80, 80), "PNG"), damaged, *files[5:]]]
    answer = server.post("/classify?top_k=10", files=fields)
    results = answer.json()["results"]
    problem = results.pop(6)["problem"]
    assert problem["type"] == "/problems/undecodable-image"
    del results[5]
    for content, result in zip(files, results, strict=True):
        np.testing.assert_allclose(probabilities(result), expected(content), atol=1e-3)
        assert result["predictions"][0]["index"] == expected(content).argmax()
    assert counted(server)["decoded"] == before + len(files)


def test_the_heads_come_too_and_what_needs_the_pixels_gets_them(server):
    (content,) = [encoded(photograph(96, 64))]
    before = counted(server)["decoded"]
    answer = server.post("/classify?heads=true", content=content)
    assert answer.json()["heads"].keys() >= {"class", "distillation"}
    assert "decode;" not in answer.headers["server-timing"]
    assert counted(server)["decoded"] == before + 1
    answer = server.post("/classify?pixels=true", content=content)
    assert answer.json()["pixels"]
    assert "decode;" in answer.headers["server-timing"]
    assert counted(server)["decoded"] == before + 1


def test_a_sample_of_hostile_files_is_answered_as_recorded(server, shared_data):
    files = sorted(hostile_files(shared_data))
    decoding = processes(server)
    sample = random.Random(1).sample([each for each in files if each[1].startswith(b"\xff\xd8")], 150)
    assert_survives(server, sample, expected_outcomes(shared_data), **BUSY)
    assert processes(server) == decoding


@pytest.mark.soak
def test_every_hostile_file_is_answered_as_recorded_within_its_time(server, shared_data):
    decoding = processes(server)
    assert_survives(server, list(hostile_files(shared_data)), expected_outcomes(shared_data), **PROMISED)
    assert processes(server) == decoding


def processes(server):
    return server.running(b"serving.embedded.jpeg_process")


def test_when_its_processes_are_killed_every_picture_is_still_answered(server):
    """By the gateway's decoders, until others have started."""
    content, triton = encoded(photograph(96, 64)), server.pid_of("tritonserver")
    killed = processes(server)
    before = counted(server)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(server.post, "/classify", content=content) for _ in range(20)]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        assert {each.result().status_code for each in answers} == {200}

    def is_decoded_in_triton():
        assert server.post("/classify", content=content).status_code == 200
        return not set(killed) & set(filter(is_alive, processes(server))) and (
            counted(server)["decoded"] > before["decoded"] + 20
        )

    eventually(is_decoded_in_triton, 100)
    assert server.pid_of("tritonserver") == triton


def test_a_machine_without_a_gpu_does_not_promise_one(deit_serve, model_repository):
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("there is a GPU")
    server = deit_serve("--model-repository", model_repository, "--triton-decode=gpu")
    assert server.wait() == 1
    assert "--triton-decode (DEIT_TRITON_DECODE) is in vain" in server.output
    assert "no GPUs are available" in server.output
