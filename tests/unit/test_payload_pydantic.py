"""Payloads and results that are pydantic models, or hold some: each comes back equal."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from orchestrator.errors import PayloadError
from orchestrator.payload import clean_result, decode, encode

pydantic = pytest.importorskip("pydantic")

AT = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
ID = UUID("9a6df39d-2de4-424f-a833-9d96fbcb7fa3")


class Colour(Enum):
    RED = "red"


class Plain(pydantic.BaseModel):
    id: UUID
    at: datetime
    colour: Colour


class Strict(Plain):
    model_config = pydantic.ConfigDict(strict=True)


class Aliased(pydantic.BaseModel):
    order_id: int = pydantic.Field(alias="orderId")


class WrittenUnderAnotherName(pydantic.BaseModel):
    order_id: int = pydantic.Field(serialization_alias="orderId")


@dataclass
class Holder:
    model: Plain
    strict: list[Strict]


FIELDS: dict[str, Any] = {"id": ID, "at": AT, "colour": Colour.RED}


@pytest.mark.parametrize(
    "model",
    [
        Plain(**FIELDS),
        Strict(**FIELDS),
        Aliased(orderId=5),
        WrittenUnderAnotherName(order_id=5),
        Holder(Plain(**FIELDS), [Strict(**FIELDS)]),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("write", [encode, clean_result])
def test_a_model_comes_back_equal(write: Any, model: Any) -> None:
    assert decode(write(model), type(model)) == model


def test_a_model_within_a_dataclass_is_refused_where_it_does_not_fit() -> None:
    with pytest.raises(PayloadError, match=r"^payload\.model: 3 validation errors for Plain"):
        decode('{"model": {}, "strict": []}', Holder)
