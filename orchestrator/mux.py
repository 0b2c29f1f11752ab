"""The routing table: which function runs a task type, wrapped in what, with which options.

A mux collects at import and judges at start: `check` (called by `loading`) finds every duplicate,
payload type and middleware that cannot work and reports them all. Running the routes is
`runner`'s; the options as plain numbers, for processes without user code, are `options`'.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar, overload

import msgspec

from orchestrator.context import Context
from orchestrator.errors import ConfigError, PayloadError
from orchestrator.options import UNSET, HandlerOptions, Policy, Unset, match
from orchestrator.payload import decode
from orchestrator.retry import Retry
from orchestrator.tasktype import TaskType, check_seconds

Handler = Callable[[Context[Any], Any], Any]
Middleware = Callable[[Handler], Handler]
F = TypeVar("F", bound=Handler)
G = TypeVar("G", bound=Callable[[], Iterator[Any]])
M = TypeVar("M", bound=Middleware)
P = TypeVar("P")
R = TypeVar("R")
S = TypeVar("S")

_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,199}")
# Names of types come from clients; a mistake of theirs must not fill a worker's memory.
_MAX_REMEMBERED = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Route:
    """One pattern and all that is needed to run a task of it.

    `function` is the handler as registered, `call` the same inside its middleware. `decode`
    turns JSON text into the payload. `mux` is the one whose lifespan yields `ctx.state`, None
    where no enclosing mux has one. `place` is for people: "module.function (file:line)".
    """

    pattern: str
    function: Handler
    call: Handler
    decode: Callable[[str], Any]
    options: HandlerOptions
    is_async: bool
    mux: Mux | None
    place: str


@dataclass(frozen=True, kw_only=True)
class _Entry:
    type: TaskType[Any, Any] | str
    function: Handler
    options: HandlerOptions
    place: str


class Registration(Protocol[P, R]):
    """What `Mux.handler` returns for a TaskType: takes functions that fit it, and only those.

    It returns the function unchanged; type checkers see its positional parameters and its result.
    """

    @overload
    def __call__(
        self, function: Callable[[Context[S], P], Coroutine[Any, Any, R]], /
    ) -> Callable[[Context[S], P], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, function: Callable[[Context[S], P], R], /
    ) -> Callable[[Context[S], P], R]: ...


class Mux:
    """Routes task types to handlers.

    A type is served by the handler registered under exactly its name, else by the longest
    pattern that ends in ":" and begins it.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._middleware: list[Middleware] = []
        self._mounted: list[Mux] = []
        self._parents: list[Mux] = []
        self._lifespan: Callable[[], Iterator[Any]] | None = None
        self._routes: dict[str, Route] | None = None
        self._resolved: dict[str, Route | None] = {}

    @overload
    def handler(
        self,
        type: TaskType[P, R],
        *,
        retry: Retry | None = None,
        timeout: str | float | timedelta | Unset | None = UNSET,
        max_crashes: int | None = None,
    ) -> Registration[P, R]: ...
    @overload
    def handler(
        self,
        type: str,
        *,
        retry: Retry | None = None,
        timeout: str | float | timedelta | Unset | None = UNSET,
        max_crashes: int | None = None,
    ) -> Callable[[F], F]: ...
    def handler(
        self,
        type: TaskType[Any, Any] | str,
        *,
        retry: Retry | None = None,
        timeout: str | float | timedelta | Unset | None = UNSET,
        max_crashes: int | None = None,
    ) -> Any:
        """Register the decorated function, `(ctx, payload) -> result`; it is returned unchanged.

        `timeout` counts per attempt, None means no limit. `max_crashes` is how often the task
        may kill its process before it is dead. What is not given is decided by `[defaults]`;
        a `Retry` that is given decides about all of its numbers.

        Raises:
            ConfigError: the pattern or an option breaks its rule, or the pattern is taken.
        """

        if callable(type):
            raise ConfigError(
                f"{_place(type)}: Mux.handler needs the task type, in parentheses: "
                '@mux.handler("email:send")'
            )

        def register(function: F) -> F:
            self.handle(type, function, retry=retry, timeout=timeout, max_crashes=max_crashes)
            return function

        return register

    @overload
    def handle(
        self,
        type: TaskType[P, R],
        function: Callable[[Context[Any], P], R | Awaitable[R]],
        *,
        retry: Retry | None = None,
        timeout: str | float | timedelta | Unset | None = UNSET,
        max_crashes: int | None = None,
    ) -> None: ...
    @overload
    def handle(
        self,
        type: str,
        function: Handler,
        *,
        retry: Retry | None = None,
        timeout: str | float | timedelta | Unset | None = UNSET,
        max_crashes: int | None = None,
    ) -> None: ...
    def handle(
        self,
        type: TaskType[Any, Any] | str,
        function: Handler,
        *,
        retry: Retry | None = None,
        timeout: str | float | timedelta | Unset | None = UNSET,
        max_crashes: int | None = None,
    ) -> None:
        """Register a function; see `handler`."""
        place = _place(function)
        pattern = type.name if isinstance(type, TaskType) else type
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
            raise ConfigError(
                f"{place}: task type pattern {pattern!r} must be 1 to 200 of the characters "
                "A-Z a-z 0-9 _ . : / - and begin with a letter or digit; with ':' at its end it "
                "serves every type that it begins"
            )
        taken = self._entries.get(pattern)
        if taken is not None:
            raise ConfigError(_duplicate(pattern, taken.place, place))
        _check_handler(function, place)
        self._entries[pattern] = _Entry(
            type=type,
            function=function,
            options=_options(place, retry=retry, timeout=timeout, max_crashes=max_crashes),
            place=place,
        )
        self._forget()

    def use(self, middleware: M) -> M:
        """Wrap all handlers of this mux and of those mounted in it, `(next) -> handler`.

        The first added is the outermost. It is called once per handler at start and sees the
        decoded payload of every task; for an `async def` handler it must return an async
        function, for a `def` handler a plain one.
        """
        if not callable(middleware):
            raise ConfigError(f"Mux.use({middleware!r}): must be a function (next) -> handler")
        self._middleware.append(middleware)
        self._forget()
        return middleware

    def mount(self, mux: Mux) -> None:
        """Serve the routes of another mux too; its middleware stays inside, round its own.

        Raises:
            ConfigError: the mux would contain itself.
        """
        if not isinstance(mux, Mux):
            raise ConfigError(f"Mux.mount({mux!r}): must be a Mux")
        if self in mux._tree():
            raise ConfigError("Mux.mount: the mux would contain itself")
        self._mounted.append(mux)
        mux._parents.append(self)
        self._forget()

    def lifespan(self, function: G) -> G:
        """Register the generator function that opens what the handlers of this mux share.

        It runs in each worker after the fork, before the first task; what it yields is
        `ctx.state`; the part after the yield runs when the worker ends. Raising before the
        yield keeps the worker from starting. Handlers of a mounted mux get the state of the
        nearest mux round them that has a lifespan. One per mux.

        Raises:
            ConfigError: not a generator function, or the mux has one already.
        """
        place = _place(function)
        is_generator: bool = inspect.isgeneratorfunction(function)
        if not is_generator:
            raise ConfigError(
                f"{place}: a lifespan must be a generator function: open, `yield` the state, close"
            )
        if self._lifespan is not None:
            raise ConfigError(
                f"{place}: the mux has a lifespan already, {_place(self._lifespan)}: put both into "
                "one, or into muxes of their own"
            )
        self._lifespan = function
        self._forget()
        return function

    def check(self) -> None:
        """Judge everything that was registered.

        Raises:
            ConfigError: all that is wrong, one line each.
        """
        if self._routes is None:
            self._routes = self._compiled()

    def resolve(self, type: str) -> Route | None:
        """Return the route that serves a task type, None when there is none.

        Raises:
            ConfigError: as `check`.
        """
        try:
            return self._resolved[type]
        except KeyError:
            pass
        routes = self.routes()
        pattern = match(routes, type)
        route = None if pattern is None else routes[pattern]
        if len(self._resolved) >= _MAX_REMEMBERED:
            self._resolved.clear()
        self._resolved[type] = route
        return route

    def routes(self) -> Mapping[str, Route]:
        """Return all routes by pattern, in the order of registration, mounted ones last.

        Raises:
            ConfigError: as `check`.
        """
        self.check()
        assert self._routes is not None
        return self._routes

    def patterns(self) -> list[str]:
        """Return the patterns served, in the order of `routes`."""
        return list(self.routes())

    def async_patterns(self) -> list[str]:
        """Return the patterns whose handlers are `async def`: those that an async pool serves."""
        return [pattern for pattern, route in self.routes().items() if route.is_async]

    def policies(self, defaults: Policy) -> dict[str, Policy]:
        """Return the policy of each pattern, what its handler left open filled in."""
        return {pattern: route.options.policy(defaults) for pattern, route in self.routes().items()}

    def lifespans(self) -> list[tuple[Mux, Callable[[], Iterator[Any]]]]:
        """Return the muxes that have a lifespan, with it, outer ones first."""
        return [(mux, mux._lifespan) for mux in self._tree() if mux._lifespan is not None]

    def _tree(self) -> list[Mux]:
        """This mux and all mounted below it, each once, outer ones first."""
        found: dict[Mux, None] = {self: None}
        for mounted in self._mounted:
            found.update(dict.fromkeys(mounted._tree()))
        return list(found)

    def _forget(self) -> None:
        """Have the routes made anew, here and in the muxes that contain this one."""
        self._routes = None
        self._resolved.clear()
        for parent in self._parents:
            parent._forget()

    def _compiled(self) -> dict[str, Route]:
        routes: dict[str, Route] = {}
        problems: list[str] = []
        for pattern, entry, middleware, owner in self._walk((), None):
            if pattern in routes:
                problems.append(_duplicate(pattern, routes[pattern].place, entry.place))
                continue
            try:
                routes[pattern] = Route(
                    pattern=pattern,
                    function=entry.function,
                    call=_wrapped(entry, middleware),
                    decode=_decoder(entry),
                    options=entry.options,
                    is_async=_is_async(entry.function),
                    mux=owner,
                    place=entry.place,
                )
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))
        return routes

    def _walk(
        self, outer: tuple[Middleware, ...], owner: Mux | None
    ) -> Iterator[tuple[str, _Entry, tuple[Middleware, ...], Mux | None]]:
        middleware = (*outer, *self._middleware)
        if self._lifespan is not None:
            owner = self
        for pattern, entry in self._entries.items():
            yield pattern, entry, middleware, owner
        for mounted in self._mounted:
            yield from mounted._walk(middleware, owner)


