"""The settings: one frozen tree read from a TOML file, the environment and the command line, in rising priority."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from gateway.admin_port import ControlSettings
from gateway.bounds import convert
from gateway.errors import InvalidSetting
from gateway.labelling import LabelSettings
from gateway.metrics_port import MetricsSettings
from gateway.networks import WebhookSettings
from gateway.passwords import host_alone, is_redacted, redacted
from gateway.tracing_settings import TracingSettings

ENVIRONMENT_PREFIX = "SLUICEGATE_"
FILE_STORE = "sqlite:///"  # how the addresses of the stores begin
SHARED_STORES = ("postgresql://", "postgres://")
# Read by the command line itself, not settings of the server.
CLIENT_VARIABLES = frozenset({f"SLUICEGATE_{name}" for name in ("URL", "TOKEN", "CA", "CERT", "KEY")})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The public port and the worker processes behind it."""

    host: str = "0.0.0.0"
    port: int = 8080
    workers: int = 1
    door: str = "fast"  # fast: predictions answered inside the HTTP protocol; asgi: by the ASGI app
    keep_alive_s: int = 75  # longest silence between two requests of a connection
    request_timeout_s: float = 30.0  # longest time that a request may take to come
    write_timeout_s: float = 30.0  # longest time that a client may take to read what waits for it
    max_header_bytes: int = 32 * 1024
    drain_delay_s: float = 0.0  # after SIGTERM: not ready, but still taking connections for balancers that lag behind
    max_connections: int = 10_000  # per worker; more are answered with 503 and closed
    compress_min_bytes: int = 16 * 1024  # answers from this size on are compressed if the client accepts it; 0: none
    max_in_flight_bytes: int = 256 * 1024 * 1024  # of bodies and their tensors, per worker, from head to answer
    drain_timeout_s: float = 25.0  # time that requests in flight get to finish after SIGTERM
    tls_certificate: str = ""  # PEM file; with it the public port speaks TLS alone
    tls_key: str = ""  # PEM file of its private key, without a passphrase
    tls_client_ca: str = ""  # PEM file; with it a client needs a certificate that one of these has signed
    api_keys: str = "off"  # required: predictions, metadata and labels ask for a key of `sluicegate keys`
    default_model: str = ""  # what paths that name no model mean; empty: the only model there is


@dataclass(frozen=True, slots=True)
class PathSettings:
    """Where packages come from and where state is kept."""

    models: Path = Path("models")
    state: Path = Path("state")


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one request, and all requests together, may ask of a worker."""

    max_body_bytes: int = 16 * 1024 * 1024
    max_in_flight: int = 10_000  # as many as there may be connections: refusing costs more than a cheap answer
    deadline_s: float = 5.0
    max_deadline_s: float = 60.0
    client_header: str = ""  # tells clients apart where no API keys do, for fair shares of a queue; empty: nothing does


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How requests share a run of the model."""

    max_batch_rows: int = 512  # less where fewer rows at once are cheaper, which is learned
    max_queue_rows: int = 16_384  # a row of each connection finds room: refusing costs more than a cheap answer
    adaptive: str = "off"  # on: fewer rows may be queued while they wait longer than target_wait_s
    target_wait_s: float = 0.005  # what a row may wait for its run before that is too long
    inline_budget_s: float = 200e-6  # runs predicted to be shorter happen on the event loop
    run_threads: int = 1  # threads per worker for the longer runs
    intra_op_threads: int = 1  # ONNX Runtime threads inside one run
    load_timeout_s: float = 300.0  # a version that is not warm by then has failed
    trial_memory_bytes: int = 0  # what a child may take that loads each new package before the workers; 0: none does

    @property
    def threads(self) -> int:
        """How many threads of one worker may run models at once."""
        return self.run_threads * self.intra_op_threads


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """The prediction caches of each worker; max_bytes = 0 switches them off."""

    max_bytes: int = 64 * 1024 * 1024
    ttl_s: float = 300.0


@dataclass(frozen=True, slots=True)
class FlagSettings:
    """How workers follow the flags, and where the flags are kept."""

    store: str = ""  # sqlite:///PATH or postgresql://...; empty: flags.sqlite in the state directory
    import_file: str = ""  # flagd JSON that control follows; then flags are changed there and nowhere else
    poll_s: float = 0.02
    replica: str = ""  # how control calls this host among those that share a store; empty: its host name

    @property
    def is_shared(self) -> bool:
        """Whether the flags are kept in a database that many hosts share."""
        return self.store.startswith(SHARED_STORES)


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """The log of sampled inputs and outputs."""

    rate: float = 0.01  # share of predictions; the flag <model>.sampling overrides it per model
    max_queue_records: int = 10_000  # samples that may wait for the writer; more are dropped and counted
    max_queue_bytes: int = 64 * 1024 * 1024  # and what their tensors may hold in memory
    max_rows_per_request: int = 64
    segment_max_bytes: int = 64 * 1024 * 1024
    segment_max_age_s: float = 60.0
    sync_s: float = 0.2  # longest time that a written record may wait for fdatasync
    min_free_bytes: int = 256 * 1024 * 1024  # below this much free disk, samples are dropped and counted
    keep_s: float = 30 * 86_400.0  # how long after its hour a file of the log stays; 0: for ever
    max_log_bytes: int = 16 * 1024**3  # of the whole log; the oldest files go first; 0: no bound
    redact: str = ""  # "MODEL.NAME=drop; *.NAME=hash; MODEL.NAME=bucket 18 65", beside what the cards say
    max_by_rules_per_s: float = 100.0  # predictions that rules may add, per model and worker


