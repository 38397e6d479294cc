"""What to try next: a function of the space, the seed and the trials before, by optuna.

The tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011) after
ten random trials. Nothing of optuna lives longer than a call, so that a study that goes on makes the trials that it
would have made.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from fedrec_app.config import Scalar
from fedrec_app.errors import FedrecError
from fedrec_app.seeding import stream_key
from fedrec_app.tune_dimension import Dimension
from fedrec_app.tune_space import MODEL, Space
from fedrec_app.tune_study import Study, Trial

MOST_DRAWS = 300
"""Draws in vain after which a space counts as searched."""
LEAST_FOR_IMPORTANCES = 10


def require_optuna() -> None:
    """Raises a FedrecError that says how to install optuna, where it is not."""
    if importlib.util.find_spec("optuna") is None:
        raise FedrecError("`fedrec tune` needs optuna: pip install 'fedrec[tune]'")


def propose(space: Space, done: Sequence[Trial], seed: int, fixed: Mapping[str, Scalar]) -> dict[str, Any] | None:
    """Returns a configuration that was not tried yet, or None where chance finds none: a function of its arguments.

    The first trial of each model starts from what the model has where nobody tunes it.

    Args:
        space: what is searched.
        done: the trials before.
        seed: of the search.
        fixed: settings that all trials have.
    """
    import optuna
    from optuna.samplers import RandomSampler, TPESampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tried = {json.dumps(trial.params, sort_keys=True) for trial in done}
    for attempt in range(MOST_DRAWS):
        sampler = RandomSampler if attempt else TPESampler
        own_seed = stream_key(seed, "tune", len(done), attempt) % 2**32
        study = optuna.create_study(sampler=sampler(seed=own_seed), direction="maximize")
        if not attempt:
            for trial in done:
                study.add_trial(_frozen(trial, space))
            if len(done) < len(space.models):
                model = list(space.models)[len(done)]
                study.enqueue_trial({MODEL: model, **_coded(space, model, space.start(model, fixed))})
        params = _asked(study.ask(), space)
        if json.dumps(params, sort_keys=True) not in tried:
            return params
    return None


def importances(study: Study, space: Space) -> dict[str, float]:
    """Returns how much each dimension had to do with good values, largest first; together 1. Nothing for few trials.

    PED-ANOVA, Watanabe et al., IJCAI 2023, https://arxiv.org/abs/2304.10255.

    Args:
        study: with its trials.
        space: that they are of.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    complete = study.of_state("complete")
    if len(complete) < LEAST_FOR_IMPORTANCES:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna 4 calls the evaluator experimental
        theirs = optuna.create_study(direction="maximize")
        theirs.add_trials([_frozen(trial, space) for trial in complete])
        found = get_param_importances(theirs, evaluator=PedAnovaImportanceEvaluator())
    alone = len(space.models) == 1
    return {name.partition("/")[2] if alone else name: float(value) for name, value in found.items()}


def _asked(trial: Any, space: Space) -> dict[str, Any]:
    """Returns the configuration that an optuna trial suggests."""
    models = list(space.models)
    params = {MODEL: trial.suggest_categorical(MODEL, models)} if len(models) > 1 else {}
    model = space.model(params)
    for dimension in space.models[model]:
        if dimension.applies(params):
            params[dimension.key] = _suggested(trial, f"{model}/{dimension.key}", dimension)
    return params


def _suggested(trial: Any, name: str, dimension: Dimension) -> Any:
    if dimension.kind == "choice":
        return json.loads(trial.suggest_categorical(name, [json.dumps(choice) for choice in dimension.choices]))
    if dimension.kind == "int":
        return trial.suggest_int(name, dimension.low, dimension.high)
    return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.kind == "log")


def _coded(space: Space, model: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns params as optuna knows them: named by model too, since the same key may range otherwise in another."""
    return {
        f"{model}/{d.key}": json.dumps(params[d.key]) if d.kind == "choice" else params[d.key]
        for d in space.models[model]
        if d.key in params
    }


def _frozen(trial: Trial, space: Space) -> Any:
    """Returns a trial as optuna keeps it; one that failed as the worst there can be, which optuna would pass over."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.COMPLETE}
    values = {"complete": trial.value, "pruned": None, "failed": 0.0}
    model = space.model(trial.params)
    kinds: dict[str, BaseDistribution] = {}
    for d in space.models.get(model, ()):
        if d.kind == "choice":
            kinds[f"{model}/{d.key}"] = CategoricalDistribution([json.dumps(choice) for choice in d.choices])
        elif d.kind == "int":
            kinds[f"{model}/{d.key}"] = IntDistribution(int(d.low), int(d.high))
        else:
            kinds[f"{model}/{d.key}"] = FloatDistribution(d.low, d.high, log=d.kind == "log")
    given = _coded(space, model, trial.params)
    distributions = {name: kind for name, kind in kinds.items() if name in given}
    if MODEL in trial.params:
        given[MODEL], distributions[MODEL] = model, CategoricalDistribution(list(space.models))
    return create_trial(
        state=states[trial.state], value=values[trial.state], params=given,
        distributions=distributions, intermediate_values=dict(trial.by_round),
    )  # fmt: skip
