"""Epsilon against an independent accountant, its bounds on both sides, and what follows from it."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from fedrec_app.errors import ConfigError
from fedrec_app.privacy.accounting import Curve, default_delta, epsilon, noise_for, rdp_epsilon
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.gaussian import gaussian_epsilon
from fedrec_app.privacy.privacy_loss import log_spectrum

EXAMPLE = Gaussian(1.0, 0.1, 100)


def pld(events: list[Gaussian], delta: float, interval: float = 1e-3) -> float:
    """Returns epsilon by the privacy loss distributions of dp-accounting."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=interval)
    for event in events:
        one = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        if event.sampling_rate < 1:
            one = dp_accounting.PoissonSampledDpEvent(event.sampling_rate, one)
        accountant.compose(dp_accounting.SelfComposedDpEvent(one, event.count))
    return accountant.get_epsilon(delta)


def assert_right(events: list[Gaussian], delta: float, interval: float) -> None:
    expected, found = pld(events, delta, interval), epsilon(events, delta)
    assert found == pytest.approx(expected, rel=0.01, abs=0.02)
    assert found > expected - 1e-3
    assert rdp_epsilon(events, delta) > expected


# Against other accountants -------------------------------------------------------------------------------------------

GRID = [
    (1.0, 0.1, 100, 1e-4), (1.0, 0.1, 100, 1e-5), (1.0, 0.1, 1, 1e-5), (0.5, 0.01, 1000, 1e-6), (5.0, 0.5, 500, 1e-4),
    (0.7, 0.001, 10_000, 1e-7), (2.0, 0.02, 10_000, 1e-8), (0.6, 0.2, 30, 1e-3), (1.5, 0.9, 40, 1e-5),
    (0.3, 0.1, 300, 1e-5), (20.0, 0.3, 3, 1e-5), (1.0, 1.0, 100, 1e-5),
]  # fmt: skip


@pytest.mark.parametrize(("noise", "rate", "count", "delta"), GRID)
def test_epsilon_is_that_of_privacy_loss_distributions_within_a_percent(
    noise: float, rate: float, count: int, delta: float
) -> None:
    assert_right([Gaussian(noise, rate, count)], delta, 1e-3)


@pytest.mark.slow
def test_epsilon_is_that_of_privacy_loss_distributions_over_a_large_grid() -> None:
    draw = np.random.default_rng(6)
    for _ in range(50):
        noise, rate = float(10 ** draw.uniform(-0.5, 1.3)), float(10 ** draw.uniform(-4, 0))
        events = [Gaussian(noise, rate, int(10 ** draw.uniform(0, 4)))]
        delta = float(10 ** draw.uniform(-9, -3))
        bound = rdp_epsilon(events, delta)
        if bound < 150:
            # Its own error grows with the rounds, so that small epsilons need a finer grid.
            assert_right(events, delta, 1e-3 if bound > 5 else 5e-6)


@pytest.mark.parametrize(
    "events",
    [
        [Gaussian(1.0, 0.1, 50), Gaussian(2.0, 0.1, 100)],
        [Gaussian(1.0, 0.1, 100), Gaussian(5.0, 1.0, 20)],
        [Gaussian(1.0, 1.0, 1), Gaussian(100.0, 0.5, 1)],
    ],
)
def test_events_that_differ_cost_what_privacy_loss_distributions_say(events: list[Gaussian]) -> None:
    assert_right(events, 1e-5, 1e-3)
    assert epsilon(events[::-1], 1e-5) == pytest.approx(epsilon(events, 1e-5), rel=1e-9)


def test_events_one_by_one_cost_what_they_do_together() -> None:
    one_by_one = [Gaussian(1.0, 0.1), Gaussian(2.0, 0.3)] * 10
    together = [Gaussian(1.0, 0.1, 10), Gaussian(2.0, 0.3, 10)]
    assert epsilon(one_by_one, 1e-5) == epsilon(together, 1e-5)
    assert rdp_epsilon(one_by_one, 1e-5) == rdp_epsilon(together, 1e-5)


@pytest.mark.parametrize("event", [EXAMPLE, Gaussian(0.7, 0.001, 10_000), Gaussian(3.0, 0.5, 20)])
def test_epsilon_is_that_of_opacus(event: Gaussian) -> None:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sampling_rate, event.count)]
    assert epsilon([event], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-4)


def test_the_central_limit_value_lies_below_the_truth_and_is_not_what_is_reported() -> None:
    from opacus.accountants import GaussianAccountant

    with pytest.warns(UserWarning, match="can underestimate privacy expenditure"):
        accountant = GaussianAccountant()
    accountant.history = [(EXAMPLE.noise_multiplier, EXAMPLE.sampling_rate, EXAMPLE.count)]
    by_limit, truth = accountant.get_epsilon(1e-4), pld([EXAMPLE], 1e-4)
    assert by_limit == pytest.approx(5.26, abs=0.01)
    assert truth == pytest.approx(5.97, abs=0.01)
    assert epsilon([EXAMPLE], 1e-4) == pytest.approx(5.98, abs=0.005)
    assert rdp_epsilon([EXAMPLE], 1e-4) == pytest.approx(6.82, abs=0.01)


