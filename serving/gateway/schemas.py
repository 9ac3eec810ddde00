"""The response bodies, as OpenAPI shows them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from deit.model import Provenance
from serving.gateway.errors import PROBLEMS


class PredictionBody(BaseModel):
    index: int = Field(description="Index of the class", examples=[207])
    label: str = Field(description="Name of the class", examples=["golden retriever"])
    probability: float = Field(description="Between 0 and 1, a float32", examples=[0.8715])


class HeadsBody(BaseModel):
    """Each head's own predictions; `predictions` is the mean of both."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    class_head: list[PredictionBody] = Field(alias="class", description="Predictions of the class head, best first")
    distillation_head: list[PredictionBody] = Field(alias="distillation", description="Those of the distillation head")
    agree: bool = Field(description="Whether both heads put the same class first")
    jensen_shannon_divergence: float = Field(description="Between the heads, in bits: 0 equal, 1 apart", ge=0, le=1)


class ByToken(BaseModel):
    """One text for each token; a model with one head has only the class token."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    class_token: str = Field(alias="class", description="Of the class token")
    distillation_token: str | None = Field(default=None, alias="distillation", description="Of the distillation token")


class ImageAnswer(BaseModel):
    """The model's answer for one image."""

    version: str = Field(description="Version of the model that gave this answer", examples=["1"])
    predictions: list[PredictionBody] = Field(description="Best first")
    abstained: bool | None = Field(
        default=None,
        description="With min_probability or abstain=true: no class was probable enough, or the image is unfamiliar; "
        "predictions is then empty",
    )
    heads: HeadsBody | None = Field(default=None, description="With heads=true")
    explanation: ByToken | None = Field(
        default=None,
        description="With explain=true: where the token looks, by attention rollout, as a heat map over the model's "
        "input; each ranges from its least to its most relevant patch, as a PNG data URL",
    )
    embedding: ByToken | None = Field(
        default=None, description="With embedding=true: the head's input, as little-endian float32 in base64"
    )
    pixels: str | None = Field(
        default=None,
        description="With pixels=true: the model's input, resized and cropped, as a PNG data URL",
        examples=["data:image/png;base64,iVBORw0KGgo="],
    )


class OfModel(BaseModel):
    model: str = Field(examples=["deit_tiny_distilled_patch16_224"])


class ClassificationBody(ImageAnswer, OfModel):
    """The response to a request with one image."""


class ProblemBody(BaseModel):
    """Problem details, RFC 9457."""

    type: str = Field(
        json_schema_extra={"format": "uri-reference", "pattern": f"^(/.+)?/problems/({'|'.join(sorted(PROBLEMS))})$"}
    )
    title: str
    status: int
    detail: str


class ImageResult(BaseModel):
    """The result for one image among several: the model's answer, or what is wrong with this image."""

    filename: str = Field(description="File name from the form", examples=["photo.jpg"])
    version: str | None = Field(default=None, description="Version of the model that gave this answer", examples=["1"])
    predictions: list[PredictionBody] | None = None
    abstained: bool | None = None
    heads: HeadsBody | None = None
    explanation: ByToken | None = None
    embedding: ByToken | None = None
    pixels: str | None = None
    problem: ProblemBody | None = Field(default=None, description="In place of predictions")


class StreamedResult(ImageResult):
    """A line of a streamed response; lines come as images finish."""

    index: int = Field(description="Position of the image in the form, from 0")


class ImageResults(OfModel):
    """The response to a request with several images, in their order."""

    results: list[ImageResult]


class PreprocessingBody(BaseModel):
    """How the gateway turns an image into the model's input: resize, crop the centre."""

    model_config = ConfigDict(from_attributes=True)

    image_size: int = Field(description="Side of the square that the model reads, in pixels", examples=[224])
    crop_pct: float = Field(description="Share of the resized shorter side that the crop keeps", examples=[0.9])
    crop_mode: str = Field(
        description="center keeps the proportions, squash resizes both sides to the same length",
        examples=["center"],
    )
    interpolation: str = Field(examples=["bicubic"])
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Model(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    version: str = Field(description="The newest version, the default")
    versions: list[str] = Field(description="Loaded versions, oldest first")
    input_shape: tuple[int, int, int] = Field(description="Height, width and channels that the model reads, uint8 RGB")
    has_heads: bool = Field(description="Whether heads=true is supported")
    can_abstain: bool = Field(description="Whether abstain=true is supported")
    is_explained: bool = Field(description="Whether explain=true and embedding=true are supported")
    labels: list[str] = Field(description="Names of the classes in index order")
    preprocessing: PreprocessingBody
    provenance: Provenance | None


class Models(BaseModel):
    default: str = Field(description="Model of requests that name none")
    models: list[Model]


class Health(BaseModel):
    status: Literal["alive", "ready"]
