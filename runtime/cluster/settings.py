"""Settings of an application on a cluster: what `catp-serve` has as options, and how many replicas there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from catp.runtime import limits
from catp.runtime.errors import UsageError
from catp.runtime.providers import PROVIDERS
from catp.runtime.server.reading.fetching import check_domain
from catp.runtime.server.settings import KEY_VARIABLE, ServerSettings, read_keys

_Seconds = Annotated[float, Field(ge=0)]


class ClusterSettings(BaseModel):
    """Settings by the names of `catp-serve`'s options; they hold for each replica.

    Args:
        bundle: its folder, on every machine that may run a replica.
        name: under which it is served; None: the folder's.
        replicas: of the model.
        ingresses: processes that read requests and pick the replica.
        cpus: cores of a replica, as Ray counts them.
        gpus: likewise.
        threads: CPU threads within an operator; None: one a core.
        cache: MB for pictures seen before.
        api_key_file: on every machine. None: anybody who reaches the port is served.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    replicas: Annotated[int, Field(ge=1)] = 2
    ingresses: Annotated[int, Field(ge=1)] = 2
    cpus: Annotated[float, Field(ge=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    provider: str = "cpu"
    threads: Annotated[int, Field(ge=1)] | None = None
    engines: str | None = None
    api_key_file: str | None = None
    allow_media_domain: tuple[str, ...] = ()
    prompt_template: Annotated[str, Field(max_length=limits.TEMPLATE_CHARACTERS, pattern=r"\{text\}")] | None = None
    page: bool = True
    otlp_traces_endpoint: str | None = None
    rows: Annotated[int, Field(ge=1, le=limits.MOST_SERVED_ROWS)] = limits.SERVED_ROWS
    max_length: Annotated[int, Field(ge=2, le=limits.POSITIONS)] = limits.SERVED_LENGTH
    queue: Annotated[int, Field(ge=0, le=limits.POSITIONS)] | None = None
    admissions_per_step: Annotated[int, Field(ge=1, le=limits.MOST_SERVED_ROWS)] = 1
    cache: Annotated[int, Field(ge=0)] = limits.CACHE_BYTES >> 20
    queue_timeout: _Seconds = limits.QUEUE_SECONDS
    request_timeout: _Seconds = limits.REQUEST_SECONDS
    drain_timeout: _Seconds = limits.DRAIN_SECONDS

    @field_validator("provider")
    @classmethod
    def _known(cls, given: str) -> str:
        if given not in PROVIDERS:
            raise ValueError(f"accepted: {', '.join(PROVIDERS)}")
        return given

    @property
    def model(self) -> str:
        """The name under which the bundle is served."""
        return self.name or Path(self.bundle).name

    @property
    def waiting(self) -> int:
        """Requests that wait for a row of a replica, at most."""
        return limits.QUEUED_PER_ROW * self.rows if self.queue is None else self.queue

    def check(self) -> None:
        """Raises UsageError where a key would be asked for on one machine and not on the others, or a host is none."""
        if self.api_key_file is None and os.environ.get(KEY_VARIABLE) is not None:
            raise UsageError(
                f"environment variable {KEY_VARIABLE}: machines of a cluster need not have it alike; "
                "give api_key_file, a file that every machine has, and unset the variable"
            )
        for host in self.allow_media_domain:
            check_domain(host)

    def read(self) -> ServerSettings:
        """The settings of a process of this machine.

        Raises:
            UsageError: the file of keys can't be read, or holds none.
        """
        return ServerSettings(
            rows=self.rows,
            length=self.max_length,
            queue=self.queue,
            admissions_per_step=self.admissions_per_step,
            cache_bytes=self.cache << 20,
            queue_seconds=self.queue_timeout,
            request_seconds=self.request_timeout,
            drain_seconds=self.drain_timeout,
            keys=() if self.api_key_file is None else read_keys(Path(self.api_key_file)),
            media_domains=tuple(map(check_domain, self.allow_media_domain)),
            prompt_template=self.prompt_template,
            page=self.page,
            traces=self.otlp_traces_endpoint,
        )
