"""The SQL files of `store/sql/` and `schema/`: finding and reading them.

A statement lies in a file of its own, named after its verb, and writes the schema as
`{schema}`, so that it also works on a caller's connection with any search_path.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

PACKAGE_DIRECTORY = Path(__file__).resolve().parent.parent


def quoted(identifier: str) -> str:
    """Quote an SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


@cache
def statement(name: str, schema: str) -> str:
    """Return the text of `store/sql/<name>.sql` for one schema."""
    path = PACKAGE_DIRECTORY / "store" / "sql" / f"{name}.sql"
    return path.read_text(encoding="utf-8").replace("{schema}", quoted(schema))


@cache
def schema_directory() -> Path:
    """Return the folder with the schema's SQL: in the package (wheel) or beside it (checkout).

    Raises:
        FileNotFoundError: it is in neither place.
    """
    inside, beside = PACKAGE_DIRECTORY / "schema", PACKAGE_DIRECTORY.parent / "schema"
    for directory in (inside, beside):
        if (directory / "10_tasks.sql").is_file():
            return directory
    raise FileNotFoundError(f"no schema files in {inside} nor in {beside}: reinstall the package")
