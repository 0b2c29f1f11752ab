"""The settings: what there is, the defaults, and how they are found, read and checked.

    defaults  <  file (TOML)  <  environment  <  flags of the command line

Every field of the structs below is one key of the file, in the section of the same name; its
annotation holds its rule (`config_rules.py`). Durations are kept in seconds. Each key is
explained in `conf/orchestrator.toml` and `docs/configuration.md`; a test keeps the three alike.

All errors are found before one is raised, so that they can be mended in one go. Whether the
database answers or the handlers can be imported is for those who use the settings.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec

from orchestrator import cpus
from orchestrator.config_rules import (
    Bind,
    Broken,
    Choice,
    DatabaseUrl,
    Duration,
    Flag,
    Queues,
    Rule,
    Text,
    Texts,
    Whole,
    shown,
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
_COUNT = Whole(1, 32767)


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
    ] = "default"
    processes: Annotated[int, Whole(1, MAX_PROCESSES, {"auto": cpus.available})] = 10
    queues: Annotated[tuple[str, ...], Queues()] = ("*",)
    mode: Annotated[Literal["process", "async"], Choice(("process", "async"))] = "process"
    concurrency: Annotated[int, Whole(1, 1000)] = 0
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

    max_attempts: Annotated[int, _COUNT] = 10
    backoff_base: Annotated[float, Duration()] = 5.0
    backoff_cap: Annotated[float, Duration()] = 3600.0
    timeout: Annotated[float | None, Duration(minimum=0.01, word="none")] = 3600.0
    max_crashes: Annotated[int, _COUNT] = 3
    max_losses: Annotated[int, _COUNT] = 10

    def policy(self) -> Policy:
        """Return the same numbers as the rules of an attempt."""
        return Policy(**msgspec.structs.asdict(self))


class Settings(_Section, frozen=True, kw_only=True):
    """All settings, checked. Paths of the state are absolute.

    `source` is the file they were read from, "" without one. `base_directory` is the folder that
    relative paths of `[handlers]` start from. `origins` tells for each key that was given where:
    `{"database.url": "environment variable DATABASE_URL"}`.
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
    base_directory: str = "."
    origins: dict[str, str] = {}

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
VARIABLE_PREFIX = "ORCHESTRATOR__"

# Where errors without a line of the file are shown: after all others.
LAST_LINE = 10**9


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
    """Return the configuration file to read; None when there is none.

    `path` (flag `-c`), else $ORCHESTRATOR_CONFIG, are taken as they are, existing or not; else
    the first that exists of ./orchestrator.toml, ./conf/orchestrator.toml and
    /etc/orchestrator/orchestrator.toml.
    """
    named = path or environ.get("ORCHESTRATOR_CONFIG")
    if named:
        return Path(named)
    for candidate in (
        "orchestrator.toml",
        "conf/orchestrator.toml",
        "/etc/orchestrator/orchestrator.toml",
    ):
        if os.path.isfile(candidate):
            return Path(candidate)
    return None


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
    reader = _Reader(file)
    if file is not None:
        reader.take_file(file, said_by="-c" if path else "ORCHESTRATOR_CONFIG")
    reader.take_environment(environ)
    for key, text in (overrides or {}).items():
        reader.take_text(key, text, origin="command line", label=f"command line, {_spelled(key)}")
    return _completed(reader.settings(), environ)


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


class _Given(NamedTuple):
    """A value that was given for a key: where, and how a message calls it."""

    value: object
    origin: str
    label: str


