"""The structs, conf/orchestrator.toml and docs/configuration.md say the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from orchestrator import config, config_text

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf/orchestrator.toml"
PAGE = ROOT / "docs/configuration.md"

KEYS = [
    (section, key) for section, struct in config.SECTIONS.items() for key in config.rules(struct)
]


def default_of(section: str, key: str) -> Any:
    if key == "concurrency":
        # Only async pools have a choice.
        return config.PoolSettings(mode="async").concurrency
    return getattr(config.SECTIONS[section](), key)


def is_unset(section: str, key: str) -> bool:
    # A default of None means "not set", except where the word "none" can be written.
    return default_of(section, key) in (None, config.msgspec.UNSET)


def checked(section: str, key: str, spelled: str) -> Any:
    """Read a value as the file would have it, through the rule of its key."""
    return config.rules(config.SECTIONS[section])[key].check(tomllib.loads(f"x = {spelled}")["x"])


def sections_of(text: str, header: str) -> dict[str, str]:
    """Cut a document at its section headers."""
    parts = re.split(header, text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


CONF_SECTIONS = sections_of(CONF.read_text(encoding="utf-8"), r"^\[+(\w+)\]+$")
PAGE_SECTIONS = sections_of(PAGE.read_text(encoding="utf-8"), r"^### `\[+(\w+)\]+`$")


def conf_entry(section: str, key: str) -> tuple[str, str, str]:
    """Return comment, "#" if the key is commented out, and value of a key of the file."""
    found = re.search(
        rf"((?:^#.*\n)+)^(# |){key} = (.*)$", CONF_SECTIONS[section], flags=re.MULTILINE
    )
    assert found, f"conf/orchestrator.toml has no commented [{section}] {key}"
    comment = re.sub(r"^# ?", "", found[1], flags=re.MULTILINE)
    return " ".join(comment.split()), found[2], found[3]


def page_row(section: str, key: str) -> list[str]:
    """Return default, environment and meaning of a row of the page."""
    found = re.search(rf"^\| `{key}` \|(.*)\|$", PAGE_SECTIONS[section], flags=re.MULTILINE)
    assert found, f"docs/configuration.md has no row for [{section}] {key}"
    return [cell.strip() for cell in found[1].split("|")]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_file_states_the_default_of_each_key(section: str, key: str) -> None:
    comment, _, _ = conf_entry(section, key)

    stated = re.search(r"Default: (not set|\[.*?\]|\".*?\"|[^ ]+?)(?=[. ]|$)", comment)

    assert stated, comment
    if is_unset(section, key):
        assert stated[1] == "not set"
    else:
        assert checked(section, key, stated[1]) == default_of(section, key)


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_file_sets_each_key_to_its_default(section: str, key: str) -> None:
    _, commented_out, value = conf_entry(section, key)

    # Beside the default mode, concurrency must not be given.
    assert bool(commented_out) == (is_unset(section, key) or key == "concurrency")
    if (section, key) == ("pool", "processes"):
        assert value == '"auto"'
    elif not commented_out:
        assert checked(section, key, value) == default_of(section, key)
    else:
        checked(section, key, value)


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_page_states_the_default_of_each_key(section: str, key: str) -> None:
    default, _, _ = page_row(section, key)

    if is_unset(section, key):
        assert default == "not set"
    else:
        assert checked(section, key, default.strip("`")) == default_of(section, key)


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_short_variables_are_stated_where_they_act(section: str, key: str) -> None:
    path = f"{section}.0.{key}" if section == "pool" else f"{section}.{key}"
    variables = {name for name, target in config.SHORT_VARIABLES.items() if target == path}

    in_file = re.search(r"Environment: (\w+)", conf_entry(section, key)[0])
    on_page = re.search(r"`(\w+)`", page_row(section, key)[1])

    assert ({in_file[1]} if in_file else set()) == variables
    assert ({on_page[1]} if on_page else set()) == variables


def test_nothing_is_documented_that_does_not_exist() -> None:
    known = {f"{section}.{key}" for section, key in KEYS}
    in_file = {
        f"{section}.{key}"
        for section, text in CONF_SECTIONS.items()
        for key in re.findall(r"^(?:# )?(\w+) = ", text, flags=re.MULTILINE)
    }
    on_page = {
        f"{section}.{key}"
        for section, text in PAGE_SECTIONS.items()
        for key in re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    }

    assert in_file == known
    assert on_page == known


def test_shipped_file_is_right() -> None:
    settings = config.load(str(CONF), environ={})

    assert settings.database.is_embedded
    assert settings.handlers.modules == ("orchestrator.builtin",)
    assert settings.base_directory == str(ROOT)


def test_session_on_the_page_is_what_is_really_printed(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('[node]\nheartbeat_intervall = "2s"\nworker_timeout = "5s"\nkill_grace = "1s"\n')
    with pytest.raises(config.ConfigError) as caught:
        config.load(str(bad), environ={})
    session = PAGE.read_text(encoding="utf-8").split("```")[1]

    printed = "orchestratord: " + str(caught.value).replace(str(bad), "bad.toml")

    assert session.split("\n", 2)[2].strip() == printed


def test_printed_settings_on_the_page_are_what_is_really_printed(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "orchestrator.toml").touch()
    secret = '[database]\nurl = "postgresql://app:secret@db/app"\n'
    (tmp_path / "conf.d/database.toml").write_text(secret)
    settings = config.load(str(tmp_path / "orchestrator.toml"), environ={"WORKER_POOL_SIZE": "4"})
    shown = PAGE.read_text(encoding="utf-8").partition("--print-config\n")[2].partition("```")[0]

    printed = config_text.write(settings).replace(str(tmp_path), "/srv/app")

    for passage in shown.split("...\n"):
        # Columns are as wide as the longest path.
        assert "".join(passage.split()) in "".join(printed.split())
