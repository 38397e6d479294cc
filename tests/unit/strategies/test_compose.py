"""An aggregator and a server optimiser are independent choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedrec_app.errors import ConfigError
from fedrec_app.records import DELTA, Arrays, from_record
from fedrec_app.schedules import Schedule
from strategies.base import RecStrategy
from strategies.compose import AGGREGATORS, SERVER_OPTIMIZERS, make_aggregator, make_server_optimizer
from strategies.fedavg import FedAvg
from strategies.registry import BUILT_IN, make_strategy, strategy_class
from strategies.settings import Settings
from strategies.update import Update
from tests.unit.strategies.given import after_round, arrays_of, asked, assert_arrays, update
from tests.unit.strategies.replies import metrics, reply, roster

POINTS = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (2.0, 2.0), (10.0, 10.0)])
WEIGHTS = np.array([1.0, 2.0, 4.0, 1.0, 2.0])
START = np.array([1.0, -1.0])
BOUNDED = np.minimum(1, 2 / np.maximum(np.linalg.norm(POINTS, axis=1), 1e-9))
DELTAS: dict[str, tuple[dict[str, Any], Any]] = {
    "mean": ({}, WEIGHTS @ POINTS / 10),
    "median": ({}, [1.0, 1.0]),
    "trimmed-mean": ({"trim": 0.2}, [1.0, 1.0]),  # of 0, 0, 1, 2, 10 and of 0, 0, 1, 2, 10
    "krum": ({}, [0.0, 0.0]),  # see test_krum.py
    "multi-krum": ({}, [0.75, 0.75]),
    "norm-bound": ({"max_norm": 2.0, "rows": 0}, (WEIGHTS * BOUNDED) @ POINTS / 10),
}
"""Options of each aggregator, and what it makes of five nodes in a plane, worked out apart from it."""


def sgd(deltas: list[Any]) -> list[Any]:
    return [0.5 * d for d in deltas]


def momentum(deltas: list[Any]) -> list[Any]:
    one, two = deltas
    return [0.5 * one, 0.5 * (0.25 * one + two)]


def adagrad(deltas: list[Any]) -> list[Any]:
    one, two = deltas
    return [one / (np.sqrt(9 + one**2) + 3), two / (np.sqrt(9 + one**2 + two**2) + 3)]


def yogi(deltas: list[Any]) -> list[Any]:
    one, two = deltas
    first, second = 0.5 * one, 0.25 * one + 0.5 * two
    v = 0.25 - 0.25 * one**2 * np.sign(0.25 - one**2)
    w = v - 0.25 * two**2 * np.sign(v - two**2)
    return [first / (np.sqrt(v) + 0.5), second / (np.sqrt(w) + 0.5)]


def adam(deltas: list[Any]) -> list[Any]:
    one, two = deltas
    first, second = one, (0.25 * one + 0.5 * two) / 0.75
    v, w = one**2, (0.1875 * one**2 + 0.25 * two**2) / 0.4375
    return [first / (np.sqrt(v) + 1), second / (np.sqrt(w) + 1)]


def subspace(deltas: list[Any]) -> list[Any]:
    """Of arrays that are no tables."""
    one, two = deltas
    return [0.5 * one, 0.5 * (0.5 * one + two)]


MOMENTS = {"learning_rate": 1.0, "beta_1": 0.5, "beta_2": 0.75}
STEPS: dict[str, tuple[dict[str, Any], Callable[[list[Any]], list[Any]]]] = {
    "sgd": ({"learning_rate": 0.5}, sgd),
    "momentum": ({"learning_rate": 0.5, "momentum": 0.25}, momentum),
    "adagrad": ({"learning_rate": 1.0, "tau": 3.0}, adagrad),
    "yogi": ({**MOMENTS, "tau": 0.5}, yogi),
    "adam": ({**MOMENTS, "tau": 1.0}, adam),
    "subspace": ({"momentum": 0.5}, subspace),
}
"""Options of each server optimiser, and how far it moves in two rounds."""
RULES = {"median", "trimmed-mean", "krum", "multi-krum", "norm-bound"}
MOVERS = {"fedavg": "sgd", "fedavgm": "momentum", "fedadagrad": "adagrad", "fedyogi": "yogi", "fedadam": "adam"}


def test_every_part_is_tried() -> None:
    assert set(DELTAS) == set(AGGREGATORS.built_in)
    assert set(STEPS) == set(SERVER_OPTIMIZERS.built_in)


def nodes(scale: float) -> list[Update]:
    return [update(w, k, p=scale * point) for k, (point, w) in enumerate(zip(POINTS, WEIGHTS, strict=True))]


def built(name: str, options: dict[str, Any], settings: Settings = Settings()) -> RecStrategy:
    found = strategy_class(name)
    assert issubclass(found, RecStrategy)
    return found(options, settings, roster(nodes={10: 0}))


def two_rounds(strategy: RecStrategy) -> list[Arrays]:
    one = after_round(strategy, arrays_of(p=START), nodes(1.0))
    return [one, after_round(strategy, one, nodes(-0.5), 2)]


@pytest.mark.parametrize("optimizer", STEPS)
@pytest.mark.parametrize("aggregator", DELTAS)
def test_any_aggregator_goes_with_any_server_optimizer(aggregator: str, optimizer: str) -> None:
    (rule, delta), (settings, by_hand) = DELTAS[aggregator], STEPS[optimizer]
    one, two = np.asarray(delta), -0.5 * np.asarray(delta)
    if aggregator == "norm-bound":  # of the halves only E is longer than 2
        halves = -0.5 * POINTS * np.minimum(1, 2 / np.maximum(np.linalg.norm(POINTS, axis=1) / 2, 1e-9))[:, None]
        two = WEIGHTS @ halves / 10
    first, second = by_hand([one, two])
    a, b = {"name": aggregator, **rule}, {"name": optimizer, **settings}
    made = [built("fedprox", {"aggregator": a, "server_optimizer": b})]
    made += [built(name, {**settings, "aggregator": a}) for name, mover in MOVERS.items() if mover == optimizer]
    if aggregator in RULES:
        made.append(built(aggregator, {**rule, "server_optimizer": b}))
    assert len(made) == 1 + (optimizer in MOVERS.values()) + (aggregator in RULES)
    for strategy in made:
        found = two_rounds(strategy)
        assert_arrays(found[0], p=START + first)
        assert_arrays(found[1], p=START + first + second)


@pytest.mark.parametrize("aggregator", AGGREGATORS.built_in)
def test_what_a_strategy_says_of_itself_follows_its_aggregator(aggregator: str) -> None:
    rule = make_aggregator(aggregator)
    strategies = [built(name, {"aggregator": aggregator}) for name in (*MOVERS, "fedprox")]
    for strategy in [*strategies, *([built(aggregator, {})] if aggregator in RULES else [])]:
        assert (strategy.needs, strategy.weighted) == (rule.needs, rule.weighted)
    assert (rule.needs == "sums") == (aggregator == "mean")
    assert rule.weighted == (aggregator == "mean")


def test_a_bound_that_is_a_number_weighs() -> None:
    assert built("fedavg", {"aggregator": {"name": "norm-bound", "max_norm": 1.0}}).weighted
    assert RecStrategy.weighted is None  # of the class nothing is said


def test_a_rule_of_ones_own_keeps_what_it_says() -> None:
    class Own(RecStrategy):
        needs = "individual"
        weighted = False

        def aggregate(self, updates: Any, params: Arrays) -> Arrays:
            return super().aggregate(updates, params)

    assert (Own().needs, Own().weighted) == ("individual", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregator": "medain"}, r"unknown aggregator 'medain'.*did you mean 'median'"),
        ({"aggregator": {"name": "median", "trim": 0.1}}, r"unknown option of aggregator 'median' 'trim'"),
        ({"aggregator": {"name": "trimmed-mean", "trm": 0.1}}, r"'trm': one of trim \(did you mean 'trim'\?\)"),
        ({"aggregator": {"name": "trimmed-mean", "trim": 0.5}}, r"options of aggregator 'trimmed-mean': trim is 0.5"),
        ({"aggregator": {"name": "krum", "num-malicious": -1}}, r"num_malicious is -1"),
        ({"aggregator": {"name": "norm-bound", "max_norm": 0}}, r"max_norm is 0"),
        ({"aggregator": {"name": "norm-bound", "max_norm": "mean"}}, r"max_norm is 'mean'.*'median'"),
        ({"aggregator": {"trim": 0.1}}, r"a name or .*is expected"),
        ({"aggregator": {"name": 3}}, r"a name or .*is expected"),
        ({"aggregator": 3}, r"aggregator is 3"),
        ({"aggregator": ["median"]}, r"aggregator is \['median'\]"),
        ({"aggregator": "strategies.optimizers:SGD"}, r"does not derive from fedrec_app\.api\.Aggregator"),
        ({"agregator": "median"}, r"unknown option of strategy 'fedprox' 'agregator'.*did you mean 'aggregator'"),
        ({"server_optimizer": "adm"}, r"unknown server optimizer 'adm'.*did you mean 'adam'"),
        ({"server_optimizer": {"name": "adam", "beta": 0.1}}, r"unknown option of server optimizer 'adam' 'beta'"),
        ({"server_optimizer": {"name": "momentum", "momentum": 1}}, r"server optimizer 'momentum': momentum is 1"),
        ({"server_optimizer": {"learning_rate": 1}}, r"a name or .*is expected"),
        (
            {"server_optimizer": "strategies.median:CoordinateMedian"},
            r"does not derive from fedrec_app\.api\.ServerOptimizer",
        ),
    ],
)
def test_parts_that_are_not_there_or_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_strategy("fedprox", options, Settings(), roster())


def test_parts_are_found_by_class_path_and_options_with_dashes_too() -> None:
    assert make_aggregator("strategies.median:CoordinateMedian").name == "median"
    assert make_server_optimizer({"name": "adam", "learning-rate": 0.5}).options.learning_rate == 0.5


NODE = Settings(unit="node")


@pytest.mark.parametrize(
    ("name", "options", "settings", "message"),
    [
        ("fedavg", {"weighting": "rows", "aggregator": "median"}, NODE, r"weighting 'rows' .*aggregator 'median'"),
        ("fedadam", {"weighting": "rows", "aggregator": "norm-bound"}, NODE, r"weighting 'rows'"),
        ("krum", {"num_malicious": 1}, NODE, r"3 nodes are too few for num_malicious 1: at least 5"),
        ("fedavg", {"aggregator": {"name": "multi-krum"}}, NODE, r"3 nodes are too few"),
        ("multi-krum", {"num_malicious": 0, "num_selected": 4}, NODE, r"num_selected 4 of 3 nodes.*at most 3"),
        ("trimmed-mean", {"trim": 0.1}, NODE, r"trim 0.1 of 3 nodes leaves nobody out: at least 0.334"),
        ("trimmed-mean", {"trim": 0.4}, replace(NODE, fraction_train=0.7), r"at least 3 are needed"),
        ("scaffold", {}, Settings(), r'train.unit="node"'),
        ("scaffold", {}, replace(NODE, local_optimizer="adam"), r"local SGD, not for 'adam': set train.optimizer"),
        ("scaffold", {}, replace(NODE, user_fraction=0.5), r"weight stays.*train.user-fraction=1"),
        ("fednova", {}, Settings(local_optimizer="adam"), r"local SGD, not for 'adam'"),
        ("qfedavg", {}, Settings(local_optimizer="adamw"), r"local SGD, not for 'adamw'"),
        ("fedprox", {}, Settings(one_step=True), r"one local step.*train.local-epochs=2"),
        ("fedprox", {"weighting": "rows", "aggregator": "krum"}, Settings(), r"weighting 'rows'"),
    ],
)
def test_what_makes_no_sense_together_is_refused_with_its_reason(
    name: str, options: dict[str, Any], settings: Settings, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"strategy '{name}' makes no sense here: .*{message}"):
        make_strategy(name, options, settings, roster())


class Halved(FedAvg):
    name = "halved"

    def aggregate(self, updates: Iterable[Update], params: Arrays) -> Arrays:
        return {name: delta / 2 for name, delta in super().aggregate(updates, params).items()}


def test_what_wraps_a_rule_is_refused_what_the_rule_is_refused() -> None:
    krum = {"aggregator": {"name": "krum", "num_malicious": 2}}
    strategy = Halved(krum, NODE, roster())
    assert strategy.needs == "individual"
    assert strategy.problem(3) == "3 nodes are too few for num_malicious 2: at least 7 are needed"
    assert "weighting 'rows'" in Halved({**krum, "weighting": "rows"}, NODE, roster()).problem(7)


@pytest.mark.parametrize("name", ["scaffold", "fednova", "qfedavg", *sorted(RULES)])
def test_rules_that_cannot_count_rows_do_not_offer_it(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown weighting 'rows'"):
        make_strategy(name, {"weighting": "rows"}, NODE, None)


def test_before_the_nodes_are_known_their_number_is_no_problem() -> None:
    for name in ("krum", "trimmed-mean"):
        assert isinstance(make_strategy(name, {}, NODE, None), RecStrategy)


def test_every_built_in_strategy_makes_sense_for_pooled_nodes_with_plain_sgd() -> None:
    many = roster(nodes={node: node for node in range(10)})
    for name in set(BUILT_IN) - {"dp-fedavg"}:  # users train alone there
        assert make_strategy(name, {}, NODE, many).nodes_a_round() == 10  # type: ignore[attr-defined]


def after_aggregation(strategy: RecStrategy, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
    """The parameters after a round in which the only node sends this delta."""
    asked(strategy, params, server_round, {10: 0})
    said = metrics(server_round=server_round)
    arrays, _ = strategy.aggregate_train(server_round, [reply(10, {DELTA + n: d for n, d in delta.items()}, said)])
    assert arrays is not None
    return from_record(arrays)


class OwnStep(FedAvg):
    """Moves by the sign of the delta, whatever its size."""

    name = "own-step"

    def server_step(self, params: Arrays, delta: Arrays, server_round: int) -> Arrays:
        return {name: param + np.sign(delta[name]) for name, param in params.items()}


def test_the_schedule_scales_the_steps_of_plug_ins_too() -> None:
    settings = Settings(num_rounds=2, schedule=Schedule.parse("cosine", "strategy.schedule"))
    strategy = OwnStep({}, settings, roster(nodes={10: 0}))
    params, delta = arrays_of(p=[1.0, 1.0]), arrays_of(p=[7.0, -2.0])
    assert_arrays(after_aggregation(strategy, params, delta, 1), p=[2.0, 0.0])
    assert_arrays(after_aggregation(strategy, params, delta, 2), p=[1.5, 0.5])


@pytest.mark.parametrize(
    ("optimizer", "steps"),
    [
        ({"name": "sgd"}, [2.0, 0.5 * 2]),
        ({"name": "momentum", "momentum": 0.5}, [2.0, 0.5 * (1 + 2)]),
        ({"name": "adam", **MOMENTS, "tau": 1.0}, [2 / (2 + 1), 0.5 * 2 / (2 + 1)]),
    ],
)
def test_the_schedule_multiplies_the_step_and_leaves_the_state_alone(
    optimizer: dict[str, Any], steps: list[float]
) -> None:
    """Half a cosine over two rounds is 1 and 0.5; the delta is 2 in both. Adam's corrected moments are 2 and 4."""
    settings = Settings(num_rounds=2, schedule=Schedule.parse("cosine", "strategy.schedule"))
    strategy, plain = (built("fedprox", {"server_optimizer": optimizer}, s) for s in (settings, Settings(num_rounds=2)))
    params, delta = arrays_of(p=[1.0]), arrays_of(p=[2.0])
    one = after_aggregation(strategy, params, delta, 1)
    assert_arrays(one, p=[1 + steps[0]])
    assert_arrays(after_aggregation(strategy, one, delta, 2), p=[1 + steps[0] + steps[1]])
    after_aggregation(plain, after_aggregation(plain, params, delta, 1), delta, 2)
    assert_arrays(strategy.state(), **plain.state())


def test_a_cosine_over_four_rounds_falls_as_it_says() -> None:
    """(1 + cos(pi (t - 1) / 4)) / 2 = 1, 0.853..., 0.5, 0.146..."""
    settings = Settings(num_rounds=4, schedule=Schedule.parse("cosine", "strategy.schedule"))
    strategy = built("fedavg", {"learning_rate": 2.0}, settings)
    found = [float(after_aggregation(strategy, arrays_of(s=0.0), arrays_of(s=1.0), t)["s"]) for t in (1, 2, 3, 4)]
    assert found == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5], abs=1e-12)
