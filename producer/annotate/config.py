"""The settings of annotation: which model is asked, how, and where its answers are kept."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, model_validator

from producer.api.channel import is_loopback

# What a request says by itself, so that `extra` cannot say something else.
_TAKEN = frozenset({"model", "messages", "max_tokens", "temperature", "seed", "stream", "n"})


class AnnotateError(ValueError):
    """Annotation cannot begin or go on; the message names the setting or the file, and the fix."""


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        well = False
    if not well or "@" in parts.netloc or parts.query or parts.fragment or not text.isascii() or not text.isprintable():
        raise ValueError("write it as http://HOST:PORT/v1 or https://HOST/v1, without user, password or query")
    return text.rstrip("/")


def _variable(text: str) -> str:
    if text and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("give the NAME of an environment variable that holds the key, never the key itself")
    return text


class ServerConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """Any server that speaks OpenAI's chat completions, such as vLLM."""

    url: Annotated[str, AfterValidator(_url)]  # up to and with /v1
    model: str = Field(min_length=1, max_length=300)  # as the server calls it; stands for the weights
    key: Annotated[str, AfterValidator(_variable)] = ""  # the environment variable that holds the API key
    ca: Path | None = None  # PEM of the authority that signed the server's certificate; none: those of this machine
    plaintext: bool = False  # http:// beyond this machine: only in a network where nobody else is
    concurrency: int = Field(default=16, ge=1, le=1024)  # requests at once
    connect_s: float = Field(default=10.0, gt=0)  # for a connection
    request_s: float = Field(default=180.0, gt=0)  # for one request, to the answer's last byte
    tries: int = Field(default=5, ge=1, le=20)  # of one request, after 429, 5xx, a timeout or a cut connection
    wait_s: float = Field(default=60.0, ge=0)  # between two tries at most, also where the server asks for more
    extra: dict[str, Any] = Field(default_factory=dict)  # more fields of each request's JSON

    @model_validator(mode="after")
    def _keeps_secrets(self) -> "ServerConfig":
        host = urlsplit(self.url).hostname or ""
        if self.url.startswith("http://") and not is_loopback(host) and not self.plaintext:
            raise ValueError(
                f"annotate.server.url: {self.url} sends key and pictures without TLS; use https://, or say "
                "annotate.server.plaintext=true in a network where nobody else is"
            )
        if taken := sorted(self.extra.keys() & _TAKEN):
            raise ValueError(f"annotate.server.extra: {taken} are set by other settings; leave them out")
        return self


class LocalConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """transformers' Qwen2.5-VL from a folder, in actors on Ray."""

    model: Path  # weights, tokenizer and processor, as Qwen2.5-VL-Instruct is released
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "cpu"  # or cuda
    threads: int = Field(default=1, ge=1)  # CPU threads of one actor
    batch: int = Field(default=8, ge=1)  # pictures asked about at once
    actors: int = Field(default=1, ge=1)
    cpus_per_actor: float = Field(default=0.5, gt=0)  # as Ray counts them
    gpus_per_actor: float = Field(default=0.0, ge=0)
    address: str = "local"  # of Ray: local starts its own, auto or host:port joins a cluster
    object_store_mb: int = Field(default=80, ge=80)  # of a local Ray; only text travels through it
    start_s: float = Field(default=600.0, gt=0)  # for the actors to load the model


class AnnotateConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    """One of `server` and `local` is who is asked."""

    out: Path | None = None  # folder of annotations; none: "annotations" beside the index
    server: ServerConfig | None = None
    local: LocalConfig | None = None
    chinese: float = Field(default=0.0, ge=0, le=1)  # share of samples asked in Chinese, by a hash of their key
    fuse: bool = True  # a second, text-only question where there is a raw caption: the fused caption
    uncaptioned: bool = False  # also pictures that curation drops for want of a caption; its next run keeps them then
    pixels: int = Field(default=1 << 20, ge=64 * 64)  # of a picture as it is shown at most, in its own ratio
    max_tokens: int = Field(default=1024, ge=16)  # of an answer; a caption of 1,024 tokens is the longest encoded
    temperature: float = Field(default=0.0, ge=0, le=2)  # 0: the likeliest words
    reasks: int = Field(default=1, ge=0, le=3)  # after an answer without the JSON asked for
    retry_failed: bool = False  # ask again about what got no usable answer in an earlier run
    limit: int = Field(default=0, ge=0)  # samples asked about in one run, since answers cost money; 0: all
    give_up: int = Field(default=16, ge=1)  # samples in a row without any answer, after which the run ends
    # Share of a run's answers to one of the questions that cannot be used, also after asking again; above it the run
    # ends. A model that fits fails on a few in a hundred, a wrong model, prompt or limit of tokens on nearly all.
    max_failed: float = Field(default=0.5, ge=0, le=1)
    stall_s: float = Field(default=900.0, gt=0)  # without any sample finished for so long, the run ends

    @model_validator(mode="after")
    def _asks_one(self) -> "AnnotateConfig":
        if self.server and self.local:
            raise ValueError("both server and local are set; choose one")
        return self

    def folder(self, index: Path) -> Path:
        """Where annotations are kept."""
        return self.out or index.parent / "annotations"
