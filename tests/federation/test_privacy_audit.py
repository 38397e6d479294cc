"""The audit of the real aggregator: an honest run passes, and each way to break user-level privacy is seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedrec_app.audits.canary import canary_directions, sampling_rate_at_least
from fedrec_app.audits.releases import Releases
from fedrec_app.privacy import clipping
from fedrec_app.training import users
from tests.unit.audits.faults import (
    clipping_by_layer,
    denominator_by_arrivals,
    half_noise,
    no_clipping,
    noise_left_out_of_one_array,
    replayed_noise,
    weights_by_examples,
)
from tests.unit.audits.given import audited, prepared, releases_of, shapes_of

# What must be seen ---------------------------------------------------------------------------------------------------


def test_an_honest_run_passes_and_its_noise_is_measured_to_a_few_hundredths() -> None:
    found = audited()
    assert found.problems() == []
    assert found.claim is not None
    assert found.canary is not None
    assert found.claim.epsilon() == pytest.approx(4.0, abs=0.001)
    assert 0.0 < (found.release_bound() or 0) < 4.0
    assert found.run_bound() == pytest.approx(found.release_bound(), abs=0.01)
    low, high = found.canary.noise_multiplier
    assert low < 1.0811618 < high < low * 1.05


@pytest.mark.parametrize(
    ("plant", "number", "layers", "low", "high"),
    [
        (half_noise, 3000, 2, 4.0, 9.5),
        (no_clipping, 1000, 2, 6.0, 16.0),
        (clipping_by_layer, 3000, 4, 4.0, 9.5),
        (weights_by_examples, 1000, 2, 6.0, 16.0),
        (denominator_by_arrivals, 3000, 2, 4.0, 9.5),
        (replayed_noise, 1000, 2, 15.0, 35.0),
        (noise_left_out_of_one_array, 1000, 2, 15.0, 35.0),
    ],
)
def test_what_breaks_privacy_exceeds_the_claim_of_epsilon_4(
    plant: Callable[[pytest.MonkeyPatch], None],
    number: int,
    layers: int,
    low: float,
    high: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bounds of C on each of 4 arrays let 2 C of the canary through, and no bound all of its 3 C."""
    plant(monkeypatch)
    found = audited(number, layers)
    assert any("epsilon of one release" in problem for problem in found.problems())
    assert low < (found.release_bound() or 0) < high


@pytest.mark.parametrize(
    "changes", [{"privacy__sampling_rate": 0.1}, {"strategy__options": '{"clipping": "adaptive"}'}]
)
def test_honest_runs_pass_with_sampling_and_with_an_adaptive_bound(changes: dict[str, Any]) -> None:
    found = audited(600, num_server_rounds=10, **changes)
    assert found.problems() == []
    assert (found.run_bound() or 0) < found.claim.epsilon()  # type: ignore[union-attr]


def test_less_noise_than_claimed_is_measured_where_releases_are_too_noisy_to_be_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half_noise(monkeypatch)
    found = audited(200, privacy__noise_multiplier=20.0)
    assert found.release_bound() == 0.0
    (problem,) = found.problems()
    assert problem.startswith("noise of releases is at most 1")


def test_the_rate_of_sampling_is_checked_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    low = sampling_rate_at_least(0.1)
    assert 0.095 < low < 0.1
    honest = users.poisson
    monkeypatch.setattr(users, "poisson", lambda number, rate: honest(number, 1.1 * rate))
    high = sampling_rate_at_least(0.1)
    assert 0.105 < high < 0.11
    found = replace(audited(200, privacy__sampling_rate=0.1), sampling_rate=high)
    assert found.problems() == [f"users take part at a rate of at least {high:.4g}, and 0.1 is claimed"]


# What a user can do to a release -------------------------------------------------------------------------------------


def moved_by(releases: Releases, delta: float, absent: bool = False) -> float:
    """Returns by how much a user with a delta of this length moves a released mean without noise, in C / (q N)."""
    directions, bound = canary_directions(releases.shapes), releases.clip_norm
    others = [np.full(len(directions), -9.0 * bound), np.full(len(directions), 0.1 * bound)]
    means = []
    for lengths in (others, others if absent else [*others, np.full(len(directions), delta * bound)]):
        deltas = {
            name: torch.from_numpy(np.stack([length[at] * direction for length in lengths]))
            for at, (name, direction) in enumerate(directions.items())
        }
        sums = clipping.clip_and_sum(deltas, bound).sums
        means.append(releases.of(releases.reply({n: s.numpy() for n, s in sums.items()}, len(lengths))))
    moved = math.sqrt(sum(np.square(means[1][name] - means[0][name]).sum() for name in means[0]))
    return moved * releases.expected / bound


USERS = {"heavy": 3.0, "light": 0.25, "zero": 0.0, "huge": 1e30, "against": -3.0, "not finite": math.nan}


def without_noise(**changes: Any) -> Releases:
    """Returns releases whose noise is switched off, which settings refuse."""
    _, claim, strategy = prepared(**changes)
    silent = replace(claim, rounds=replace(claim.rounds, noise_multiplier=0.0))
    assert strategy.settings.privacy is not None
    strategy.settings = replace(strategy.settings, privacy=replace(strategy.settings.privacy, noise_multiplier=0.0))
    return Releases(strategy, silent, shapes_of(4))


def test_one_user_moves_the_released_mean_by_the_bound_over_q_n_at_most() -> None:
    releases = without_noise(privacy__sampling_rate=0.5)
    assert releases.expected == 20
    moved = {name: moved_by(releases, length) for name, length in USERS.items()}
    assert moved == pytest.approx(
        {"heavy": 1.0, "light": 0.25, "zero": 0.0, "huge": 1.0, "against": 1.0, "not finite": 0.0}, abs=2e-5
    )
    assert moved_by(releases, 3.0, absent=True) == 0.0


@pytest.mark.parametrize("plant", [no_clipping, clipping_by_layer, denominator_by_arrivals])
def test_and_by_more_where_that_is_broken(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert max(moved_by(without_noise(), length) for length in (3.0, -3.0)) > 1.2


def test_a_resumed_strategy_repeats_no_noise() -> None:
    """The same cohort, the same state, the same seeds: another release."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what must have no influence
        releases = releases_of()
        reply = releases.reply({name: np.zeros(shape) for name, shape in releases.shapes.items()}, 0)
        found += [np.concatenate([array.ravel() for array in releases.of(reply).values()]) for _ in range(2)]
    assert len({array.tobytes() for array in found}) == 4
    differences = found[0] - found[2]
    assert differences.std() == pytest.approx(math.sqrt(2) * found[0].std(), rel=0.4)


@pytest.mark.slow
def test_no_honest_audit_of_fifty_raises_an_alarm() -> None:
    assert [found.problems() for found in (audited() for _ in range(50))] == [[]] * 50
