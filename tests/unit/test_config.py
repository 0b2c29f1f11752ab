"""What the settings promise: where values come from, and how wrong ones are answered."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import config
from orchestrator.errors import ConfigError
from orchestrator.options import Policy

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration file and return its path."""

    def _write(text: str) -> str:
        path = tmp_path / "orchestrator.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return _write


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that no file is found by chance."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(path: str | None = None, **environ: str) -> config.Settings:
    return config.load(path, environ=environ)


def errors_of(path: str | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, **environ)
    return str(caught.value)


# -- where values come from ------------------------------------------------------------------------


def test_without_a_file_all_settings_have_their_defaults(elsewhere: Path) -> None:
    settings = load()

    assert settings.source == ""
    assert settings.origins == {}
    assert settings.database == config.DatabaseSettings()
    assert settings.pools == (config.PoolSettings(),)


def test_durations_of_the_file_are_kept_in_seconds(write: Write) -> None:
    path = write(
        '[node]\nclaim_interval = "250ms"\nheartbeat_interval = 2\n'
        '[retention]\nfinished = "1d 1h"\n'
    )

    settings = load(path)

    assert settings.node.claim_interval == 0.25
    assert settings.node.heartbeat_interval == 2.0
    assert settings.retention.finished == 25 * 3600.0


def test_environment_outranks_the_file(write: Write) -> None:
    path = write('[database]\nurl = "postgresql://file/db"\n')

    settings = load(path, DATABASE_URL="postgresql://environment/db")

    assert settings.database.url == "postgresql://environment/db"


def test_long_variable_outranks_the_short_one(elsewhere: Path) -> None:
    settings = load(
        DATABASE_URL="mysql://of-another-project/db",
        ORCHESTRATOR__DATABASE__URL="postgresql://ours/db",
    )

    assert settings.database.url == "postgresql://ours/db"


def test_flags_outrank_the_environment(elsewhere: Path) -> None:
    settings = config.load(
        environ={"ORCHESTRATOR__NODE__NAME": "environment"}, overrides={"node.name": "flag"}
    )

    assert settings.node.name == "flag"
    assert settings.origin("node.name") == "command line"


def test_empty_variables_count_as_unset(write: Write) -> None:
    path = write('[database]\nurl = "postgresql://file/db"\n')

    settings = load(
        path, DATABASE_URL="", WORKER_POOL_SIZE="", ORCHESTRATOR__NODE__NAME="", ORCHESTRATOR__X=""
    )

    assert settings.database.url == "postgresql://file/db"
    assert settings.origin("database.url") == f"{path}:2"


def test_origin_names_the_variable_that_decided(elsewhere: Path) -> None:
    settings = load(DATABASE_URL="postgresql://h/db")

    assert settings.origin("database.url") == "environment variable DATABASE_URL"
    assert settings.origin("database.schema") == "default"


@pytest.mark.parametrize(
    ("variable", "text", "read", "expected"),
    [
        ("DATABASE_URL", "postgres://h/db", lambda s: s.database.url, "postgres://h/db"),
        ("WORKER_POOL_SIZE", "7", lambda s: s.pools[0].processes, 7),
        ("CLAIM_INTERVAL", "500ms", lambda s: s.node.claim_interval, 0.5),
        ("DISTRIBUTED_MODE", "false", lambda s: s.node.distributed, False),
        ("HEARTBEAT_INTERVAL", "5s", lambda s: s.node.heartbeat_interval, 5.0),
        ("WORKER_TIMEOUT", "1m30s", lambda s: s.node.worker_timeout, 90.0),
        ("LEADER_TERM", "20", lambda s: s.leader.term, 20.0),
        ("CLEANUP_INTERVAL", "1m", lambda s: s.leader.cleanup_interval, 60.0),
    ],
)
def test_names_of_the_original_are_understood(
    elsewhere: Path,
    variable: str,
    text: str,
    read: Callable[[config.Settings], object],
    expected: object,
) -> None:
    settings = load(**{variable: text})

    assert read(settings) == expected
    assert list(settings.origins.values()) == [f"environment variable {variable}"]


