"""What FedProx asks for; what nodes make of it is in tests/unit/training."""

from __future__ import annotations

import pytest

from fedrec_app.errors import ConfigError
from strategies.fedprox import FedProx
from strategies.settings import Settings
from tests.unit.strategies.given import after_round, arrays_of, asked, assert_arrays, update
from tests.unit.strategies.replies import PARAMS, roster


def test_nodes_are_told_mu() -> None:
    for options, mu in (({}, 0.01), ({"mu": 2}, 2.0)):
        for message in asked(FedProx(options, Settings(), roster()), PARAMS):
            assert message.content.config_records["config"]["proximal-mu"] == mu


@pytest.mark.parametrize("mu", [0, -1, float("inf")])
def test_mu_is_positive(mu: float) -> None:
    with pytest.raises(ConfigError, match="mu is"):
        FedProx({"mu": mu})


def test_the_server_averages() -> None:
    """(1 * 4 + 3 * -8) / 4 = -5."""
    updates = [update(1, 0, p=[4.0]), update(3, 1, p=[-8.0])]
    assert_arrays(after_round(FedProx({"mu": 5}), arrays_of(p=[1.0]), updates), p=[-4.0])


def test_the_server_may_take_medians_and_momentum() -> None:
    """Median of 4, -8, 1 is 1; then v = 1 and 0.5 + 1."""
    options = {"aggregator": "median", "server_optimizer": {"name": "momentum", "momentum": 0.5}}
    strategy = FedProx(options)
    updates = [update(1, 0, p=[4.0]), update(3, 1, p=[-8.0]), update(1, 2, p=[1.0])]
    one = after_round(strategy, arrays_of(p=[0.0]), updates)
    assert_arrays(one, p=[1.0])
    assert_arrays(after_round(strategy, one, updates, 2), p=[2.5])
