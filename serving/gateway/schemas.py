"""The bodies of the answers, as OpenAPI shows them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Prediction(BaseModel):
    index: int = Field(description="Index of the class", examples=[207])
    label: str = Field(description="Name of the class", examples=["golden retriever"])
    probability: float = Field(description="Between 0 and 1, a float32", examples=[0.8715])


class Classification(BaseModel):
    model: str = Field(examples=["deit_tiny_distilled_patch16_224"])
    version: str = Field(description="Version of the model that gave this answer", examples=["1"])
    predictions: list[Prediction] = Field(description="Best first")


class Preprocessing(BaseModel):
    """How the gateway makes pixels of a picture: resize the shorter side, crop the centre."""

    model_config = ConfigDict(from_attributes=True)

    image_size: int = Field(description="Side of the square that the model reads, in pixels", examples=[224])
    crop_pct: float = Field(description="Share of the resized shorter side that the crop keeps", examples=[0.9])
    interpolation: str = Field(examples=["bicubic"])
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Provenance(BaseModel):
    """Where the model came from and how it was proven."""

    model_config = ConfigDict(from_attributes=True)

    architecture: str
    checkpoint_sha256: str
    precision: str
    readout: str
    teacher: str | None
    parity_images: int
    parity_max_difference: float
    metrics: dict[str, float]
    versions: dict[str, str]


class Model(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    version: str
    labels: list[str] = Field(description="Names of the classes in index order")
    preprocessing: Preprocessing
    provenance: Provenance | None


class Models(BaseModel):
    default: str = Field(description="Answers requests that name no model")
    models: list[Model]


class Health(BaseModel):
    status: Literal["alive", "ready"]