@pytest.mark.parametrize("text", ["true", "True", "yes", "on", "1"])
def test_truth_in_the_environment_has_several_words(elsewhere: Path, text: str) -> None:
    settings = load(DISTRIBUTED_MODE=text, DATABASE_URL="postgresql://h/db")

    assert settings.node.distributed is True


def test_lists_in_the_environment_are_separated_by_commas(elsewhere: Path) -> None:
    settings = load(ORCHESTRATOR__HANDLERS__MODULES="app.tasks, app.reports:mux,")

    assert settings.handlers.modules == ("app.tasks", "app.reports:mux")


def test_pool_size_of_the_environment_acts_on_the_first_pool(write: Write) -> None:
    path = write('[[pool]]\nname = "a"\nprocesses = 1\n[[pool]]\nname = "b"\nprocesses = 2\n')

    settings = load(path, WORKER_POOL_SIZE="9")

    assert [pool.processes for pool in settings.pools] == [9, 2]


def test_pool_is_reached_by_its_name_in_the_environment(write: Write) -> None:
    path = write('[[pool]]\nname = "a"\nprocesses = 1\n[[pool]]\nname = "b-2"\nprocesses = 2\n')

    settings = load(path, ORCHESTRATOR__POOL__B_2__PROCESSES="9")

    assert [pool.processes for pool in settings.pools] == [1, 9]


def test_auto_processes_are_counted_at_load(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    path = write('[[pool]]\nprocesses = "auto"\n')

    settings = load(path)

    assert settings.pools[0].processes in {1, 2, 3}
    assert isinstance(settings.pools[0].processes, int)


# -- finding the file ------------------------------------------------------------------------------


def test_files_are_searched_in_the_documented_order(elsewhere: Path) -> None:
    (elsewhere / "conf").mkdir()
    for name in ("conf/orchestrator.toml", "orchestrator.toml", "flag.toml", "variable.toml"):
        (elsewhere / name).touch()

    found = [config.find("flag.toml", environ={"ORCHESTRATOR_CONFIG": "variable.toml"})]
    found.append(config.find(environ={"ORCHESTRATOR_CONFIG": "variable.toml"}))
    found.append(config.find(environ={"ORCHESTRATOR_CONFIG": ""}))
    (elsewhere / "orchestrator.toml").unlink()
    found.append(config.find(environ={}))

    assert found == [
        Path("flag.toml"),
        Path("variable.toml"),
        Path("orchestrator.toml"),
        Path("conf/orchestrator.toml"),
    ]


def test_missing_file_is_answered_with_who_named_it(elsewhere: Path) -> None:
    assert "named by ORCHESTRATOR_CONFIG" in errors_of(ORCHESTRATOR_CONFIG="gone.toml")
    assert "named by -c" in errors_of("gone.toml", ORCHESTRATOR_CONFIG="other.toml")


def test_folder_in_place_of_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    assert "cannot be read" in errors_of(str(tmp_path))


def test_file_that_is_no_toml_is_answered_with_the_line(write: Write) -> None:
    path = write("[node]\nname = \n")

    message = errors_of(path)

    assert message.startswith(f"{path}: is not TOML")
    assert "line 2" in message


def test_file_in_another_encoding_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.toml"
    path.write_bytes(b'[node]\nname = "\xff"\n')

    assert "is not UTF-8" in errors_of(str(path))


def test_base_directory_is_the_folder_of_the_file(write: Write, tmp_path: Path) -> None:
    assert load(write("")).base_directory == str(tmp_path)


def test_base_directory_is_the_parent_of_a_folder_called_conf(elsewhere: Path) -> None:
    (elsewhere / "conf").mkdir()
    (elsewhere / "conf/orchestrator.toml").touch()

    assert load().base_directory == str(elsewhere)


def test_base_directory_is_where_a_link_to_the_file_lies(write: Write, tmp_path: Path) -> None:
    # As mounted by container platforms: the file is a link into a folder of versions.
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "orchestrator.toml").symlink_to(write(""))

    assert load(str(folder / "orchestrator.toml")).base_directory == str(folder)


def test_paths_of_the_state_start_at_the_base_directory(write: Write, tmp_path: Path) -> None:
    path = write('[node]\nstate_directory = "state"\n[database]\ndata_directory = "../pg"\n')

    settings = load(path)

    assert settings.node.state_directory == str(tmp_path / "state")
    assert settings.database.data_directory == str(tmp_path.parent / "pg")