def _duplicate(pattern: str, first: str, second: str) -> str:
    if first == second:
        return f"task type pattern {pattern!r} is registered twice, by {first}: mount its mux once"
    return (
        f"task type pattern {pattern!r} is registered twice, by {first} and by {second}: keep one"
    )


def _place(function: Any) -> str:
    """Say where a function stands: "module.function (file:line)"."""
    inner = inspect.unwrap(function) if callable(function) else function
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    code = getattr(inner, "__code__", None)
    if code is None:
        return repr(function)
    name = f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', code.co_name)}"
    return f"{name} ({code.co_filename}:{code.co_firstlineno})"


def _check_handler(function: Any, place: str) -> None:
    if not callable(function):
        raise ConfigError(f"handler {function!r}: must be a function (ctx, payload) -> result")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"{place}: a handler must return its result, it is a generator: drop `yield`"
        )
    try:
        _signature(function).bind(None, None)
    except TypeError as error:
        raise ConfigError(f"{place}: a handler is called with (ctx, payload): {error}") from error
    except ValueError:
        pass  # A function of C without a signature: the first task will tell.


def _options(
    place: str,
    *,
    retry: Any,
    timeout: Any,
    max_crashes: Any,
) -> HandlerOptions:
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigError(
            f"{place}: retry = {retry!r}: must be a Retry, such as Retry(max_attempts=5)"
        )
    if timeout is not None and not isinstance(timeout, Unset):
        try:
            timeout = check_seconds("timeout", timeout)
        except PayloadError as error:
            raise ConfigError(f"{place}: {error}; None means no limit") from error
    if max_crashes is not None:
        is_integer = isinstance(max_crashes, int) and not isinstance(max_crashes, bool)
        if not is_integer or not 1 <= max_crashes <= 32767:
            raise ConfigError(
                f"{place}: max_crashes = {max_crashes!r}: must be an integer from 1 to 32767"
            )
    return HandlerOptions(retry=retry, timeout=timeout, max_crashes=max_crashes)


