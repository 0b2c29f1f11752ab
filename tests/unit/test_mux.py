"""The mux: which handler serves a type, what wraps it, how its payload is decoded."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest

from orchestrator.errors import ConfigError, PayloadError
from orchestrator.mux import Handler, Mux
from orchestrator.options import Policy
from orchestrator.retry import Retry
from orchestrator.tasktype import TaskType

if TYPE_CHECKING:
    from elsewhere import Invisible  # type: ignore[import-not-found]


@dataclass
class Resize:
    url: str
    width: int = 100


class Letter(TypedDict):
    to: str


class Point(msgspec.Struct):
    x: int


def handler(ctx: Any, payload: Any) -> Any:
    return payload


def noted(notes: list[str], name: str) -> Any:
    """A middleware that notes when it is entered and left."""

    def middleware(next: Handler) -> Handler:
        def call(ctx: Any, payload: Any) -> Any:
            notes.append(f"{name} in")
            result = next(ctx, payload)
            notes.append(f"{name} out")
            return result

        return call

    return middleware


def pattern_of(mux: Mux, type: str) -> str | None:
    route = mux.resolve(type)
    return None if route is None else route.pattern


# -- routing ---------------------------------------------------------------------------------


def test_exact_pattern_goes_before_any_prefix() -> None:
    mux = Mux()
    for pattern in ("email:", "email:send", "email:send:"):
        mux.handle(pattern, handler)

    assert pattern_of(mux, "email:send") == "email:send"


def test_longest_prefix_serves_a_type() -> None:
    mux = Mux()
    for pattern in ("email:", "email:send:"):
        mux.handle(pattern, handler)

    assert pattern_of(mux, "email:send:bulk") == "email:send:"
    assert pattern_of(mux, "email:draft") == "email:"


def test_only_a_pattern_that_ends_in_a_colon_is_a_prefix() -> None:
    mux = Mux()
    mux.handle("email:send", handler)

    assert pattern_of(mux, "email:send_bulk") is None


def test_type_is_found_once_its_handler_is_registered_in_a_mounted_mux() -> None:
    mux, inner = Mux(), Mux()
    mux.mount(inner)
    assert mux.resolve("late") is None

    inner.handle("late", handler)

    assert pattern_of(mux, "late") == "late"


def test_memory_of_unknown_types_is_bounded() -> None:
    mux = Mux()
    mux.handle("known", handler)

    for number in range(5000):
        mux.resolve(f"unknown-{number}")

    assert len(mux._resolved) <= 1000
    assert pattern_of(mux, "known") == "known"


def test_decorator_returns_the_function_unchanged() -> None:
    mux = Mux()

    assert mux.handler("a")(handler) is handler


def test_patterns_are_listed_in_the_order_of_registration() -> None:
    mux, inner = Mux(), Mux()
    mux.mount(inner)
    inner.handle("c", handler)
    mux.handle("b", handler)
    mux.handle("a", handler)

    assert mux.patterns() == ["b", "a", "c"]


def test_policy_takes_from_the_defaults_what_the_handler_leaves_open() -> None:
    mux = Mux()
    mux.handle("a", handler, timeout=None, max_crashes=1)
    mux.handle("b", handler, retry=Retry(max_attempts=2, base="1s", cap="1m"))
    defaults = Policy(max_attempts=7, timeout=9.0)

    policies = mux.policies(defaults)

    assert policies == {
        "a": Policy(max_attempts=7, timeout=None, max_crashes=1),
        "b": Policy(max_attempts=2, backoff_base=1.0, backoff_cap=60.0, timeout=9.0),
    }


# -- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["", ":", " a", "a b", "a\n", "*", "é", "x" * 201, None, 3])
def test_pattern_that_no_type_can_match_is_refused(pattern: Any) -> None:
    with pytest.raises(ConfigError, match=r"test_mux\.handler .*test_mux\.py:\d+.*pattern"):
        Mux().handle(pattern, handler)


def test_duplicate_pattern_names_both_places() -> None:
    mux = Mux()
    mux.handle("a", handler)

    def other(ctx: Any, payload: Any) -> None: ...

    with pytest.raises(ConfigError) as caught:
        mux.handle("a", other)

    assert ".handler (" in str(caught.value)
    assert "other (" in str(caught.value)


def test_duplicate_pattern_of_a_mounted_mux_is_an_error_at_start() -> None:
    mux, inner = Mux(), Mux()
    mux.handle("a", handler)
    inner.handle(TaskType("a", dict), lambda ctx, payload: None)
    mux.mount(inner)

    with pytest.raises(ConfigError, match=r"'a' is registered twice, by .*handler .*by .*<lambda>"):
        mux.check()


def test_all_faults_are_reported_at_once() -> None:
    mux, inner = Mux(), Mux()

    @mux.handler("hidden")
    def hidden(ctx: Any, payload: Invisible) -> None: ...

    mux.handle("a", handler)
    inner.handle("a", handler)
    mux.mount(inner)

    with pytest.raises(ConfigError, match=r"(?s)Invisible.*TYPE_CHECKING.*\n.*registered twice"):
        mux.check()


def test_mux_cannot_contain_itself() -> None:
    outer, inner = Mux(), Mux()
    outer.mount(inner)

    with pytest.raises(ConfigError, match="contain itself"):
        inner.mount(outer)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"timeout": "soon"}, "timeout: 'soon' is not a duration"),
        ({"timeout": 0}, "timeout = 0: must be more than zero"),
        ({"max_crashes": 0}, "max_crashes = 0: must be an integer from 1"),
        ({"max_crashes": True}, "max_crashes = True"),
        ({"retry": 5}, "retry = 5: must be a Retry"),
    ],
)
def test_option_that_breaks_its_rule_is_refused(options: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Mux().handle("a", handler, **options)


def test_limits_of_a_later_version_are_not_accepted_in_silence() -> None:
    with pytest.raises(TypeError, match="memory_limit"):
        Mux().handler("a", memory_limit="1GiB")  # type: ignore[call-arg]


def test_handler_that_cannot_take_context_and_payload_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"called with \(ctx, payload\)"):
        Mux().handle("a", lambda payload: None)  # type: ignore[misc, arg-type]


def test_generator_is_refused_as_handler() -> None:
    def generator(ctx: Any, payload: Any) -> Any:
        yield 1

    with pytest.raises(ConfigError, match="drop `yield`"):
        Mux().handle("a", generator)


def test_second_lifespan_of_a_mux_names_both_places() -> None:
    mux = Mux()

    @mux.lifespan
    def first() -> Any:
        yield

    def second() -> Any:
        yield

    with pytest.raises(ConfigError, match=r"second .*already.*first "):
        mux.lifespan(second)


def test_lifespan_must_be_a_generator_function() -> None:
    with pytest.raises(ConfigError, match="generator function"):
        Mux().lifespan(lambda: iter(()))


# -- middleware ------------------------------------------------------------------------------


def test_first_middleware_is_the_outermost_and_that_of_a_mounted_mux_stays_inside() -> None:
    notes: list[str] = []
    mux, inner = Mux(), Mux()
    inner.use(noted(notes, "inner"))
    inner.handle("a", handler)
    mux.mount(inner)
    mux.use(noted(notes, "first"))
    mux.use(noted(notes, "second"))
    route = mux.resolve("a")
    assert route is not None

    result = route.call(None, 17)

    assert result == 17
    assert notes == ["first in", "second in", "inner in", "inner out", "second out", "first out"]


def test_middleware_of_a_mounted_mux_leaves_its_siblings_alone() -> None:
    notes: list[str] = []
    mux, inner = Mux(), Mux()
    inner.use(noted(notes, "inner"))
    mux.mount(inner)
    mux.handle("a", handler)
    route = mux.resolve("a")
    assert route is not None

    route.call(None, None)

    assert notes == []


def test_plain_middleware_round_an_async_handler_is_an_error_at_start() -> None:
    mux = Mux()
    mux.use(noted([], "plain"))

    @mux.handler("a")
    async def asynchronous(ctx: Any, payload: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"noted.*returned a `def`.*asynchronous.*`async def`"):
        mux.check()


def test_async_middleware_round_a_plain_handler_is_an_error_at_start() -> None:
    mux = Mux()
    mux.handle("a", handler)

    @mux.use
    def asynchronous(next: Handler) -> Handler:
        async def call(ctx: Any, payload: Any) -> Any:
            return await next(ctx, payload)

        return call

    with pytest.raises(ConfigError, match=r"returned a `async def`"):
        mux.check()


def test_middleware_that_returns_nothing_is_an_error_at_start() -> None:
    mux = Mux()
    mux.handle("a", handler)
    mux.use(lambda next: None)  # type: ignore[arg-type, return-value]

    with pytest.raises(ConfigError, match="returned None"):
        mux.check()


# -- payloads --------------------------------------------------------------------------------


def decoded(type: Any, text: str, function: Any = handler) -> Any:
    mux = Mux()
    mux.handle(type, function)
    route = mux.resolve(type if isinstance(type, str) else type.name)
    assert route is not None
    return route.decode(text)


@pytest.mark.parametrize(
    ("payload_type", "text", "expected"),
    [
        (Resize, '{"url": "u", "unknown": 1}', Resize("u")),
        (Point, '{"x": 1, "unknown": 2}', Point(1)),
        (Letter, '{"to": "me", "unknown": 2}', {"to": "me"}),
        (dict, '{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        (dict[str, int], '{"a": 1}', {"a": 1}),
    ],
)
def test_payload_is_decoded_into_the_type_of_the_task_type(
    payload_type: Any, text: str, expected: Any
) -> None:
    assert decoded(TaskType("a", payload_type), text) == expected


def test_payload_of_a_plain_type_is_decoded_into_the_annotation() -> None:
    # The context's annotation names what only type checkers import: it is not touched.
    def annotated(ctx: Invisible, payload: Resize) -> None: ...

    assert decoded("a", '{"url": "u"}', annotated) == Resize("u")


def test_annotation_counts_through_partial_and_wraps() -> None:
    @functools.wraps(handler)
    def wrapper(*arguments: Any) -> Any: ...

    def annotated(extra: int, ctx: Any, payload: Resize) -> None: ...

    assert decoded("a", '{"url": "u"}', functools.partial(annotated, 1)) == Resize("u")
    assert decoded("a", '{"url": "u"}', wrapper) == {"url": "u"}


@pytest.mark.parametrize("annotation", [Any, dict, dict[str, Any], object])
def test_plain_annotation_takes_any_json(annotation: Any) -> None:
    def annotated(ctx: Any, payload: Any) -> None: ...

    annotated.__annotations__["payload"] = annotation

    assert decoded("a", "[1]", annotated) == [1]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"width": 5}', "payload: .*`url`"),
        ('{"url": "u", "width": "wide"}', r"payload\.width: "),
        ("null", "payload: "),
        ("[" * 100_000, "payload"),
        ("1e400", "payload"),
    ],
)
def test_undecodable_payload_is_a_payload_error_that_names_the_place(text: str, place: str) -> None:
    with pytest.raises(PayloadError, match=place):
        decoded(TaskType("a", Resize), text)


def test_pydantic_models_are_known_by_their_methods() -> None:
    class Model:
        def __init__(self, fields: Any) -> None:
            self.fields = fields

        @classmethod
        def model_validate(cls, value: Any) -> Model:
            if "x" not in value:
                raise KeyError("x")
            return cls(value)

    assert decoded(TaskType("a", Model), '{"x": 1}').fields == {"x": 1}
    with pytest.raises(PayloadError, match="KeyError"):
        decoded(TaskType("a", Model), "{}")


def test_payload_type_that_json_cannot_become_is_an_error_at_start() -> None:
    class Unfit:
        pass

    mux = Mux()
    mux.handle(TaskType("a", Unfit), handler)

    with pytest.raises(ConfigError, match=r"Unfit.*use a dict, dataclass"):
        mux.check()


def test_decorator_without_its_parentheses_is_an_error_with_the_way() -> None:
    with pytest.raises(ConfigError, match=r'test_mux\.handler .*@mux\.handler\("email:send"\)'):
        Mux().handler(handler)  # type: ignore[call-overload]