def test_node_is_called_after_its_host(elsewhere: Path) -> None:
    assert load().node.name == os.uname().nodename


# -- wrong values ----------------------------------------------------------------------------------


def test_all_errors_are_shown_at_once(write: Write) -> None:
    path = write(
        'url = "x"\n'
        "[node]\n"
        'heartbeat_intervall = "5s"\n'
        'claim_interval = "soon"\n'
        "[databse]\n"
        "[logging]\n"
        'level = "loud"\n'
        "[[pool]]\n"
        "processes = 0\n"
    )

    lines = errors_of(path, WORKER_TIMEOUT="never").splitlines()

    assert lines[0] == f"7 settings are wrong ({path}):"
    assert [line.strip().split(" ")[0] for line in lines[1:]] == [
        f"{path}:1,",
        f"{path}:3,",
        f"{path}:4,",
        f"{path}:5,",
        f"{path}:7,",
        f"{path}:9,",
        "environment",
    ]


def test_error_names_place_rule_value_and_remedy(write: Write) -> None:
    path = write('\n[node]\nclaim_interval = "soon"\n')

    assert errors_of(path) == (
        f'{path}:3, [node] claim_interval = "soon" must be a duration: '
        'write "500ms", "30s", "1m" or "7d"'
    )


def test_bad_variable_is_named(elsewhere: Path) -> None:
    assert errors_of(WORKER_POOL_SIZE="many") == (
        'environment variable WORKER_POOL_SIZE = "many" must be a whole number from 1 to 250 or '
        '"auto": write it without quotes and without unit, such as 1'
    )


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ('[node]\nheartbeat_intervall = "5s"', "did you mean heartbeat_interval?"),
        ('[node]\ncleanup_interval = "5s"', "did you mean [leader] cleanup_interval?"),
        ("[loging]", "did you mean [logging]?"),
        ("[pools]", "did you mean [[pool]]?"),
        ('schema = "x"', "did you mean [database] schema?"),
        ("[web]\nxyz = 1", "there are bind"),
    ],
)
def test_unknown_keys_are_errors_with_a_proposal(write: Write, text: str, question: str) -> None:
    assert question in errors_of(write(text))


@pytest.mark.parametrize(
    ("variable", "question"),
    [
        ("ORCHESTRATOR__NODE__NAM", "did you mean ORCHESTRATOR__NODE__NAME?"),
        ("ORCHESTRATOR__node__name", "did you mean ORCHESTRATOR__NODE__NAME?"),
        ("ORCHESTRATOR__POOL__DEFAULTS__MODE", "did you mean ORCHESTRATOR__POOL__DEFAULT__MODE?"),
    ],
)
def test_unknown_variables_are_errors_with_a_proposal(
    elsewhere: Path, variable: str, question: str
) -> None:
    assert question in errors_of(**{variable: "x"})


def test_variables_of_our_processes_are_no_settings(elsewhere: Path) -> None:
    load(ORCHESTRATOR_RUN="x", ORCHESTRATOR_SLOTS_FD="3")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[pool]", "must be a list of pools: write [[pool]]"),
        ("[[node]]", "write [node], not [[node]]"),
        ("node = 1", "must be a section: write [node]"),
    ],
)
def test_wrong_brackets_are_answered_with_the_right_ones(
    write: Write, text: str, wrong: str
) -> None:
    assert wrong in errors_of(write(text))


