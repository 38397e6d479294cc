"""`fedrec privacy audit`: what a run's releases and updates give away, beside what it claims."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedrec_app.artifacts import RunFolder
from fedrec_app.cli_shared import RunSettings, preflight
from fedrec_app.config import parse_overrides
from fedrec_app.console import say

if TYPE_CHECKING:
    from fedrec_app.audits.audit import Audit

stderr = Console(stderr=True)


def add_audit(group: typer.Typer) -> None:
    """Adds the command to `fedrec privacy`."""
    group.command()(audit)


def audit(
    settings: RunSettings = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of a run: its settings, parameters and ledger; -c changes settings."),
    ] = None,
    releases: Annotated[int, typer.Option(min=8, help="Releases of the canary audit, half with the canary.")] = 2000,
    users: Annotated[int, typer.Option(min=1, help="Users whose items are looked for, at most.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as a JSON object.")] = False,
) -> None:
    """Attack a run's releases and updates with its own code; fail where they give away more than it claims."""
    from fedrec_app.audits.audit import audit as audit_run
    from fedrec_app.finished import FinishedRun

    logging.getLogger("flwr").setLevel(logging.WARNING)
    finished = None if run is None else FinishedRun.read(RunFolder(run))
    flat = {**({} if finished is None else finished.config.flat()), **parse_overrides(settings or [])}
    config = preflight(flat)
    with _bars() as watch:
        found = audit_run(config, finished, releases, users, watch)
    _show(found)
    if as_json:
        print(json.dumps(found.to_json()))
    if found.problems():
        raise typer.Exit(1)


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yields what shows a bar for each part of the audit."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=stderr) as bars:

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield watch


def _show(found: Audit) -> None:
    from fedrec_app.audits.audit import RELEASED
    from fedrec_app.audits.item_recovery import ATTACKS

    if found.claim is None:
        say('privacy.unit="none": no epsilon is claimed, so none is audited')
    else:
        stderr.print(_claims(found))
    most = max(recovery.users for recovery in found.recovery.values())
    table = Table(title=f"recovery of users' items: mean F1 over up to {most} users")
    table.add_column("attack", no_wrap=True)
    names = {"1": "1 user", RELEASED: RELEASED}
    for cohort in found.recovery:
        table.add_column(names.get(cohort, f"{cohort} users"), justify="right", no_wrap=True)
    scores = {cohort: recovery.f1() for cohort, recovery in found.recovery.items()}
    for attack in ATTACKS:
        if any(attack in of_cohort for of_cohort in scores.values()):
            cells = [of_cohort.get(attack) for of_cohort in scores.values()]
            table.add_row(attack, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    stderr.print(table)
    if found.unit == "user":
        say("the server sees sums of nodes as in the columns of users: against it no epsilon is claimed")
    if found.unit == "example":
        say("epsilon is of one example: a user's items together are as safe as the table says")
    for problem in found.problems():
        say(f"PROBLEM: {problem}")
    if found.problems():
        say("FAILED: more is given away than is claimed")
    elif found.claim is not None:
        few = " (a bound of 0 shows nothing: more releases would)" if found.release_bound() == 0 else ""
        say(f"passed: nothing that was found exceeds the claim{few}")


def _claims(found: Audit) -> Table:
    """Returns the table of claims beside what was shown; each row compares the same thing."""
    claim, canary = found.claim, found.canary
    if claim is None or canary is None:
        raise ValueError("nothing is claimed")
    table = Table(title=f"{found.unit}-level privacy, delta {claim.delta:.3g}, against: {found.adversary}")
    for name in ("", "claimed", "shown by the audit"):
        table.add_column(name, justify="left" if not name else "right")
    event = claim.rounds
    table.add_row(
        f"epsilon of one release with {found.a_unit} in it", f"{claim.epsilon_of_one():.3g}",
        f"at least {found.release_bound():.3g}",
    )  # fmt: skip
    number = "1 release" if event.count == 1 else f"{event.count} releases"
    table.add_row(f"epsilon of the run, {number}", f"{claim.epsilon():.3g}", f"at least {found.run_bound():.3g}")
    low, high = canary.noise_multiplier
    table.add_row("noise of a release, in bounds C", f"{event.noise_multiplier:.4g}", f"{low:.4g} to {high:.4g}")
    table.add_row("rate of taking part", f"{event.sampling_rate:.4g}", f"at least {found.sampling_rate:.4g}")
    if found.longest is not None:
        table.add_row("longest update of one user, in bounds C", "1", f"{found.longest:.5g}")
    return table
