#!/usr/bin/env python3
"""Hurts a deployment on purpose, again and again, and checks that every run is whole afterwards: docs/faults.md.

    python scripts/faults.py --runs 20 --seed 1            some 30 minutes on two cores
    python scripts/faults.py --runs 4 --only corrupt

A SuperLink with TLS and authentication and its supervised SuperNodes run on this machine, in real processes. Each run
of fedrec on them is hurt once, at a random moment: a process is killed or stands still, connections are cut, a file is
damaged. Where the run fails it is continued from its checkpoint. The exit code is 1 when a check fails.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedrec_app.console import stamped
from fedrec_app.flower_process import ends_through_finally, one_thread_each

commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
stderr = Console(stderr=True)


@commands.command()
def main(
    runs: Annotated[int, typer.Option(min=1, help="How many runs are hurt.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the faults: what, where and when.")] = 0,
    first: Annotated[int, typer.Option(min=1, help="Number of the first run, to repeat one of a campaign.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="kill, pause, cut or corrupt; may be given again.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes.")] = 2,
    rounds: Annotated[int, typer.Option(min=3, help="Of each run.")] = 3,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for everything that was found.")] = None,
) -> None:
    """Hurts a deployment on purpose, and checks that every run is whole afterwards."""
    one_thread_each()
    from campaign.faults import KINDS, draw
    from campaign.place import place

    for kind in only or ():
        if kind not in KINDS:
            raise typer.BadParameter(f"{kind!r}: one of {', '.join(KINDS)}", param_hint="--only")
    # Sockets lie below it, and the path of a socket is short.
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
    drawn = draw(first - 1 + runs, seed, nodes, rounds, only or ())[first - 1 :]
    rows: list[dict[str, Any]] = []
    try:
        with place(folder, nodes, stamped) as deployment:
            for row in _campaign(deployment, drawn, first, rounds, folder):
                rows.append(row)
                if as_json is not None:
                    found = {"seed": seed, "nodes": nodes, "rounds": rounds, "runs": rows}
                    as_json.write_text(json.dumps(found, indent=2) + "\n")
    except BaseException:
        stderr.print(f"what is left lies in {folder}")
        raise
    finally:
        if rows:
            Console(width=None if Console().is_terminal else 200).print(_table(rows, seed))
    if failed := sum(row["failed"] for row in rows):
        stderr.print(f"{failed} of {len(rows)} runs failed a check; everything lies in {folder}")
        raise typer.Exit(1)
    shutil.rmtree(folder, ignore_errors=True)


def _campaign(deployment: Any, drawn: list[Any], first: int, rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields what became of each run, as it ends."""
    from campaign.checks import Reference
    from campaign.course import take

    references: dict[bool, Reference] = {}
    for number, fault in enumerate(drawn, start=first):
        if fault.private not in references:
            stamped(f"a run that nothing disturbs, {'with' if fault.private else 'without'} privacy")
            settings = deployment.run_settings(fault.private, rounds, folder / f"r{fault.private:d}")
            course = take(deployment, settings, None, stamped)
            if course.ended != "completed":
                raise SystemExit(f"a run that nothing disturbed did not complete: {course.errors}")
            references[fault.private] = Reference.of(course, deployment)
            stamped(f"it took {course.seconds:.0f} s")
        stamped(f"run {number}: {fault.kind} {fault.what()}, {fault.when()}")
        settings = deployment.run_settings(fault.private, rounds, folder / f"{number}", fault.min_nodes)
        yield _one(number, fault, settings, deployment, references[fault.private], rounds)


def _one(
    number: int, fault: Any, settings: dict[str, Any], deployment: Any, reference: Any, rounds: int
) -> dict[str, Any]:
    from campaign.checks import check, is_wrong, spent
    from campaign.course import take

    course = take(deployment, settings, fault, stamped)
    healed, by_hand = deployment.heal()
    found = check(course, fault, reference, deployment, rounds)
    found["nodes"] = f"{', '.join(by_hand)} started by hand: it was up, and lost to the SuperLink" if by_hand else "ok"
    wrong = {name: said for name, said in found.items() if is_wrong(said)}
    for name, said in wrong.items():
        stamped(f"run {number} FAILED: {name}: {said}")
    return {
        "run": number, **asdict(fault), "what": fault.what(), "when": fault.when(), "done": course.done,
        "ended": course.ended, "starts": course.starts, "seconds": round(course.seconds, 1),
        "recovery": None if course.recovery is None else round(course.recovery, 1),
        "healed": round(healed, 1), "epsilon": spent(course.folder) if course.folder else 0.0,
        "seen": len(course.seen), "errors": course.errors, "checks": found, "failed": bool(wrong),
        "folder": str(course.folder),
    }  # fmt: skip


def _table(rows: list[dict[str, Any]], seed: int) -> Table:
    table = Table(title=f"{len(rows)} runs, seed {seed}")
    for name in (
        "run",
        "fault",
        "target",
        "when",
        "privacy",
        "outcome",
        "rounds",
        "s",
        "recovery s",
        "epsilon",
        "checks",
    ):
        table.add_column(name, justify="right" if name in ("run", "rounds", "s", "recovery s", "epsilon") else "left")
    for row in rows:
        checks = row["checks"]
        bad = [f"{name}: {said}" for name, said in checks.items() if said != "ok" and not said.startswith("- ")]
        good = [name for name, said in checks.items() if said == "ok"]
        notes = [f"metrics {checks['metrics']}"] if checks.get("metrics", "").startswith("- ") else []
        outcome = row["ended"] if row["starts"] < 3 else f"{row['ended']} ({row['starts']} starts)"
        table.add_row(
            str(row["run"]), row["kind"], row["what"], row["when"], "user" if row["private"] else "none", outcome,
            str(row["seen"]), f"{row['seconds']:.0f}", "-" if row["recovery"] is None else f"{row['recovery']:.0f}",
            f"{row['epsilon']:.2f}" if row["private"] else "-",
            "[red]" + "; ".join(bad) if bad else f"{len(good)} ok" + "".join(f"; {note}" for note in notes),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    with ends_through_finally():  # or SIGTERM would leave a deployment behind
        commands()
