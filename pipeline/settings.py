"""Settings: read once from the environment at a process's edge, then frozen; functions receive the part they use.

Every name is the environment variable without its prefix: ``SPECTHINK_STATE_DIR``, ``SPECTHINK_LEASE__TTL_S``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.accelerators import Accelerator, parse_accelerator
from pipeline.engine_arguments import require_free
from pipeline.errors import ConfigurationError
from pipeline.logins import SESSION_SETTINGS, DatabaseRole, Login
from pipeline.redis_address import RedisAddress
from pipeline.setting_names import misnamed_variables

Seconds = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineKind(StrEnum):
    """What runs the models."""

    VLLM = "vllm"  # in the worker's process, or in one beside it
    SERVER = "server"  # somebody's OpenAI-compatible server, by HTTP


class VllmSettings(_Part):
    """What only vLLM is told."""

    process: Literal["inline", "separate"] | None = None
    """inline: the engine is stepped by a thread of the worker process. separate: it has processes of its own.
    None: inline on a CPU (starts in half the time, a third of the hop cost on two cores), separate on a GPU."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory; two workers on one GPU need shares that sum below 1."""
    cpu_kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Memory for the KV cache on a CPU."""
    cpu_threads: Annotated[int, Field(ge=1)] = 1
    """OpenMP threads on a CPU; measured on two cores: two threads per engine make a step ten times as long."""
    dtype: str = "auto"
    """Numbers of weights and activations, in vLLM's words; auto: the checkpoint's own, though on a GPU float32 becomes
    what vLLM prefers."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs of one engine."""
    accelerate: str | None = None
    """What drafts tokens for the engine's model to check: ngram, suffix, eagle3:MODEL or draft:MODEL. None: nothing."""
    draft_tokens: Annotated[int, Field(ge=1, le=64)] | None = None
    """Most tokens of one draft; None: 4 for ngram and draft, 3 for eagle3, 16 for suffix."""
    arguments: dict[str, str] = {}
    """Arguments of vLLM's own, a JSON object of texts: {"enforce_eager": "true"}. Not those that the pipeline sets."""

    @property
    def accelerator(self) -> Accelerator | None:
        """What makes drafts; None where nothing does."""
        return None if self.accelerate is None else parse_accelerator(self.accelerate, self.draft_tokens)

    @field_validator("arguments")
    @classmethod
    def _are_not_ours(cls, arguments: dict[str, str]) -> dict[str, str]:
        try:
            require_free(arguments)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return arguments

    @model_validator(mode="after")
    def _drafts_are_possible(self) -> VllmSettings:
        try:
            accelerator = self.accelerator
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        if accelerator is None and self.draft_tokens is not None:
            raise ValueError("draft_tokens goes with accelerate, which says what makes the drafts")
        return self


SERVER_URL_FORM = "must be http://host:port/v1 or https://host/v1; a key goes into SPECTHINK_ENGINE__SERVER__API_KEY"


class ServerSettings(_Part):
    """What only a worker is told that writes through a server."""

    url: str | None = None
    """http://host:8000/v1, as OpenAI's clients take it."""
    model: str | None = None
    """The server's name for the model; None: the worker's own, or that of the one model with this root."""
    api_key: SecretStr | None = None
    """Sent as a bearer token. Never shown, and never stored."""
    give_back_after_s: Seconds = 60.0
    """Where the server takes nothing for so long, samples that wait for it go back to other workers of the model."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is not None and not is_server_url(url):
            raise ValueError(
                "must be http://host:port/v1 or https://host/v1, without a password; a key has its own variable"
            )
        return url.rstrip("/") if url else None


def is_server_url(url: str) -> bool:
    """Whether it is an address as OpenAI's clients take it, and tells no password."""
    try:
        parts = urlsplit(url)
        return bool(parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0) and not (
            parts.username or parts.password or parts.query or parts.fragment
        )
    except ValueError:
        return False