@dataclass(frozen=True, slots=True)
class ShadowSettings:
    """Copies of answered requests for a shadow version: they wait in bounds, and only an idle worker runs them."""

    max_queue_copies: int = 1000  # per model and worker; more are dropped and counted
    max_queue_bytes: int = 16 * 1024 * 1024  # and what their tensors may hold in memory
    max_in_flight: int = 16  # a worker with more requests in flight runs no copies
    max_wait_s: float = 2.0  # a copy that finds no room to run in this time is dropped: the worker is busy
    run_timeout_s: float = 5.0  # a shadow run that takes longer is called off


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """When the drift monitor looks, and what it calls drift."""

    poll_s: float = 1.0
    window_rows: int = 1000  # most recent sampled rows that are compared with the reference
    window_s: float = 0.0  # length of a window, of whose rows at most window_rows are compared; 0: cut by count alone
    min_window_rows: int = 100  # fewer rows: the verdict is "insufficient data"
    max_false_discovery_rate: float = 0.05
    min_effect: float = 0.08  # KS distance or Cramer's V below this is called negligible however small p is
    compact_after_s: float = 600.0  # closed segments of the sample log that old become Parquet; 0: never
    alarm_windows: int = 3  # an alarm looks at so many finished windows, which have no row in common,
    alarm_drifted_windows: int = 2  # and is raised if a column drifted in so many of them
    history_hours: int = 48  # last hours of UTC whose quantiles are told; older hours become part of their day
    history_days: int = 60  # last days of UTC that are told
    history_max_bytes: int = 64 * 1024 * 1024  # of all hours and days of all versions; the oldest go first


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """How the supervisor watches its children."""

    heartbeat_timeout_s: float = 60.0
    backoff_min_s: float = 0.1
    backoff_max_s: float = 10.0
    restart_timeout_s: float = 330.0  # a new worker that is not ready by then stops a rolling restart
    stable_after_s: float = 30.0  # a child that lived this long starts from the shortest back-off again


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """When the head of the audit trail is signed, and where the checkpoints go."""

    checkpoint_rows: int = 100
    checkpoint_s: float = 3600.0
    checkpoint_file: str = ""  # empty: audit.checkpoints.jsonl in the state directory; better on another disk
    checkpoint_webhook: str = ""  # URL that gets each checkpoint as a POST


