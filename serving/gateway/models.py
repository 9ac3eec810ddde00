"""The served models, learnt from Triton only over gRPC, because Triton may run on another machine.

Shapes come from Triton's metadata, preprocessing and provenance from the parameters of config.pbtxt, labels through the
classification extension. Checked when they are learnt: a model that does not fit is an error before its first request.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deit.calibration import entropy_bits
from deit.candidate import CANDIDATE_PARAMETER, CandidateModel
from deit.errors import ServingError
from deit.jpeg_step import STEP
from deit.model import (
    CLASS_FEATURES,
    CLASS_PROBABILITIES,
    CLASS_RELEVANCE,
    DISTILLATION_PROBABILITIES,
    IMAGES,
    PREPROCESSING_PARAMETER,
    PROBABILITIES,
    PROVENANCE_PARAMETER,
    VERSION_PARAMETER,
    Provenance,
)
from deit.preprocessing import Preprocessing
from deit.resize_matrices import INTERPOLATION
from serving.gateway.connection import connect

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 10.0

# The first inference of a model may build an engine or grow an arena.
FIRST_INFERENCE_TIMEOUT_S = 60.0


# float32 sums of up to 21,841 classes, each written with six decimals
SUM_TOLERANCE = 2e-2


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model as requests see it.

    Attributes:
        versions: served versions, oldest first; an answer names the one that gave it. Versions with unknown
            preprocessing are left out.
        labels: class names in index order.
        has_heads: it gives the probabilities of the class head and of the distillation head too.
        looks_inside: it gives the relevance of the patches and the features too.
        provenance: None for a model that was not made by `deit export`.
        largest_batch: number of images that one request may carry.
        is_on_gpu: whether Triton runs it on a GPU.
        decodes_jpegs: its Triton takes plain JPEGs for it.
        candidate: its shadow or canary by the repository.
        other: the candidate itself, if that is another version of this model that can be served.
    """

    name: str
    versions: tuple[str, ...]
    labels: tuple[str, ...]
    has_heads: bool
    preprocessing: Preprocessing
    provenance: Provenance | None
    largest_batch: int
    is_on_gpu: bool
    decodes_jpegs: bool = False
    looks_inside: bool = False
    candidate: CandidateModel | None = None
    other: "ServedModel | None" = None

    def served(self, version: str | None) -> "ServedModel | None":
        """The model that answers for this version, or for requests that name none; None if it is not served."""
        if version is None or version in self.versions:
            return self
        return self.other if self.other is not None and version in self.other.versions else None

    @property
    def version(self) -> str:
        """The newest, which answers requests that name none."""
        return self.versions[-1]

    def explains(self, other: "ServedModel") -> bool:
        """Whether it explains the other one: it has the same weights and takes the same pixels."""
        return (
            self.looks_inside
            and self.provenance is not None
            and other.provenance is not None
            and self.provenance.checkpoint_sha256 == other.provenance.checkpoint_sha256
            and self.preprocessing == other.preprocessing
        )

    @property
    def can_abstain(self) -> bool:
        """Whether its export measured the entropy of answers to familiar images."""
        return self.provenance is not None and self.provenance.calibration is not None

    def is_unfamiliar(self, probabilities: npt.NDArray[np.float32]) -> bool:
        """Whether an answer has more entropy than those to familiar images."""
        assert self.provenance is not None
        assert self.provenance.calibration is not None
        return bool(entropy_bits(probabilities) > self.provenance.calibration.entropy_limit_bits)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one image, (H, W, 3)."""
        return (self.preprocessing.image_size, self.preprocessing.image_size, 3)


@dataclass(frozen=True)
class Discovered:
    """Attributes:
    models: what can be served, by name, sorted.
    broken: why the others cannot, by name.
    """

    models: dict[str, ServedModel]
    broken: dict[str, str]

    def names(self) -> list[str]:
        return sorted({*self.models, *self.broken})


def discover_models(url: str, control_headers: dict[str, str] | None = None) -> Discovered:
    """The models of the Triton at `url`. One that did not load, or is inconsistent, does not affect the others.

    Args:
        control_headers: required by a Triton with a restricted protocol `model-repository`.

    Raises:
        ServingError: Triton cannot be reached, or it has no model that can be served.
    """
    models: dict[str, ServedModel] = {}
    try:
        with connect(url) as client:
            index = client.get_model_repository_index(
                headers=control_headers, client_timeout=CALL_TIMEOUT_S, as_json=True
            ).get("models", [])
            ready = sorted({entry["name"] for entry in index if entry.get("state") == "READY"} - {STEP})
            broken = {
                entry["name"]: entry["reason"]
                for entry in index
                if entry["name"] not in ready and entry.get("reason", "unloaded") != "unloaded"
            }
            for name in ready:
                try:
                    model = read_model(client, name)
                except ServingError as error:
                    broken[name] = str(error)
                else:
                    models |= {} if model is None else {name: model}
    except InferenceServerException as error:
        raise ServingError(f"the Triton at {url} failed while its models were read: {error.message()}") from error
    if not models and broken:
        raise ServingError("; ".join(f"the model {name} is not served: {why}" for name, why in broken.items()))
    if not models:
        raise ServingError(
            f"the Triton at {url} serves no model of `deit export` (it has: {', '.join(ready) or 'none'}); "
            "put one in its model repository"
        )
    for name, why in broken.items():
        logger.error("the model %s is not served, the others are: %s", name, why)
    return Discovered(models, broken)


def read_model(client: InferenceServerClient, name: str, versions: tuple[str, ...] | None = None) -> ServedModel | None:
    """One model, with these versions or all that are loaded; None for one that `deit export` did not make.

    Raises:
        ServingError: the model is inconsistent.
        InferenceServerException: Triton fails.
    """
    config = client.get_model_config(name, client_timeout=CALL_TIMEOUT_S, as_json=True)["config"]
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    if PREPROCESSING_PARAMETER not in parameters:
        logger.info("the model %s has no parameter %r in config.pbtxt and is not served", name, PREPROCESSING_PARAMETER)
        return None
    candidate = None
    try:
        preprocessing = Preprocessing.from_json(parameters[PREPROCESSING_PARAMETER])
        provenance = None
        if PROVENANCE_PARAMETER in parameters:
            provenance = Provenance.from_json(parameters[PROVENANCE_PARAMETER])
        if CANDIDATE_PARAMETER in parameters:
            candidate = CandidateModel.from_json(parameters[CANDIDATE_PARAMETER])
    except ValueError as error:
        raise ServingError(f"config.pbtxt of the model {name} cannot be read: {error}; export it again") from error
    metadata = client.get_model_metadata(name, client_timeout=CALL_TIMEOUT_S, as_json=True)
    _check_input(name, metadata["inputs"], preprocessing.image_size)
    tried = candidate.version if candidate is not None and candidate.model == name else None
    loaded = versions or tuple(sorted(metadata.get("versions", []), key=int))
    versions = tuple(version for version in loaded if version != tried)
    if not versions:  # they are being unloaded, or only the candidate is there
        raise ServingError(f"the model {name} has no version that is loaded{' but its candidate' if loaded else ''}")
    versions = _described(name, versions, parameters.get(VERSION_PARAMETER))
    class_count = _class_count(name, metadata["outputs"])
    outputs = {each["name"] for each in metadata["outputs"]}
    model = ServedModel(
        name=name,
        versions=versions,
        has_heads={CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES} <= outputs,
        looks_inside={CLASS_RELEVANCE, CLASS_FEATURES} <= outputs,
        labels=_read_labels(client, name, versions[-1], preprocessing.image_size, class_count),
        preprocessing=preprocessing,
        provenance=provenance,
        largest_batch=max(1, config.get("max_batch_size", 0)),
        is_on_gpu=any(group.get("kind") == "KIND_GPU" for group in config.get("instance_group", ())),
        decodes_jpegs=preprocessing.interpolation == INTERPOLATION
        and client.is_model_ready(STEP, client_timeout=CALL_TIMEOUT_S),
        candidate=candidate,
    )
    if candidate is None or tried is None:
        return model
    try:
        return replace(model, other=_other_version(client, model, candidate, loaded))
    except (ServingError, ValueError, InferenceServerException) as error:
        logger.error("the candidate of the model %s is not served, the model is: %s", name, error)
        return model


def _other_version(
    client: InferenceServerClient, model: ServedModel, candidate: CandidateModel, loaded: tuple[str, ...]
) -> ServedModel:
    """The candidate version, with its own preprocessing.

    Raises:
        ServingError, ValueError, InferenceServerException: it cannot answer.
    """
    version = candidate.version
    if version is None or version not in loaded:
        raise ServingError(f"version {version} is not loaded")
    preprocessing = Preprocessing.from_json(candidate.preprocessing or "")
    other = replace(
        model,
        versions=(version,),
        preprocessing=preprocessing,
        decodes_jpegs=model.decodes_jpegs and preprocessing.interpolation == INTERPOLATION,
        provenance=None if candidate.provenance is None else Provenance.from_json(candidate.provenance),
        candidate=None,
    )
    if other.input_shape != model.input_shape:
        raise ServingError(
            f"version {version} reads images of {other.input_shape}, and Triton takes {model.input_shape}"
        )
    _read_labels(client, model.name, version, other.preprocessing.image_size, len(model.labels))
    return other


def _described(name: str, versions: tuple[str, ...], published: str | None) -> tuple[str, ...]:
    """The versions that config.pbtxt describes: all, unless it was published with a particular one.

    Raises:
        ServingError: that one is not loaded.
    """
    others = [version for version in versions if published not in (None, version)]
    if not others:
        return versions
    why = f"config.pbtxt of the model {name} has the preprocessing of version {published}, and serves " + ", ".join(
        versions
    )
    if published not in versions:
        raise ServingError(f"{why}: serve a version with `deit models rollback`, which brings its own config.pbtxt")
    logger.warning("%s: version %s is not served", why, ", ".join(others))
    return tuple(version for version in versions if version == published)


def _check_input(name: str, inputs: list[dict[str, Any]], image_size: int) -> None:
    expected = (IMAGES, "UINT8", ["-1", str(image_size), str(image_size), "3"])
    found = [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in inputs]
    if found != [expected]:
        raise ServingError(
            f"the model {name} takes {_written(found)}, but its preprocessing makes {_written([expected])}; "
            "export it again"
        )


def _class_count(name: str, outputs: list[dict[str, Any]]) -> int:
    for tensor in outputs:
        if tensor["name"] == PROBABILITIES and tensor["datatype"] == "FP32" and len(tensor["shape"]) == 2:
            return int(tensor["shape"][1])
    found = [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in outputs]
    raise ServingError(
        f"the model {name} gives {_written(found)}, but an output {PROBABILITIES} FP32 [N, classes] is needed; "
        "export it again"
    )


def _written(tensors: list[tuple[str, str, list[str]]]) -> str:
    return ", ".join(f"{name} {datatype} [{', '.join(shape)}]" for name, datatype, shape in tensors) or "nothing"


def _read_labels(
    client: InferenceServerClient, name: str, version: str, image_size: int, class_count: int
) -> tuple[str, ...]:
    """Class names in index order, from one inference that asks for all classes as `value:index:label`.

    Raises:
        ServingError: the values are not probabilities, or a class has no name.
    """
    images = np.zeros((1, image_size, image_size, 3), np.uint8)
    result = client.infer(
        name,
        [infer_input(images)],
        model_version=version,
        outputs=[InferRequestedOutput(PROBABILITIES, class_count=class_count)],
        client_timeout=FIRST_INFERENCE_TIMEOUT_S,
    )
    labels, total = [""] * class_count, 0.0
    for entry in result.as_numpy(PROBABILITIES).reshape(-1):
        value, index, *label = entry.decode().split(":", maxsplit=2)  # a label may hold colons
        labels[int(index)] = label[0] if label else ""
        total += float(value)
    if not abs(total - 1) <= SUM_TOLERANCE:  # nor is it a number
        raise ServingError(
            f"version {version} of the model {name} does not return probabilities: they add up to {total:g}"
        )
    unnamed = labels.count("")
    if unnamed:
        raise ServingError(
            f"{unnamed} of {class_count} classes of the model {name} have no name; "
            f"set label_filename of the output {PROBABILITIES} in config.pbtxt and give each class a line in that file"
        )
    return tuple(labels)


def infer_input(images: np.ndarray[Any, np.dtype[np.uint8]]) -> InferInput:
    """The tensor `images` of a request, from uint8 (N, H, W, 3)."""
    tensor = InferInput(IMAGES, list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor
