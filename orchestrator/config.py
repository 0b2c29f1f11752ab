"""The settings: what there is, the defaults, and the rules between them.

    defaults  <  file (TOML)  <  conf.d/*.toml  <  environment  <  flags of the command line

Every field of the structs below is one key of the file, in the section of the same name; its
annotation holds its rule (`config_rules.py`). Durations are kept in seconds. Each key is
explained in `conf/orchestrator.toml` and `docs/configuration.md`; a test keeps the three alike.

Which files there are is `config_files`' to find out; `config_reader` lays one over the other and
collects all errors, so that they can be mended in one go; `config_text` writes settings down.
Whether the database answers or the handlers can be imported is for those who use the settings.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from orchestrator import config_files, cpus
from orchestrator.config_reader import UNNAMED_POOL, Deprecated, Deprecation, Reader
from orchestrator.config_rules import (
    Bind,
    Choice,
    DatabaseUrl,
    Duration,
    Flag,
    Queues,
    Rule,
    Text,
    Texts,
    Whole,
)
from orchestrator.durations import spell
from orchestrator.errors import ConfigError
from orchestrator.options import Policy

EMBEDDED = "embedded"
# The slots of one supervisor are 256; six are left over for pools that grow by a signal.
MAX_PROCESSES = 250
# Tasks that the async pools of one node may run at once: each has a record in shared memory.
MAX_CONCURRENT = 20_000

_A_MOMENT = Duration(minimum=0.01)


def _count(unit: str) -> Whole:
    return Whole(1, 32767, unit=unit)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file."""


class DatabaseSettings(_Section, frozen=True, kw_only=True):
    """`[database]`: where the tasks are kept."""

    url: Annotated[str, DatabaseUrl(word=EMBEDDED)] = EMBEDDED
    direct_url: Annotated[str | None, DatabaseUrl()] = None
    schema: Annotated[
        str,
        Text(
            r"(?!pg_)[a-z_][a-z0-9_]{0,47}",
            "the name of a schema",
            'use small letters, digits and "_", at most 48, not beginning with a digit or "pg_"',
        ),
    ] = "orchestrator"
    connect_timeout: Annotated[float, Duration(minimum=2.0)] = 5.0
    data_directory: Annotated[str | None, Text()] = None

    @property
    def is_embedded(self) -> bool:
        """True when the daemon runs the server itself."""
        return self.url == EMBEDDED

    @property
    def session_url(self) -> str:
        """The URL for sessions that hold locks: past a pooler, where one is in use."""
        return self.direct_url or self.url


class HandlersSettings(_Section, frozen=True, kw_only=True):
    """`[handlers]`: the code that runs the tasks. Paths are relative to `base_directory`."""

    path: Annotated[tuple[str, ...], Texts(Text())] = (".",)
    modules: Annotated[
        tuple[str, ...],
        Texts(
            Text(
                r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?",
                'a module, "package.module" or "package.module:mux"',
                "write it as in an import statement",
            )
        ),
    ] = ("orchestrator.builtin",)
    setup: Annotated[
        tuple[str, ...],
        Texts(
            Text(
                r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*",
                'a function, "package.module:function"',
                "write module and function with a colon between them",
            )
        ),
    ] = ()


class PoolSettings(_Section, frozen=True, kw_only=True):
    """`[[pool]]`: worker processes that serve the same queues.

    `queues` are served in this order, or, where `weights` is not empty, each with the weight in
    the same place of `weights`. `concurrency` is how many tasks one process runs at once: always 1
    in mode "process", 100 in mode "async" where nothing else is said.
    """

    name: Annotated[
        str,
        Text(
            r"[a-z0-9-]{1,40}",
            "the name of a pool",
            'use small letters, digits and "-", at most 40',
        ),
    ] = UNNAMED_POOL
    processes: Annotated[
        int, Whole(1, MAX_PROCESSES, {"auto": cpus.available}, unit="processes")
    ] = 10
    queues: Annotated[tuple[str, ...], Queues()] = ("*",)
    mode: Annotated[Literal["process", "async"], Choice(("process", "async"))] = "process"
    concurrency: Annotated[int, Whole(1, 1000, unit="tasks")] = 0
    timeout: Annotated[float | msgspec.UnsetType | None, Duration(minimum=0.01, word="none")] = (
        msgspec.UNSET
    )
    weights: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.mode == "process":
            msgspec.structs.force_setattr(self, "concurrency", 1)
        elif not self.concurrency:
            msgspec.structs.force_setattr(self, "concurrency", 100)

    @property
    def lanes(self) -> int:
        """How many attempts one process has in hand at once; 0 where it has one at a time.

        Twice those that run: as many again may wait for the answer to their report.
        """
        return 2 * self.concurrency if self.mode == "async" else 0

    def policy(self, defaults: Policy) -> Policy:
        """Return the policy of tasks in this pool whose handler says nothing else."""
        if self.timeout is msgspec.UNSET:
            return defaults
        return msgspec.structs.replace(defaults, timeout=self.timeout)


class WebSettings(_Section, frozen=True, kw_only=True):
    """`[web]`: metrics and health over HTTP."""

    bind: Annotated[str, Bind()] = "127.0.0.1:9090"

    @property
    def address(self) -> tuple[str, int] | None:
        """Host ("" for all addresses) and port; None when the web process is switched off."""
        if not self.bind:
            return None
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)


class NodeSettings(_Section, frozen=True, kw_only=True):
    """`[node]`: this daemon and its processes.

    `load` fills in `name`, and `state_directory` by the function of that name.
    """

    name: Annotated[
        str | None,
        Text(
            r"[^\s\x00-\x1f\x7f]{1,100}",
            "a name without spaces, at most 100 characters",
            "give every node a short one of its own, or leave it out for the name of the host",
        ),
    ] = None
    distributed: Annotated[bool, Flag()] = False
    claim_interval: Annotated[float, _A_MOMENT] = 1.0
    heartbeat_interval: Annotated[float, _A_MOMENT] = 10.0
    worker_timeout: Annotated[float, _A_MOMENT] = 30.0
    kill_grace: Annotated[float, Duration()] = 5.0
    cancel_grace: Annotated[float, Duration()] = 10.0
    graceful_timeout: Annotated[float, Duration()] = 30.0
    spawn_timeout: Annotated[float, _A_MOMENT] = 60.0
    state_directory: Annotated[str | None, Text()] = None
    user: Annotated[
        str | None,
        Text(r"[^\s:]{1,64}", "the name of a user of this host", "choose one that is not root"),
    ] = None


class LeaderSettings(_Section, frozen=True, kw_only=True):
    """`[leader]`: the duties that one process of all nodes does for all."""

    term: Annotated[float, _A_MOMENT] = 30.0
    cleanup_interval: Annotated[float, _A_MOMENT] = 60.0
    promote_interval: Annotated[float, _A_MOMENT] = 1.0


class RetentionSettings(_Section, frozen=True, kw_only=True):
    """`[retention]`: how long ended tasks are kept."""

    finished: Annotated[float, Duration()] = 7 * 86400.0


class LoggingSettings(_Section, frozen=True, kw_only=True):
    """`[logging]`: the log, on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Choice(("debug", "info", "warning", "error")),
    ] = "info"
    format: Annotated[Literal["auto", "console", "json"], Choice(("auto", "console", "json"))] = (
        "auto"
    )
    configure: Annotated[bool, Flag()] = True


class DefaultsSettings(_Section, frozen=True, kw_only=True):
    """`[defaults]`: what holds for tasks whose handler and enqueuer say nothing else."""

    max_attempts: Annotated[int, _count("attempts")] = 10
    backoff_base: Annotated[float, Duration()] = 5.0
    backoff_cap: Annotated[float, Duration()] = 3600.0
    timeout: Annotated[float | None, Duration(minimum=0.01, word="none")] = 3600.0
    max_crashes: Annotated[int, _count("crashes")] = 3
    max_losses: Annotated[int, _count("losses")] = 10

    def policy(self) -> Policy:
        """Return the same numbers as the rules of an attempt."""
        return Policy(**msgspec.structs.asdict(self))


class Settings(_Section, frozen=True, kw_only=True):
    """All settings, checked. Paths of the state are absolute.

    `source` is the main file they were read from, "" without one; `files` are all of them, in
    their order. `base_directory` is the folder that relative paths of `[handlers]` start from.
    `origins` tells for each key that was given where: `{"database.url": "environment variable
    DATABASE_URL"}`. `deprecated` are the old names that were met.
    """

    database: DatabaseSettings = DatabaseSettings()
    handlers: HandlersSettings = HandlersSettings()
    pools: tuple[PoolSettings, ...] = (PoolSettings(),)
    web: WebSettings = WebSettings()
    node: NodeSettings = NodeSettings()
    leader: LeaderSettings = LeaderSettings()
    retention: RetentionSettings = RetentionSettings()
    logging: LoggingSettings = LoggingSettings()
    defaults: DefaultsSettings = DefaultsSettings()
    source: str = ""
    files: tuple[str, ...] = ()
    base_directory: str = "."
    origins: dict[str, str] = {}
    deprecated: tuple[Deprecated, ...] = ()

    def origin(self, key: str) -> str:
        """Tell where the value of a key such as "database.url" comes from."""
        return self.origins.get(key, "default")


SECTIONS: dict[str, type[_Section]] = {
    "database": DatabaseSettings,
    "handlers": HandlersSettings,
    "pool": PoolSettings,
    "web": WebSettings,
    "node": NodeSettings,
    "leader": LeaderSettings,
    "retention": RetentionSettings,
    "logging": LoggingSettings,
    "defaults": DefaultsSettings,
}

# Names that users of the original know. WORKER_POOL_SIZE acts on the first pool.
SHORT_VARIABLES = {
    "DATABASE_URL": "database.url",
    "WORKER_POOL_SIZE": "pool.0.processes",
    "CLAIM_INTERVAL": "node.claim_interval",
    "DISTRIBUTED_MODE": "node.distributed",
    "HEARTBEAT_INTERVAL": "node.heartbeat_interval",
    "WORKER_TIMEOUT": "node.worker_timeout",
    "LEADER_TERM": "leader.term",
    "CLEANUP_INTERVAL": "leader.cleanup_interval",
}

# Keys that were renamed or retired, by their old name ("section.key", "pool.key").
DEPRECATED: dict[str, Deprecation] = {}


@functools.cache
def rules(section: type[_Section]) -> dict[str, Rule]:
    """Return the rule of each key of a section, in the order of the file.

    A field without a rule is no key: it is filled by the value of another (`Rule.spread`).
    """
    hints = get_type_hints(section, include_extras=True)
    return {
        name: hints[name].__metadata__[0]
        for name in section.__struct_fields__
        if hasattr(hints[name], "__metadata__")
    }


def find(path: str | None = None, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the main file to read, None when there is none; see `config_files.find`."""
    return config_files.find(path, environ)


def load(
    path: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, str] | None = None,
) -> Settings:
    """Read, merge and check the settings.

    `overrides` are flags of the command line, keyed "section.key".
    Raises:
        ConfigError: something is wrong; the message holds one line for each error.
    """
    file = find(path, environ=environ)
    reader = Reader({name: rules(struct) for name, struct in SECTIONS.items()}, DEPRECATED)
    files = (
        [] if file is None else _read_files(reader, file, "-c" if path else "ORCHESTRATOR_CONFIG")
    )
    source = "" if file is None else str(file)
    # What is said by the others may only seem wrong beside a file that nobody could read.
    if reader.is_unreadable:
        _sections(reader)
        reader.refuse_errors(source)
    reader.take_environment(environ, SHORT_VARIABLES)
    for key, text in (overrides or {}).items():
        reader.take_override(key, text)
    settings = Settings(
        **_sections(reader),
        source=source,
        files=tuple(files),
        base_directory=config_files.base_directory(source),
        origins={key: given.origin for key, given in reader.given.items()},
        deprecated=tuple(reader.deprecated),
    )
    for keys, message in _broken_between(settings):
        reader.add_between(keys, message)
    reader.refuse_errors(source)
    return _completed(settings, environ)


def _read_files(reader: Reader, file: Path, said_by: str) -> list[str]:
    """Read the main file and those of conf.d; return the paths."""
    try:
        files = [file, *config_files.beside(file)]
    except ConfigError as error:
        reader.take_unreadable(error)
        files = [file]
    for one in files:
        try:
            named_by = said_by if one is file else config_files.FOLDER
            reader.take_document(config_files.read(one, said_by=named_by))
        except ConfigError as error:
            reader.take_unreadable(error)
    return [str(one) for one in files]


def _sections(reader: Reader) -> dict[str, Any]:
    """Return all sections as structs; what is wrong in them is noted in the reader."""
    sections: dict[str, Any] = {
        name: struct(**reader.values(name)) for name, struct in SECTIONS.items() if name != "pool"
    }
    pools = (PoolSettings(**reader.values(f"pool.{n}")) for n in range(max(1, reader.n_pools)))
    return {**sections, "pools": tuple(pools)}


def encode(settings: Settings) -> bytes:
    """Write settings for a child process."""
    return msgspec.json.encode(settings)


def decode(encoded: bytes) -> Settings:
    """Read what `encode` wrote."""
    return msgspec.json.decode(encoded, type=Settings)


