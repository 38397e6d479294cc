"""`fedrec privacy plan`: what privacy will cost, and how loud its noise is, before anything is trained."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrec_app.cli_shared import RunSettings, preflight
from fedrec_app.config import RunConfig, Scalar, parse_overrides
from fedrec_app.console import say
from fedrec_app.errors import ConfigError

if TYPE_CHECKING:
    from fedrec_app.privacy.plan import Design

privacy_commands = typer.Typer(no_args_is_help=True, help="Differential privacy: plan, audit.")
stdout = Console()

_ASSUMED = 8.0
"""Epsilon, where only a clipping bound is given."""


def add_plan(group: typer.Typer) -> None:
    """Adds the command to `fedrec privacy`."""
    group.command()(plan)


def plan(
    users: Annotated[int | None, typer.Option(help="N; those of the settings' data set when absent.")] = None,
    sampling_rate: Annotated[
        float | None, typer.Option(help="q, with which a user takes part in a round; that of the settings.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Of the run; those of the settings when absent.")] = None,
    delta: Annotated[float | None, typer.Option(help="Of the guarantee; 1/users^1.1 when absent.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Look for the noise that keeps to this epsilon.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="z: say what noise of z times the clipping bound costs.")
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help=f"C: say how much noise that is; for epsilon {_ASSUMED:g} if alone.")
    ] = None,
    metrics_noise_multiplier: Annotated[
        float | None, typer.Option(help="Charge noised test metrics too; as the settings do when absent, 0: not.")
    ] = None,
    parameters: Annotated[
        int | None, typer.Option(help="Shared numbers of the model; those of the settings' model when absent.")
    ] = None,
    settings: RunSettings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Say what a run with user-level privacy costs, how loud its noise is, and what would help."""
    from fedrec_app.privacy.accounting import default_delta
    from fedrec_app.privacy.events import Gaussian
    from fedrec_app.privacy.plan import Design, neighbours

    flat = parse_overrides(settings or [])
    target, noise = _asked(flat, epsilon, noise_multiplier, clip_norm)
    config = _configured(flat, target)
    if users is None:
        users = _users_of(config, flat)
    others: list[Gaussian] = []
    if metrics_noise_multiplier is None:
        others = _metrics_of(config, flat)
    elif metrics_noise_multiplier:
        others = [Gaussian(metrics_noise_multiplier)]
    design = Design(
        users,
        _first(sampling_rate, config.privacy.sampling_rate),
        _first(rounds, config.num_server_rounds),
        _first(delta, config.privacy.delta or default_delta(users)),
        noise,
        # Without a model's settings the bound is the unit of all that is said of noise.
        _first(clip_norm, float(config.privacy.clip_norm) if flat else 1.0),
        _parameters_of(config) if parameters is None and flat else parameters or 0,
        tuple(others),
    )
    if target:
        design = design.at_epsilon(target)
    rows = [("as asked", design), *neighbours(design)]
    if as_json:
        print(json.dumps(_to_json(rows)))
    else:
        _show(rows)


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _asked(
    flat: dict[str, Scalar], epsilon: float | None, noise: float | None, clip_norm: float | None
) -> tuple[float, float]:
    """Returns the epsilon that noise is looked for, or 0, and the noise multiplier to go by, or 0.

    Raises:
        ConfigError: both are given, or neither and no clipping bound.
    """
    if epsilon is not None and noise is not None:
        raise ConfigError("--epsilon and --noise-multiplier both fix the noise: give one of them")
    if epsilon == 0:
        raise ConfigError("--epsilon is 0, allowed: above 0")
    if epsilon is not None:
        return epsilon, 0.0
    if noise is not None:
        return 0.0, noise
    settled = {key: flat.get(f"privacy.{key}") for key in ("noise-multiplier", "target-epsilon", "clip-norm")}
    for key in ("noise-multiplier", "target-epsilon"):
        if isinstance(value := settled[key], int | float) and value:
            return (0.0, float(value)) if key == "noise-multiplier" else (float(value), 0.0)
    if clip_norm is None and settled["clip-norm"] is None:
        raise ConfigError("give --epsilon, --noise-multiplier or --clip-norm, or privacy.target-epsilon in -c")
    say(f"note: neither an epsilon nor noise is given: planned for epsilon {_ASSUMED:g}")
    return _ASSUMED, 0.0


