"""Every setting of the service, and the only reader of the environment (``DRAGOMAN_…``)."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from export.bundle import DEFAULT, locate
from serving.cores import cores

PREFIX = "DRAGOMAN_"

Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


GPU_CORES = 2
"""Of a replica on a GPU: one for its engine, one for HTTP and tokens."""


LEAST_PART = 0.01
"""Of a GPU; a smaller one would not hold a model."""


def _a_gpu_or_a_part(gpus: float) -> float:
    if not (gpus == 0 or LEAST_PART <= gpus <= 1):
        raise ValueError(
            f"must be 0, or from {LEAST_PART} to 1: a replica computes on one GPU (for more, set replicas)"
        )
    return gpus


def _a_folder(state: object) -> object:
    if state == "":
        raise ValueError("is blank: name a folder, or leave it out")
    return state


def _on_gpus(many: int, few: int) -> Any:
    """A default of ``many`` on GPUs, where large batches cost little more than small ones, and of ``few`` on CPUs."""

    def default(others: Mapping[str, Any]) -> int:
        return many if others.get("gpus") else few

    return Field(default_factory=default)


def _cpus(others: Mapping[str, Any]) -> int:
    share = max(1, cores() // others.get("max_replicas", 1))
    return min(share, GPU_CORES) if others.get("gpus") else share


class Settings(BaseSettings):
    """Read from arguments, then the environment, then these defaults; frozen, and unknown keys are refused."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True)

    bundle: Annotated[Path, BeforeValidator(locate)] = Field(DEFAULT, validate_default=True)
    """The bundle to serve: the name of one that ships (en-de-base, en-de-small), or a folder."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """The port to listen on."""
    state: Annotated[Path | None, BeforeValidator(_a_folder)] = None
    """A folder that all replicas of a machine share, and that is kept; unless given, a private one that ends with the
    service."""
    ingress: Literal["direct", "serve"] = "direct"
    """Who takes requests: every replica itself, or Ray Serve's proxies (HAProxy with RAY_SERVE_ENABLE_HA_PROXY=1)."""
    replicas: Count = 1
    """Processes that each hold the model and an engine; with `max_replicas`, the fewest."""
    max_replicas: Count = Field(default_factory=lambda others: others.get("replicas", 1))
    """Processes at most: more are started, and ended, as engines fill and empty; as many as the fewest unless given."""
    target_load: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Of an engine's rows: so many are in use or waited for in each replica when there are as many as needed."""
    scale_up_seconds: Seconds = 10
    """How long more replicas have been needed before they are started."""
    scale_down_seconds: Seconds = 300
    """How long fewer have been needed before some are ended."""
    gpus: Annotated[float, AfterValidator(_a_gpu_or_a_part)] = 0
    """What a replica takes of a GPU: 0, nothing; 1, all of it; between them a part, so that several share one."""
    cuda_graphs: bool = False
    """On GPUs, record a step once and launch it whole from then on: less work for the processor, some more memory."""
    cpus: Count = Field(default_factory=_cpus)
    """Processor cores of a replica, and threads it computes with; unless given, the cores that this process may use (a
    container's quota counts) over max_replicas, on GPUs 2 at most."""
    rows: Count = _on_gpus(256, 128)
    """Hypotheses that are decoded at one time: a sentence is as many as its beam; 128, on GPUs 256, unless given."""
    request_rows: Count = _on_gpus(64, 4)
    """Rows one request holds at most while there are others, whose steps it makes slower; 4, on GPUs 64,
    unless given."""
    encode_tokens: Count = _on_gpus(16_384, 1024)
    """Source tokens that are encoded at one time, between two decoding steps; 1024, on GPUs 16384, unless given."""
    queue_tokens: Count = 100_000
    """Tokens that may wait for an engine; more are refused with 429."""
    timeout: Seconds = 60
    """Seconds a request may take; then it stops and is answered with 504."""
    keep_alive: Seconds = 100
    """Seconds a connection is kept open on which nothing is asked, longer than proxies and clients keep theirs."""
    stream_interval: Annotated[float, Field(ge=0)] = 0.05
    """Seconds between two parts of a streamed translation, at least; what comes meanwhile is sent together."""
    max_texts: Count = 1000
    """Texts in one request."""
    max_characters: Count = 20_000
    """Characters in one text."""
    max_body: Count = 2_000_000
    """Bytes in one request's body."""
    max_beam: Count = 16
    """The widest beam a request may ask for; never more than rows."""
    max_vectors: Count = 2048
    """Vectors in one answer that gives one a token."""
    max_attention_tokens: Count = 128
    """Source or target tokens of a text whose attention is shown."""

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_variables(cls, values: object) -> object:
        known = {f"{PREFIX}{name}".upper() for name in cls.model_fields}
        unknown = [name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known]
        if unknown:
            raise ValueError(f"unknown in the environment: {', '.join(sorted(unknown))}")
        return values

    @model_validator(mode="after")
    def _a_text_fits_a_body(self) -> Self:
        if self.max_characters > self.max_body:
            raise ValueError(f"max_characters {self.max_characters} is more than max_body {self.max_body} bytes")
        return self

    @model_validator(mode="after")
    def _as_many_replicas_as_the_fewest(self) -> Self:
        if self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than replicas {self.replicas}")
        return self

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where a replica computes."""
        return "cuda" if self.gpus else "cpu"

    @property
    def whole_gpus(self) -> int:
        """GPUs that all replicas take: each lies on one, and as many share it as fit."""
        if not self.gpus:
            return 0
        sharing = math.floor(1 / self.gpus + 1e-9)  # a tenth is not exact
        return math.ceil(self.max_replicas / sharing)

    @property
    def address(self) -> str:
        """Host and port as a URL has them: an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