def state_directory(settings: Settings, *, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of what outlives the daemon: lock, embedded database. It may not exist.

    Raises:
        ConfigError: an ordinary user without a home.
    """
    if settings.node.state_directory is not None:
        return Path(settings.node.state_directory)
    if os.geteuid() == 0:
        return Path("/var/lib/orchestratord")
    # The XDG specification has relative values ignored.
    named = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):
        return Path(named, "orchestratord")
    try:
        return Path(environ.get("HOME") or Path.home(), ".local/state/orchestratord")
    except RuntimeError:
        raise ConfigError(
            f"[node] state_directory is not set and user {os.geteuid()} has no home directory: "
            "set it, or the environment variable XDG_STATE_HOME, to a folder of this user"
        ) from None


def _broken_between(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each broken rule between several settings: the keys, and what is wrong."""
    node, database, defaults = settings.node, settings.database, settings.defaults
    # 3 x 0.1 is a little more than 0.3 in floating point.
    if node.worker_timeout < 3 * node.heartbeat_interval - 1e-9:
        yield (
            ("node.worker_timeout", "node.heartbeat_interval"),
            f"[node] worker_timeout = {spell(node.worker_timeout)} must be at least 3 x "
            f"heartbeat_interval ({spell(node.heartbeat_interval)}): raise it to "
            f"{spell(3 * node.heartbeat_interval)}, or beat faster",
        )
    if node.kill_grace >= node.worker_timeout / 2:
        yield (
            ("node.kill_grace", "node.worker_timeout"),
            f"[node] kill_grace = {spell(node.kill_grace)} must be shorter than half of "
            f"worker_timeout ({spell(node.worker_timeout)}): shorten it, or raise worker_timeout "
            f"above {spell(2 * node.kill_grace)}",
        )
    if defaults.backoff_base > defaults.backoff_cap:
        yield (
            ("defaults.backoff_base", "defaults.backoff_cap"),
            f"[defaults] backoff_base = {spell(defaults.backoff_base)} must not exceed "
            f"backoff_cap ({spell(defaults.backoff_cap)}): lower it, or raise backoff_cap",
        )
    if database.is_embedded and node.distributed:
        yield (
            ("node.distributed", "database.url"),
            "[node] distributed = true needs a server that all nodes reach, and [database] url is "
            '"embedded", which serves one node: give the URL of a server, or set distributed = '
            "false",
        )
    if database.is_embedded and database.direct_url is not None:
        yield (
            ("database.direct_url", "database.url"),
            '[database] direct_url must not be given with url = "embedded": remove it, or give '
            "the URL of the pooler as url",
        )
    n_processes = sum(pool.processes for pool in settings.pools)
    if n_processes > MAX_PROCESSES:
        yield (
            tuple(f"pool.{n}.processes" for n in range(len(settings.pools))),
            f"[[pool]] processes of all pools = {n_processes} must be at most {MAX_PROCESSES} "
            "together: lower some, or run a second node",
        )
    for n, pool in enumerate(settings.pools):
        if pool.mode == "process" and f"pool.{n}.concurrency" in settings.origins:
            yield (
                (f"pool.{n}.concurrency", f"pool.{n}.mode"),
                f'[[pool]] concurrency of pool "{pool.name}" must not be given with mode = '
                '"process", which runs one task per process: remove it and raise processes, or set '
                'mode = "async"',
            )
    n_concurrent = sum(
        pool.processes * pool.concurrency for pool in settings.pools if pool.mode == "async"
    )
    if n_concurrent > MAX_CONCURRENT:
        yield (
            tuple(
                f"pool.{n}.{key}"
                for n in range(len(settings.pools))
                for key in ("concurrency", "processes", "mode")
            ),
            f"[[pool]] processes * concurrency of all async pools = {n_concurrent} must be at most "
            f"{MAX_CONCURRENT} together: lower one of them, or run a second node",
        )
    names = [pool.name for pool in settings.pools]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield (
            tuple(f"pool.{n}.name" for n, other in enumerate(names) if other == name),
            f'[[pool]] name = "{name}" must be given to one pool only, and {names.count(name)} '
            "have it: give each pool a name of its own",
        )


def _completed(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Fill in what depends on the host, and make the paths of the state absolute."""
    replace = msgspec.structs.replace

    def absolute(path: str | None) -> str | None:
        if path is None:
            return None
        return os.path.normpath(os.path.join(settings.base_directory, os.path.expanduser(path)))

    folder = absolute(settings.node.state_directory)
    if folder is None:
        # Settled here, since children may run as another user. Who needs it meets the error.
        with contextlib.suppress(ConfigError):
            folder = str(state_directory(settings, environ=environ))
    node = replace(
        settings.node,
        name=settings.node.name or socket.gethostname() or "localhost",
        state_directory=folder,
    )
    database = replace(settings.database, data_directory=absolute(settings.database.data_directory))
    return replace(settings, node=node, database=database)
