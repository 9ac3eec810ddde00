from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from export.engines import Engine
from export.findings import Candidate, best
from export.gate import Reference, judge, reference
from export.joint import JointClassifier
from tests.training.conftest import TINY, tiny_student

Outputs = list[npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def classifier() -> JointClassifier:
    torch.manual_seed(0)
    model = tiny_student()
    for parameter in model.parameters():  # as timm starts a model, every image gets nearly the same answer
        torch.nn.init.normal_(parameter, std=0.3)
    return JointClassifier(model, TINY).eval()


@pytest.fixture(scope="module")
def expected(classifier: JointClassifier) -> Reference:
    random = np.random.default_rng(1)
    # each of its own colour, with grain: on plain noise a model answers the same for all
    images = (random.integers(0, 192, (40, 1, 1, 3)) + random.integers(0, 64, (40, 16, 16, 3))).astype(np.uint8)
    found = reference(classifier, images, None)
    # labels that PyTorch has right on 30 of 40 images
    labels = found.outputs[0].argmax(axis=1)
    labels[30:] = (labels[30:] + 1) % 3
    return reference(classifier, images, labels)


def true_run(classifier: JointClassifier) -> Callable[[npt.NDArray[np.uint8]], Outputs]:
    def run(images: npt.NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            return [output.numpy() for output in classifier(torch.from_numpy(images))]

    return run


def test_the_model_itself_passes_in_every_precision(classifier: JointClassifier, expected: Reference) -> None:
    for precision in ("fp32", "fp16", "bf16", "int8"):
        found = judge(true_run(classifier), expected, precision, "torch")
        assert found.failures == ()
        assert (found.images, found.agreement, found.top1, found.reference_top1) == (40, 1.0, 0.75, 0.75)
        assert found.max_difference < 1e-6


@pytest.mark.parametrize(
    ("openvinos_rate", "alone", "published"),
    [
        (105.0, 50.0, "onnxruntime"),
        (125.0, 50.0, "openvino"),
        (100.0, 70.0, "openvino"),
        (70.0, 70.0, "onnxruntime"),
        (None, None, "onnxruntime"),
    ],
)
def test_the_engine_that_every_installation_has_is_published_unless_another_is_clearly_faster(
    classifier: JointClassifier,
    expected: Reference,
    openvinos_rate: float | None,
    alone: float | None,
    published: str,
) -> None:
    judgement = judge(true_run(classifier), expected, "fp32", "torch")
    found = [
        (
            Path("fp32.onnx"),
            Candidate(
                method="",
                engine=Engine(backend=backend),
                judgement=judgement,
                images_per_s=rate,
                images_per_s_alone=lone_rate,
            ),
        )
        for backend, rate, lone_rate in (("openvino", openvinos_rate, alone), ("onnxruntime", 100.0, 50.0))
    ]
    chosen = best(found)
    assert chosen is not None
    assert chosen[1].engine.backend == published
    failed = replace(found[1][1], judgement=replace(judgement, failures=("it differs",)))
    chosen = best([found[0], (found[1][0], failed)])
    assert chosen is not None
    assert chosen[1].engine.backend == "openvino"


@pytest.mark.parametrize(("moved", "passes"), [(0.04, (False, True)), (0.2, (False, False))])
def test_in_int8_a_gpu_may_let_the_batch_decide_a_rounding(
    classifier: JointClassifier, expected: Reference, moved: float, passes: tuple[bool, bool]
) -> None:
    """A lone image is answered differently than in a batch, as by another kernel; a processor has no such excuse."""

    def run(images: npt.NDArray[np.uint8]) -> Outputs:
        outputs = true_run(classifier)(images)
        if len(images) > 1:
            return outputs
        towards = np.eye(3, dtype=np.float32)[[0]]
        return [(1 - moved) * output + np.float32(moved) * towards for output in outputs]

    for on_gpu, allowed in zip((False, True), passes, strict=True):
        found = judge(run, expected, "int8", "torch", on_gpu=on_gpu)
        assert (found.failures == ()) == allowed, found
        assert allowed or any("depends on its neighbours in the batch" in failure for failure in found.failures)


def swaps_an_answer(images: npt.NDArray[np.uint8], outputs: Outputs, expected: Reference) -> Outputs:
    """The first and the second choice of the third image change places."""
    outputs = [output.copy() for output in outputs]
    for row in np.flatnonzero((images == expected.images[2]).all(axis=(1, 2, 3))):
        order = np.argsort(outputs[0][row])
        outputs[0][row, order[[-1, -2]]] = outputs[0][row, order[[-2, -1]]]
    return outputs


def adds_up_to_more(images: npt.NDArray[np.uint8], outputs: Outputs, expected: Reference) -> Outputs:
    return [output * 1.001 for output in outputs]


def no_number_on_white(images: npt.NDArray[np.uint8], outputs: Outputs, expected: Reference) -> Outputs:
    outputs = [output.copy() for output in outputs]
    outputs[0][(images == 255).all(axis=(1, 2, 3))] = np.nan
    return outputs


def looks_at_neighbours(images: npt.NDArray[np.uint8], outputs: Outputs, expected: Reference) -> Outputs:
    return [0.5 * output + 0.5 * output.mean(axis=0) for output in outputs]


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (swaps_an_answer, "1 of 40 images change their top-1 class: 97.50% agree, 99.50% must"),
        (swaps_an_answer, "top-1 falls by 2.50 points, allowed: 0.5"),
        (adds_up_to_more, "not probabilities that add up to 1"),
        (no_number_on_white, "are not finite"),
        (looks_at_neighbours, "depends on its neighbours in the batch"),
    ],
)
def test_a_fault_is_found_and_named(
    classifier: JointClassifier, expected: Reference, fault: Callable[..., Outputs], finding: str
) -> None:
    true = true_run(classifier)
    found = judge(lambda images: fault(images, true(images), expected), expected, "bf16", "faulty")
    assert any(finding in failure for failure in found.failures), found.failures


def test_float32_must_agree_to_the_last_bits_that_engines_move(
    classifier: JointClassifier, expected: Reference
) -> None:
    true = true_run(classifier)

    def tilts(images: npt.NDArray[np.uint8]) -> Outputs:
        tilt = np.array([2e-5, -2e-5, 0], np.float32)
        return [output + tilt for output in true(images)]

    assert judge(tilts, expected, "bf16", "tilted").failures == ()
    assert "allowed is 1e-05" in judge(tilts, expected, "fp32", "tilted").failures[0]
