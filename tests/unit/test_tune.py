"""Tuning: what may be searched, trials that follow from seed and history, no look at the test part, and a study that
survives a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedrec_app import cli, tune_search
from fedrec_app.config import RunConfig, Scalar, read_toml
from fedrec_app.errors import ConfigError, FedrecError, StateError
from fedrec_app.models.registry import model_class
from fedrec_app.records import CONFIG, Ask
from fedrec_app.simulate import simulate
from fedrec_app.tune import is_behind, tune
from fedrec_app.tune_defaults import SPACES
from fedrec_app.tune_dimension import Dimension
from fedrec_app.tune_search import importances, propose
from fedrec_app.tune_space import Space, read_space, settings
from fedrec_app.tune_study import Study, Trial, held

SMALL = '{"num_users": 40, "num_items": 60, "mean_interactions": 15, "min_interactions": 5}'
EASE: dict[str, Scalar] = {"data.options": SMALL, "model.name": "ease", "privacy.min-cohort": 1}
MF: dict[str, Scalar] = {"data.options": SMALL, "model.embedding-dim": 4, "num-server-rounds": 3}
LAMBDA = "model.options.regularization=log:1..1000"


def trial(number: int, params: dict[str, Any], value: float, by_round: Sequence[float] = ()) -> Trial:
    rounds = tuple(enumerate(by_round or [value], start=1))
    return Trial(number=number, state="complete", params=params, value=value, best_round=1, by_round=rounds, seconds=0)


def tried(study: Study) -> list[tuple[Any, ...]]:
    """What must not depend on when and where: everything but the seconds."""
    return [(t.number, t.state, t.params, t.value, t.best_round, t.by_round, t.reason) for t in study.trials]


# What is searched ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0..0.5", Dimension("k", "float", 0.0, 0.5)),
        ("-1.5..2", Dimension("k", "float", -1.5, 2.0)),
        ("log:1e-4..1e-1", Dimension("k", "log", 1e-4, 1e-1)),
        ("int:1..4", Dimension("k", "int", 1, 4)),
        ("16|32|64", Dimension("k", "choice", choices=(16, 32, 64))),
        ("""'a..b' | "c|d"|true|[8, 4]""", Dimension("k", "choice", choices=("a..b", "c|d", True, [8, 4]))),
    ],
)
def test_values_are_ranges_or_choices(text: str, expected: Dimension) -> None:
    assert Dimension.parse("k", text) == expected
    assert Dimension.parse("k", str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "fixed", "says"),
    [
        ("train.learning-rte=log:1e-3..1", {}, "unknown setting 'train.learning-rte'.*mean 'train.learning-rate'"),
        ("model.options.recncy=0..1", {}, "unknown option of model 'mf' 'recncy'.*did you mean 'recency'"),
        ("strategy.options.tua=0..1", {}, "unknown option of strategy 'fedadam' 'tua'.*did you mean 'tau'"),
        ("data.options.num_user=int:1..2", {}, "num_user cannot be searched: trials must share their data"),
        ("train.learning-rate=0..1", {}, r"train.learning-rate is 0.0\.\.1.0 in the space: .* must be greater than 0"),
        ("model.options.recency=-1..1", {}, "recency is -1.0: must be greater than or equal to 0"),
        ("train.local-epochs=1..4", {}, r"must be a valid integer.*whole numbers are written int:1\.\.4"),
        ('train.optimizer="adam"|"sdg"', {}, "unknown train.optimizer 'sdg'.*did you mean 'sgd'"),
        ("train.optimizer=adam|sgd", {}, "texts in quotes"),
        ("train.learning-rate=1..0.1", {}, "the first end must be below the second"),
        ("train.learning-rate=log:0..1", {}, "a log range begins above 0"),
        ("train.local-epochs=int:1..2.5", {}, "the ends of the range must be whole numbers"),
        ("model.embedding-dim=16", {}, "two choices or more"),
        ("model.embedding-dim 16|32", {}, "pairs such as"),
        ("model.options.recency=0..1", {"model.options": '{"recency": 1}'}, "in the space and set by -c"),
        ("train.learning-rate=log:0.1..1", {"model.name": "ease"}, "changes nothing: model 'ease' is solved"),
        ("seed=int:0..9", {}, "seed cannot be searched: the luckiest seed"),
        ('evaluate.metric="hr@10"|"ndcg@10"', {}, "evaluate.metric cannot be searched"),
        ("privacy.target-epsilon=1..9", {}, "how much privacy there is must not be chosen by quality"),
        ("data.min-interactions=int:1..9", {}, "trials must share their data"),
        ('model.name="mf"|"sasrek"', {}, "unknown model 'sasrek'.*did you mean 'sasrec'"),
        ("", {"model.name": "popularity"}, "nothing to tune of model 'popularity': it has no default space"),
        ("space.toml", {}, "no space file space.toml"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_the_first_trial(
    text: str, fixed: dict[str, Scalar], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read_space([text], fixed)


def test_options_are_searched_in_the_models_that_have_them() -> None:
    text = 'model.name="mf"|"sasrec"|"ease" train.local-epochs=int:1..2 model.options.dropout=0..0.5'
    assert read_space([text], {}).described() == {
        "mf": {"train.local-epochs": "int:1..2"},
        "sasrec": {"train.local-epochs": "int:1..2", "model.options.dropout": "0.0..0.5"},
        "ease": {"model.options.regularization": "log:5.0..5000.0", "model.options.recency": "0.0..1.5"},
    }
    assert read_space([text], {}).origins == {"mf": "as given", "sasrec": "as given", "ease": "the default space"}


def test_options_are_searched_under_the_strategies_that_have_them() -> None:
    text = 'strategy.options.tau=log:1e-9..1e-3 strategy.name="fedavg"|"fedadam" strategy.options.learning_rate=0.1..1'
    name, tau, rate = read_space([text], {}).models["mf"]
    assert (name.key, tau.strategies, rate.strategies) == ("strategy.name", ("fedadam",), ())
    space = read_space([text], {})
    start = [trial(0, space.start("mf", {}), 0.1)]
    configurations = [propose(space, start, seed, {}) or {} for seed in range(8)]
    assert {p["strategy.name"] for p in configurations} == {"fedavg", "fedadam"}
    for params in configurations:
        assert ("strategy.options.tau" in params) == (params["strategy.name"] == "fedadam")


def test_a_file_has_a_table_for_each_model(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        'train.local-epochs = "int:1..2"\n[mf]\nmodel.options.recency = "0..2"\n'
        '[sasrec]\nmodel.embedding-dim = [8, 16]\ntrain.local-epochs = "int:2..3"\n'
    )
    assert read_space([str(path)], {}).described() == {
        "mf": {"model.options.recency": "0.0..2.0", "train.local-epochs": "int:1..2"},
        "sasrec": {"model.embedding-dim": "8|16", "train.local-epochs": "int:2..3"},
    }
    path.write_text('[sasrek]\ntrain.local-epochs = "int:1..2"\n')
    with pytest.raises(ConfigError, match="unknown model in the space 'sasrek'"):
        read_space([str(path)], {"model.name": "sasrec"})


@pytest.mark.parametrize("model", [name for name, space in SPACES.items() if space])
def test_a_default_space_holds_what_the_model_has_by_itself(model: str) -> None:
    space = read_space([], {"model.name": model})
    start = space.start(model, {"model.name": model})
    assert set(start) == set(SPACES[model])
    own = RunConfig.from_flat({"model.name": model}).resolve(model_class(model).recipe).flat()
    assert all(start[key] == own[key] for key in start if ".options." not in key)


def test_what_is_fixed_is_left_out_of_the_default_space() -> None:
    space = read_space([], {"model.name": "ease", "model.options": '{"recency": 0.5}'})
    assert list(space.described()["ease"]) == ["model.options.regularization"]


def test_options_are_merged_into_those_that_are_fixed() -> None:
    fixed: dict[str, Scalar] = {"model.options": '{"max-items": 9}', "seed": 3}
    flat = settings(fixed, {"model.options.recency": 0.5, "train.local-epochs": 2})
    assert flat == {"seed": 3, "model.options": '{"max_items": 9, "recency": 0.5}', "train.local-epochs": 2}


# What is tried -------------------------------------------------------------------------------------------------------


def test_a_trial_follows_from_seed_and_history(tmp_path: Path) -> None:
    space = read_space([LAMBDA, "model.options.recency=0..1"], EASE)

    def search(seed: int, trials: list[Trial]) -> list[Trial]:
        for number in range(len(trials), 14):
            params = propose(space, trials, seed, EASE) or {}
            trials = [*trials, trial(number, params, -abs(params["model.options.recency"] - 0.3))]
        return trials

    first = search(0, [])
    assert search(0, first[:12]) == first
    assert search(1, [])[1:] != first[1:]
    assert first[0].params == {"model.options.regularization": 100.0, "model.options.recency": 0.0}
    found = importances(Study(tmp_path / "s", {}, first), space)
    assert list(found) == ["model.options.recency", "model.options.regularization"]
    assert sum(found.values()) == pytest.approx(1)


def test_each_model_starts_from_what_it_has_by_itself_and_has_dimensions_of_its_own() -> None:
    fixed: dict[str, Scalar] = {"data.options": SMALL}
    space = read_space(['model.name="ease"|"popularity"|"itemknn"'], fixed)
    trials: list[Trial] = []
    for number in range(14):
        trials.append(trial(number, propose(space, trials, 0, fixed) or {}, 0.1))
    assert [t.params["model.name"] for t in trials[:3]] == ["ease", "popularity", "itemknn"]
    assert trials[0].params["model.options.regularization"] == 100.0
    for t in trials:
        assert set(t.params) == {"model.name", *SPACES[t.params["model.name"]]}
    # Nothing is tried twice: of popularity there is one configuration.
    assert sum(t.params["model.name"] == "popularity" for t in trials) == 1


def test_what_fails_is_avoided() -> None:
    space = read_space(['model.name="ease"|"itemknn"'], {})
    trials: list[Trial] = []
    for number in range(40):
        params = propose(space, trials, 0, {}) or {}
        failed = params["model.name"] == "ease"
        done = trial(number, params, 0.1)
        trials.append(done.model_copy(update={"state": "failed", "value": None, "by_round": ()}) if failed else done)
    models = [t.params["model.name"] for t in trials]
    assert models[:10].count("ease") >= 2
    assert models[20:].count("ease") <= 4


def test_a_space_of_few_configurations_is_searched_and_then_at_its_end() -> None:
    space = read_space(["model.options.neighbors=10|20|30 model.options.recency=0|1"], {"model.name": "itemknn"})
    trials: list[Trial] = []
    while (params := propose(space, trials, 0, {})) is not None:
        trials.append(trial(len(trials), params, 0.5))
    assert len({json.dumps(t.params) for t in trials}) == len(trials) == 6


@pytest.mark.parametrize(
    ("by_round", "rivals", "behind"),
    [
        ([0.29], 5, True),
        ([0.31], 5, False),
        ([0.31, 0.01], 5, False),  # its best round counts
        ([0.29], 4, False),  # too few to judge by
    ],
)
def test_a_run_is_behind_where_half_of_its_rivals_had_been_better_by_then(
    by_round: list[float], rivals: int, behind: bool
) -> None:
    others = [trial(n, {}, 0.9, [0.1 * (n + 1), 0.0, 0.9]) for n in range(rivals)]  # medians of round 1: 0.3
    assert is_behind(list(enumerate(by_round, start=1)), others, num_rounds=5) is behind
    assert not is_behind([(1, 0.0)], others, num_rounds=10), "a tenth of the rounds is too early"
    assert not is_behind([(5, 0.0)], others, num_rounds=5), "the last round ends it anyway"


# Runs ----------------------------------------------------------------------------------------------------------------


def test_the_test_part_is_never_asked_for_and_a_run_repeats_the_best_trial(tmp_path: Path) -> None:
    asked: list[str] = []

    def tap(message: Message) -> None:
        if not message.metadata.reply_to_message_id and message.metadata.message_type == "evaluate":
            asked.append(str(message.content.config_records[CONFIG][Ask.PART]))

    out, path = tmp_path / "best.toml", tmp_path / "s.jsonl"
    space = read_space(["model.options.recency=0..2 strategy.options.learning_rate=log:0.01..0.1"], MF)
    study = tune(MF, space, 2, path, 3, out=out, taps=[tap])
    assert asked == ["validation"] * (3 * 3 * 2)  # trials, rounds, nodes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.toml", "s.jsonl", "s.jsonl.lock"]
    best = study.best
    assert best is not None
    assert best.value == max(v for t in study.trials for _, v in t.by_round)

    repeated = simulate({**read_toml(out), "output-dir": str(tmp_path / "runs")}, 2, taps=[tap])
    assert asked[-2:] == ["test"] * 2
    assert repeated.summary["validation"]["ndcg@10"] == best.value
    assert repeated.summary["best_round"] == best.best_round
    header = out.read_text().splitlines()[:3]
    assert f"trial {best.number} of 3: ndcg@10 {best.value:.6f} on validation" in header[1]
    assert header[2] == "# chosen on validation alone: the test part was not read"


def test_a_run_without_test_is_the_same_run(tmp_path: Path) -> None:
    flat = {**EASE, "output-dir": str(tmp_path)}
    whole, without = simulate(flat, 2), simulate(flat, 2, reads_test=False)
    assert set(whole.summary) - set(without.summary) == {"test", "sampled"}
    changing = {"lineage", "seconds_per_round"}
    for key in set(without.summary) - changing:
        assert without.summary[key] == whole.summary[key]
    assert without.folder.read_model()[0]["weights"].tobytes() == whole.folder.read_model()[0]["weights"].tobytes()
    assert not (without.folder.path / "report.md").exists()


def test_a_configuration_that_is_refused_is_a_failed_trial_and_the_study_goes_on(tmp_path: Path) -> None:
    space = read_space(['strategy.name="fedavg"|"krum"'], MF)
    study = tune(MF, space, 2, tmp_path / "s", 9)
    assert {t.params["strategy.name"]: t.state for t in study.trials} == {"fedavg": "complete", "krum": "failed"}
    (failed,) = study.of_state("failed")
    assert "krum" in failed.reason
    assert failed.value is None

    space = read_space(['strategy.name="krum"|"multi-krum"'], MF)
    with pytest.raises(FedrecError, match=r"no trial completed, of 2: 1 times strategy '(multi-)?krum' makes no sense"):
        tune(MF, space, 2, tmp_path / "other", 9)


def test_three_failures_for_one_reason_end_a_search(tmp_path: Path) -> None:
    few = {**EASE, "privacy.min-cohort": 21}
    with pytest.raises(FedrecError, match=r"no trial completed, of 3: 3 times .*privacy.min-cohort is 21"):
        tune(few, read_space([LAMBDA], few), 2, tmp_path / "s", 9)


def test_a_private_search_needs_figures_that_privacy_keeps(tmp_path: Path) -> None:
    private = {**MF, "privacy.unit": "user", "privacy.target-epsilon": 8.0, "num-server-rounds": 2}
    space = read_space(["privacy.clip-norm=log:1e-4..1"], private)
    with pytest.raises(ConfigError, match=r'trials are judged on validation.*privacy.metrics="exact"'):
        tune(private, space, 2, tmp_path / "s", 1)
    exact = {**private, "privacy.metrics": "exact"}
    study = tune(exact, read_space(["privacy.clip-norm=log:1e-4..1"], exact), 2, tmp_path / "s", 1)
    assert [trial.state for trial in study.trials] == ["complete"]
    assert study.trials[0].best_round == 2  # the last round is what would be released


def test_a_study_is_of_the_file_that_its_models_start_from(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"model.init-from: cannot read .*gone"):
        tune({**MF, "model.init-from": "gone"}, read_space(["model.options.recency=0..1"], MF), 2, tmp_path / "s", 1)
    start = tmp_path / "start"
    for content in (b"one", b"two"):
        start.write_bytes(content)
        fixed = {**MF, "model.init-from": str(start)}
        space = read_space(["model.options.recency=0..1"], fixed)
        says = "start is .* there and .* here" if content == b"two" else "no trial completed, of 1"
        with pytest.raises(FedrecError, match=says):
            tune(fixed, space, 2, tmp_path / "s", 1)


def test_a_failed_trial_tells_what_a_node_said(tmp_path: Path) -> None:
    few = {**EASE, "privacy.min-cohort": 21}
    with pytest.raises(FedrecError, match=r"statistics of 20 users stay here: privacy.min-cohort is 21"):
        tune(few, read_space([LAMBDA], few), 2, tmp_path / "s", 1)


def test_a_run_that_is_behind_is_stopped(tmp_path: Path) -> None:
    space, path = read_space(["model.options.recency=0..2"], MF), tmp_path / "s"
    study = tune(MF, space, 2, path, 1)
    for number in range(1, 6):
        study.add(trial(number, {"model.options.recency": number / 8}, 0.9, [0.8, 0.9, 0.9]))
    study = tune(MF, space, 2, path, 7)
    stopped = study.trials[-1]
    assert (stopped.state, len(stopped.by_round)) == ("pruned", 1)
    assert stopped.reason == "behind half of 6 trials of its model after round 1"
    assert study.best is not None
    assert study.best.number == 1


def test_no_trial_is_begun_after_the_time(tmp_path: Path) -> None:
    space = read_space([LAMBDA], EASE)
    with pytest.raises(FedrecError, match="no trial completed, of 0: there was no time for one"):
        tune(EASE, space, 2, tmp_path / "s", 3, timeout=0)


# The study on disk ---------------------------------------------------------------------------------------------------

KILLED = """
import json, os, signal, sys
from pathlib import Path
from fedrec_app.tune import tune
from fedrec_app.tune_space import read_space

