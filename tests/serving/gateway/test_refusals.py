"""Refusals at the door are summed up in the log, not one line each."""

import logging

import pytest

from serving.gateway import refusals
from serving.gateway.refusals import Refusals


def test_many_refusals_are_few_lines(caplog, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(refusals.time, "monotonic", lambda: now_s)
    counted = Refusals()
    with caplog.at_level(logging.INFO, "serving.request"):
        for index in range(5000):
            now_s = 100 + index / 250  # 20 s
            counted.count(429 if index % 5 else 503, "198.51.100.7" if index % 3 else "203.0.113.1")
        counted.log()
    assert [record.getMessage() for record in caplog.records] == [
        "refused 1 requests",
        "refused 2500 requests",
        "refused 2499 requests",
    ]
    assert sum(record.status_429 for record in caplog.records[1:]) == pytest.approx(4000, abs=2)
    assert caplog.records[1].clients.startswith("198.51.100.7 1667, 203.0.113.1 833")
