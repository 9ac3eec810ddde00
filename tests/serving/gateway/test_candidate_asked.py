"""What a candidate may be asked, what happens when it does not answer, and what is counted; with a scripted Triton."""

import asyncio
import contextlib
import time
from dataclasses import replace

import grpc
import pytest
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

from deit.calibration import Calibration
from deit.candidate import CANDIDATE_PARAMETER, CandidateModel
from deit.errors import ServingError
from deit.model import PREPROCESSING_PARAMETER, PROBABILITIES, VERSION_PARAMETER, Provenance
from serving.gateway.admission import Admission
from serving.gateway.candidates import Candidates
from serving.gateway.classification import Classifier
from serving.gateway.deadline import Deadline
from serving.gateway.decoder import Decoder
from serving.gateway.errors import InvalidParameter
from serving.gateway.joining import Joiner
from serving.gateway.metrics import Metrics
from serving.gateway.models import read_model
from serving.gateway.parameters import Parameters
from serving.gateway.record import CanaryRecord, ImageRecord, RequestRecord
from serving.gateway.shadow import Shadow
from serving.gateway.state import GatewayState
from serving.gateway.tritons import Triton, Tritons
from serving.settings.decoding import Decoding
from serving.settings.limits import Limits
from tests.serving.conftest import PREPROCESSING
from tests.serving.gateway.test_tritons import MODEL, PICTURE, Scripted

CALIBRATION = Calibration(
    images=1000,
    temperature=1.0,
    floor=0.0,
    calibration_error_before=0.1,
    calibration_error=0.01,
    entropy_limit_bits=0.1,
    false_refusals=0.05,
)


def provenance(weights, calibration=None):
    return Provenance(
        architecture="deit_tiny_patch16_224",
        readout="class",
        teacher=None,
        checkpoint_sha256=weights,
        precision="fp32",
        parity_images=1,
        parity_max_difference=0.0,
        metrics={},
        versions={},
        calibration=calibration,
    )


CANARY = CandidateModel(mode="canary", percent=100, model="tiny", version="2")
TRIED = replace(
    MODEL,
    provenance=provenance("a", CALIBRATION),
    other=replace(MODEL, versions=("2",), provenance=provenance("b")),
    candidate=CANARY,
)
EXPLAINER = replace(MODEL, name="tiny_explain", looks_inside=True, provenance=provenance("a"))


class DeadVersion(Scripted):
    """One version's process is dead."""

    def __init__(self, version):
        super().__init__()
        self.version = version

    async def ModelInfer(self, request, context):  # noqa: N802
        if request.model_version == self.version:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Stub process 'tiny' is not healthy.")
        return await super().ModelInfer(request, context)


