"""What goes into the service and comes out of it, for the OpenAPI document and for clients' generators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Problem(BaseModel):
    """A problem as of RFC 9457."""

    type: str = Field(examples=["urn:resnet:problem:undecodable-image"])
    title: str
    status: int
    detail: str
    request_id: str | None = Field(default=None, description="absent in entries of 'predictions'")


class ModelName(BaseModel):
    """Which model answered."""

    name: str = Field(examples=["resnet18-pictures"])
    version: str = Field(description="first 12 hex digits of the checkpoint file's SHA-256", examples=["3f1c9a0b2d4e"])


class ClassProbability(BaseModel):
    """One class and its calibrated probability."""

    label: str = Field(description="as `classes` of /model has it", examples=["name of a class"])
    index: int = Field(description="its place in `classes`, from 0", examples=[0])
    probability: float = Field(ge=0, le=1, examples=[0.981])


class Prediction(ClassProbability):
    """The likeliest class, and `top_k` classes sorted by probability, highest first."""

    probabilities: list[ClassProbability]


class PredictionError(BaseModel):
    """Stands in the place of an image that could not be read, or that the network has no finite answer for."""

    error: Problem


class PredictResponse(BaseModel):
    """Answers in the order of the request's images."""

    model: ModelName
    predictions: list[Prediction | PredictionError]


Base64 = Annotated[
    str,
    Field(
        description="the prefix of a data: URL is allowed",
        pattern=r"^(data:[^,\[{]*,)?([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        json_schema_extra={"contentEncoding": "base64"},
    ),
]


class Base64Images(BaseModel):
    """The JSON form of a request."""

    # Other members are ignored. Nested ones are not: a body with nesting is refused before it is parsed.
    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"type": ["number", "boolean", "null"]}})

    images: list[Base64] = Field(min_length=1, description="image files, each base64-encoded")


class Reloads(BaseModel):
    """The checkpoint file loaded again (SIGHUP, `resnet reload`)."""

    running: bool
    finished: int = Field(description="how many have ended since the start")
    outcome: str | None = Field(description="of the last one: succeeded, unchanged or refused")
    ended_at: datetime | None = Field(description="when the last one ended")
    files_refused: list[str] = Field(
        default=[], description="keys, certificate: those that could not be used when they were last read again"
    )


class Health(BaseModel):
    """The service's state."""

    status: str = Field(
        description="starting, ready, stalled (no prediction succeeds: see reason), draining, stopped or failed"
    )
    ready: bool
    reason: str | None = Field(description="why it is not ready")
    model: ModelName | None
    device: str | None
    dtype: str | None
    queue_images: int
    reload: Reloads
    uptime_s: float


class ModelCard(BaseModel):
    """What the checkpoint says of itself."""

    name: str
    version: str
    sha256: str
    architecture: dict[str, Any]
    classes: list[str]
    input_size: int
    mean: list[float]
    std: list[float]
    temperature: float
    calibration_exponent: float = Field(description="of the surprisals, before the temperature; 1 leaves them alone")
    calibrated: bool = Field(description="whether the two were fitted on images kept out of training")
    temperature_fitted_on: str
    measured: list[dict[str, Any]] = Field(
        description="accuracy and calibration, each with the split it was measured on"
    )
    dataset: dict[str, Any]
    recipe: dict[str, Any]
    epochs: int
    seed: int
    libraries: dict[str, str]
    created: str
    device: str
    dtype: str
    runtime: str = Field(description="what computes: openvino, mnn (with openvino for single images) or torch")