class _Reader:
    """Collects what is given for each key, layer over layer, and all errors on the way.

    Keys are "section.key", and "pool.<position>.key" for pools.
    """

    def __init__(self, file: Path | None) -> None:
        self.source = "" if file is None else str(file)
        self.given: dict[str, _Given] = {}
        self.errors: list[tuple[int, str]] = []  # with their line, to be shown in its order
        self.broken: set[str] = set()
        self.n_pools = 1
        self._lines: dict[str, int] = {}

    # -- layers --------------------------------------------------------------------------------

    def take_file(self, file: Path, *, said_by: str) -> None:
        """Take the keys of a TOML file.

        Raises:
            ConfigError: it cannot be read, so that nothing else can be said about it.
        """
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"{file}: no such file (named by {said_by}): correct the path, "
                "or leave it out to have the usual places searched"
            ) from None
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{file}: is not UTF-8 text (byte {error.start}): save it in that encoding"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{file}: cannot be read ({error.strerror}): "
                f"it must be a file that user {os.geteuid()} may read"
            ) from error
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file}: is not TOML: {error}: correct the line") from None
        self._lines = _lines_of_keys(text)
        for name, content in document.items():
            if name == "pool":
                self._take_pools(content)
            elif name not in SECTIONS:
                self._refuse(name, self._unknown_section(name, content))
            elif isinstance(content, dict):
                self._take_section(name, name, content)
            else:
                double = f", not [[{name}]]" if isinstance(content, list) else ""
                self._refuse(
                    name, f" must be a section: write [{name}]{double}, and its keys below it"
                )

    def _take_pools(self, content: object) -> None:
        if not isinstance(content, list) or not all(isinstance(pool, dict) for pool in content):
            self._refuse(
                "pool",
                " must be a list of pools: write [[pool]], with two pairs of brackets, for each",
            )
            return
        self.n_pools = max(1, len(content))
        for position, pool in enumerate(content):
            self._take_section("pool", f"pool.{position}", pool)

    def _take_section(self, section: str, prefix: str, content: dict[str, Any]) -> None:
        for name, value in content.items():
            key = f"{prefix}.{name}"
            if name in rules(SECTIONS[section]):
                self.given[key] = _Given(value, self._place(key), self._label(key))
            else:
                self._refuse(key, _unknown_key(section, name))

    def take_environment(self, environ: Mapping[str, str]) -> None:
        """Take the variables; an empty one counts as unset, the long names outrank the short."""
        for variable, key in SHORT_VARIABLES.items():
            if text := environ.get(variable, ""):
                self.take_text(key, text, origin=_variable(variable))
        known = self._variables()
        for variable in sorted(environ):
            if not variable.startswith(VARIABLE_PREFIX) or not environ[variable]:
                continue
            if variable in known:
                self.take_text(known[variable], environ[variable], origin=_variable(variable))
            else:
                remedy = _did_you_mean(variable, {name: name for name in known})
                self._add(f"{_variable(variable)} names no setting{remedy}")

    def _variables(self) -> dict[str, str]:
        """Return {variable: key} of the long names; a pool is called by its name."""
        names: dict[str, str] = {}
        for section, struct in SECTIONS.items():
            for field in rules(struct):
                if section != "pool":
                    variable = f"{VARIABLE_PREFIX}{section}__{field}".upper()
                    names[variable] = f"{section}.{field}"
                    continue
                for position in range(self.n_pools):
                    given = self.given.get(f"pool.{position}.name")
                    pool = str(given.value if given else PoolSettings().name)
                    middle = re.sub(r"[^A-Za-z0-9]", "_", pool)
                    variable = f"{VARIABLE_PREFIX}pool__{middle}__{field}".upper()
                    names.setdefault(variable, f"pool.{position}.{field}")
        return names

    def take_text(self, key: str, text: str, *, origin: str, label: str = "") -> None:
        """Take a value that comes as text."""
        section, name = _parts(key)
        if section not in SECTIONS or name not in rules(SECTIONS[section]):
            self._add(f"{label or origin} names no setting: see docs/configuration.md")
            return
        value = rules(SECTIONS[section])[name].parse(text.strip())
        self.given[key] = _Given(value, origin, label or origin)

    # -- checks --------------------------------------------------------------------------------

    def settings(self) -> Settings:
        """Check everything and return the settings as they were given.

        Raises:
            ConfigError: with all errors.
        """
        base_directory = _base_directory(self.source)
        sections = {
            name: self._section(name, struct) for name, struct in SECTIONS.items() if name != "pool"
        }
        pools = tuple(self._section(f"pool.{n}", PoolSettings) for n in range(self.n_pools))
        settings = Settings(
            **sections,
            pools=pools,
            source=self.source,
            base_directory=base_directory,
            origins={key: given.origin for key, given in self.given.items()},
        )
        for keys, message in _broken_between(settings):
            # With a broken value in it, the comparison would be with a default.
            if not self.broken.intersection(keys):
                self._add(self._origin_of(keys) + message, line=self._line_of(keys))
        if self.errors:
            in_order = [message for _, message in sorted(self.errors, key=lambda error: error[0])]
            raise ConfigError(_report(in_order, self.source))
        return settings

    def _section(self, prefix: str, struct: type[_Section]) -> Any:
        values: dict[str, Any] = {}
        for name, rule in rules(struct).items():
            given = self.given.get(f"{prefix}.{name}")
            if given is None:
                continue
            try:
                values.update(rule.spread(name, rule.check(given.value)))
            except Broken as broken:
                self.broken.add(f"{prefix}.{name}")
                message = f"{given.label} = {shown(given.value)} {broken}"
                self._add(message, line=self._line_of((f"{prefix}.{name}",)))
        return struct(**values)

    # -- words ---------------------------------------------------------------------------------

    def _add(self, message: str, *, line: int = LAST_LINE) -> None:
        self.errors.append((line, message))

    def _refuse(self, key: str, message: str) -> None:
        """Add an error about something that stands in the file."""
        self._add(self._label(key) + message, line=self._lines.get(key, LAST_LINE))

    def _place(self, key: str) -> str:
        line = self._lines.get(key)
        return f"{self.source}:{line}" if line else self.source

    def _label(self, key: str) -> str:
        return f"{self._place(key)}, {_spelled(key)}"

    def _origin_of(self, keys: tuple[str, ...]) -> str:
        """Say where the keys of a rule between several were given; one line of the file will do."""
        origins: dict[str, str] = {}
        for key in keys:
            if key in self.given:
                origin = self.given[key].origin
                is_variable = origin != self._place(key)
                origins.setdefault(origin if is_variable else self.source, origin)
        return f"{', '.join(origins.values())}: " if origins else ""

    def _line_of(self, keys: tuple[str, ...]) -> int:
        """Return the line of the first of these keys that the file decides."""
        for key in keys:
            if key in self.given and self.given[key].origin == self._place(key):
                return self._lines.get(key, LAST_LINE)
        return LAST_LINE

    def _unknown_section(self, name: str, content: object) -> str:
        if isinstance(content, dict | list):
            headers = {section: _header(section) for section in SECTIONS}
            return f" is no section of this file{_did_you_mean(name, headers)}"
        homes = _sections_with(name)
        remedy = f"did you mean {' or '.join(homes)}?" if homes else "remove it"
        return f" stands above all sections: {remedy}"