@contextlib.asynccontextmanager
async def gateway(scripted, *models):
    """The state of a gateway in front of a Triton that serves these models, and that Triton as the gateway sees it."""
    async with contextlib.AsyncExitStack() as stack:
        server = grpc.aio.server()
        add_GRPCInferenceServiceServicer_to_server(scripted, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        triton = Triton(f"127.0.0.1:{port}", {model.name: model for model in models})
        stack.push_async_callback(triton.client.close)
        decoder = Decoder(Decoding(processes=1), Limits(), lambda: None)
        await decoder.start()
        stack.callback(decoder.close)
        tritons, admission = Tritons(lambda _: None, triton), Admission(Limits())
        metrics = Metrics({}, admission)
        shadow = Shadow(admission, metrics)
        classifier = Classifier(
            tritons, decoder, Joiner(1, lambda *_: None), shadow, max_pixels=10**6, count_jpeg=print
        )
        yield (
            GatewayState(
                tritons=tritons,
                candidates=Candidates(tritons, {}, metrics),
                default_model="tiny",
                limits=Limits(),
                admission=admission,
                classifier=classifier,
                decoder=decoder,
                shows_metrics=True,
            ),
            triton,
        )


async def answered(state, **asked):
    """The version that answered, whether it abstained, and the request's record."""
    record = RequestRecord(request_id="x", started_s=time.monotonic())
    question = state.question(Parameters(model="tiny", **asked), record)
    deadline = Deadline(allowed_s=30, at_s=time.monotonic() + 30)
    answer = await state.classifier.answer(PICTURE, question, deadline=deadline, record=record)
    return answer.version, answer.abstained, record


def test_who_may_abstain_is_not_answered_by_a_canary_that_cannot():
    async def ask():
        async with gateway(Scripted(), TRIED) as (state, _):
            assert (await answered(state, abstain=True))[:2] == ("1", True)
            with pytest.raises(InvalidParameter, match="does not know when to abstain"):
                await answered(state, abstain=True, version="2")

    asyncio.run(ask())


def test_a_named_version_is_explained_by_an_explainer_of_its_own_or_not_at_all():
    async def ask():
        async with gateway(Scripted(), TRIED, EXPLAINER) as (state, _):
            assert state.question(Parameters(model="tiny", explain=True, version="1")).explainer == "tiny_explain"
            with pytest.raises(InvalidParameter, match="no served model explains tiny"):
                state.question(Parameters(model="tiny", explain=True, version="2"))

    asyncio.run(ask())


def test_where_the_version_that_is_tried_is_dead_the_served_one_answers():
    tried = replace(TRIED, provenance=provenance("a"))

    async def ask():
        async with gateway(DeadVersion("2"), tried) as (state, _):
            version, _, record = await answered(state)
            assert version == "1"
            assert record.canary == CanaryRecord("tiny", "tiny", answers=False)

    asyncio.run(ask())


def test_what_a_candidate_answers_does_not_hide_that_the_served_version_is_dead():
    async def ask():
        async with gateway(DeadVersion("1"), TRIED) as (state, triton):
            await answered(state, version="2")
            await triton.readiness.ask()
            assert not triton.readiness.answers("tiny")

    asyncio.run(ask())


class OnlyTheCandidateIsLoaded:
    """Triton's client, as `read_model` asks it."""

    def get_model_config(self, name, **_):
        candidate = replace(CANARY, preprocessing=PREPROCESSING.to_json())
        parameters = {
            PREPROCESSING_PARAMETER: PREPROCESSING.to_json(),
            VERSION_PARAMETER: "1",
            CANDIDATE_PARAMETER: candidate.to_json(),
        }
        return {"config": {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}}

    def get_model_metadata(self, name, **_):
        return {
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": ["-1", "32", "32", "3"]}],
            "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": ["-1", "2"]}],
            "versions": ["2"],
        }


def test_a_model_of_which_only_the_candidate_is_loaded_is_named_and_leaves_the_others_alone():
    with pytest.raises(ServingError, match="the model tiny has no version that is loaded but its candidate"):
        read_model(OnlyTheCandidateIsLoaded(), "tiny")


IMAGE = ImageRecord(version="2", stages_s={}, best_label="a", confidence=0.5, heads_agree=None)


@pytest.mark.parametrize(
    ("images", "problems", "answers", "outcome"),
    [
        ([IMAGE], [], True, "answered"),
        ([IMAGE], ["not-ready"], True, "answered"),  # one of two images
        ([], ["not-ready", "internal"], True, "failed"),  # several images, with a status of 200
        ([], ["deadline-exceeded"], True, "failed"),
        ([IMAGE], [], False, "unavailable"),
        ([], ["unsupported-type"], True, None),
        ([], ["overloaded"], False, None),
    ],
)
def test_the_canarys_share_is_counted_by_what_became_of_it(images, problems, answers, outcome):
    metrics = Metrics({}, Admission(Limits()))
    record = RequestRecord(request_id="x", started_s=time.monotonic(), images=images, problems=problems)
    record.canary = CanaryRecord("tiny", "tiny", answers=answers)
    metrics.begin()
    metrics.end(record, route="/classify", status=200, seconds=0.1)
    found = [
        sample.labels["outcome"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "deit_canary_requests_total"
    ]
    assert found == ([] if outcome is None else [outcome])
