"""`fedrec privacy plan`: what is given decides what is solved for, and the settings of a run say the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedrec_app import node_data
from fedrec_app.cli_privacy import add_plan
from fedrec_app.errors import ConfigError
from fedrec_app.privacy import plan as arithmetic
from fedrec_app.privacy.accounting import default_delta, epsilon, noise_for, rdp_epsilon
from fedrec_app.privacy.events import Gaussian
from tests.small import SMALL

DATA = f"data.options='{SMALL}'"
BASE = ("--users", "500", "--sampling-rate", "0.2", "--rounds", "5")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for without what changes would make of it, which takes its time."""
    monkeypatch.setattr(arithmetic, "neighbours", lambda design: [])


def invoke(*arguments: str) -> str:
    """Returns what the command prints on standard output."""
    commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    add_plan(commands)
    done = CliRunner().invoke(commands, list(arguments), env={"COLUMNS": "80"})
    if isinstance(done.exception, Exception):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def planned(*arguments: str) -> dict[str, Any]:
    return json.loads(invoke(*arguments, "--json"))


def test_noise_is_given_and_epsilon_is_said() -> None:
    found = planned(*BASE, "--noise-multiplier", "1", "--delta", "1e-5", "--parameters", "10000")
    event = Gaussian(1.0, 0.2, 5)
    assert (found["epsilon"], found["epsilon_rdp"]) == (epsilon([event], 1e-5), rdp_epsilon([event], 1e-5))
    assert (found["delta"], found["noise_multiplier"], found["sampling_rate"], found["rounds"]) == (1e-5, 1.0, 0.2, 5)
    assert (found["users"], found["parameters"], found["noise_to_clip"]) == (500, 10_000, 1.0)
    assert (found["noise_std"], found["noise_std_of_mean"]) == (1.0, 0.01)
    assert found["adversary"] == "released models"
    assert found["server"].startswith("none: ")
    assert found["rows"][0]["change"] == "as asked"
    assert found["rows"][0]["epsilon"] == found["epsilon"]
    assert found["recommendation"]


@pytest.mark.usefixtures("alone")
def test_epsilon_is_given_and_the_noise_is_solved_for() -> None:
    found = planned(*BASE, "--epsilon", "3")
    assert found["delta"] == default_delta(500)
    assert found["noise_multiplier"] == noise_for(3.0, default_delta(500), 0.2, 5)
    assert 2.98 < found["epsilon"] <= 3
    assert found["noise_to_clip"] is found["parameters"] is found["metrics_noise_multiplier"] is None


@pytest.mark.usefixtures("alone")
def test_a_clipping_bound_alone_says_how_much_noise_epsilon_eight_is() -> None:
    found = planned(*BASE, "--clip-norm", "0.5")
    assert 7.9 < found["epsilon"] <= 8
    assert found["clip_norm"] == 0.5
    assert found["noise_std"] == pytest.approx(0.5 * found["noise_multiplier"])


@pytest.mark.usefixtures("alone")
def test_a_clipping_bound_beside_noise_only_scales_it() -> None:
    found = planned(*BASE, "--noise-multiplier", "2", "--clip-norm", "0.5")
    assert (found["noise_multiplier"], found["noise_std"], found["noise_std_of_mean"]) == (2.0, 1.0, 0.01)


@pytest.mark.usefixtures("alone")
def test_no_noise_has_no_epsilon_in_json() -> None:
    found = planned(*BASE, "--noise-multiplier", "0")
    assert found["epsilon"] is found["epsilon_rdp"] is None
    assert found["recommendation"] == ["Without noise nothing is promised."]


@pytest.mark.usefixtures("alone")
def test_noised_test_metrics_are_part_of_epsilon_when_asked_for() -> None:
    asked = (*BASE, "--noise-multiplier", "2")
    found = planned(*asked, "--metrics-noise-multiplier", "5")
    assert found["metrics_noise_multiplier"] == 5
    assert found["epsilon"] == epsilon([Gaussian(2.0, 0.2, 5), Gaussian(5.0)], default_delta(500))
    text = invoke(*asked, "--metrics-noise-multiplier", "5")
    assert "Test metrics with noise multiplier 5 are part of epsilon." in text
    assert "Test metrics" not in invoke(*asked)


