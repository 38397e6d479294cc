"""The whole audit and its command: what is said, what fails, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedrec_app import cli, client
from fedrec_app.audits.audit import Audit, audit
from fedrec_app.audits.canary import audit_releases
from fedrec_app.audits.claim import Claim
from fedrec_app.audits.example_canary import worlds_of_examples
from fedrec_app.config import PrivacyConfig
from fedrec_app.errors import ConfigError
from fedrec_app.models.registry import resolved
from fedrec_app.private_fit import user_level
from fedrec_app.training import example_level
from fedrec_app.training.plan import FitPlan
from tests.small import SMALL, run_folder
from tests.unit.audits.faults import half_noise
from tests.unit.audits.given import SETTINGS


def arguments(**changes: Any) -> list[str]:
    flat = {**SETTINGS, **{key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}}
    text = " ".join(f"{key}={value!r}" for key, value in flat.items())
    return ["privacy", "audit", "-c", text, "--releases", "400", "--users", "10", "--json"]


def test_the_command_prints_claims_beside_what_was_shown() -> None:
    asked = arguments(num_server_rounds=5, privacy__sampling_rate=0.5)
    result = CliRunner().invoke(cli.commands, asked)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert 0 <= found["empirical_lower_bound"] < found["claimed_epsilon"]
    assert found["release"]["empirical_lower_bound"] < found["release"]["claimed_epsilon"] == pytest.approx(4.0)
    assert (found["num_releases"], found["sampling_rate"], found["problems"]) == (5, 0.5, [])
    assert found["longest_update"] == pytest.approx(1.0, abs=1e-3)
    assert found["item_recovery_f1"] == max(found["item_recovery"]["1"][name] for name in ("best", "popularity"))
    assert sorted(found["item_recovery"]) == ["1", "20", "5", "released"]
    for words in ("epsilon of the run, 5 releases", "at least", "singular vector, sign", "no epsilon is claimed"):
        assert words in result.stderr


def test_the_command_fails_where_the_claim_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    half_noise(monkeypatch)
    result = CliRunner().invoke(cli.commands, arguments())
    assert result.exit_code == 1
    assert "PROBLEM: noise of releases" in result.stderr
    assert json.loads(result.stdout)["problems"]


@pytest.mark.parametrize("model", ["mf", "neumf"])
def test_a_node_that_does_not_clip_is_seen_in_its_updates(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit lets the run's own engine clip to a third of what the least of its users would send."""

    def clips_nothing(plan: FitPlan, privacy: PrivacyConfig, ask: Mapping[str, Any]) -> FitPlan:
        return replace(user_level(plan, privacy, ask), clip_norm=1e9)

    monkeypatch.setattr(client, "user_level", clips_nothing)
    config = resolved({**SETTINGS, "model.name": model, "model.options": "{}", "train.num-negatives": "auto"})
    found = audit(config, releases=100, users=1)
    assert found.longest is not None
    assert found.longest >= 3 * (1 - 1e-5)
    assert any("as long as the bound C" in problem for problem in found.problems())


def test_without_privacy_updates_are_attacked_and_nothing_is_claimed() -> None:
    """One step of MF with sampled negatives gives every item away."""
    config = resolved({"data.options": SMALL, "model.options": '{"loss": "bce"}', "train.num-negatives": 4})
    found = audit(config, users=20).to_json()
    assert found["claimed_epsilon"] is None
    assert found["empirical_lower_bound"] is None
    assert found["item_recovery_f1"] == found["item_recovery"]["1"]["singular vector, sign"] == 1.0
    assert found["item_recovery"]["1"]["users"] == 20
    assert found["popularity_f1"] < 0.7
    assert found["item_recovery"]["20"]["singular vector, sign"] < 0.8


def test_a_run_is_audited_by_its_ledger_and_charged_nothing(tmp_path: Path) -> None:
    flat = {key.replace(".", "__").replace("-", "_"): value for key, value in SETTINGS.items()}
    folder = run_folder(tmp_path, **{**flat, "num_server_rounds": 3, "evaluate__bootstrap": 0})
    ledger = (folder.path / "privacy-ledger.jsonl").read_bytes()
    options = ["privacy", "audit", "--run", str(folder.path), "--releases", "100", "--users", "5", "--json"]
    result = CliRunner().invoke(cli.commands, options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["num_releases"] == 3
    assert found["claimed_epsilon"] == pytest.approx(folder.read_summary()["privacy"]["epsilon"])
    assert (folder.path / "privacy-ledger.jsonl").read_bytes() == ledger


EXAMPLES = {
    **SETTINGS, "privacy.unit": "example", "strategy.name": "fedavg", "strategy.options": '{"weighting": "users"}',
    "privacy.sampling-rate": 0.5, "train.unit": "node",
}  # fmt: skip


def test_a_run_with_privacy_of_examples_is_audited_too() -> None:
    found = audit(resolved(EXAMPLES), releases=100, users=1).to_json()
    assert (found["problems"], found["num_releases"], found["longest_update"]) == ([], 2, None)
    assert found["adversary"] == "released models"  # exact metrics pass the server
    assert 0 <= found["empirical_lower_bound"] < found["claimed_epsilon"]


def test_less_noise_or_no_clipping_of_examples_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's own step, with half of its noise, and with gradients as long as they are."""
    claim = Claim.of_settings(resolved(EXAMPLES), 40)
    add = example_level.add_noise
    monkeypatch.setattr(example_level, "add_noise", lambda sums, z, bound: add(sums, z / 2, bound))
    found = Audit("example", claim, audit_releases(worlds_of_examples(claim), 100))
    assert any(problem.startswith("noise of releases") for problem in found.problems())
    monkeypatch.setattr(example_level, "add_noise", add)
    monkeypatch.setattr(example_level.optimizers, "clip", lambda grads, norm, each: grads)
    found = Audit("example", claim, audit_releases(worlds_of_examples(claim), 600))
    assert any("epsilon of one release" in problem for problem in found.problems())


def test_what_cannot_be_audited_is_refused() -> None:
    with pytest.raises(ConfigError, match="an even number of at least 8"):
        audit(resolved(SETTINGS), releases=9)
    with pytest.raises(ConfigError, match="solved from statistics"):
        audit(resolved({"data.options": SMALL, "model.name": "ease"}))


@pytest.mark.slow
def test_updates_of_ml_100k_give_away_what_was_measured_before(ml_100k: Path) -> None:
    """4 negatives for each item: F1 .34 to .36 by rows that moved, 1.00 by the singular vector, .335 by popularity."""
    flat = {"data.name": "ml-100k", "data.path": str(ml_100k), "model.options": '{"loss": "bce"}'}
    found = audit(resolved({**flat, "train.num-negatives": 4}), users=943).to_json()["item_recovery"]
    assert found["1"]["singular vector, sign"] == pytest.approx(1.0, abs=0.01)
    assert found["1"]["non-zero rows"] == pytest.approx(0.35, abs=0.02)
    assert found["1"]["popularity"] == pytest.approx(0.335, abs=0.01)
    assert found["20"]["singular vector, sign"] < found["20"]["popularity"]
