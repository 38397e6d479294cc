from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedrec_app.client_part import Units
from strategies.fednova import FedNova, FedNovaPart
from tests.unit.strategies.given import after_round, arrays_of, assert_arrays, update

STEPS = "weighted-steps"


def test_the_mean_number_of_steps_times_the_mean_delta_a_step() -> None:
    """Three users: weights 1, 1, 2 (p = 1/4, 1/4, 1/2), steps 1, 2, 4, deltas 2, -4, 8.

    sum p tau = 1/4 + 2/4 + 4/2 = 2.75; sum p d / tau = 2/4 - 2/4 + 2/2 = 1; so the delta is 2.75, where the mean delta
    would be 3.5. The first two are on one node: it sends 2 - 2 = 0, and 1 + 2 = 3 weighted steps.
    """
    node, other = update(2, scalars={STEPS: 3.0}, p=[0.0]), update(2, 1, scalars={STEPS: 8.0}, p=[2.0])
    params = arrays_of(p=[1.0])
    assert_arrays(after_round(FedNova(), params, [node, other]), p=[3.75])


def test_users_who_take_equally_many_steps_give_the_mean() -> None:
    """Everybody takes 4 steps: w d / 4 and 4 w; the mean delta is (1 * 8 + 3 * 4) / 4 = 5."""
    updates = [update(1, scalars={STEPS: 4.0}, p=[2.0]), update(3, 1, scalars={STEPS: 12.0}, p=[1.0])]
    assert_arrays(after_round(FedNova({"server_optimizer": "sgd"}), arrays_of(p=[0.0]), updates), p=[5.0])


def test_any_server_optimizer_steps_along_it() -> None:
    strategy = FedNova({"server_optimizer": {"name": "momentum", "momentum": 0.5, "learning_rate": 2.0}})
    updates = [update(1, scalars={STEPS: 4.0}, p=[0.25])]  # a delta of 1
    one = after_round(strategy, arrays_of(p=[0.0]), updates)
    assert_arrays(one, p=[2.0])
    assert_arrays(after_round(strategy, one, updates, 2), p=[5.0])  # v = 0.5 + 1


def test_nodes_without_weight_move_nothing_whatever_they_send() -> None:
    liar = update(1, p=[3.0])
    liar.scalars.update({"weight": 0.0, STEPS: 5.0})
    assert_arrays(after_round(FedNova(), arrays_of(p=[1.0]), [liar]), p=[1.0])


def test_on_the_node_a_delta_is_divided_by_its_steps() -> None:
    units = Units(np.array([1.0, 3.0]), np.array([1, 3]), np.array([2, 4]), 0.1)
    factors, sums = FedNovaPart(None, {}, {}).weigh(units)
    np.testing.assert_array_equal(factors, [0.5, 0.75])
    np.testing.assert_array_equal(sums[STEPS], [2.0, 12.0])


@pytest.mark.parametrize("options", [{"weighting": "rows"}, {"aggregator": "median"}])
def test_it_is_a_rule_of_its_own_that_cannot_count_rows(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=next(iter(options))):
        FedNova(options)
