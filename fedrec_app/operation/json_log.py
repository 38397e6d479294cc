"""Logs as one JSON object a line, for collectors: FEDREC_LOG_FORMAT=json, in every process of a run.

    {"time":"2025-01-01T00:00:00.000+00:00","level":"INFO","logger":"flwr","run":"12-00-00","round":3,"message":"..."}

They are made to leave the machine, so they quote no data. What quotes it is what Python says of an error: a DataError
names rows, and any other error may name a value (KeyError: 'user-7'). Of these the kind stays, and where in the code it
was. Whoever needs the text starts that process without the variable: plain logs have it, and stay on the machine.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from flwr.app import Context, Message
from flwr.supercore.logger import FLOWER_LOGGER

from fedrec_app.records import CONFIG, Ask

Handler = Callable[[Message, Context], Message]

VARIABLE = "FEDREC_LOG_FORMAT"
WITHHELD = "(text withheld: it may quote data)"
_bound: ContextVar[Mapping[str, Any]] = ContextVar("fedrec_log_fields")
_FIELDS = "fedrec_fields"
_SAYS = re.compile(r"\b((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit))(: |\()(.*)", re.DOTALL)
"""An error with its text, to the end of whatever quotes it."""
_OURS = ("ConfigError", "StateError", "FedrecError")
"""Errors whose texts name settings and files, and quote no data."""
_TRACE = "Traceback (most recent call last)"
_FRAME = re.compile(r'^ +File ".*", line \d+, in \S+$', re.MULTILINE)
_KIND = re.compile(r"^([A-Za-z_][\w.]*)(?::|$)")


def wanted() -> bool:
    """Returns whether logs are to be JSON."""
    return os.environ.get(VARIABLE, "").lower() == "json"


def install() -> None:
    """Makes Flower's logger, which is fedrec's too, write JSON in this process, if that is wanted."""
    if not wanted():
        return
    for handler in FLOWER_LOGGER.handlers:
        # Flower's own handler formats by itself, whatever its formatter.
        handler.format = JsonFormatter().format


def bind(**fields: Any) -> None:
    """Adds fields to every line that this thread, or task, logs from here on; None takes one away."""
    both = {**_bound.get({}), **fields}
    _bound.set({name: value for name, value in both.items() if value is not None})


def on_node(handler: Handler) -> Handler:
    """Returns the handler of a node's messages, whose lines say which node, run and round they are of."""

    @wraps(handler)
    def logged(message: Message, context: Context) -> Message:
        install()
        before = _bound.set(_bound.get({}))
        asked = message.content.config_records.get(CONFIG, {}) if message.has_content() else {}
        try:
            partition, number = context.node_config.get("partition-id"), asked.get(Ask.ROUND)
            bind(run_id=context.run_id, partition=partition, round=number)
            return handler(message, context)
        finally:
            _bound.reset(before)

    return logged


def fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what goes into `log(..., extra=...)` so that values are fields of the line."""
    return {_FIELDS: dict(values)}


def say_failed(error: BaseException) -> None:
    """Logs what ends a command."""
    install()
    FLOWER_LOGGER.error("%s", error)


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without its newline."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **_bound.get({}),
            "message": redacted(_message(record)),
        }
        if found := getattr(record, _FIELDS, None):
            line["fields"] = found
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["at"] = list(_frames(self.formatException(record.exc_info)))
        return json.dumps(line, default=str)


def redacted(text: str) -> str:
    """Returns a message in which errors have no text of their own, and tracebacks none of their values."""
    if _TRACE in text:
        before, _, trace = text.partition(_TRACE)
        where = ", ".join(_frames(trace)[-3:])
        return f"{redacted(before.strip())} {_raised(trace)} {WITHHELD} at {where}".strip()

    def shortened(found: re.Match[str]) -> str:
        if found[1].rpartition(".")[2] in _OURS:
            return f"{found[1]}{found[2]}{redacted(found[3])}"
        return f"{found[1]} {WITHHELD}"

    return _SAYS.sub(shortened, text)


def _message(record: logging.LogRecord) -> str:
    """Returns the message of a record, errors among its arguments by their kind."""
    if isinstance(record.args, tuple):
        args = tuple(_shown(value) if isinstance(value, BaseException) else value for value in record.args)
        return (str(record.msg) % args if args else str(record.msg)).strip()
    return record.getMessage().strip()


def _shown(error: BaseException) -> str:
    kind = type(error).__name__
    return str(error) if kind in _OURS else f"{kind} {WITHHELD}"


def _raised(trace: str) -> str:
    """Returns the kind of error that a traceback ends with: it stands after the last frame, and its text after it."""
    *_, last = ["", *_FRAME.split(trace)]
    kinds = (_KIND.match(line) for line in last.splitlines())
    return next((kind[1] for kind in kinds if kind), "error")


def _frames(trace: str) -> list[str]:
    return [" ".join(frame.split()) for frame in _FRAME.findall(trace)]


def lines_of(output: str) -> Iterator[dict[str, Any]]:
    """Yields the JSON lines in what a process printed; other lines are left out."""
    for line in output.splitlines():
        if is_line(line):
            yield json.loads(line)


def is_line(text: str) -> bool:
    """Returns whether a line that a process printed is one of these."""
    return text.startswith('{"time":')