@pytest.mark.parametrize(
    "text",
    [
        '[database]\nurl = "mysql://h/db"',
        '[database]\nurl = ""',
        '[database]\nurl = "localhost"',
        "[database]\nurl = 5",
        '[database]\nschema = "pg_own"',
        '[database]\nschema = "Mixed"',
        '[database]\nschema = "a b"',
        '[database]\nschema = ""',
        f'[database]\nschema = "{"x" * 49}"',
        '[database]\nconnect_timeout = "1s"',
        "[database]\nconnect_timeout = true",
        '[handlers]\nmodules = "one"',
        '[handlers]\nmodules = ["a b"]',
        '[handlers]\nmodules = ["a", "a"]',
        "[handlers]\nmodules = [1]",
        '[handlers]\nsetup = ["django"]',
        '[[pool]]\nname = "with_underscore"',
        '[[pool]]\nname = ""',
        "[[pool]]\nprocesses = 0",
        "[[pool]]\nprocesses = 251",
        "[[pool]]\nprocesses = true",
        "[[pool]]\nprocesses = 1.5",
        '[[pool]]\nprocesses = "2"',
        "[[pool]]\nqueues = []",
        '[[pool]]\nqueues = ["*", "mail"]',
        '[[pool]]\nqueues = ["has space"]',
        "[[pool]]\nqueues = {}",
        "[[pool]]\nqueues = { mail = 0 }",
        "[[pool]]\nqueues = { mail = 1001 }",
        "[[pool]]\nqueues = { mail = 1.5 }",
        "[[pool]]\nqueues = { mail = true }",
        '[[pool]]\nqueues = { "has space" = 1 }',
        '[[pool]]\nqueues = "mail"',
        '[[pool]]\nmode = "thread"',
        "[[pool]]\nconcurrency = 0",
        "[[pool]]\nconcurrency = 1001",
        "[[pool]]\ntimeout = 0",
        '[web]\nbind = "9090"',
        '[web]\nbind = "localhost"',
        '[web]\nbind = "127.0.0.1:70000"',
        '[web]\nbind = "::1:9090"',
        '[node]\nname = "two words"',
        '[node]\ndistributed = "true"',
        "[node]\nclaim_interval = 0",
        "[node]\nclaim_interval = -1",
        "[node]\nclaim_interval = inf",
        "[node]\nclaim_interval = nan",
        '[node]\ngraceful_timeout = "4000d"',
        '[node]\nstate_directory = ""',
        '[logging]\nlevel = "INFO"',
        '[logging]\nformat = "xml"',
        "[defaults]\nmax_attempts = 0",
        "[defaults]\nmax_attempts = 32768",
        '[defaults]\ntimeout = "never"',
    ],
)
def test_value_outside_its_rule_is_refused_at_its_place(write: Write, text: str) -> None:
    path = write(text)
    section, key = text.splitlines()[0], text.splitlines()[1].split(" ")[0]

    message = errors_of(path)

    assert message.startswith(f"{path}:2, {section}")
    assert f" {key} = " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "url",
    [
        "embedded",
        "postgresql://user:pw@host:5432/db?sslmode=require",
        "postgresql+psycopg2://host/db",
        "postgres:///db?host=/run/postgresql",
        "host=/run/postgresql dbname=tasks",
    ],
)
def test_every_spelling_of_a_postgresql_address_is_taken(elsewhere: Path, url: str) -> None:
    assert load(DATABASE_URL=url).database.url == url


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("[::1]:0", ("::1", 0)),
        (":80", ("", 80)),
        ("localhost:9090", ("localhost", 9090)),
        ("", None),
        ("off", None),
    ],
)
def test_bind_is_split_into_host_and_port(
    write: Write, bind: str, address: tuple[str, int] | None
) -> None:
    assert load(write(f'[web]\nbind = "{bind}"')).web.address == address


@pytest.mark.parametrize(
    "text",
    [
        '[database]\nurl = "mysql://user:hunter2@h/db"',
        '[database]\nurl = "http password=hunter2"',
        "[database]\nurl = \"http password='hunter2 x'\"",
        '[database]\ndirect_url = "mysql://:hunter2@h/db"',
    ],
)
def test_passwords_never_stand_in_an_error(write: Write, text: str) -> None:
    message = errors_of(write(text))

    assert "***" in message
    assert "hunter2" not in message


# -- rules between settings ------------------------------------------------------------------------


def test_worker_timeout_must_leave_room_for_two_lost_beats(write: Write) -> None:
    path = write('[node]\nheartbeat_interval = "2s"\nworker_timeout = "5s"\nkill_grace = "1s"\n')

    assert errors_of(path) == (
        f"{path}:3: [node] worker_timeout = 5s must be at least 3 x heartbeat_interval "
        "(2s): raise it to 6s, or beat faster"
    )