@dataclass(frozen=True, slots=True)
class ApprovalSettings:
    """What it takes to send more traffic to a version of a model whose card says stakes = "high"."""

    required: int = 1  # people who approve, none of them the author
    expires_s: float = 86_400.0  # a change that was not approved by then must be proposed anew


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is written to stderr."""

    level: str = "info"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one gateway; every part gets only the sections that it needs."""

    server: ServerSettings = field(default_factory=ServerSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    paths: PathSettings = field(default_factory=PathSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    batching: BatchSettings = field(default_factory=BatchSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    flags: FlagSettings = field(default_factory=FlagSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    shadow: ShadowSettings = field(default_factory=ShadowSettings)
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    supervisor: SupervisorSettings = field(default_factory=SupervisorSettings)
    log: LogSettings = field(default_factory=LogSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    approvals: ApprovalSettings = field(default_factory=ApprovalSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)

    @property
    def flag_store_path(self) -> Path:
        """The SQLite file of the flags; with a shared store, the snapshot of it that the workers here follow."""
        if self.flags.is_shared:
            return self.paths.state / "flags.snapshot.sqlite"
        if not self.flags.store:
            return self.paths.state / "flags.sqlite"
        return Path(self.flags.store.removeprefix(FILE_STORE))

    @property
    def last_known_good_path(self) -> Path:
        """The flag document as last committed, for starts without a readable store."""
        return self.paths.state / "flags.lkg.json"

    @property
    def sample_log_path(self) -> Path:
        return self.paths.state / "samples"

    @property
    def drift_path(self) -> Path:
        """One drift document per model: ``<model>.json``."""
        return self.paths.state / "drift"

    @property
    def monitor_path(self) -> Path:
        """The monitor's own memory: its watermark."""
        return self.paths.state / "monitor"

    @property
    def quarantine_path(self) -> Path:
        """The list of versions that no worker may load."""
        return self.paths.state / "quarantine.json"

    @property
    def admin_token_path(self) -> Path:
        return self.paths.state / "admin.token"

    @property
    def webhook_key_path(self) -> Path:
        """What the secrets of the webhooks are made from."""
        return self.paths.state / "webhook.key"

    @property
    def redaction_key_path(self) -> Path:
        """What redacted values of the sample log are hashed with."""
        return self.paths.state / "redaction.key"

    @property
    def token_store_path(self) -> Path:
        return self.paths.state / "tokens.sqlite"


_ENVIRONMENT = "environment variable"  # an origin of values, followed by its name


def load(path: Path | None, environment: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """Read the settings.

    path: a TOML file, or None. environment: ``SLUICEGATE_SECTION__KEY`` variables. overrides: ``section.key`` from the
    command line, None values left out. Raises InvalidSetting naming the key, its origin, and the nearest right key.
    """
    values = _from_file(path) if path is not None else {}
    values.update(_from_environment(environment))
    values.update({key: (value, "command line") for key, value in overrides.items() if value is not None})
    return _build(values)


def to_plain(settings: Settings) -> dict[str, dict[str, Any]]:
    """The settings as plain values, for printing and for handing them to a child process."""
    return {
        section.name: {
            key: str(value) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(getattr(settings, section.name)).items()
        }
        for section in dataclasses.fields(settings)
    }


def to_toml(settings: Settings) -> str:
    """The settings as a TOML document that load() reads back to equal settings, but for secrets: they are left out."""
    plain = to_plain(settings)
    plain["flags"]["store"] = redacted(plain["flags"]["store"])
    plain["audit"]["checkpoint_webhook"] = host_alone(plain["audit"]["checkpoint_webhook"])
    sections = (
        f"[{section}]\n" + "".join(f"{key} = {_toml_value(value)}\n" for key, value in keys.items())
        for section, keys in plain.items()
    )
    return "\n".join(sections)


def _toml_value(value: str | float) -> str:
    # A JSON string is a TOML string, but for one character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def from_plain(plain: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The inverse of to_plain."""
    flat = {f"{section}.{key}": (value, "parent") for section, keys in plain.items() for key, value in keys.items()}
    return _build(flat)


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSetting(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"{path} is not valid TOML: {error}") from error
    found: dict[str, tuple[Any, str]] = {}
    for section, keys in document.items():
        if not isinstance(keys, dict):
            raise InvalidSetting(f"{path}: {section!r} must stand inside a section, as [server] or [cache]")
        found.update({f"{section}.{key}": (value, str(path)) for key, value in keys.items()})
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for variable, value in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in CLIENT_VARIABLES:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".", 1)
            found[name] = (value, f"{_ENVIRONMENT} {variable}")
    return found


def _build(values: Mapping[str, tuple[Any, str]]) -> Settings:
    sections = {f.name: get_type_hints(Settings)[f.name] for f in dataclasses.fields(Settings)}
    known = {
        f"{section}.{f.name}": get_type_hints(kind)[f.name]
        for section, kind in sections.items()
        for f in dataclasses.fields(kind)
    }
    given: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for name, (value, origin) in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            spelled = ENVIRONMENT_PREFIX + near.replace(".", "__").upper()
            variable = f" ({spelled})" if origin.startswith(_ENVIRONMENT) else ""
            raise InvalidSetting(f"unknown setting {name!r} ({origin}); the nearest known one is {near!r}{variable}")
        section, key = name.split(".", 1)
        given[section][key] = convert(name, known[name], value, origin)
    settings = Settings(**{section: kind(**given[section]) for section, kind in sections.items()})
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    for section, port in (("server", settings.server), ("control", settings.control)):
        if bool(port.tls_certificate) != bool(port.tls_key):
            given, missing = ("tls_certificate", "tls_key")[:: 1 if port.tls_certificate else -1]
            raise InvalidSetting(f"setting '{section}.{given}' needs '{section}.{missing}': name both for TLS, or none")
        if port.tls_client_ca and not port.tls_certificate:
            raise InvalidSetting(f"setting '{section}.tls_client_ca' needs '{section}.tls_certificate' and its key")
    if settings.limits.deadline_s > settings.limits.max_deadline_s:
        raise InvalidSetting("setting 'limits.deadline_s' must not be above 'limits.max_deadline_s'")
    if settings.monitor.min_window_rows > settings.monitor.window_rows:
        raise InvalidSetting("setting 'monitor.min_window_rows' must not be above 'monitor.window_rows'")
    if settings.monitor.alarm_drifted_windows > settings.monitor.alarm_windows:
        raise InvalidSetting("setting 'monitor.alarm_drifted_windows' must not be above 'monitor.alarm_windows'")
    if (webhook := settings.audit.checkpoint_webhook) and not webhook.startswith(("http://", "https://")):
        raise InvalidSetting("setting 'audit.checkpoint_webhook': expected an address that begins with http or https")
    if is_redacted(webhook):
        left_out = "all but the host was left out when this was printed, as it may be a secret; name the whole address"
        raise InvalidSetting(f"setting 'audit.checkpoint_webhook': {left_out}")
    store = settings.flags.store
    if store and not store.startswith((FILE_STORE, *SHARED_STORES)):
        expected = "sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        raise InvalidSetting(f"setting 'flags.store': expected {expected}, got {redacted(store)!r}")
    if settings.flags.is_shared and is_redacted(store):
        left_out = "the password was left out when this was printed; name it, or set PGPASSFILE"
        raise InvalidSetting(f"setting 'flags.store': {left_out}")
