"""One scrape at a time, shared by all who ask, and never longer than its limit."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestrator.web.app import _Scrape


def test_those_who_ask_during_a_scrape_share_it() -> None:
    n_reads = 0
    may_end = threading.Event()

    def read() -> bytes:
        nonlocal n_reads
        n_reads += 1
        may_end.wait(10)
        return b"text"

    async def ask_five_times() -> list[bytes]:
        scrape = _Scrape(read)
        asked = [asyncio.create_task(scrape.text()) for _ in range(5)]
        await asyncio.sleep(0)
        may_end.set()
        return await asyncio.gather(*asked)

    texts = asyncio.run(ask_five_times())

    assert texts == [b"text"] * 5
    assert n_reads == 1


def test_a_scrape_that_was_answered_is_not_answered_again() -> None:
    numbers = iter(range(10))

    async def ask_twice() -> list[bytes]:
        scrape = _Scrape(lambda: str(next(numbers)).encode())
        return [await scrape.text(), await scrape.text()]

    assert asyncio.run(ask_twice()) == [b"0", b"1"]


def test_a_scrape_that_takes_too_long_times_out_for_everybody() -> None:
    may_end = threading.Event()

    def read() -> bytes:
        may_end.wait(10)
        return b"text"

    async def ask_a_stuck_one() -> float:
        scrape = _Scrape(read, limit_seconds=0.05)
        with pytest.raises(TimeoutError):
            await scrape.text()
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await scrape.text()
        waited = asyncio.get_running_loop().time() - began
        may_end.set()
        return waited

    assert asyncio.run(ask_a_stuck_one()) < 0.04, "the limit counts from the scrape's beginning"


def test_one_client_that_goes_away_takes_the_answer_from_nobody() -> None:
    may_end = threading.Event()

    def read() -> bytes:
        may_end.wait(10)
        return b"text"

    async def ask_with_one_leaving() -> bytes:
        scrape = _Scrape(read)
        leaving = asyncio.create_task(scrape.text())
        staying = asyncio.create_task(scrape.text())
        await asyncio.sleep(0)
        leaving.cancel()
        may_end.set()
        return await staying

    assert asyncio.run(ask_with_one_leaving()) == b"text"