def test_rule_between_settings_counts_defaults_and_names_the_variable(elsewhere: Path) -> None:
    message = errors_of(HEARTBEAT_INTERVAL="20s")

    assert message.startswith(
        "environment variable HEARTBEAT_INTERVAL: [node] worker_timeout = 30s must be at least"
    )


def test_worker_timeout_of_exactly_three_beats_is_enough(write: Write) -> None:
    path = write(
        '[node]\nheartbeat_interval = "100ms"\nworker_timeout = "300ms"\nkill_grace = "0s"\n'
    )

    assert load(path).node.worker_timeout == 0.3


def test_kill_grace_must_be_shorter_than_half_of_worker_timeout(write: Write) -> None:
    assert "kill_grace = 15s must be shorter" in errors_of(write('[node]\nkill_grace = "15s"\n'))
    assert load(write('[node]\nkill_grace = "14s"\n')).node.kill_grace == 14.0


def test_processes_of_all_pools_fit_the_slots(write: Write) -> None:
    pools = '[[pool]]\nname = "a"\nprocesses = 150\n[[pool]]\nname = "b"\nprocesses = {}\n'

    assert "= 251 must be at most 250 together" in errors_of(write(pools.format(101)))
    assert load(write(pools.format(100))).pools[1].processes == 100


def test_list_of_queues_is_an_order_without_weights(write: Write) -> None:
    pool = load(write('[[pool]]\nqueues = ["b", "a", "*"]\n')).pools[0]

    assert (pool.queues, pool.weights) == (("b", "a", "*"), ())


def test_table_of_queues_gives_each_its_weight(write: Write) -> None:
    pool = load(write('[[pool]]\nqueues = { "*" = 1, "mail:bulk" = 3 }\n')).pools[0]

    assert (pool.queues, pool.weights) == (("*", "mail:bulk"), (1, 3))


def test_weights_of_the_environment_replace_the_order_of_the_file(write: Write) -> None:
    path = write('[[pool]]\nqueues = ["a", "b"]\n')

    pool = load(path, ORCHESTRATOR__POOL__DEFAULT__QUEUES="a=3, b = 1,*=2").pools[0]

    assert (pool.queues, pool.weights) == (("a", "b", "*"), (3, 1, 2))


def test_order_of_the_environment_replaces_the_weights_of_the_file(write: Write) -> None:
    path = write("[[pool]]\nqueues = { a = 3, b = 1 }\n")

    pool = load(path, ORCHESTRATOR__POOL__DEFAULT__QUEUES="b,a").pools[0]

    assert (pool.queues, pool.weights) == (("b", "a"), ())


@pytest.mark.parametrize("text", ["a=3,b", "a=3,a=1", "a=x", "=3", "a=3=4"])
def test_weights_that_are_none_are_refused(elsewhere: Path, text: str) -> None:
    message = errors_of(ORCHESTRATOR__POOL__DEFAULT__QUEUES=text)

    assert message.startswith("environment variable ORCHESTRATOR__POOL__DEFAULT__QUEUES = ")


def test_weights_are_no_key_of_their_own(write: Write) -> None:
    assert "is no key of this section" in errors_of(write("[[pool]]\nweights = [1]\n"))


def test_process_runs_one_task_and_an_async_one_a_hundred(write: Write) -> None:
    modes = '[[pool]]\nname = "a"\n[[pool]]\nname = "b"\nmode = "async"\n'
    given = '[[pool]]\nname = "c"\nmode = "async"\nconcurrency = 7\n'

    settings = load(write(modes + given))

    assert [pool.concurrency for pool in settings.pools] == [1, 100, 7]


def test_concurrency_is_refused_where_a_process_runs_one_task(write: Write) -> None:
    path = write("[[pool]]\nconcurrency = 5\n")

    assert errors_of(path) == (
        f'{path}:2: [[pool]] concurrency of pool "default" must not be given with mode = "process",'
        " which runs one task per process: remove it and raise processes, or set mode = "
        '"async"'
    )


def test_tasks_that_run_at_once_in_async_pools_are_bounded_together(write: Write) -> None:
    pools = (
        '[[pool]]\nname = "a"\nmode = "async"\nprocesses = 10\nconcurrency = 1000\n'
        '[[pool]]\nname = "b"\nmode = "async"\nprocesses = {}\nconcurrency = 1000\n'
        '[[pool]]\nname = "c"\nprocesses = 100\n'
    )

    assert "= 21000 must be at most 20000 together" in errors_of(write(pools.format(11)))
    assert load(write(pools.format(10))).pools[1].concurrency == 1000


