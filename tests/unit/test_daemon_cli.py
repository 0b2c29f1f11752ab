"""The command line of orchestratord: what it checks and how it exits."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import orchestrator
from orchestrator.cli import daemon
from orchestrator.config import Settings
from orchestrator.errors import ConfigError

ROOT = Path(__file__).parents[2]


class Supervisor:
    """Stands in the supervisor's place and keeps what it was started with."""

    def __init__(self) -> None:
        self.started: list[Settings] = []
        self.answer: int | Exception = 0

    def run(self, settings: Settings) -> int:
        self.started.append(settings)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    stand_in = Supervisor()
    module = types.ModuleType("orchestrator.processes.supervisor")
    module.run = stand_in.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.toml"
    path.write_text('[node]\nname = "here"\n')
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.toml"
    path.write_text('[node]\nnam = "here"\n[web]\nbind = "x"\n')
    return str(path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(daemon.main, arguments)


def test_settings_are_handed_to_the_supervisor(supervisor: Supervisor, good: str) -> None:
    result = invoke("-c", good)

    assert result.exit_code == 0
    assert [settings.node.name for settings in supervisor.started] == ["here"]


@pytest.mark.parametrize("code", [0, 70, 75])
def test_exit_code_is_that_of_the_supervisor(supervisor: Supervisor, good: str, code: int) -> None:
    supervisor.answer = code

    assert invoke("-c", good).exit_code == code


def test_configuration_error_of_the_supervisor_exits_78(supervisor: Supervisor, good: str) -> None:
    supervisor.answer = ConfigError("[handlers] modules = ...: no such module")

    result = invoke("-c", good)

    assert result.exit_code == 78
    assert result.stderr == "orchestratord: [handlers] modules = ...: no such module\n"


def test_unexpected_error_exits_1_with_its_traceback(supervisor: Supervisor, good: str) -> None:
    supervisor.answer = RuntimeError("a defect")

    result = invoke("-c", good)

    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_bad_settings_exit_78_before_anything_starts(supervisor: Supervisor, bad: str) -> None:
    result = invoke("-c", bad)

    assert result.exit_code == 78
    assert result.stderr.startswith("orchestratord: 2 settings are wrong")
    assert supervisor.started == []


def test_check_config_says_ok_and_starts_nothing(supervisor: Supervisor, good: str) -> None:
    result = invoke("--check-config", "-c", good)

    assert (result.exit_code, result.output) == (0, f"ok: {good}\n")
    assert supervisor.started == []


def test_check_config_prints_all_errors_and_exits_78(bad: str) -> None:
    result = invoke("--check-config", "-c", bad)

    assert result.exit_code == 78
    assert result.stdout == ""
    assert "did you mean name?" in result.stderr
    assert '[web] bind = "x"' in result.stderr


def test_check_config_works_on_any_system(monkeypatch: pytest.MonkeyPatch, good: str) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert invoke("--check-config", "-c", good).exit_code == 0


def test_check_config_without_a_file_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    assert invoke("--check-config").output.startswith("ok: no configuration file")


def test_version_is_printed() -> None:
    assert invoke("--version").output == f"orchestratord {orchestrator.__version__}\n"


def test_wrong_use_exits_2() -> None:
    assert invoke("--no-such-flag").exit_code == 2
    assert invoke("unexpected").exit_code == 2


def test_other_systems_are_refused(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, good: str
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    result = invoke("-c", good)

    assert result.exit_code == 78
    assert "needs Linux >= 5.4" in result.stderr
    assert "this is darwin" in result.stderr
    assert supervisor.started == []


def refuse(*_: object) -> int:
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("call", ["pidfd_open", "waitid"])
def test_old_kernels_are_refused(
    monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor, good: str, call: str
) -> None:
    monkeypatch.setattr(os, call, refuse)

    result = invoke("-c", good)

    assert result.exit_code == 78
    assert f"this is Linux {os.uname().release}" in result.stderr
    assert supervisor.started == []


@pytest.mark.parametrize("name", ["pidfd_open", "P_PIDFD"])
def test_python_built_for_an_older_system_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(os, name)

    with pytest.raises(ConfigError, match="this Python was built for an older system"):
        daemon.check_host()


def test_this_system_is_accepted_and_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")

    daemon.check_host()

    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_errors_are_printed_without_a_traceback(bad: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.daemon", "--check-config", "-c", bad],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )

    assert done.returncode == 78
    assert "Traceback" not in done.stderr


def test_every_exit_code_is_named_in_one_place() -> None:
    block = daemon.__doc__ or ""

    assert [line.split()[0] for line in block.splitlines() if line.startswith("    ") and
            line.split()[0].isdigit()] == ["0", "1", "2", "70", "75", "78"]  # fmt: skip
