"""What ends up in the wheel: the list of packages and files in setup.cfg fits the folders."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(CHECKOUT / "setup.cfg", encoding="utf-8")


def test_every_package_is_listed() -> None:
    folders = {path.parent for path in (CHECKOUT / "orchestrator").rglob("*.py")}
    found = {".".join(folder.relative_to(CHECKOUT).parts) for folder in folders}

    assert set(SETUP["options"]["packages"].split()) == {*found, "orchestrator.schema"}


@pytest.mark.parametrize(
    ("folder", "package"), [("orchestrator", "orchestrator"), ("schema", "orchestrator.schema")]
)
def test_every_sql_file_is_shipped(folder: str, package: str) -> None:
    data = SETUP["options.package_data"]
    shipped: set[Path] = set()
    for name, patterns in data.items():
        base = CHECKOUT / ("schema" if name == "orchestrator.schema" else name.replace(".", "/"))
        for pattern in patterns.split():
            shipped.update(base.glob(pattern))

    missing = set((CHECKOUT / folder).rglob("*.sql")) - shipped

    assert not missing, f"[options.package_data] {package} lacks {sorted(missing)}"


def test_pytest_finds_the_plugin_of_the_installed_package() -> None:
    plugins = SETUP["options.entry_points"]["pytest11"].strip()

    name, _, module = plugins.partition(" = ")
    assert name == "orchestrator"
    assert (CHECKOUT / module.replace(".", "/")).with_suffix(".py").is_file()


def test_mark_of_a_typed_package_is_shipped() -> None:
    assert (CHECKOUT / "orchestrator/py.typed").is_file()
    assert "py.typed" in SETUP["options.package_data"]["orchestrator"].split()