folder, fixed, text = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
rounds = []

def watch(record, progress, num_rounds):
    rounds.append(record.round)
    if len(rounds) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

tune(fixed, read_space([text], fixed), 2, folder / "s.jsonl", 5, out=folder / "best.toml", watchers=[watch])
"""


def test_a_study_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(EASE), LAMBDA]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    path = tmp_path / "s.jsonl"
    assert len(path.read_text().splitlines()) == 1 + 2
    assert (tmp_path / ".s.jsonl.fedrec-trial").is_dir(), "it died in the middle of its third trial"
    assert "trial" in (tmp_path / "best.toml").read_text()

    space = read_space([LAMBDA], EASE)
    rounds: list[int] = []
    went_on = tune(EASE, space, 2, path, 5, watchers=[lambda record, *rest: rounds.append(record.round)])
    assert len(rounds) == 3, "only what was left is run"
    assert not (tmp_path / ".s.jsonl.fedrec-trial").exists()
    assert tried(went_on) == tried(tune(EASE, space, 2, tmp_path / "whole", 5))


def test_a_study_of_something_else_is_refused_with_the_differences(tmp_path: Path) -> None:
    path = tmp_path / "s"
    tune(EASE, read_space([LAMBDA], EASE), 2, path, 1)
    other = {**EASE, "data.options": SMALL.replace("40", "41"), "evaluate.metric": "hr@10"}
    text = LAMBDA.replace("1000", "500")
    with pytest.raises(StateError) as caught:
        tune(other, read_space([text], other), 3, path, 2, seed=4)
    for difference in (
        "data is ", "num-nodes is 2 there and 3 here", "seed is 0 there and 4 here",
        'settings evaluate.metric is absent there and "hr@10" here',
        'space ease model.options.regularization is "log:1.0..1000.0" there and "log:1.0..500.0" here',
    ):  # fmt: skip
        assert difference in str(caught.value)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "line 2: "),
        ('{"number": 1, "state": "complete", "params": {}, "value": 0.5, "seconds": 1}', "is not a whole trial 0"),
        ('{"number": 0, "state": "complete", "params": {}, "seconds": 1}', "line 2 is not a whole trial 0"),
        ('{"number": 0, "state": "done", "params": {}, "seconds": 1}', "line 2: unknown state 'done'"),
        ('{"number": 0, "state": "failed", "params": {}, "seconds": NaN}', "line 2: seconds is nan"),
    ],
)  # fmt: skip
def test_a_damaged_study_is_refused(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "s"
    Study.open(path, {"seed": 0})
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(StateError, match=says):
        Study.open(path, {"seed": 0})


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"model.options.regularization": 5000}, r"model.options.regularization is 5000, which is not in log:1.0"),
        ({}, "model.options.regularization is not there"),
        ({"model.options.regularization": 50.0, "foo": [1]}, "foo is not searched"),
    ],
)
def test_a_trial_that_is_not_of_the_space_is_refused(tmp_path: Path, params: dict[str, Any], says: str) -> None:
    space, path = read_space([LAMBDA], EASE), tmp_path / "s"
    tune(EASE, space, 2, path, 1)
    head, line = path.read_text().splitlines()
    path.write_text(f"{head}\n{json.dumps({**json.loads(line), 'params': params})}\n")
    with pytest.raises(StateError, match=rf"study .* is damaged: in trial 0 {says}"):
        tune(EASE, space, 2, path, 2, out=tmp_path / "best.toml")
    assert not (tmp_path / "best.toml").exists()


def test_one_process_at_a_time_works_on_a_study(tmp_path: Path) -> None:
    with held(tmp_path / "s"), pytest.raises(StateError, match="another process works on study"):
        tune(EASE, Space({"ease": ()}, {}), 2, tmp_path / "s", 1)


# The command ---------------------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedrec", "tune", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def test_an_out_that_cannot_be_written_is_refused_before_the_first_trial(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "file").touch()
    for out in ("folder.toml", "file/best.toml"):
        assert call(monkeypatch, "--out", out) == 1
        assert f"cannot write to --out {out}: " in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"folder.toml", "file"}


def test_the_command_writes_what_a_run_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    fixed = f"data.options='{SMALL}' model.name=\"ease\" privacy.min-cohort=1"
    assert call(monkeypatch, "-c", fixed, "--trials", "2", "--out", "best.toml", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.splitlines()[-1])
    assert found["settings"] == read_toml(tmp_path / "best.toml")
    assert found["best"]["value"] == max(t["value"] for t in found["trials"])
    assert "ease, the default space: model.options.regularization = log:5.0..5000.0" in captured.err
    assert {p.name for p in tmp_path.iterdir()} >= {"best.toml", "best.study.jsonl", "best.png"}

    assert call(monkeypatch, "-c", "data.nmae=1", "--out", "best.toml") == 1
    assert "did you mean 'data.name'" in capsys.readouterr().err


def test_without_optuna_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune_search.importlib.util, "find_spec", lambda name: None)
    assert call(monkeypatch, "--out", "best.toml") == 1
    assert "pip install 'fedrec[tune]'" in capsys.readouterr().err