class EngineSettings(_Part):
    """One engine per small or large worker."""

    kind: EngineKind = EngineKind.VLLM
    """Each kind has a part of its own for what it alone is told."""
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """Most tokens of prompt and output; None: what the model's configuration says."""
    max_in_flight: Annotated[int, Field(ge=1)] = 128
    """Samples that one worker writes at the same time."""
    max_attempts: Annotated[int, Field(ge=1)] = 8
    """A sample that the engine refuses for the moment (out of memory, say) is tried so often, after 1, 2, 4 … 60 s."""
    store_every_s: Annotated[float, Field(ge=0)] = 30.0
    """What a request has written is stored so often while it runs: a lost worker costs no more of a long segment. The
    rest is then drawn with other noise than without the loss. 0: never; it is drawn again as it was."""
    stall_after_s: Seconds = 120.0
    """A worker whose engine gives no token for so long while requests run ends with an error."""
    vllm: VllmSettings = VllmSettings()
    server: ServerSettings = ServerSettings()

    @model_validator(mode="after")
    def _uses_its_server(self) -> EngineSettings:
        if self.server.url is not None and "kind" not in self.model_fields_set:
            raise ValueError("engine.server.url is read by engine.kind=server alone: set SPECTHINK_ENGINE__KIND=server")
        return self


class LeaseSettings(_Part):
    """How long a silent worker keeps what it claimed. Authority is the database's clock."""

    ttl_s: Seconds = 15.0
    """A worker that has not renewed for so long is dead; its samples go back to the last committed segment."""
    renew_interval_s: Seconds = 1.0
    """Also how soon a worker notices that samples were taken from it (cancelled, rescued)."""
    drain_s: Annotated[float, Field(ge=0)] = 20.0
    """A worker told to stop lets its requests run on for so long, then hands the rest back."""

    @property
    def answer_within_s(self) -> float:
        """A worker gives a database connection up on which an answer takes longer; its lease is over by then."""
        return 2 * self.ttl_s

    @model_validator(mode="after")
    def _renews_in_time(self) -> LeaseSettings:
        if self.ttl_s < 3 * self.renew_interval_s:
            raise ValueError("lease.ttl_s must be at least 3 × lease.renew_interval_s")
        return self


class UpkeepSettings(_Part):
    """The duties that keep the pipeline moving: admission, rescue, publishing again, closing jobs."""

    tick_s: Seconds = 0.25
    """Pause between two rounds of duties."""
    admit_ahead: Annotated[float, Field(ge=1)] = 1.5
    """Samples admitted per slot of the live workers that open them: above 1 so that a freed slot finds one waiting."""
    republish_after_s: Seconds = 10.0
    """A runnable sample that nobody claimed for so long is published again, unless its queue is long as it is."""


class GradingSettings(_Part):
    """Grading runs in prefork processes that are killed at the hard limit."""

    time_limit_s: Seconds = 20.0
    """A grader that runs longer costs its own grade (status "timeout") and nothing else."""
    concurrency: Annotated[int, Field(ge=1)] = 1
    code_without_isolation: bool = False
    """Let the grader `code` run what models wrote where the kernel gives it no namespaces: with limits, but with the
    network and all that the grader's user may read. Only in a container that is made for it."""


class FlowerSettings(_Part):
    """The web page that shows workers, tasks and queues."""

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: a free one is chosen."""
    address: str = "127.0.0.1"
    basic_auth: SecretStr | None = None
    """user:password; required when address is not a loopback address."""
    max_tasks: Annotated[int, Field(ge=100)] = 10_000
    """The newest tasks that it remembers, about 5 kB each; Flower's own default is 100,000."""
    purge_offline_after_s: Annotated[int, Field(ge=1)] = 86_400
    """So long it shows a worker that has ended."""


