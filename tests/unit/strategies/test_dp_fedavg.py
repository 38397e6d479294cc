"""DP-FedAvg: what it sums, how it is noised, what it charges, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app.errors import ConfigError, StateError
from fedrec_app.privacy.budget import Budget, Unwritten, UserLevel
from fedrec_app.privacy.events import Gaussian
from fedrec_app.records import Arrays, from_record
from strategies.dp_fedavg import DPFedAvg
from strategies.settings import Settings
from tests.unit.strategies.given import after_round, arrays_of, asked, assert_arrays, update
from tests.unit.strategies.replies import PARAMS, delta_reply, metrics, reply, roster


def private(
    noise: float = 0.0, clip_norm: float = 1.0, rate: float = 1.0, users: int = 3000, target: float = 0.0
) -> UserLevel:
    return UserLevel(clip_norm, noise, rate, users, Budget(Unwritten(), delta=1e-5, target_epsilon=target))


def strategy(privacy: UserLevel, **options: Any) -> DPFedAvg:
    return DPFedAvg(options, Settings(privacy=privacy), roster())


def events(found: DPFedAvg) -> list[Gaussian]:
    privacy = found.settings.privacy
    assert privacy is not None
    assert privacy.budget is not None
    return list(privacy.budget.book.events)


def test_the_sum_is_divided_by_what_is_expected_and_not_by_weights_or_by_who_came() -> None:
    """Sums 8 and -2, 100 users at a rate of .1: (8 - 2) / 10 = .6, whatever the nodes say of their weights."""
    params = arrays_of(p=[1.0, 2.0])
    for weights in ((1.0, 1.0), (7.0, 0.5)):
        updates = [update(1, p=[8.0, 0.0]), update(1, p=[-2.0, 1.0])]
        for each, weight in zip(updates, weights, strict=True):
            each.scalars["weight"] = weight
        assert_arrays(after_round(strategy(private(rate=0.1, users=100)), params, updates), p=[1.6, 2.1])
        # One node is missing: the signal shrinks, the denominator stays.
        assert_arrays(after_round(strategy(private(rate=0.1, users=100)), params, updates[:1]), p=[1.8, 2.0])


def test_the_noise_has_the_standard_deviation_z_c_over_q_n() -> None:
    """z = 2, C = .5, q N = 10: .1, to 5 % (seven standard errors) over 10,000 numbers, in every parameter."""
    params = arrays_of(table=np.zeros((100, 100)), bias=np.zeros(10_000))
    found = after_round(strategy(private(2.0, 0.5, 0.1, 100)), params, [update(1, **_zeros(params))])
    for name, array in found.items():
        assert array.std() == pytest.approx(0.1, rel=0.05), name
        assert abs(array.mean()) < 0.007, name


def _zeros(params: Arrays) -> dict[str, Any]:
    return {name: np.zeros_like(array) for name, array in params.items()}


def test_no_seed_repeats_the_noise_and_no_two_releases_share_it() -> None:
    params, found = arrays_of(p=np.zeros(50)), []
    for _ in range(3):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - what must have no influence
        dp = strategy(private(1.0))
        found += [after_round(dp, params, [update(1, p=np.zeros(50))])["p"] for _ in range(2)]
    assert len({array.tobytes() for array in found}) == 6
    assert np.abs(np.corrcoef(found) - np.eye(6)).max() < 0.85


def test_nobody_taking_part_is_a_release_too() -> None:
    dp = strategy(private(1.0))
    before = asked(dp, PARAMS) and PARAMS
    arrays, _ = dp.aggregate_train(1, [delta_reply(node, 0.0, weight=0.0) for node in (10, 11, 12)])
    assert arrays is not None
    assert not np.array_equal(from_record(arrays)["table"], before["table"])
    assert events(dp) == [Gaussian(1.0, 1.0, 1)]


def test_a_round_that_no_node_answers_releases_and_costs_nothing() -> None:
    dp = strategy(private(1.0))
    asked(dp, PARAMS)
    arrays, said = dp.aggregate_train(1, [])
    assert arrays is None
    assert said is not None
    assert said["skipped"] == 1
    assert events(dp) == []


def test_a_release_is_charged_before_it_is_made() -> None:
    """Where the ledger cannot be written nothing is released."""

    class Full(Unwritten):
        def charge(self, event: Gaussian, what: Mapping[str, Any]) -> None:
            raise OSError("no space left on device")

    privacy = UserLevel(1.0, 1.0, 1.0, 3000, Budget(Full(), 1e-5))
    dp = strategy(privacy)
    asked(dp, PARAMS)
    with pytest.raises(OSError, match="no space"):
        dp.aggregate_train(1, [delta_reply(10, 0.0)])


def test_what_a_round_tells_is_its_cost_and_nobodys_loss_or_number() -> None:
    dp = strategy(private(1.0))
    asked(dp, PARAMS)
    _, said = dp.aggregate_train(1, [delta_reply(10, 0.1), delta_reply(11, 0.1)])
    assert said is not None
    assert set(said) == {"num-updates", "epsilon", "clip-norm", "dropped/no-reply"}
    assert said["epsilon"] == pytest.approx(4.38, abs=0.02)  # one Gaussian at z = 1, delta 1e-5 (Balle & Wang 2018)
    asked(dp, PARAMS)
    _, later = dp.aggregate_train(2, [delta_reply(10, 0.1, server_round=1)])
    assert later is not None
    assert "loss" not in later


def test_a_node_whose_sum_is_longer_than_its_users_can_make_it_is_dropped() -> None:
    """1,000 users with C = .01 sum up to a norm of 10 at most; the table has 6 numbers."""
    dp = strategy(private(clip_norm=0.01))
    asked(dp, PARAMS)
    _, said = dp.aggregate_train(1, [delta_reply(10, 4.0), delta_reply(11, 4.2)])
    assert said is not None
    assert said["dropped/too-long"] == 1
    assert said["num-updates"] == 1


def test_an_adaptive_bound_converges_to_the_quantile_and_is_part_of_the_state() -> None:
    norms = np.random.default_rng(0).lognormal(np.log(2.32), 0.5, 2000)
    dp = strategy(private(0.5, 1.0, 1.0, 2000), clipping="adaptive")
    params = arrays_of(p=[0.0])
    bounds = []
    for server_round in range(1, 61):
        within = float(((norms <= dp.clip_norm) - 0.5).sum())
        said = update(1, scalars={"centred-unclipped": within}, p=[0.0])
        after_round(dp, params, [said], server_round)
        bounds.append(dp.clip_norm)
    assert np.mean(bounds[-20:]) == pytest.approx(np.median(norms), rel=0.2)
    again = strategy(private(0.5, 1.0, 1.0, 2000), clipping="adaptive")
    again.load_state(dp.state())
    assert again.clip_norm == dp.clip_norm
    assert asked(again, PARAMS)[0].content["config"]["clip-norm"] == dp.clip_norm


def test_an_adaptive_bound_costs_noise_on_the_sums_and_no_epsilon() -> None:
    """(z^-2 - (2 sigma_b)^-2)^-1/2 = 2.309 for z = 2 and sigma_b = 2, times C (Andrew et al., Theorem 1)."""
    params = arrays_of(p=np.zeros(20_000))
    said = update(1, scalars={"centred-unclipped": 0.0}, p=np.zeros(20_000))
    dp = strategy(private(2.0, 1.0, 1.0, 100), clipping="adaptive", count_std=2.0)
    found = after_round(dp, params, [said])["p"] * 100
    assert found.std() == pytest.approx(2.309, rel=0.035)
    assert events(dp) == [Gaussian(2.0, 1.0, 1)]


def test_a_count_of_users_within_the_bound_is_read_only_where_it_was_asked_for() -> None:
    dp = strategy(private(1.0), clipping="adaptive")
    message = asked(dp, PARAMS)[0]
    assert message.content["config"]["count-unclipped"] is True
    arrays = {"delta/table": np.zeros((3, 2), np.float32), "delta/bias": np.zeros(1, np.float32)}
    told, untold = metrics(0.0, **{"centred-unclipped": -2.5}), metrics(0.0)
    _, said = dp.aggregate_train(1, [reply(10, arrays, told), reply(11, arrays, untold)])
    assert said is not None
    assert said["num-updates"] == 1
    assert said["dropped/bad-scalar"] == 1


def test_no_round_starts_that_would_exceed_the_target() -> None:
    """One release at z = 1 and delta 1e-5 costs 4.38, two cost 6.5."""
    dp = strategy(private(1.0, target=5.0))
    assert dp.stops(1) == ""
    after_round(dp, arrays_of(p=[0.0]), [update(1, p=[0.0])])
    assert "above privacy.target-epsilon = 5" in dp.stops(2)
    with pytest.raises(StateError, match="the target is 5"):
        after_round(dp, arrays_of(p=[0.0]), [update(1, p=[0.0])], 2)
    assert len(events(dp)) == 1


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        (Settings(), {}, 'set privacy.unit="user"'),
        (Settings(privacy=private(), unit="node"), {}, 'train.unit="user"'),
        (Settings(privacy=private(), fraction_train=0.5), {}, "privacy.sampling-rate"),
        (Settings(privacy=private(), user_fraction=0.5), {}, "privacy.sampling-rate"),
        (Settings(privacy=private(20.0, users=100)), {"clipping": "adaptive"}, "set count_std"),
        (
            Settings(privacy=private()),
            {"clipping": "adaptive", "smallest_clip": 2.0, "largest_clip": 1.0},
            "not below largest_clip",
        ),
    ],
)
def test_what_cannot_be_private_is_refused_before_it_starts(
    settings: Settings, options: dict[str, Any], expected: str
) -> None:
    assert expected in DPFedAvg(options, settings).problem(3)


def test_weights_by_examples_are_no_option() -> None:
    with pytest.raises(ConfigError, match="weighting"):
        DPFedAvg({"weighting": "examples"})
