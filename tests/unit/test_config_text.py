"""What --print-config promises: every value with origin and unit, readable again, no secrets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from orchestrator import config, config_text
from orchestrator.config_rules import redacted

EVERY_KIND_OF_VALUE = """
[database]
url = "host=/run/pg dbname='a b'"
[handlers]
path = ["/srv/app", "/srv/lib"]
setup = ["django:setup"]
[[pool]]
name = "cpu"
processes = 3
queues = ["mail", "*"]
timeout = "none"
[[pool]]
name = "io"
processes = 2
mode = "async"
concurrency = 7
queues = { "mail:bulk" = 3, "*" = 1 }
timeout = 1.0005
[web]
bind = "off"
[node]
name = "näme-\\"quoted\\"\\\\"
distributed = true
claim_interval = 0.123456789
worker_timeout = "1h 1m 30s"
[defaults]
timeout = "none"
"""


@pytest.fixture
def settings(tmp_path: Path) -> config.Settings:
    path = tmp_path / "orchestrator.toml"
    path.write_text(EVERY_KIND_OF_VALUE, encoding="utf-8")
    return config.load(str(path), environ={"LEADER_TERM": "7s"})


def values_of(settings: config.Settings) -> config.Settings:
    """Return the same values without what tells where they come from."""
    return msgspec.structs.replace(
        settings, source="", files=(), origins={}, base_directory="", deprecated=()
    )


def read_back(text: str, folder: Path) -> config.Settings:
    path = folder / "printed.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(str(path), environ={})


def test_what_is_printed_reads_back_as_the_same_settings(
    settings: config.Settings, tmp_path: Path
) -> None:
    again = read_back(config_text.write(settings), tmp_path)

    assert values_of(again) == values_of(settings)


def test_shipped_file_reads_back_in_another_folder(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    settings = config.load(str(root / "conf/orchestrator.toml"), environ={})

    again = read_back(config_text.write(settings), tmp_path)

    assert again.handlers.path == (str(root),)
    assert values_of(again).pools == settings.pools


def test_every_key_is_printed_with_its_origin(settings: config.Settings) -> None:
    text = config_text.write(settings)

    for section, struct in config.SECTIONS.items():
        for key in config.rules(struct):
            assert re.search(rf"^(# )?{key} (=|is) .*# .+$", text, flags=re.MULTILINE), section


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("processes", "processes = 3 .*# processes; {path}:9"),
        ("term", 'term = "7s" .*# duration; environment variable LEADER_TERM'),
        ("schema", 'schema = "orchestrator" .*# default'),
        ("direct_url", "# direct_url is not set .*# default"),
        ("concurrency", "# concurrency is 1 .*# tasks; default"),
    ],
)
def test_line_tells_value_unit_and_origin(settings: config.Settings, key: str, line: str) -> None:
    pattern = line.format(path=re.escape(settings.source))

    assert re.search(rf"^{pattern}$", config_text.write(settings), flags=re.MULTILINE), key


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hunter2@h:5/db", "postgresql://u:***@h:5/db"),
        ("postgresql://u:hunter2@x@h/db", "postgresql://u:***@h/db"),
        ("postgresql://:hunter2@h/db", "postgresql://:***@h/db"),
        ("postgresql://u:hun/ter2@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u@h:5432/db", "postgresql://u@h:5432/db"),
        (
            "postgresql://h/db?user=u&password=hunter2&sslpassword=hunter2&x=1",
            "postgresql://h/db?user=u&password=***&sslpassword=***&x=1",
        ),
        ("host=h password=hunter2&a user=u", "host=h password=*** user=u"),
        ("host=h password = 'hunter2 \\' x' user=u", "host=h password = *** user=u"),
        (r"host=h password=hunter2\ x user=u", "host=h password=*** user=u"),
        ("host=h sslpassword=hunter2", "host=h sslpassword=***"),
        ("host=h PASSWORD='hunter2", "host=h PASSWORD=***"),
    ],
)
def test_password_is_hidden_in_every_spelling(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_no_password_is_printed_and_the_rest_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.toml"
    path.write_text('[database]\nurl = "postgresql://u:hunter2@h/db?password=hunter2"\n')
    environ = {"ORCHESTRATOR__DATABASE__DIRECT_URL": "host=d password='hunter2 x'"}

    text = config_text.write(config.load(str(path), environ=environ))

    assert "hunter2" not in text
    assert tomllib.loads(text)["database"] == {
        "url": "postgresql://u:***@h/db?password=***",
        "direct_url": "host=d password=***",
        "schema": "orchestrator",
        "connect_timeout": "5s",
    }
    assert read_back(text, tmp_path).database.direct_url == "host=d password=***"


def test_path_with_a_line_break_stays_a_comment(tmp_path: Path) -> None:
    folder = tmp_path / "a\n[web]\nbind = 5"
    folder.mkdir()
    (folder / "orchestrator.toml").write_text('[web]\nbind = "off"\n')
    settings = config.load(str(folder / "orchestrator.toml"), environ={})

    assert tomllib.loads(config_text.write(settings))["web"] == {"bind": "off"}