# Without sampling ----------------------------------------------------------------------------------------------------


def test_without_secret_sampling_the_same_run_costs_fifteen_times_as_much() -> None:
    unsampled = [Gaussian(1.0, 1.0, 100)]
    assert rdp_epsilon(unsampled, 1e-4) == pytest.approx(90.93, abs=0.01)
    assert epsilon(unsampled, 1e-4) == pytest.approx(86.34, abs=0.01)
    assert epsilon(unsampled, 1e-5) == pytest.approx(91.82, abs=0.01)


def test_sums_of_everybody_cost_what_one_with_less_noise_does() -> None:
    assert epsilon([Gaussian(3.0, 1.0, 9)], 1e-6) == epsilon([Gaussian(1.0)], 1e-6)
    assert epsilon([Gaussian(3.0, 1.0, 4), Gaussian(6.0, 1.0, 20)], 1e-6) == pytest.approx(
        epsilon([Gaussian(1.0)], 1e-6)
    )


@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.1])
def test_the_closed_form_solves_its_equation(ratio: float, delta: float) -> None:
    from scipy.special import log_ndtr

    found = gaussian_epsilon(ratio, delta)
    reached = math.exp(log_ndtr(ratio / 2 - found / ratio)) - math.exp(found + log_ndtr(-ratio / 2 - found / ratio))
    assert reached == pytest.approx(delta, rel=1e-3) if found else reached < delta
    assert gaussian_epsilon(1e6, delta) == pytest.approx(5e11, rel=1e-4)


def test_next_to_no_leaving_out_costs_what_none_does() -> None:
    assert epsilon([Gaussian(2.0, 0.999999, 20)], 1e-5) == pytest.approx(epsilon([Gaussian(2.0, 1.0, 20)], 1e-5), 0.01)


# Order ---------------------------------------------------------------------------------------------------------------


def test_epsilon_grows_with_rounds_and_rate_and_falls_with_noise_and_delta() -> None:
    for costs in (
        [epsilon([Gaussian(1.0, 0.1, count)], 1e-5) for count in (0, 1, 2, 10, 11, 100, 1000)],
        [epsilon([Gaussian(1.0, rate, 50)], 1e-5) for rate in (1e-4, 0.01, 0.1, 0.11, 0.5, 0.99, 1.0)],
        [epsilon([Gaussian(noise, 0.1, 50)], 1e-5) for noise in (50.0, 5.0, 1.0, 0.99, 0.5, 0.3, 0.1, 0.01, 1e-9, 0)],
        [epsilon([EXAMPLE], delta) for delta in (0.1, 1e-3, 1e-5, 1e-9, 1e-12)],
    ):
        assert costs == sorted(set(costs))


@pytest.mark.parametrize("rate", [1e-9, 0.1, 0.5, 0.9999999, 1.0])
@pytest.mark.parametrize("noise", [1e-300, 1e-3, 0.05, 0.2, 100.0, 1e9])
def test_extremes_have_an_upper_bound_too(noise: float, rate: float) -> None:
    for delta in (1e-15, 0.5):
        found = epsilon([Gaussian(noise, rate, 10_000)], delta)
        assert 0 <= found <= rdp_epsilon([Gaussian(noise, rate, 10_000)], delta)
        assert not math.isnan(found)


def test_where_composition_fails_sampling_still_never_costs_more() -> None:
    sampled, everybody = Gaussian(0.05, 0.1, 100), Gaussian(0.05, 1.0, 100)
    assert 5000 < epsilon([sampled], 1e-5) < 0.3 * epsilon([everybody], 1e-5)