def test_pool_names_are_unique(write: Write) -> None:
    path = write("[[pool]]\nprocesses = 1\n[[pool]]\nprocesses = 1\n")

    assert 'name = "default" must be given to one pool only' in errors_of(path)


def test_several_nodes_cannot_share_an_embedded_server(write: Write) -> None:
    path = write("[node]\ndistributed = true\n")

    assert "needs a server that all nodes reach" in errors_of(path)
    assert load(path, DATABASE_URL="postgresql://h/db").node.distributed


def test_direct_url_has_no_meaning_beside_an_embedded_server(write: Write) -> None:
    path = write('[database]\ndirect_url = "postgresql://h/db"\n')

    assert "must not be given with url" in errors_of(path)


def test_backoff_base_must_not_exceed_its_cap(write: Write) -> None:
    assert "backoff_base = 2h must not exceed" in errors_of(write('[defaults]\nbackoff_base="2h"'))


def test_broken_value_is_not_reported_twice_by_a_rule_it_is_part_of(write: Write) -> None:
    path = write('[node]\nworker_timeout = "5s"\nheartbeat_interval = "x"\nkill_grace = "y"\n')

    lines = errors_of(path).splitlines()[1:]

    assert len(lines) == 2


# -- what others are given -------------------------------------------------------------------------


def test_settings_reach_a_child_unchanged(write: Write) -> None:
    path = write(
        '[[pool]]\nname = "a"\n[[pool]]\nname = "b"\ntimeout = "none"\n'
        '[[pool]]\nname = "c"\ntimeout = "1m"\nmode = "async"\nconcurrency = 5\n'
        'queues = { a = 2, "*" = 1 }\n[defaults]\ntimeout = "none"\n'
    )
    settings = load(path, DATABASE_URL="postgresql://h/db")

    arrived = config.decode(config.encode(settings))

    assert arrived == settings


def test_defaults_become_the_policy_of_attempts(write: Write) -> None:
    path = write(
        "[defaults]\nmax_attempts = 4\nbackoff_base = 1\nbackoff_cap = 2\ntimeout = 3\n"
        "max_crashes = 5\nmax_losses = 6\n"
    )

    assert load(path).defaults.policy() == Policy(
        max_attempts=4,
        backoff_base=1.0,
        backoff_cap=2.0,
        timeout=3.0,
        max_crashes=5,
        max_losses=6,
    )


@pytest.mark.parametrize(
    ("line", "timeout"), [("", 3600.0), ('timeout = "5s"', 5.0), ('timeout = "none"', None)]
)
def test_timeout_of_the_pool_outranks_the_default(
    write: Write, line: str, timeout: float | None
) -> None:
    settings = load(write(f"[[pool]]\n{line}\n"))

    assert settings.pools[0].policy(settings.defaults.policy()).timeout == timeout


def test_lock_holding_sessions_go_past_the_pooler() -> None:
    pooled = config.DatabaseSettings(url="postgresql://pooler/db")
    both = config.DatabaseSettings(url="postgresql://pooler/db", direct_url="postgresql://pg/db")

    assert pooled.session_url == "postgresql://pooler/db"
    assert both.session_url == "postgresql://pg/db"


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [
        (0, {"XDG_STATE_HOME": "/x"}, "/var/lib/orchestratord"),
        (1000, {"XDG_STATE_HOME": "/x"}, "/x/orchestratord"),
        (1000, {"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/orchestratord"),
        (1000, {"HOME": "/h"}, "/h/.local/state/orchestratord"),
    ],
)
def test_state_lies_where_the_user_may_write(
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    environ: dict[str, str],
    expected: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)

    assert config.state_directory(config.Settings(), environ=environ) == Path(expected)
    assert config.load(environ=environ).node.state_directory == expected


def test_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Path, "home", no_home)

    with pytest.raises(ConfigError, match="state_directory is not set and user 1000 has no home"):
        config.state_directory(config.Settings(), environ={})
    assert config.load(environ={}).node.state_directory is None
