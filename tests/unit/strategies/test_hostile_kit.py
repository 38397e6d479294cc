"""The kit looks at what client parts send too: a check that is switched off is found by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedrec_app.conformance import ConformanceError
from strategies import update
from strategies.base import RecStrategy
from strategies.fedavg import FedAvg
from strategies.fednova import FedNova
from strategies.qfedavg import QFedAvg
from strategies.scaffold import Scaffold
from strategies.testing import check_hostile_replies
from strategies.testing.hostile import HOSTILE, hostile_answers
from strategies.update import Expected


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


@pytest.mark.parametrize("strategy", [FedAvg, FedNova, QFedAvg, Scaffold])
def test_strategies_with_client_parts_drop_what_is_wrong(strategy: type[RecStrategy]) -> None:
    check_hostile_replies(strategy)


def test_the_cases_follow_what_the_client_part_declares() -> None:
    def more(strategy: type[RecStrategy]) -> set[str]:
        return set(hostile_answers(strategy.client_part)) - set(HOSTILE)

    unasked = {"a control that nobody asked for"}
    assert more(FedAvg) == unasked
    assert more(FedNova) == unasked | {
        f"{what} weighted-steps" for what in ("no", "a negative", "a huge", "a NaN for", "a list for")
    }
    assert len(more(Scaffold)) == 7
    assert all("control" in case for case in more(Scaffold))


def test_sums_that_are_not_checked_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = update._check_scalars

    def credulous(metrics: Any, max_weight: float, expected: Expected) -> dict[str, float]:
        more = {name: float(metrics.get(name, 0.0)) for name in expected.scalars}
        return {**right(metrics, max_weight, replace(expected, scalars=())), **more}

    monkeypatch.setattr(update, "_check_scalars", credulous)
    with pytest.raises(ConformanceError, match=r"no weighted-steps from one of six nodes .*a negative weighted-steps"):
        check_hostile_replies(FedNova)


def test_controls_that_are_not_checked_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = update._check_array

    def credulous(key: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if not key.startswith("control/"):
            right(key, array, shape, dtype)

    monkeypatch.setattr(update, "_check_array", credulous)
    with pytest.raises(ConformanceError, match=r"a control of NaN from one of six nodes .*an infinite control"):
        check_hostile_replies(Scaffold)