class MetricsSettings(_Part):
    """Metrics for Prometheus: those that workers serve of themselves, and those that `specthink metrics` reads."""

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Where workers, but for graders, serve their own: the first free port from here on; 0: nowhere."""
    num_ports: Annotated[int, Field(ge=1, le=1024)] = 32
    """So many ports are tried: one for each worker of a host."""
    address: str = "127.0.0.1"
    """Where they listen. There is no password: keep it to networks that may know."""
    refresh_s: Annotated[float, Field(ge=5)] = 10.0
    """`specthink metrics` asks the database so often, however often it is scraped."""


class GatewaySettings(_Part):
    """The OpenAI-compatible API, `specthink gateway`."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """0: a free one is chosen."""
    address: str = "127.0.0.1"
    """On another than a loopback address it lets nobody in without a key: `specthink key add NAME`."""
    max_file_bytes: Annotated[int, Field(ge=1)] = 2**30
    """The largest upload; a key may have a smaller limit of its own."""
    max_lines: Annotated[int, Field(ge=1)] = 1_000_000
    """Most requests in the file of a batch."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 2**20
    """The largest request that is no upload, and the longest line of a file."""
    collect_s: Annotated[float, Field(ge=0, le=10)] = 0.2
    """Chat requests that come within so long and ask in the same way become one job."""
    max_waiting: Annotated[int, Field(ge=1)] = 1000
    """Most chat requests that wait for their answers at a time; further ones are told to come again."""


class PlanningSettings(_Part):
    """What a hand-over costs those parts that do not grow with the pools, in time of a core: for `specthink plan`.

    Set your own where you have measured them; the descriptions say where the defaults were."""

    postgres_ms: Annotated[float, Field(ge=0, description="bench/hops, bench/pools")] = 0.8
    """By Postgres, milliseconds per hand-over: a claim and a commit."""
    postgres_cores: Annotated[float, Field(gt=0, description="a guess at your server")] = 8.0
    """Cores that Postgres has."""
    redis_ms: Annotated[float, Field(ge=0, description="bench/hops, bench/pools")] = 0.06
    """By Redis, which has one thread: a message published and taken, and the events that Flower shows."""
    worker_ms: Annotated[float, Field(ge=0, description="bench/hops")] = 1.8
    """By the Python of a small or large worker, which uses one core: Celery, the database's client, ours."""
    worker_token_us: Annotated[float, Field(ge=0, description="workers/engine/vllm/adapter.py, 128 in flight")] = 9.0
    """By the same, microseconds per token that it takes in and reads along."""


class PriceSettings(_Part):
    """What an hour of an engine costs, in any currency: the view job_cost and `specthink stats` then say what a right
    answer costs."""

    small_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Of a small worker; None: not counted."""
    large_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Of a large worker, all of its GPUs together; None: not counted."""
    judge_per_hour: Annotated[float, Field(ge=0)] | None = None
    """Of a judge worker, all of its GPUs together; None: not counted."""

    def session_values(self) -> dict[str, str]:
        """Those that are set, by the name under which the views find them."""
        return {f"specthink.{name}": str(price) for name, price in self.model_dump(exclude_none=True).items()}


class LoginSettings(_Part):
    """Logins of a database of one's own, as NAME:PASSWORD, or as NAME where somebody else keeps the password.

    `specthink migrate` makes those that have a password, and grants each what its part of the pipeline needs. Workers
    connect by the SPECTHINK_DATABASE_URL that they are given; the embedded database has such logins by itself.
    """

    writer: SecretStr | None = None
    """For small and large workers, which must not read reference answers."""
    grader: SecretStr | None = None
    """For grading workers."""
    upkeep: SecretStr | None = None
    """For upkeep workers."""
    submitter: SecretStr | None = None
    """For people who submit, cancel, pause and retry jobs, also on the machines where they type that."""
    monitor: SecretStr | None = None
    """For `specthink metrics`, and for what scales workers."""
    gateway: SecretStr | None = None
    """For `specthink gateway`, also on the machine where it runs."""
    reader: SecretStr | None = None
    """For `specthink sql` and `specthink url`, also on the machine where these are typed."""

    @model_validator(mode="after")
    def _are_complete_and_distinct(self) -> LoginSettings:
        names = [login.name for login in self.all().values()]
        if "" in names or any(login.password == SecretStr("") for login in self.all().values()):
            raise ValueError("a login is NAME:PASSWORD, or NAME alone")
        if len(set(names)) < len(names):
            raise ValueError("each of the logins needs a name of its own")
        return self

    def login(self, role: DatabaseRole) -> Login | None:
        """Name and password of a role's login; None where none is set."""
        given: SecretStr | None = getattr(self, role.value)
        if given is None:
            return None
        name, separator, password = given.get_secret_value().partition(":")
        return Login(
            name=name,
            password=SecretStr(password) if separator else None,
            settings=SESSION_SETTINGS.get(role, {}),
        )

    def all(self) -> dict[DatabaseRole, Login]:
        """All that are set."""
        return {role: login for role in DatabaseRole if (login := self.login(role)) is not None}


