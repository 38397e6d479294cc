"""`fedrec audit verify`: whether an audit log is whole, and the files of its run are those that it speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

from fedrec_app.artifacts import CONFIG, METRICS, MODEL, SUMMARY, RunFolder
from fedrec_app.checkpoint import FOLDER, Checkpoint, Checkpoints
from fedrec_app.errors import FedrecError, StateError
from fedrec_app.hash_chain import Lines, read
from fedrec_app.operation.audit_ledger import check_ledger
from fedrec_app.operation.audit_log import AUDIT, FORMAT, own_settings
from fedrec_app.operation.digests import of_arrays, of_file, of_json
from fedrec_app.operation.finding import Finding

Record = dict[str, Any]
_FIELDS: dict[str, dict[str, Any]] = {
    "began": {"settings": dict, "config": str, "resumed": (dict, NoneType), "set_aside": (dict, NoneType)},
    "nodes": {"members": str, "rounds": int},
    "round": {"round": int, "metrics": str, "model": str},
    "ended": {"status": str, "of": list, "figures": str, "model_file": str},
}
"""Kind of a line -> the fields that are looked at, and their types."""

_ADDED = {"virtual_seconds"}
"""What `fedrec simulate` adds to the summary of a run that is over."""


def verify(path: Path) -> list[Finding]:
    """Returns what was found, check by check.

    Args:
        path: the folder of a run.

    Raises:
        StateError: there is no audit log in it.
    """
    log = path / AUDIT
    if not log.is_file():
        raise StateError(f"no {AUDIT} in {path}: is it the folder of a run, of this version of fedrec?")
    lines = read(log.read_bytes())
    findings = [_chain(lines)]
    if lines.damaged or not lines.records:
        return findings
    records = lines.records
    for check in (_order, _set_aside):
        findings += check(records)
        if not passed(findings):
            return findings  # files are not held to a log that is not whole
    folder, newest = RunFolder(path), _newest(path)
    return [
        *findings,
        _config(folder, records),
        *_metrics(folder, records),
        *_checkpoints(newest, lines),
        *_ledger(folder, records, newest),
        *_end(folder, records),
    ]


def passed(findings: list[Finding]) -> bool:
    """Returns whether nothing failed."""
    return all(finding.state != "failed" for finding in findings)


def _chain(lines: Lines) -> Finding:
    if lines.damaged:
        text = f"line {lines.damaged} was changed, or it does not follow the one before: removed, repeated or moved"
        return Finding("chain", "failed", text, lines.damaged)
    if not lines.records:
        return Finding("chain", "failed", "there is no line: whatever a run writes begins with one", 1)
    torn = "; a last line that a crash cut short does not count" if lines.torn else ""
    return Finding("chain", "ok", f"{len(lines.records)} lines, each bound to the one before{torn}")


def _order(records: list[Record]) -> Iterator[Finding]:
    """Holds the lines to the order in which a run writes them."""
    if (records[0].get("what"), records[0].get("format")) != ("began", FORMAT):
        yield Finding("order", "failed", f"line 1 does not begin a log of format {FORMAT!r}", 1)
        return
    last = 0
    for number, record in enumerate(records, start=1):
        what = record.get("what")
        if field := _malformed(record):
            wrong = f"it has no {field}, or none that a run writes"
        elif what == "began":
            last, wrong = _resumed_at(record), _wrong_start(record, number, records)
        elif what == "round":
            wrong = "" if record["round"] == last + 1 else f"round {record['round']} follows round {last}"
            last += 1
        else:
            wrong = ""
        if wrong:
            yield Finding("order", "failed", f"line {number}: {wrong}", number)
            return
    starts = sum(record["what"] == "began" for record in records)
    rounds = sum(record["what"] == "round" for record in records)
    again = rounds - len(_last_rounds(records))
    yield Finding("order", "ok", f"{starts} starts, {rounds} rounds, of which {again} were taken again")


def _malformed(record: Record) -> str:
    """Returns which of the fields that are looked at is not of its type, or ""."""
    kind = record.get("what")
    if not isinstance(kind, str) or kind not in _FIELDS:
        return "what"
    for name, types in _FIELDS[kind].items():
        if not isinstance(record.get(name, ...), types) or isinstance(record[name], bool):
            return name
    resumed = record.get("resumed") if kind == "began" else None
    if resumed is None:
        return ""
    known = resumed.get("audit", ...)
    lengths = [known.get("length")] if isinstance(known, dict) and set(known) == {"length", "digest"} else []
    fits = known is None or bool(lengths)
    return "" if fits and all(type(number) is int for number in (resumed.get("round"), *lengths)) else "resumed"


def _resumed_at(record: Record) -> int:
    return int((record.get("resumed") or {}).get("round", 0))


def _wrong_start(record: Record, number: int, records: list[Record]) -> str:
    """Returns what is wrong with a line that begins a run or goes on with it, or ""."""
    if record.get("config") != of_json(record.get("settings") or {}):
        return "its settings are not those of its hash"
    if number > 1 and not record.get("resumed"):
        return "a run begins again, and does not say from what"
    known = (record.get("resumed") or {}).get("audit")
    if known and not record.get("set_aside") and not Lines(list(records[: number - 1])).continues(**known):
        return f"it goes on from a checkpoint that knows another line {known['length']}"
    return ""


def _set_aside(records: list[Record]) -> Iterator[Finding]:
    for number, record in enumerate(records, start=1):
        if aside := record.get("set_aside"):
            where = f" and is kept as {aside['file']}" if aside.get("file") else ""
            text = f"line {number}: the log before it could not be gone on with{where}: {aside.get('why')}"
            yield Finding("set aside", "failed", text, number)


def _last_rounds(records: list[Record]) -> dict[int, tuple[int, Record]]:
    """Returns round -> (number of its last line, that line), of the rounds that count in the end."""
    found: dict[int, tuple[int, Record]] = {}
    at = None
    for number, record in enumerate(records, start=1):
        if record["what"] == "began":
            at = _resumed_at(record)
        elif record["what"] == "nodes" and at is not None:  # from here on, later rounds are taken again
            found = {round_: known for round_, known in found.items() if round_ <= at}
        elif record["what"] == "round":
            found[record["round"]] = (number, record)
    return found


def _last(records: list[Record], what: str) -> int:
    """Returns the number of the last line of a kind, from 1; 0 where there is none."""
    return next((n for n in range(len(records), 0, -1) if records[n - 1]["what"] == what), 0)


def _config(folder: RunFolder, records: list[Record]) -> Finding:
    number = _last(records, "began")
    try:
        now = own_settings(folder.read_config())
    except FedrecError as error:
        return Finding(CONFIG, "failed", str(error), number)
    then = records[number - 1]["settings"]
    differing = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if differing:
        shown = ", ".join(f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in differing)
        return Finding(CONFIG, "failed", f"not the settings of line {number}: {shown}", number)
    return Finding(CONFIG, "ok", f"the settings of line {number}")


def _metrics(folder: RunFolder, records: list[Record]) -> Iterator[Finding]:
    rounds = _last_rounds(records)
    told = folder.read_metrics()
    numbers = [int(record.get("round", 0)) for record in told]
    for record in told:
        number, known = rounds.get(record.get("round", 0), (0, None))
        if known is None or known["metrics"] != of_json(record):
            text = f"what it says of round {record.get('round')} is not what was written"
            yield Finding(METRICS, "failed", text, number)
            return
    missing = sorted(set(rounds) - set(numbers))
    if numbers != sorted(set(numbers)) or not _may_be_missing(missing, rounds, records):
        text = f"rounds {', '.join(map(str, missing))} are missing" if missing else "its rounds are not in order"
        yield Finding(METRICS, "failed", text, rounds[missing[0]][0] if missing else 0)
        return
    yield Finding(METRICS, "ok", f"{len(told)} rounds as they were written")


def _may_be_missing(missing: list[int], rounds: dict[int, tuple[int, Record]], records: list[Record]) -> bool:
    """Returns whether a kill can have left it so: a round is in the log before it is in metrics.jsonl, and a run that
    goes on takes later rounds out of there before its line about nodes."""
    began = _last(records, "began")
    if records[began - 1].get("resumed") and _last(records, "nodes") < began:
        return all(number > _resumed_at(records[began - 1]) for number in missing)
    over = records[-1].get("status") == "completed"
    return not missing or (missing == [max(rounds)] and not over)


def _newest(path: Path) -> Checkpoint | StateError | None:
    """Returns the newest checkpoint of a run; why none can be read; or None where there are none."""
    checkpoints = Checkpoints(path / FOLDER)
    try:
        return checkpoints.read_newest() if checkpoints.rounds() else None
    except StateError as error:
        return error


def _checkpoints(newest: Checkpoint | StateError | None, lines: Lines) -> Iterator[Finding]:
    if newest is None:
        yield Finding(FOLDER, "note", "there are none: lines cut off the end of the log would not be seen")
        return
    if isinstance(newest, StateError):
        yield Finding(FOLDER, "failed", str(newest))
        return
    known = newest.facts.get("audit")
    if known is None:
        yield Finding(FOLDER, "note", f"that of round {newest.round} knows of no audit log")
    elif len(lines.records) < known["length"]:
        text = f"the log has {len(lines.records)} lines, the checkpoint of round {newest.round} knows {known['length']}"
        yield Finding(FOLDER, "failed", f"{text}: lines were cut off its end", len(lines.records))
    elif not lines.continues(**known):
        text = f"line {known['length']} is not the one that the checkpoint of round {newest.round} knows"
        yield Finding(FOLDER, "failed", text, known["length"])
    else:
        yield _parameters(newest, lines.records)


def _parameters(newest: Checkpoint, records: list[Record]) -> Finding:
    number, known = _last_rounds(records).get(newest.round, (0, None))
    if newest.round and (known is None or known["model"] != of_arrays(newest.shared)):
        text = f"the parameters of the checkpoint of round {newest.round} are not those that came of that round"
        return Finding(FOLDER, "failed", text, number)
    return Finding(FOLDER, "ok", f"that of round {newest.round} goes with the log")


def _ledger(folder: RunFolder, records: list[Record], newest: Checkpoint | StateError | None) -> Iterator[Finding]:
    """Holds the privacy ledger to the figures, where the run has one: it is begun before the line about nodes."""
    settings, nodes = records[0]["settings"], _last(records, "nodes")
    if settings.get("privacy.unit", "none") == "none" or not nodes:
        return
    told = {}
    with suppress(StateError):  # which is said where the summary is looked at
        if records[-1]["what"] == "ended":
            told = folder.read_summary().get("privacy")
    told = told if isinstance(told, dict) else {}
    known = newest if isinstance(newest, Checkpoint) else None
    lineage = str(records[nodes - 1].get("lineage"))
    yield from check_ledger(folder.path, settings, lineage, folder.read_metrics(), told, known)


def _end(folder: RunFolder, records: list[Record]) -> Iterator[Finding]:
    number, ended = len(records), records[-1]
    if ended["what"] != "ended":
        wrong = False
        with suppress(StateError):  # none, or one that was damaged: the run writes it anew
            wrong = folder.read_summary().get("status") == "completed"
        text = f"{SUMMARY} says that the run completed, and the log has no end" if wrong else "the log has no end yet"
        yield Finding("end", "failed" if wrong else "note", text, len(records) if wrong else 0)
        return
    try:
        summary = folder.read_summary()
    except StateError as error:
        # It is written right after the line: a kill between the two leaves this behind, too.
        yield Finding(SUMMARY, "failed", f"{error}; a run that was killed at its end goes on, and writes it", number)
        return
    said = {key: summary[key] for key in sorted(summary) if key in ended["of"]}
    if list(said) != ended["of"] or of_json(said) != ended["figures"] or said["status"] != ended["status"]:
        yield Finding(SUMMARY, "failed", f"not what line {number} was written of", number)
    else:
        later = sorted(set(summary) - set(ended["of"]))
        if set(later) - _ADDED:
            yield Finding(SUMMARY, "failed", f"line {number} knows nothing of {', '.join(later)}", number)
        else:
            beside = f"; not covered: {', '.join(later)}" if later else ""
            yield Finding(SUMMARY, "ok", f"the run {ended['status']}{beside}")
    if of_file(folder.path / MODEL) != ended["model_file"]:
        yield Finding(MODEL, "failed", f"not the file of line {number}", number)
    elif ended["model_file"]:
        yield Finding(MODEL, "ok", f"the file of line {number}")
