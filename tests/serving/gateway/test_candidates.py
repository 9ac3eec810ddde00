"""Shadow and canary in a running server: who answers whom, what is counted, and that nobody waits or fails for it."""

from base64 import b64encode
from dataclasses import replace

import httpx
import numpy as np
import onnxruntime
import pytest

from deit.candidate import CANDIDATE_PARAMETER, CandidateModel, candidates_of
from deit.durable import write_file
from deit.errors import ServingError
from deit.labels import write_labels
from deit.model import PROBABILITIES
from deit.preprocessing import Preprocessing, resize_and_crop
from deit.repository.candidates import end_candidate, try_candidate
from deit.repository.config import config_text, read_config
from serving.gateway.candidates import check_candidates
from serving.gateway.models import Discovered
from tests.conftest import encoded, photograph
from tests.serving.conftest import HALF, LABELS, PREPROCESSING, config_pbtxt, eventually, running, write_model
from tests.serving.embedded.test_reload import Load, reloaded, torn
from tests.serving.gateway.test_metrics import labels, samples
from tests.serving.gateway.test_tritons import MODEL
from tests.short_commands import deit

PHOTOGRAPHS = [photograph(64, 48, seed=seed) for seed in range(4)]
PICTURES = [encoded(each, "PNG") for each in PHOTOGRAPHS]
IDS = [f"caller-{number}" for number in range(40)]
CROPPED = Preprocessing(image_size=32, crop_pct=0.5, interpolation="bicubic", mean=HALF, std=HALF)

# Batches of other sizes add up in another order; two versions or crops differ by far more.
SAME = 1e-4


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """`tiny` with a served version 1 and a version 2 that crops in another way; `next`; `twin`, equal to `tiny`; and
    `lost`, which does not load.
    """
    repository = tmp_path_factory.mktemp("models")
    write_model(repository / "tiny", versions=2)
    for version, preprocessing in ((1, PREPROCESSING), (2, CROPPED)):
        text = config_pbtxt("tiny", policy=f"specific {{ versions: {version} }}", preprocessing=preprocessing)
        text += f'parameters {{ key: "version" value {{ string_value: "{version}" }} }}\n'
        write_file(repository / "tiny" / str(version) / "config.pbtxt", text)
    write_file(repository / "tiny" / "config.pbtxt", (repository / "tiny" / "1" / "config.pbtxt").read_text())
    write_model(repository / "next", seed=7)
    write_model(repository / "twin")
    torn(repository / "lost" / "1")
    write_labels(repository / "lost" / "labels.txt", LABELS)
    write_file(repository / "lost" / "config.pbtxt", config_pbtxt("lost"))
    return repository


@pytest.fixture(scope="module")
def right(repository):
    """Probabilities by model, version and picture, as the graph itself gives them."""
    found = {}
    for model, version, preprocessing in (
        *(("tiny", "1", PREPROCESSING), ("tiny", "2", CROPPED)),
        *(("next", "1", PREPROCESSING), ("twin", "1", PREPROCESSING)),
    ):
        session = onnxruntime.InferenceSession(repository / model / version / "model.onnx")
        for index, picture in enumerate(PHOTOGRAPHS):
            pixels = resize_and_crop(picture, preprocessing)[None]
            found[model, version, index] = session.run([PROBABILITIES], {"images": pixels})[0][0]
    return found


@pytest.fixture(scope="module")
def server(repository):
    with running(
        *("--model-repository", repository, "--allow-reload", "--default-model=tiny", "--canary=twin=lost:100"),
        *("--max-wait-s=60", "--request-timeout-s=60", "--decoders=3"),
    ) as process:
        yield process.wait_until_ready()


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def tried(repository, server):
    """tried(mode, percent, ...) lets the running server try something; nothing is tried any more at the end."""

    def switch(mode, percent, **what):
        try_candidate(repository, "tiny", mode, percent, **what)
        assert "tiny: loaded, serving version 1\n" in reloaded(server)

    yield switch
    end_candidate(repository, "tiny")
    reloaded(server)


