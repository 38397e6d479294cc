"""Tuning: trial after trial of a space, each a run in this process, judged on validation alone.

A trial that is behind is stopped by the median rule of Google Vizier (Golovin et al., KDD 2017, section 3.2.2), among
trials of its own model: models learn at different paces.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Message

from fedrec_app import __version__, node_data
from fedrec_app.artifacts import MODEL
from fedrec_app.config import DataConfig, RunConfig, Scalar, to_toml
from fedrec_app.errors import FedrecError, StateError
from fedrec_app.files import write_atomically
from fedrec_app.privacy_rules import require_exact_metrics
from fedrec_app.server_app import OnRound
from fedrec_app.simulate import simulate
from fedrec_app.tune_search import propose, require_optuna
from fedrec_app.tune_space import Space, settings
from fedrec_app.tune_study import Study, Trial, held
from strategies.rounds import Progress, RoundRecord

LEAST_RIVALS = 5
"""Complete trials of a model before others of it are stopped."""
HOPELESS = 3
"""First trials that all fail for the same reason, after which no other is begun."""
WARM_UP = 0.1
"""Share of the rounds in which nobody is stopped."""

OnTrial = Callable[[Trial, Study], None]


class _Behind(Exception):
    """Ends a run that is behind."""


def tune(
    fixed: Mapping[str, Scalar],
    space: Space,
    num_nodes: int,
    path: Path,
    trials: int,
    *,
    seed: int = 0,
    timeout: float = math.inf,
    out: Path | None = None,
    on_trial: OnTrial | None = None,
    watchers: Iterable[OnRound] = (),
    taps: Iterable[Callable[[Message], None]] = (),
) -> Study:
    """Returns the study after its last trial; a study that is in the file already goes on.

    The test part of the data is never read.

    Args:
        fixed: settings that all trials have.
        space: what is searched.
        num_nodes: how many nodes the users are dealt to.
        path: the file of the study. What runs write goes to a folder beside it, and is removed.
        trials: how many there shall be, those in the file included.
        seed: of the search.
        timeout: seconds after which no trial is begun any more.
        out: where the best configuration so far is written, as settings that a run takes.
        on_trial: called after each trial.
        watchers, taps: of each run; see `simulate`.

    Raises:
        FedrecError: settings or data are wrong, the file is of another study or in use, or no trial completed.
    """
    require_optuna()
    asked = RunConfig.from_flat(fixed)
    require_exact_metrics(asked, "trials are judged on validation in every round")
    apart = {"data.path", "model.init-from", "output-dir"}  # wherever it lies, what is read is told by its content
    about = {
        "fedrec": __version__, "num-nodes": num_nodes, "seed": seed, "data": _data_hash(asked.data),
        "start": _start_hash(asked.model.init_from),
        "settings": {key: value for key, value in asked.changed().items() if key not in apart},
        "space": space.described(),
    }  # fmt: skip
    end = time.monotonic() + timeout
    with held(path):
        study = Study.open(path, about)
        for trial in study.trials:
            if problem := space.problem(trial.params):
                raise StateError(f"study {path} is damaged: in trial {trial.number} {problem}")
        while len(study.trials) < trials and time.monotonic() < end:
            params = propose(space, study.trials, seed, fixed)
            if params is None:
                break
            trial = _tried(params, space, fixed, num_nodes, study, watchers, taps)
            study.add(trial)
            if out is not None and study.best is trial:
                write_best(out, study, fixed)
            if on_trial is not None:
                on_trial(trial, study)
            if len(study.trials) == HOPELESS and {t.reason for t in study.of_state("failed")} == {trial.reason}:
                break
        if study.best is None:
            raise FedrecError(f"no trial completed, of {len(study.trials)}: {_reasons(study)}; see {path}")
        if out is not None:
            write_best(out, study, fixed)
    return study


def is_behind(by_round: Sequence[tuple[int, float]], rivals: Iterable[Trial], num_rounds: int) -> bool:
    """Returns whether a run has done worse by now than half of the complete trials had by the same round.

    Args:
        by_round: (round, validation metric) of the run so far.
        rivals: complete trials of the same model.
        num_rounds: that the run shall have.
    """
    now = by_round[-1][0]
    theirs = [max((value for at, value in rival.by_round if at <= now), default=-math.inf) for rival in rivals]
    if len(theirs) < LEAST_RIVALS or now <= WARM_UP * num_rounds or now >= num_rounds:
        return False
    return max(value for _, value in by_round) < statistics.median(theirs)


def write_best(out: Path, study: Study, fixed: Mapping[str, Scalar]) -> None:
    """Writes the best configuration as a file that `-c` takes.

    Args:
        out: the file.
        study: whose.
        fixed: settings that all trials have.

    Raises:
        FedrecError: no trial is complete.
    """
    best = study.best
    if best is None:
        raise FedrecError(f"study {study.path} has no complete trial")
    metric, nodes = RunConfig.from_flat(fixed).evaluate.metric, study.about["num-nodes"]
    lines = [
        f"written by `fedrec tune` {__version__}; `fedrec run --num-nodes {nodes} -c {out.name}` runs it",
        f"study {study.path.name}, trial {best.number} of {len(study.trials)}: {metric} {best.value:.6f} on validation "
        f"in round {best.best_round}, {nodes} nodes",
        "chosen on validation alone: the test part was not read",
        f"searched: {', '.join(f'{key} = {json.dumps(value)}' for key, value in best.params.items())}",
    ]
    header = "".join(f"# {line}\n" for line in lines)
    write_atomically(out, (header + to_toml(settings(fixed, best.params))).encode())


def _tried(
    params: dict[str, Any], space: Space, fixed: Mapping[str, Scalar], num_nodes: int, study: Study,
    watchers: Iterable[OnRound], taps: Iterable[Callable[[Message], None]],
) -> Trial:  # fmt: skip
    """Returns the trial of a configuration: a run without test, whose folder is removed."""
    folder = study.path.with_name(f".{study.path.name}.fedrec-trial")
    metric = RunConfig.from_flat(fixed).evaluate.metric
    rivals = [trial for trial in study.of_state("complete") if space.model(trial.params) == space.model(params)]
    by_round: list[tuple[int, float]] = []
    best: tuple[int, float | None] = (0, None)
    state, reason = "complete", ""
    problems: list[str] = []

    def listen(message: Message) -> None:
        if message.has_error():
            problems.append((message.error.reason or "").strip().rpartition("\n")[2])

    def watch(record: RoundRecord, progress: Progress, num_rounds: int) -> None:
        nonlocal best
        value = (record.validation or {}).get(metric)
        if isinstance(value, float) and math.isfinite(value):
            by_round.append((record.round, value))
            best = progress.best_round, progress.best_value
            if is_behind(by_round, rivals, num_rounds):
                raise _Behind(f"behind half of {len(rivals)} trials of its model after round {record.round}")

    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    began = time.perf_counter()
    try:
        flat = {**settings(fixed, params), "output-dir": str(folder.absolute())}
        simulate(flat, num_nodes, watchers=[*watchers, watch], taps=[*taps, listen], reads_test=False)
        if not by_round:
            state, reason = "failed", f"no round has a {metric} on validation"
    except _Behind as behind:
        state, reason = "pruned", str(behind)
    except Exception as error:  # of a configuration, plug-ins included: the study goes on
        state = "failed"
        reason = str(error) if isinstance(error, FedrecError) else f"{type(error).__name__}: {error}"
        reason += f" (a node: {problems[0]})" if problems else ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.perf_counter() - began, 3)
    at, value = (0, None) if state == "failed" else best
    return Trial(
        number=len(study.trials), state=state, params=params, value=value, best_round=at, by_round=tuple(by_round),
        seconds=seconds, reason=reason,
    )  # fmt: skip


def _reasons(study: Study) -> str:
    counts = Counter(trial.reason for trial in study.trials)
    return (
        "; ".join(f"{count} times {reason}" for reason, count in counts.most_common(3)) or "there was no time for one"
    )


def _start_hash(location: str) -> str:
    """Returns what tells apart the files that models start from; "" without one."""
    if not location:
        return ""
    path = Path(location).expanduser()
    try:
        return hashlib.sha256((path / MODEL if path.is_dir() else path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise StateError(f"model.init-from: cannot read {path}: {error}") from None


def _data_hash(config: DataConfig) -> str:
    """Returns what tells data apart that trials could learn from or be judged on."""
    users = node_data.cohort(config, None, 1)
    digest = hashlib.sha256(node_data.catalog(config).hash.encode())
    digest.update("\x1f".join(users.user_ids).encode())
    for part in (users.train, users.validation):
        digest.update(part.indptr.tobytes() + part.items.tobytes())
    return digest.hexdigest()[:16]
