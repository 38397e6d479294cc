"""A whole run in this process: the same ServerApp and clients as under `flwr run`, no SuperLink and no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Message

from fedrec_app import client_app
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError
from fedrec_app.local_grid import LocalGrid
from fedrec_app.server_app import OnRound, RunResult, run_server


def simulate(
    flat: Mapping[str, Any],
    num_nodes: int = 2,
    watchers: Iterable[OnRound] = (),
    on_reply: Callable[[int, int], None] | None = None,
    taps: Iterable[Callable[[Message], None]] = (),
    durations: Mapping[int, float] | None = None,
    reads_test: bool = True,
) -> RunResult:
    """Returns the finished run; with `durations` its summary has "virtual_seconds", what training took on the clock of
    `LocalGrid`.

    Args:
        flat: settings by dotted key.
        num_nodes: how many nodes the users are dealt to.
        watchers: called after each round with (record, progress, number of rounds).
        on_reply: called after each reply with (replies so far, messages of this exchange).
        taps: called with every message in either direction.
        durations: partition -> virtual seconds that a training message takes there; 1 for every other.
        reads_test: False leaves the test part out: no test figures in the summary, and no report.

    Raises:
        FedrecError: a setting or the data is wrong.
    """
    if num_nodes < 1:
        raise ConfigError(f"num-nodes is {num_nodes}: at least 1 is expected")
    if (needed := RunConfig.from_flat(flat).strategy.min_nodes) > num_nodes:
        raise ConfigError(f"strategy.min-nodes is {needed}: there are {num_nodes} nodes (num-nodes)")
    grid = LocalGrid(client_app.app, flat, num_nodes, on_reply, taps, durations)
    result = run_server(grid, flat, watchers=watchers, reads_test=reads_test)
    if durations is None:
        return result
    summary = {**result.summary, "virtual_seconds": grid.now}
    result.folder.write_summary(summary)
    return RunResult(result.folder, summary)


def parse_durations(given: Iterable[str]) -> dict[int, float]:
    """Returns virtual seconds by partition.

    Args:
        given: each "partition=seconds", such as "0=10".

    Raises:
        ConfigError: one is not of that form, or a partition is named twice.
    """
    found: dict[int, float] = {}
    for text in given:
        partition, _, seconds = text.partition("=")
        try:
            key, value = int(partition), float(seconds)
        except ValueError:
            raise ConfigError(f"{text!r} is not partition=factor, such as 0=10") from None
        if key in found:
            raise ConfigError(f"partition {key} is named twice: {found[key]:g} and {value:g}")
        found[key] = value
    return found