def _is_async(function: Any) -> bool:
    # An object with an async __call__ is no coroutine function itself.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _wrapped(entry: _Entry, middleware: tuple[Middleware, ...]) -> Handler:
    handler = entry.function
    is_async = _is_async(handler)
    for one in reversed(middleware):
        try:
            outer = one(handler)
        except Exception as error:
            raise ConfigError(
                f"middleware {_place(one)} raised while it wrapped {entry.place}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not callable(outer):
            raise ConfigError(
                f"middleware {_place(one)} returned {outer!r} for {entry.place}: it must return a "
                "function (ctx, payload) -> result"
            )
        if _is_async(outer) != is_async:
            given, returned = ("async def", "def") if is_async else ("def", "async def")
            raise ConfigError(
                f"middleware {_place(one)} returned a `{returned}` for {entry.place}, which is "
                f"`{given}`: return the kind it is given (inspect.iscoroutinefunction(next) tells)"
            )
        handler = outer
    return handler


def _decoder(entry: _Entry) -> Callable[[str], Any]:
    payload_type = (
        entry.type.payload if isinstance(entry.type, TaskType) else _annotated_payload(entry)
    )
    if _is_plain(payload_type):
        return functools.partial(decode, type=Any)
    if hasattr(payload_type, "model_validate"):  # pydantic
        return functools.partial(decode, type=payload_type)
    try:
        is_known = not isinstance(
            msgspec.inspect.type_info(payload_type), msgspec.inspect.CustomType
        )
        msgspec.json.Decoder(payload_type)
    except (TypeError, NameError) as error:
        raise ConfigError(f"{entry.place}: payload type {payload_type!r}: {error}") from error
    if not is_known:
        raise ConfigError(
            f"{entry.place}: payload type {payload_type!r} is none that JSON can be decoded into: "
            "use a dict, dataclass, TypedDict, msgspec.Struct or pydantic model"
        )
    return functools.partial(decode, type=payload_type)


def _is_plain(payload_type: Any) -> bool:
    if payload_type in (inspect.Parameter.empty, Any, object, dict):
        return True
    return typing.get_origin(payload_type) is dict and typing.get_args(payload_type) == (str, Any)


def _annotated_payload(entry: _Entry) -> Any:
    """Return a handler's evaluated annotation of its payload, `Parameter.empty` if none."""
    try:
        parameters = list(_signature(entry.function).parameters.values())
    except (TypeError, ValueError):
        return inspect.Parameter.empty
    if len(parameters) < 2 or parameters[1].kind is inspect.Parameter.KEYWORD_ONLY:
        return inspect.Parameter.empty
    annotation = parameters[1].annotation
    if annotation is inspect.Parameter.empty:
        return annotation
    inner = inspect.unwrap(entry.function)
    while hasattr(inner, "func"):
        inner = inner.func
    if not hasattr(inner, "__globals__"):
        inner = getattr(type(inner), "__call__", inner)  # noqa: B004

    # The other annotations may name what only a type checker imports; they are not touched.
    def alone() -> None: ...

    alone.__annotations__ = {"payload": annotation}
    try:
        hints = typing.get_type_hints(alone, getattr(inner, "__globals__", {}))
    except NameError as error:
        raise ConfigError(
            f"{entry.place}: the annotation {annotation!r} of its payload: {error}: import it in "
            "the module itself (not under TYPE_CHECKING), or register with a TaskType"
        ) from error
    return hints["payload"]


def _signature(function: Any) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib

        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function)
