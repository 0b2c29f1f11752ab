"""What a renamed or retired key promises: it still works, or is ignored, and everybody is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator import config
from orchestrator.cli import daemon
from orchestrator.config_reader import Deprecation, spelled
from orchestrator.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs/configuration.md"


@pytest.fixture(autouse=True)
def old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some keys that never were."""
    monkeypatch.setitem(config.DEPRECATED, "node.beat", Deprecation("leader.term", "0.9"))
    monkeypatch.setitem(config.DEPRECATED, "pool.lanes", Deprecation("pool.queues", "0.9"))
    monkeypatch.setitem(config.DEPRECATED, "web.theme", Deprecation(None, "1.0"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "orchestrator.toml"


def load(file: Path, **environ: str) -> config.Settings:
    return config.load(str(file), environ=environ)


def errors_of(file: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, **environ)
    return str(caught.value)


def test_renamed_key_still_works_and_warns_once(file: Path) -> None:
    file.write_text('[node]\nbeat = "7s"\n')

    settings = load(file)

    assert settings.leader.term == 7.0
    assert settings.origin("leader.term") == f"{file}:2"
    assert [str(deprecated) for deprecated in settings.deprecated] == [
        f"{file}:2: [node] beat is deprecated and will be an error in 0.9: "
        "write [leader] term instead"
    ]


def test_retired_key_is_ignored_with_a_warning(file: Path) -> None:
    file.write_text('[web]\ntheme = "dark"\n')

    settings = load(file)

    assert [str(deprecated) for deprecated in settings.deprecated] == [
        f"{file}:2: [web] theme is deprecated and will be an error in 1.0: "
        "it has no effect, remove it"
    ]


def test_renamed_key_of_a_pool_acts_on_its_pool(file: Path) -> None:
    file.write_text('[[pool]]\nname = "a"\n[[pool]]\nname = "b"\nlanes = ["x"]\n')

    settings = load(file)

    assert [pool.queues for pool in settings.pools] == [("*",), ("x",)]
    assert settings.deprecated[0].old == "[[pool]] lanes"


def test_old_variable_still_works(file: Path) -> None:
    file.touch()

    settings = load(file, ORCHESTRATOR__NODE__BEAT="7", ORCHESTRATOR__POOL__DEFAULT__LANES="b,a")

    assert (settings.leader.term, settings.pools[0].queues) == (7.0, ("b", "a"))
    assert {deprecated.place for deprecated in settings.deprecated} == {
        "environment variable ORCHESTRATOR__NODE__BEAT",
        "environment variable ORCHESTRATOR__POOL__DEFAULT__LANES",
    }


def test_old_name_in_a_later_layer_outranks_the_new_one(file: Path) -> None:
    file.write_text('[leader]\nterm = "5s"\n')

    assert load(file, ORCHESTRATOR__NODE__BEAT="7").leader.term == 7.0


@pytest.mark.parametrize(
    "text",
    [
        '[node]\nbeat = "7s"\n[leader]\nterm = "7s"\n',
        '[leader]\nterm = "7s"\n[node]\nbeat = "7s"\n',
    ],
)
def test_both_names_in_one_file_are_an_error(file: Path, text: str) -> None:
    file.write_text(text)

    assert "[node] beat is the old name of [leader] term, and both are given" in errors_of(file)


def test_value_of_a_renamed_key_obeys_the_rule_of_the_new_one(file: Path) -> None:
    file.write_text('[node]\nbeat = "soon"\n')

    assert errors_of(file).startswith(f'{file}:2, [node] beat = "soon" must be a duration')


def test_check_config_prints_the_warning_and_succeeds(file: Path) -> None:
    file.write_text('[node]\nbeat = "7s"\n')

    result = CliRunner().invoke(daemon.main, ["-c", str(file), "--check-config"])

    assert (result.exit_code, result.stdout) == (0, f"ok: {file}\n")
    assert result.stderr.startswith(f"orchestratord: warning: {file}:2: [node] beat is deprecated")


def test_warnings_reach_the_supervisor(file: Path) -> None:
    file.write_text('[node]\nbeat = "7s"\n')

    assert config.decode(config.encode(load(file))).deprecated[0].now == "[leader] term"


def test_page_lists_exactly_the_deprecated_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    _, found, section = PAGE.read_text(encoding="utf-8").partition("\n## Deprecated\n")
    section = section.partition("\n## ")[0]

    rows = re.findall(r"^\| `(\[+\w+\]+ \w+)` \|", section, flags=re.MULTILINE)

    assert found
    assert rows == [spelled(old) for old in config.DEPRECATED]