def _configured(flat: dict[str, Scalar], target: float) -> RunConfig:
    """Returns the settings of the run that is planned: user-level privacy is added where they leave it out."""
    if not flat:
        return RunConfig()
    if flat.get("privacy.unit") == "example":
        raise ConfigError('privacy.unit is "example", and a plan is of user-level privacy: allowed is "user"')
    added: dict[str, Scalar] = {"privacy.unit": "user"}
    if not flat.get("privacy.target-epsilon") and not flat.get("privacy.noise-multiplier"):
        added["privacy.target-epsilon"] = target or _ASSUMED
    return preflight({**flat, **added})


def _users_of(config: RunConfig, flat: dict[str, Scalar]) -> int:
    if not flat:
        raise ConfigError("give --users, or the data set's settings with -c")
    from fedrec_app import node_data

    return int((node_data.cohort(config.data, None, 1).train.lengths > 0).sum())


def _metrics_of(config: RunConfig, flat: dict[str, Scalar]) -> list[Any]:
    """Returns what a run with these settings is charged for its test metrics; nothing where they are not private."""
    from fedrec_app.private_fit import reserved_releases

    return reserved_releases(config) if flat.get("privacy.unit") == "user" else []


def _parameters_of(config: RunConfig) -> int:
    """Returns how many numbers travel; the interactions are not read."""
    from fedrec_app import node_data

    model = node_data.adapted(node_data.initial_model(config, node_data.catalog(config.data)), config)
    return sum(model.get_parameter(name).numel() for name in model.shared_names())


def _to_json(rows: list[tuple[str, Design]]) -> dict[str, Any]:
    from fedrec_app.privacy.accounting import rdp_epsilon
    from fedrec_app.privacy.plan import advice
    from fedrec_app.private_run import ADVERSARY, SERVER_SEES

    design = rows[0][1]
    return {
        **_row(design),
        "users": design.users,
        "delta": design.delta,
        "epsilon_rdp": _finite(rdp_epsilon(design.events, design.delta)),
        "adversary": ADVERSARY,
        "server": SERVER_SEES["user"],
        "clip_norm": design.clip_norm,
        "parameters": design.parameters or None,
        "metrics_noise_multiplier": design.others[0].noise_multiplier if design.others else None,
        "rows": [{"change": text, **_row(row)} for text, row in rows],
        "recommendation": advice(design),
    }


def _row(design: Design) -> dict[str, Any]:
    return {
        "epsilon": _finite(design.epsilon),
        "noise_multiplier": design.noise_multiplier,
        "sampling_rate": design.sampling_rate,
        "rounds": design.rounds,
        "noise_std": design.noise_std,
        "noise_std_of_mean": design.noise_of_mean,
        "noise_to_clip": design.noise_to_clip,
    }


def _finite(value: float) -> float | None:
    """Returns the number, or None for infinity, which JSON has not."""
    return value if math.isfinite(value) else None


def _show(rows: list[tuple[str, Design]]) -> None:
    from fedrec_app.privacy.plan import advice
    from fedrec_app.private_run import ADVERSARY, SERVER_SEES

    design = rows[0][1]
    model = f", {design.parameters:,} shared parameters" if design.parameters else ""
    table = Table(
        title=f"{design.users:,} users, delta {design.delta:.3g}, clipping bound {design.clip_norm:g}{model}",
        caption="q: sampling rate; z: noise over clipping bound; noise std: of each number of the mean update; "
        "noise / C: norm of all of it, in clipping bounds",
    )
    for name in ("", "rounds", "q", "z", "epsilon", "noise std", "noise / C"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for text, row in rows:
        loudness = "-" if row.noise_to_clip is None else f"{row.noise_to_clip:.2f}"
        table.add_row(
            text, str(row.rounds), f"{row.sampling_rate:g}", f"{row.noise_multiplier:g}", f"{row.epsilon:.3f}",
            f"{row.noise_of_mean:.3g}", loudness, style="bold" if row is design else "",
        )  # fmt: skip
    stdout.print(table)
    lines = [f"Epsilon holds against: {ADVERSARY}; against the server itself {SERVER_SEES['user']}."]
    if design.others:
        noise = design.others[0].noise_multiplier
        lines.append(f"Test metrics with noise multiplier {noise:g} are part of epsilon.")
    for line in [*lines, *advice(design)]:
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)
