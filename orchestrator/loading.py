"""Finds the user's handlers: `[handlers]` of the settings in, one mux out.

Run once per process that needs user code, before it forks. Everything that goes wrong here is
the user's to mend, so every message says what was looked for, where, and what was found instead.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.config import HandlersSettings
from orchestrator.errors import ConfigError
from orchestrator.mux import Mux

_DEFAULT_ATTRIBUTE = "mux"
_MAX_TRACEBACK_LINES = 12


def load(handlers: HandlersSettings, base_directory: str) -> Mux:
    """Import the modules of `[handlers]` and return a mux that has all of theirs mounted.

    Puts `path` at the front of `sys.path`, in its order, relative ones below `base_directory`;
    then calls the functions of `setup`; then imports `modules`.

    Raises:
        ConfigError: all that is wrong, one paragraph each. A failing `setup` ends it at once,
            since imports after it would only mislead.
    """
    _put_in_front(_directories(handlers.path, base_directory))
    for name in handlers.setup:
        _set_up(name)
    if not handlers.modules:
        raise ConfigError(
            "[handlers] modules is empty: name at least one module with a mux, such as "
            '"myapp.handlers"'
        )
    root = Mux()
    problems: list[str] = []
    mounted: list[Mux] = []
    for name in handlers.modules:
        try:
            mux = _mux_of(name)
        except ConfigError as error:
            problems.append(str(error))
            continue
        # One mux may be reachable under two names; mounted twice it would collide with itself.
        if mux not in mounted:
            mounted.append(mux)
            root.mount(mux)
    try:
        root.check()
    except ConfigError as error:
        problems.append(f"[handlers] modules: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return root


def _directories(paths: tuple[str, ...], base_directory: str) -> list[str]:
    found = []
    for path in paths:
        directory = Path(base_directory, path).resolve()
        # A zip file with modules is fine too.
        if not directory.exists():
            raise ConfigError(
                f'[handlers] path "{path}" is {directory}, which does not exist: correct it '
                f"(relative paths start from {Path(base_directory).resolve()})"
            )
        found.append(str(directory))
    return found


def _put_in_front(directories: list[str]) -> None:
    rest = [entry for entry in sys.path if entry not in directories]
    sys.path[:] = [*directories, *rest]
    importlib.invalidate_caches()


def _set_up(name: str) -> None:
    place = f'[handlers] setup "{name}"'
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f'{place}: must be "package.module:function"')
    function = _attribute(_imported(module_name, place), attribute, place)
    if not callable(function):
        raise ConfigError(f"{place}: is {type(function).__name__}, not a function")
    with _explained(f"{place}: raised"):
        function()


def _mux_of(name: str) -> Mux:
    place = f'[handlers] modules "{name}"'
    module_name, _, attribute = name.partition(":")
    module = _imported(module_name, place)
    if not attribute and not hasattr(module, _DEFAULT_ATTRIBUTE):
        raise ConfigError(
            f"{place}: the module has no `{_DEFAULT_ATTRIBUTE}`{_other_muxes(module)}"
        )
    found = _attribute(module, attribute or _DEFAULT_ATTRIBUTE, place)
    if not isinstance(found, Mux):
        raise ConfigError(
            f"{place}: `{attribute or _DEFAULT_ATTRIBUTE}` is of type {type(found).__name__}, not "
            f"a Mux{_other_muxes(module)}"
        )
    return found


def _other_muxes(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Mux)]
    if not names:
        return f": write `{_DEFAULT_ATTRIBUTE} = Mux()` in {module.__file__} and register on it"
    return f', but a Mux called `{names[0]}`: write "{module.__name__}:{names[0]}"'


def _attribute(module: ModuleType, attribute: str, place: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(
                f"{place}: {module.__name__} ({module.__file__}) has no `{attribute}`"
            ) from None
    return found


def _imported(module_name: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Otherwise the module was found, and something that it imports was not.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(_told(f"{place}: its import failed", error)) from error
        searched = ", ".join(entry or os.getcwd() for entry in sys.path)
        raise ConfigError(
            f'{place}: there is no module "{error.name}" in {searched}: '
            "correct the name, or add its folder to [handlers] path"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(_told(f"{place}: its import failed", error)) from error


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ConfigError(_told(what, error)) from error


def _told(what: str, error: BaseException) -> str:
    """Return `what`, and the end of the traceback without the frames of import machinery."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        frame
        for frame in frames
        if frame.filename != __file__
        and not frame.filename.startswith("<frozen importlib")
        and frame.filename != importlib.__file__
    ]
    lines = [
        *"".join(traceback.format_list(theirs)).splitlines(),
        *"".join(traceback.format_exception_only(error)).splitlines(),
    ]
    shown = lines[-_MAX_TRACEBACK_LINES:]
    return "\n".join([f"{what}:", *(f"    {line}" for line in shown)])