def _unknown_key(section: str, name: str) -> str:
    homes = _sections_with(name)
    if homes:
        return f" is no key of this section: did you mean {' or '.join(homes)}?"
    known = rules(SECTIONS[section])
    return f" is no key of this section{_did_you_mean(name, {key: key for key in known})}"


def _sections_with(name: str) -> list[str]:
    return [
        f"{_header(section)} {name}"
        for section, struct in SECTIONS.items()
        if name in rules(struct)
    ]


def _header(section: str) -> str:
    return "[[pool]]" if section == "pool" else f"[{section}]"


def _variable(name: str) -> str:
    return f"environment variable {name}"


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


def _base_directory(source: str) -> str:
    """Return the folder that relative paths start from.

    That of the file; its parent if the folder is called "conf", so that the usual layout
    (conf/orchestrator.toml beside the code) needs no ".."; the current one without a file.
    """
    if not source:
        return os.getcwd()
    # Not resolved: where a link to the file lies counts, not what it points to.
    folder = os.path.dirname(os.path.abspath(source))
    return os.path.dirname(folder) if os.path.basename(folder) == "conf" else folder


def _parts(key: str) -> tuple[str, str]:
    section, _, rest = key.partition(".")
    return section, rest.rpartition(".")[2]


def _spelled(key: str) -> str:
    """Write a key as in the file: "node.name" is "[node] name"."""
    section, name = _parts(key)
    if section != "pool":
        return f"{_header(section)} {name}" if name else section
    position = key.split(".")[1] if key.count(".") == 2 else ""
    which = f" (number {int(position) + 1})" if position else ""
    return f"[[pool]]{which} {name}".strip()


def _did_you_mean(wrong: str, known: Mapping[str, str]) -> str:
    """Return the end of a message: the nearest of the known names, or all of them.

    `known` tells for each name how it is written.
    """
    right = {name.lower(): spelled for name, spelled in known.items()}
    close = difflib.get_close_matches(wrong.lower(), right, n=1)
    if close:
        return f": did you mean {right[close[0]]}?"
    listed = ", ".join(known.values())
    return f": there are {listed}" if len(listed) <= 400 else ": see docs/configuration.md"


_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_-]+)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")


def _lines_of_keys(text: str) -> dict[str, int]:
    """Return the line of each key, for messages; tomllib does not tell."""
    lines: dict[str, int] = {}
    prefix, n_pools = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            prefix = header[2]
            lines.setdefault(prefix, number)
            if header[1] == "[[" and prefix == "pool":
                prefix, n_pools = f"{prefix}.{n_pools}", n_pools + 1
            prefix += "."
        elif key := _KEY.match(line):
            lines.setdefault(prefix + key[1], number)
    return lines


def _report(errors: list[str], source: str) -> str:
    if len(errors) == 1:
        return errors[0]
    count = f"{len(errors)} settings are wrong"
    return "\n".join(
        [f"{count} ({source or 'no configuration file'}):", *("  " + e for e in errors)]
    )