_DATABASE_SCHEMES = ("postgresql", "postgresql+psycopg", "postgres")


def _is_database_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in _DATABASE_SCHEMES and (parts.port is None or parts.port > 0) and "@" not in parts.path
    except ValueError:
        return False


def _libpq_form(url: str) -> str | None:
    """For an address that libpq would read and this program does not: the form that works; None for any other."""
    place = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    if "," in place:
        hosts = "&".join(f"host={host}" for host in place.split(","))
        return f"several hosts are written postgresql://user:password@/name?{hosts}&target_session_attrs=read-write"
    if place.lower().startswith("%2f"):
        return f"a socket's folder is written postgresql://user:password@/name?host={unquote(place)}"
    return None


_PREFIX, _DELIMITER = "SPECTHINK_", "__"


class Settings(BaseSettings):
    """All settings of every process."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_nested_delimiter=_DELIMITER, frozen=True, extra="ignore")

    state_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("specthink")))
    """Where embedded servers keep their data; unused when both URLs are given."""
    database_url: SecretStr | None = None
    """postgresql://user:password@host/name; None: the embedded Postgres of state_dir."""
    redis_url: SecretStr | None = None
    """redis://:password@host:port/0, rediss://… with TLS, or sentinel://…; None: the embedded Redis of state_dir."""

    @field_validator("state_dir", mode="before")
    @classmethod
    def _is_named(cls, folder: object) -> object:
        """A variable without a value would be the working folder, which servers fill and a purge removes."""
        if folder == "":
            raise ValueError("it is empty: unset it, or name a folder")
        return folder

    @field_validator("database_url")
    @classmethod
    def _can_be_read(cls, url: SecretStr | None) -> SecretStr | None:
        """Here and not at first use, whose error would show a part of a password that has a / or an @ in it."""
        if url is not None and (better := _libpq_form(url.get_secret_value())):
            raise ValueError(better)
        if url is not None and not _is_database_url(url.get_secret_value()):
            raise ValueError(
                "must be postgresql://user:password@host:port/name; other characters in a password are written like "
                "%40 for @"
            )
        return url

    @field_validator("redis_url")
    @classmethod
    def _is_an_address(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            RedisAddress.parse(url)
        return url

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    engine: EngineSettings = EngineSettings()
    lease: LeaseSettings = LeaseSettings()
    upkeep: UpkeepSettings = UpkeepSettings()
    grading: GradingSettings = GradingSettings()
    flower: FlowerSettings = FlowerSettings()
    metrics: MetricsSettings = MetricsSettings()
    gateway: GatewaySettings = GatewaySettings()
    planning: PlanningSettings = PlanningSettings()
    prices: PriceSettings = PriceSettings()
    logins: LoginSettings = LoginSettings()


def load_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises ConfigurationError naming the variable and what it should be."""
    if misnamed := misnamed_variables(os.environ, settings_variables()):
        raise ConfigurationError("; ".join(misnamed))
    try:
        given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
        return Settings(**given)
    except ValidationError as error:
        lines = (
            f"SPECTHINK_{'__'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ConfigurationError("; ".join(lines)) from error


@cache
def settings_variables() -> tuple[str, ...]:
    """The name of every setting's environment variable."""
    return tuple(_variables(Settings, _PREFIX))


def _variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        variable, part = f"{prefix}{name.upper()}", field.annotation
        if isinstance(part, type) and issubclass(part, _Part):
            yield from _variables(part, f"{variable}{_DELIMITER}")
        else:
            yield variable
