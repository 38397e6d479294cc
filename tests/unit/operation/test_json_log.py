"""JSON logs: one object a line, in every process of a run, and no data of users in them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedrec_app.errors import ConfigError, DataError
from fedrec_app.operation.json_log import JsonFormatter, bind, fields, lines_of, redacted


def written(message: str, *args: Any, **more: Any) -> dict[str, Any]:
    record = logging.getLogger("flwr").makeRecord("flwr", logging.INFO, "f.py", 1, message, args, None, **more)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_has_time_level_logger_message_and_fields() -> None:
    bind(run="12-00-00", round=3)
    found = written("%s nodes\nof %s", 3, "many", extra=fields({"loss": 0.5}))
    bind(run=None, round=None)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "INFO", "logger": "flwr", "run": "12-00-00", "round": 3, "message": "3 nodes\nof many",
        "fields": {"loss": 0.5},
    }  # fmt: skip
    assert "round" not in written("and none is left behind")


@pytest.mark.parametrize(
    "text",
    [
        "round 3: dropped a reply, error-reply: code 2: fedrec_app.errors.DataError: user u-77 met item i-5",
        "train: KeyError: 'u-77'",
        "ValueError('u-77')",
        "StateError: the node said: DataError: u-77\nand i-5",
    ],
)
def test_what_errors_say_of_data_is_withheld(text: str) -> None:
    found = redacted(text)
    assert "u-77" not in found
    assert "i-5" not in found
    assert "Error" in found
    assert "(text withheld: it may quote data)" in found


def test_what_errors_say_of_settings_and_files_is_not() -> None:
    text = "the run failed: ConfigError: strategy.min-nodes is 3: there are 2 nodes"
    assert redacted(text) == text
    assert written("the run failed: %s", ConfigError("min-nodes is 3"))["message"] == "the run failed: min-nodes is 3"


def test_an_error_among_the_arguments_is_known_by_its_kind() -> None:
    found = written("%s: %s", "train", DataError("user u-77 has no items"))["message"]
    assert found == "train: DataError (text withheld: it may quote data)"


def test_a_traceback_keeps_where_it_was_and_not_what_it_was_about() -> None:
    try:
        {"a": 1}["u-77\nKeyError: i-5"]
    except KeyError as error:
        import traceback

        plain, info = traceback.format_exc(), (type(error), error, error.__traceback__)
    found = written("%s: %s", "train", plain)["message"]
    assert found.startswith("train: KeyError (text withheld: it may quote data) at File")
    assert "test_json_log.py" in found
    assert "u-77" not in found
    assert "i-5" not in found
    record = logging.getLogger("flwr").makeRecord("flwr", logging.ERROR, "f.py", 1, "it failed", (), info)  # type: ignore[arg-type]
    text = JsonFormatter().format(record)
    assert json.loads(text)["error"] == "KeyError"
    assert "u-77" not in text


def csv(folder: Path, broken: bool = False) -> dict[str, Any]:
    """Returns settings of data whose ids cannot be anything else in a log."""
    rows = [f"qzuser{u},qzitem{(7 * u + 3 * n) % 40},{100 * n + u}\n" for u in range(20) for n in range(8)]
    if broken:
        rows = [f"qzuser{u},,{n}\n" for u in range(20) for n in range(8)]
    (folder / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    return {"data.name": "csv", "data.path": str(folder / "clicks.csv"), "num-server-rounds": 2}


RUNS = """
import json, logging, sys
logging.getLogger("flwr").setLevel(logging.DEBUG)
for handler in logging.getLogger("flwr").handlers:
    handler.setLevel(logging.DEBUG)
from fedrec_app.simulate import simulate
for settings in json.loads(sys.argv[1]):
    try:
        simulate(settings, 3)
    except Exception as error:
        print(type(error).__name__)

from fedrec_app import client

def breaks(*given, **named):
    raise KeyError("qzuser3\\nqzitem7: 1")

client.fit_users = breaks
try:
    simulate(settings, 3)
except Exception as error:
    print(error)
"""


def test_a_federation_with_debug_logs_tells_no_user_and_no_item(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    runs = [{**csv(bad, broken=True), "output-dir": str(bad / "out")}, {**csv(good), "output-dir": str(good / "out")}]
    done = subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps(runs)], capture_output=True, text=True, check=True,
        env={**os.environ, "FEDREC_LOG_FORMAT": "json"},
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == "NoInteractions"
    assert "6 error-reply" in done.stdout
    lines = list(lines_of(done.stderr))
    assert len(lines) == len(done.stderr.splitlines())
    rounds = [line for line in lines if line.get("fields")][:2]
    assert [(line["round"], line["fields"]["round"]) for line in rounds] == [(1, 1), (2, 2)]
    assert all(line["run"] for line in rounds)
    nodes = [line for line in lines if line["message"].startswith("train: KeyError (text withheld")]
    assert sorted((line["partition"], line["round"]) for line in nodes) == [(p, r) for p in range(3) for r in (1, 2)]
    assert "qzuser" not in done.stderr
    assert "qzitem" not in done.stderr


def test_opacus_makes_no_log_of_its_own() -> None:
    """Its import gives the root logger a handler, which would write every line again, as plain text."""
    code = (
        "from logging import WARNING; import numpy as np; from flwr.supercore import log\n"
        "from fedrec_app.operation import json_log; from fedrec_app.privacy.mechanism import add_noise\n"
        "json_log.install(); add_noise({'a': np.zeros(2, np.float32)}, 1.0, 1.0)\n"
        "log(WARNING, 'KeyError: qzuser3')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "FEDREC_LOG_FORMAT": "json"},
    )  # fmt: skip
    (line,) = lines_of(done.stderr)
    assert line["message"].startswith("KeyError (text withheld")
    assert len(done.stderr.splitlines()) == 1