def asked(client, request_id, index=0, **parameters):
    answer = client.post(
        "/classify",
        params={"top_k": len(LABELS), **parameters},
        content=PICTURES[index],
        headers={"X-Request-ID": request_id},
    )
    assert answer.status_code == 200, answer.text
    return answer


def row(answer):
    ordered = sorted(answer.json()["predictions"], key=lambda each: each["index"])
    return [each["probability"] for each in ordered]


def outcomes(client, **wanted):
    """Of the shadow, by outcome."""
    return {
        dict(labels)["outcome"]: count
        for (name, labels), count in samples(client).items()
        if name == "deit_shadow_images_total" and wanted.items() <= dict(labels).items()
    }


@pytest.mark.parametrize("what", [{"other": "next"}, {"number": 2}])
def test_a_canary_answers_its_share_and_says_so(client, tried, right, what):
    tried("canary", 50, **what)
    candidate = CandidateModel(mode="canary", percent=50, model="next")
    for number, request_id in enumerate(IDS):
        index = number % len(PICTURES)
        answer = asked(client, request_id, index)
        found = (answer.json()["model"], answer.json()["version"])
        assert found == (answer.headers["x-model"], answer.headers["x-model-version"])
        expected = ("tiny", "1")
        if candidate.takes(request_id):
            expected = ("next", "1") if "other" in what else ("tiny", "2")
        assert found == expected, "the same for everybody who computes it"
        np.testing.assert_allclose(row(answer), right[*found, index], atol=SAME)
    assert asked(client, IDS[0], version="1").json()["version"] == "1"
    shown = labels(
        model="tiny", candidate=what.get("other", "tiny"), candidate_version=str(what.get("number", "")), mode="canary"
    )
    assert samples(client)["deit_candidate_percent", shown] == 50
    described = {
        dict(of)["version"] for name, of in samples(client) if name == "deit_model_info" and ("model", "tiny") in of
    }
    assert described == ({"1", "2"} if "number" in what else {"1"})


def test_a_canary_answers_the_clients_of_other_servers_too_but_not_pixels(client, tried, right):
    tried("canary", 100, other="next")
    best = {model: LABELS[right[model, "1", 0].argmax()] for model in ("tiny", "next")}
    assert best["tiny"] != best["next"]
    assert client.post("/hf", content=PICTURES[0]).json()[0]["label"] == best["next"]
    picture = b64encode(PICTURES[0]).decode()
    answer = client.post("/v1/models/tiny:predict", json={"instances": [{"b64": picture}]}).json()
    assert (answer["deployedModelId"], answer["predictions"][0]["displayNames"][0]) == ("next", best["next"])
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [picture]}
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).json()
    assert (answer["model_name"], answer["model_version"]) == ("next", "1")
    pixels = resize_and_crop(PHOTOGRAPHS[0], PREPROCESSING)
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": pixels.reshape(-1).tolist()}
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}).json()
    assert (answer["model_name"], answer["model_version"]) == ("tiny", "1")


@pytest.mark.parametrize(
    ("what", "of"),
    [({"other": "next"}, ("next", "1")), ({"other": "twin"}, ("twin", "1")), ({"number": 2}, ("tiny", "2"))],
)
def test_a_shadow_is_compared_and_nothing_of_it_reaches_the_caller(client, tried, right, what, of):
    model, version = of

    def found():
        return outcomes(client, candidate=model, candidate_version=version)

    before = found()
    differences = ("deit_shadow_difference_sum", labels(model="tiny", candidate=model, candidate_version=version))
    differed = samples(client).get(differences, 0)
    tried("shadow", 100, **what)
    for index in range(len(PICTURES)):
        answer = asked(client, f"shadowed-{index}", index)
        assert (answer.json()["model"], answer.headers["x-model-version"]) == ("tiny", "1")
        np.testing.assert_allclose(row(answer), right["tiny", "1", index], atol=SAME)
        # One by one: a shadow yields the last idle decoder to callers, and would then be dropped.
        eventually(lambda count=index + 1: sum(found().values()) == sum(before.values()) + count)
    pairs = [(right["tiny", "1", index], right[*of, index]) for index in range(len(PICTURES))]
    agree = sum(one.argmax() == other.argmax() for one, other in pairs)
    expected = {"agrees": agree, "differs": len(PICTURES) - agree}
    expected = {outcome: before.get(outcome, 0) + count for outcome, count in expected.items()}
    assert found() == {k: v for k, v in expected.items() if v}
    largest = sum(np.abs(one - other).max() for one, other in pairs)
    eventually(lambda: samples(client)[differences] - differed == pytest.approx(largest, abs=SAME))