@pytest.mark.usefixtures("alone")
def test_settings_say_what_is_not_given_and_a_run_with_them_has_the_same_noise() -> None:
    settings = (
        'privacy.unit="user" privacy.target-epsilon=4.0 privacy.sampling-rate=0.25 num-server-rounds=4 '
        "privacy.clip-norm=0.7 model.embedding-dim=3 " + DATA
    )
    found = planned("-c", settings)
    assert (found["users"], found["rounds"], found["sampling_rate"], found["clip_norm"]) == (40, 4, 0.25, 0.7)
    assert found["delta"] == default_delta(40)
    assert found["metrics_noise_multiplier"] == 5.0
    assert found["noise_multiplier"] == noise_for(4.0, default_delta(40), 0.25, 4, [Gaussian(5.0)])
    assert found["parameters"] == 60 * 3


@pytest.mark.usefixtures("alone")
def test_options_go_over_settings() -> None:
    settings = f'privacy.unit="user" privacy.noise-multiplier=2.0 privacy.metrics="withheld" {DATA}'
    found = planned("-c", settings, *BASE, "--noise-multiplier", "3", "--delta", "1e-6", "--parameters", "7")
    assert (found["users"], found["rounds"], found["noise_multiplier"], found["delta"]) == (500, 5, 3.0, 1e-6)
    assert found["parameters"] == 7
    assert found["metrics_noise_multiplier"] is None
    assert planned("-c", settings, *BASE)["noise_multiplier"] == 2.0


@pytest.mark.usefixtures("alone")
def test_shared_parameters_are_counted_without_the_interactions(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*arguments: Any) -> None:
        raise AssertionError("interactions were read")

    monkeypatch.setattr(node_data, "prepared", read)
    asked = (*BASE, "--noise-multiplier", "1", "-c", f"model.embedding-dim=32 {DATA}")
    assert planned(*asked)["parameters"] == 60 * 32
    assert planned(*asked, "-c", "train.adapter-rank=2")["parameters"] == 60 * 2


def test_the_table_has_a_row_for_each_change_and_says_against_whom_it_holds() -> None:
    text = invoke(*BASE, "--noise-multiplier", "1", "--delta", "1e-5", "--parameters", "10000")
    lines = text.splitlines()
    assert "500 users, delta 1e-05, clipping bound 1, 10,000 shared parameters" in lines[0]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [row[0] for row in cells] == [
        "as asked", "half the rounds", "double the rounds", "half the rate", "double the rate",
        "epsilon 1", "epsilon 3", "epsilon 8", "epsilon 20",
    ]  # fmt: skip
    assert cells[0] == ["as asked", "5", "0.2", "1", f"{epsilon([Gaussian(1.0, 0.2, 5)], 1e-5):.3f}", "0.01", "1.00"]
    assert "Epsilon holds against: released models; against the server itself none: " in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((*BASE, "--epsilon", "3", "--noise-multiplier", "1"), "both fix the noise"),
        ((*BASE,), "give --epsilon, --noise-multiplier or --clip-norm"),
        (("--epsilon", "3"), "give --users"),
        ((*BASE, "--epsilon", "0"), "--epsilon is 0"),
        ((*BASE, "--epsilon", "-1"), "target epsilon is -1"),
        ((*BASE, "--noise-multiplier", "-1"), "noise multiplier is -1"),
        ((*BASE, "--noise-multiplier", "1", "--delta", "0"), "delta is 0"),
        (("--users", "1", "--noise-multiplier", "1"), "users is 1"),
        ((*BASE, "--epsilon", "3", "-c", 'privacy.unit="example"'), 'privacy.unit is "example"'),
        ((*BASE, "--epsilon", "3", "-c", 'model.name="mff"'), "unknown model 'mff'"),
        ((*BASE, "--epsilon", "3", "-c", 'model.name="ease"'), "ease"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        invoke(*arguments)