def test_no_noise_costs_everything_and_no_events_cost_nothing() -> None:
    assert epsilon([], 1e-5) == rdp_epsilon([], 1e-5) == 0
    assert epsilon([Gaussian(1.0, 0.1, 0)], 1e-5) == 0
    assert epsilon([Gaussian(0.0, 0.1, 0)], 1e-5) == 0
    assert epsilon([EXAMPLE, Gaussian(0.0, 0.1)], 1e-5) == rdp_epsilon([EXAMPLE, Gaussian(0.0, 0.1)], 1e-5) == math.inf


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((-1.0,), "noise multiplier is -1.0"),
        ((math.nan,), "noise multiplier is nan"),
        ((math.inf,), "noise multiplier is inf"),
        ((1.0, 0.0), "sampling rate is 0.0"),
        ((1.0, 1.1), "sampling rate is 1.1"),
        ((1.0, math.nan), "sampling rate is nan"),
        ((1.0, 0.5, -1), "count is -1"),
        ((1.0, 0.5, 1.5), "count is 1.5"),
    ],
)
def test_an_event_that_cannot_be_is_refused(arguments: tuple, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Gaussian(*arguments)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_cannot_be_is_refused(delta: float) -> None:
    for ask in (lambda: epsilon([EXAMPLE], delta), lambda: rdp_epsilon([], delta), lambda: Curve([], delta)):
        with pytest.raises(ConfigError, match="delta is"):
            ask()


# Every round ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "delta"),
    [(EXAMPLE, 1e-5), (Gaussian(0.7, 0.001, 300), 1e-7), (Gaussian(0.3, 0.1, 60), 1e-5),
     (Gaussian(3.0, 1.0, 50), 1e-5)],
)  # fmt: skip
def test_the_curve_is_epsilon_at_each_round_and_never_decreases(event: Gaussian, delta: float) -> None:
    curve = Curve([event], delta)
    found = [curve.after(count) for count in range(event.count + 1)]
    assert found == sorted(set(found))
    for count in (0, 1, 2, 7, event.count // 2, event.count):
        cost = epsilon([Gaussian(event.noise_multiplier, event.sampling_rate, count)], delta)
        assert found[count] == pytest.approx(cost, rel=0.01, abs=0.02)
    assert found[-1] == epsilon([event], delta)


def test_the_curve_counts_what_else_was_charged() -> None:
    metrics, before = Gaussian(8.0, 1.0, 10), Gaussian(2.0, 0.1, 30)
    curve = Curve([EXAMPLE, metrics, before], 1e-5)
    assert curve.after(40, 4) == pytest.approx(
        epsilon([Gaussian(1.0, 0.1, 40), Gaussian(8.0, 1.0, 4), before], 1e-5), abs=0.01
    )
    assert curve.after(0, 0) == pytest.approx(epsilon([before], 1e-5), abs=0.01)
    assert curve.after() == epsilon([EXAMPLE, metrics, before], 1e-5)
    assert curve.after(0, 0, 0) == 0
    assert Curve([EXAMPLE, Gaussian(0.0)], 1e-5).after(5) == math.inf
    assert Curve([EXAMPLE, Gaussian(0.0)], 1e-5).after(5, 0) == pytest.approx(2.36, abs=0.02)
    for counts in ((101,), (-1,), (1, 11), (1, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"cannot have happened|events are planned"):
            curve.after(*counts)


def test_a_round_of_ten_thousand_needs_a_short_transform_and_loses_nothing_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curve = Curve([Gaussian(1.0, 0.01, 10_000)], 1e-5)
    grid, counts = curve._grid, (1, 10, 100, 10_000)
    assert grid is not None
    assert grid._size > 150_000
    assert max(grid._num_points([100]), grid._num_points([10_000])) < 15_000
    found = [curve.after(count) for count in counts]
    monkeypatch.setattr(grid, "_num_points", lambda counts: grid._size)
    assert found == pytest.approx([curve.after(count) for count in counts], abs=1e-4)


# Calibration ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "rate", "rounds", "others"),
    [(8.0, 0.1, 100, []), (1.0, 0.05, 30, []), (8.0, 1.0, 100, []), (1e5, 0.1, 20, []), (0.1, 0.2, 5, []),
     (3.0, 0.1, 50, [Gaussian(5.0, 1.0, 2)])],
)  # fmt: skip
def test_the_noise_is_the_least_that_keeps_to_the_target(
    target: float, rate: float, rounds: int, others: list[Gaussian]
) -> None:
    noise = noise_for(target, 1e-5, rate, rounds, others)
    assert noise == float(f"{noise:.4g}")
    assert epsilon([Gaussian(noise, rate, rounds), *others], 1e-5) <= target
    assert epsilon([Gaussian(0.99 * noise, rate, rounds), *others], 1e-5) > target


def test_a_target_that_the_rest_exceeds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"target epsilon is 8.0: no noise is enough, as the rest costs 17\.9"):
        noise_for(8.0, 1e-5, 0.1, 100, [Gaussian(1.0, 1.0, 10)])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.0, 1e-5, 0.1, 10), "target epsilon is 0.0"),
        ((math.inf, 1e-5, 0.1, 10), "target epsilon is inf"),
        ((1.0, 0.0, 0.1, 10), "delta is 0.0"),
        ((1.0, 1e-5, 2.0, 10), "sampling rate is 2.0"),
        ((1.0, 1e-5, 0.1, 0), "rounds is 0"),
    ],
)
def test_noise_for_what_cannot_be_is_refused(arguments: tuple, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        noise_for(*arguments)


def test_delta_is_below_one_in_the_number_of_users() -> None:
    assert default_delta(6040) == pytest.approx(6040**-1.1)
    assert default_delta(6040) < 1 / 6040
    with pytest.raises(ConfigError, match="users is 1"):
        default_delta(1)


def test_runs_without_privacy_do_not_pay_for_opacus() -> None:
    code = "import sys, fedrec_app.privacy.accounting; print({'opacus', 'scipy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_frequency_that_vanishes_stays_so_whatever_the_count() -> None:
    logs = log_spectrum(np.array([1.0, 0.0, 0.5j]))
    np.testing.assert_allclose(np.exp(3 * logs), [1.0, 0.0, -0.125j], atol=1e-12)