def test_a_share_is_switched_under_load_and_fails_no_request(server, client, repository, tried, right):
    with Load(server.url, "tiny") as load:
        for mode, percent, what in (
            ("shadow", 50, {"number": 2}),
            ("canary", 30, {"number": 2}),
            ("canary", 60, {"other": "next"}),
        ):
            tried(mode, percent, **what)
            reached = len(load.answers) + 40
            eventually(lambda reached=reached: len(load.answers) > reached, 60)
    assert not load.failures
    assert {version for _, version, _ in load.answers} == {"1", "2"}


def test_a_candidate_that_does_not_load_is_refused_and_the_model_serves_on(server, client, repository):
    torn(repository / "tiny" / "3")
    own = (repository / "tiny" / "1" / "config.pbtxt").read_text()
    write_file(repository / "tiny" / "3" / "config.pbtxt", own.replace('string_value: "1"', 'string_value: "3"'))
    before = (repository / "tiny" / "config.pbtxt").read_text()
    config = read_config(repository / "tiny" / "config.pbtxt")
    named = CandidateModel(mode="canary", percent=100, model="tiny", version="3", preprocessing=PREPROCESSING.to_json())
    config.parameters[CANDIDATE_PARAMETER].string_value = named.to_json()
    write_file(repository / "tiny" / "config.pbtxt", config_text(config, [1, 3]))
    try:
        done = deit("models", "reload", "--port", server.url.rpartition(":")[2])
        assert done.returncode == 1
        assert "tiny: refused, serving version 1: " in done.stdout
        assert asked(client, "after").json()["version"] == "1"
    finally:
        write_file(repository / "tiny" / "config.pbtxt", before)
        reloaded(server)


def test_where_the_canary_cannot_answer_the_model_does_and_says_so(server, client):
    unavailable = ("deit_canary_requests_total", labels(model="twin", candidate="lost", outcome="unavailable"))
    before = samples(client).get(unavailable, 0)
    for request_id in IDS[:3]:
        assert asked(client, request_id, model="twin").headers["x-model"] == "twin"
    assert samples(client)[unavailable] == before + 3
    said = "the canary lost with 100 % of the model twin is not used: "
    eventually(lambda: said in server.output)
    assert server.output.count(said) == 1


@pytest.mark.parametrize(
    ("option", "finding"),
    [
        ("tiny=nobody:5", "names the model nobody, which is not served; choose from: lost, other, tiny"),
        ("nobody=tiny:5", "names the model nobody, which is not served"),
        ("tiny=tiny/9:5", "names version 9 of tiny, which is not served; served: 1"),
        ("tiny=other:5", "other has other class names than tiny"),
    ],
)
def test_an_option_that_no_request_could_ever_follow_ends_the_start(option, finding):
    models = {"tiny": MODEL, "other": replace(MODEL, name="other", labels=("a", "c"))}
    with pytest.raises(ServingError, match=finding):
        check_candidates(candidates_of("canary", option), Discovered(models, {"lost": "it does not load"}))
    check_candidates(candidates_of("canary", "tiny=lost:5"), Discovered(models, {"lost": "it does not load"}))
