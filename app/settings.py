"""Every setting of the service: typed, frozen, from RESNET_* environment variables or flags of the same name."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic.functional_validators import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.hardware.cores import available_cores
from model.pictures.files import SERVED_PIXELS

SHIPPED_WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "resnet18-cifar10.safetensors"

# Kubernetes gives pods such variables for each service of their namespace, here for one named resnet or resnet-admin.
SERVICE_LINK = re.compile(r"RESNET_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
ADDRESS_OF_A_SERVICE = re.compile(r"(tcp|udp)://\S+:\d+")

IPV6_IN_A_URL = re.compile(r"\[(.*:.*)\]")

# Left empty, one of these is a mistake and no default: without it the service would be open.
PROTECTIONS = ("api_key", "api_keys_file", "tls_cert", "tls_key", "weights_sha256")

A_DAY_S = 86_400

# By default there is one a core, up to this many.
MAX_DECODE_THREADS = 8


def _integers(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise ValueError("must be whole numbers with commas between them") from None


class SettingsError(Exception):
    """A file that a setting names cannot be used; the text is one line for the operator."""


class Settings(BaseSettings):
    """Names carry their units; each field is RESNET_<NAME> in the environment and --<name> as a flag."""

    model_config = SettingsConfigDict(env_prefix="RESNET_", frozen=True, extra="ignore", allow_inf_nan=False)

    host: Annotated[str, Field(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8000
    admin_port: Annotated[
        int | None,
        Field(ge=1, le=65535, description="separate port for probes and metrics; none serves them on the main port"),
    ] = None
    admin_host: Annotated[
        str | None, Field(description="address of that port; none is the address of the main port")
    ] = None
    http_processes: Annotated[
        int,
        Field(ge=1, le=64, description="processes that speak HTTP; with two or more, the engine has one of its own"),
    ] = 1
    tls_cert: Annotated[
        Path | None, Field(description="certificate chain (PEM) to speak HTTPS with; none speaks HTTP")
    ] = None
    tls_key: Annotated[Path | None, Field(description="private key (PEM, not encrypted) of the certificate")] = None
    weights: Annotated[Path, Field(description="checkpoint to serve (safetensors)")] = SHIPPED_WEIGHTS
    weights_sha256: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9A-Fa-f]{64}$", description="SHA-256 (hex) that the checkpoint must have; none accepts any"
        ),
    ] = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[
        Literal["auto", "bfloat16", "float16", "float32", "int8"],
        Field(
            description="auto (the faster float type of the device), bfloat16, float16 (GPU only), float32, or int8 "
            "(OpenVINO only)"
        ),
    ] = "auto"
    runtime: Annotated[
        Literal["auto", "openvino", "mnn", "torch"],
        Field(
            description="auto, openvino, mnn or torch; auto is openvino on a CPU, with mnn for batches in float32 "
            "where it measures faster, and torch on a GPU or without openvino"
        ),
    ] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024, description="CPU threads of the engine; 0 is one a core")] = 0
    pin_threads: Annotated[bool, Field(description="keep each thread of OpenVINO on one core: for dedicated cores")] = (
        False
    )
    batch_sizes: Annotated[
        Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1)] | None,
        NoDecode,
        BeforeValidator(_integers),
        Field(
            description="sizes that batches are padded to, comma-separated; none is automatic: those that measure best"
        ),
    ] = None
    split_batches: Annotated[
        bool | None,
        Field(
            description="true or false: whether OpenVINO computes batches in pieces, two side by side; none is "
            "automatic: where the pieces get the same answers"
        ),
    ] = None
    max_wait_ms: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description="how long a batch may wait to fill up; 0 waits only for clients that come back at once",
        ),
    ] = 0.0
    max_queue_images: Annotated[int, Field(ge=1, description="images that may wait; more are refused with 429")] = 1024
    max_queue_s: Annotated[
        float, Field(gt=0, le=A_DAY_S, description="seconds of work that may wait; more is refused with 429")
    ] = 2.0
    timeout_ms: Annotated[
        int, Field(ge=1, le=1000 * A_DAY_S, description="deadline of a request; x-timeout-ms can only shorten it")
    ] = 10_000
    max_body_bytes: Annotated[int, Field(ge=1024, description="largest request body")] = 16 << 20
    max_buffered_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="bytes of all bodies of more than 64 KiB held at once; a request beyond that is refused "
            "with 429",
        ),
    ] = 256 << 20
    max_images: Annotated[
        int, Field(ge=1, description="most images in one request; max_queue_images if that is less")
    ] = 256
    max_pixels: Annotated[int, Field(ge=1024, description="most pixels in one image (width x height)")] = SERVED_PIXELS
    max_connections: Annotated[
        int, Field(ge=1, description="connections open at once; one more closes an idle one, or is closed unanswered")
    ] = 4096
    header_timeout_s: Annotated[
        float,
        Field(
            gt=0, le=A_DAY_S, description="time for a request's header to arrive, or for a new connection's first one"
        ),
    ] = 10.0
    body_timeout_s: Annotated[float, Field(gt=0, le=A_DAY_S, description="time for a request's body to arrive")] = 10.0
    keep_alive_s: Annotated[int, Field(ge=1, le=A_DAY_S, description="idle time before a connection is closed")] = 75
    connection_age_s: Annotated[
        float,
        Field(
            ge=0,
            le=A_DAY_S,
            description="age from which a connection is closed after its next response, so that clients spread over "
            "new replicas; 0 keeps it",
        ),
    ] = 0.0
    decode_threads: Annotated[
        int,
        Field(
            ge=0,
            le=256,
            description="threads that decode images, shared out among http_processes; 0 is one a core, up to "
            f"{MAX_DECODE_THREADS}",
        ),
    ] = 0
    drain_delay_s: Annotated[
        float, Field(ge=0, le=A_DAY_S, description="time between turning unready and closing the port on SIGTERM")
    ] = 0.0
    drain_timeout_s: Annotated[
        float, Field(gt=0, le=A_DAY_S, description="time for accepted requests to finish once the port is closed")
    ] = 20.0
    stall_timeout_s: Annotated[
        float, Field(gt=0, le=A_DAY_S, description="time without progress on a batch after which /livez fails")
    ] = 60.0
    stall_exit_s: Annotated[
        float,
        Field(
            ge=0,
            le=A_DAY_S,
            description="time without progress after which the process exits with 1 (at least stall_timeout_s); 0 "
            "never does",
        ),
    ] = 120.0
    api_key: Annotated[
        SecretStr | None, Field(min_length=1, description="key that /predict and /model require; none requires none")
    ] = None
    api_keys_file: Annotated[
        Path | None, Field(description="file of more such keys, as lines name:sha256-hex[:max_concurrent]")
    ] = None
    watch_files_s: Annotated[
        float,
        Field(
            ge=0,
            le=A_DAY_S,
            description="how often the files of keys and certificates are looked at, to be read again if they have "
            "changed; 0 reads them again on SIGHUP only",
        ),
    ] = 60.0
    docs: Annotated[bool, Field(description="serve the API page: /docs, /openapi.json and the page's files")] = True
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="lowest level logged: debug, info, warning or error"),
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Field(description="text, or json: one object a line")] = "text"

    @property
    def probes_host(self) -> str:
        """Address of the port that answers probes."""
        return self.host if self.admin_host is None else self.admin_host

    @property
    def engine_threads(self) -> int:
        """CPU threads of the engine."""
        return self.threads or available_cores()

    @property
    def decode_threads_per_process(self) -> int:
        """Threads that decode images in each HTTP process."""
        return max(1, (self.decode_threads or min(MAX_DECODE_THREADS, available_cores())) // self.http_processes)

    @property
    def connections_per_process(self) -> int:
        """Connections that each HTTP process may have."""
        return max(1, self.max_connections // self.http_processes)

    @property
    def buffered_bytes_per_process(self) -> int:
        """Bytes of bodies, and as many of unread responses, that each HTTP process may hold."""
        return self.max_buffered_bytes // self.http_processes

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Take an empty text for what is not set, and "none" for the default that is called so."""
        kept = {}
        for name, value in given.items():
            if not isinstance(value, str) or name not in cls.model_fields:
                kept[name] = value
                continue
            word = value.strip().lower()
            if not word and name in PROTECTIONS:
                raise ValueError(f"{name} must not be empty: leave it out if there is to be none")
            if word == "none" and name == "api_key":
                raise ValueError("api_key must not be none: leave it out if there is to be none")
            is_default = not word or (word == "none" and cls.model_fields[name].default is None)
            if not is_default and not (name.endswith("port") and ADDRESS_OF_A_SERVICE.fullmatch(word)):
                kept[name] = word if name in {"log_level", "log_format"} else value
            if name in {"host", "admin_host"} and (bracketed := IPV6_IN_A_URL.fullmatch(word)):
                kept[name] = bracketed[1]
        if isinstance(kept.get("api_key"), str):  # no header can hold what stands around it, such as a line's end
            kept["api_key"] = kept["api_key"].strip()
        return kept

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if "max_images" not in self.model_fields_set and self.max_queue_images < self.max_images:
            object.__setattr__(self, "max_images", self.max_queue_images)  # who wants a short queue means that, too
        sizes = self.batch_sizes or (1,)
        if list(sizes) != sorted(set(sizes)):
            raise ValueError("batch_sizes must be increasing")
        least = max(sizes[-1], self.max_images)
        if self.max_queue_images < least:
            raise ValueError(
                f"max_queue_images must be at least {least}, the larger of max_images and the largest batch"
            )
        if self.buffered_bytes_per_process < self.max_body_bytes:
            raise ValueError("max_buffered_bytes must be at least max_body_bytes for each of http_processes")
        if self.http_processes > 1 and sys.platform != "linux":
            raise ValueError("more than one of http_processes needs Linux")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key need each other")
        if self.admin_host is not None and self.admin_port is None:
            raise ValueError("admin_host needs admin_port")
        if self.admin_port == self.port:
            raise ValueError("admin_port must not be port")
        return self
