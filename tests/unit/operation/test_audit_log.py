"""The audit log says what happened in each round, and `verify` finds whatever is not as it was written."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from fedrec_app.artifacts import RunFolder
from fedrec_app.checkpoint import Checkpoints
from fedrec_app.config import RunConfig
from fedrec_app.errors import StateError
from fedrec_app.hash_chain import START, ChainFile, line, read
from fedrec_app.operation.audit_check import passed, verify
from fedrec_app.operation.audit_log import AUDIT, AuditLog, ranges
from fedrec_app.operation.digests import of_arrays, of_json, of_reply
from fedrec_app.privacy import ledger as ledger_module
from fedrec_app.privacy.ledger import LEDGER, Ledger
from fedrec_app.records import to_record
from fedrec_app.simulate import simulate
from strategies.fedavg import FedAvg
from strategies.progress import Progress, RoundRecord
from strategies.rounds import run_rounds
from strategies.settings import Settings
from tests.small import SMALL
from tests.unit.test_rollcall_rounds import PARAMS, Nodes, failing, roster

SETTINGS: dict[str, Any] = {"data.options": SMALL, "num-server-rounds": 5, "checkpoint.every": 2}
PRIVATE: dict[str, Any] = {"privacy.unit": "user", "privacy.target-epsilon": 8.0}


class Stopped(Exception):
    """Ends a run from outside."""


def run(output_dir: Path, stop_after: int = 0, taps: Any = (), **settings: Any) -> Path:
    def watch(record: RoundRecord, progress: Progress, num_rounds: int) -> None:
        if record.round == stop_after:
            raise Stopped

    flat = {"output-dir": str(output_dir), **SETTINGS, **settings}
    try:
        return simulate(flat, 3, watchers=[watch], taps=taps).folder.path
    except Stopped:
        (folder,) = output_dir.glob("*-*-*/*")
        return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A finished run that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / AUDIT).read_text().splitlines()]


def rewritten(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Writes a log anew, every hash right: what somebody can do who may write the file."""
    previous, content = START, b""
    for number, record in enumerate(lines):
        text = line({**{k: v for k, v in record.items() if k != "hash"}, "seq": number, "previous": previous})
        previous = json.loads(text)["hash"]
        content += text
    (folder / AUDIT).write_bytes(content)


def failures(folder: Path) -> list[tuple[str, int]]:
    return [(finding.check, finding.line) for finding in verify(folder) if finding.state == "failed"]


# What is written -----------------------------------------------------------------------------------------------------


def test_a_run_is_told_from_its_start_to_its_end(tmp_path: Path) -> None:
    replies: list[str] = []
    folder = run(tmp_path, taps=[lambda message: replies.append(digest) if (digest := trained(message)) else None])
    began, nodes, *rounds, ended = records(folder)
    config = RunFolder(folder).read_config()
    config.pop("checkpoint.resume-from")
    assert (began["settings"], began["config"], began["resumed"]) == (config, of_json(config), None)
    assert set(began["versions"]) == {"fedrec", "python", "flwr", "torch", "numpy", "pandas", "ray"}
    _, made, _ = RunFolder(folder).read_model()
    assert (nodes["lineage"], nodes["catalog-hash"], nodes["members"]) == (made.lineage, made.catalog_hash, "0-2")
    assert [record["round"] for record in rounds] == [1, 2, 3, 4, 5]
    told = RunFolder(folder).read_metrics()
    for at, record in enumerate(rounds):
        assert (record["asked"], record["members"], record["dropped"]) == ("0-2", "0-2", {})
        assert sorted(record["replies"].values()) == sorted(replies[3 * at : 3 * at + 3])
        assert record["metrics"] == of_json(told[at])
    assert rounds[3]["model"] == of_arrays(Checkpoints(folder / "checkpoints").read_newest().shared)
    assert (ended["status"], ended["figures"]) == ("completed", of_json(RunFolder(folder).read_summary()))
    assert passed(verify(folder))


def trained(message: Any) -> str:
    said = message.metadata
    return of_reply(message.content) if said.reply_to_message_id and said.message_type.startswith("train") else ""


def test_it_says_who_was_asked_left_joined_failed_and_did_not_answer(tmp_path: Path) -> None:
    log = rounds_with(tmp_path, Nodes(4, failing({2}, {1})), {2: ({3}, set()), 3: (set(), {0, 2}), 4: (set(), set())})
    assert [record["asked"] for record in log] == ["0-3", "0-2", "0-3", "0-3"]
    assert [(record["joined"], record["left"]) for record in log] == [("", ""), ("", "3"), ("3", ""), ("", "")]
    assert [sorted(record["replies"]) for record in log] == [list("0123"), list("02"), list("13"), list("0123")]
    no = "no-reply"
    assert [record["dropped"] for record in log] == [{}, {"1": "error-reply"}, {"0": no, "2": no}, {}]
    assert [record["drops"] for record in log] == [{}, {"error-reply": 1}, {"no-reply": 2}, {}]
    assert len({record["replies"]["1"] for record in log if "1" in record["replies"]}) == 3  # they name their round


def rounds_with(folder: Path, grid: Nodes, gone: dict[int, tuple[set[int], set[int]]]) -> list[dict[str, Any]]:
    """Returns the lines of four rounds; gone: round -> (partitions that are away, those that do not answer)."""
    audit = AuditLog.begin(folder, RunConfig())
    members = roster()
    members.wait(grid, 1)
    strategy = FedAvg({}, Settings(), members)

    class Hook:
        def before_round(self, server_round: int) -> None:
            grid.away, grid.silent = gone.get(server_round, (set(), set()))

        def on_round(self, record: RoundRecord, progress: Progress) -> None:
            audit.on_round(record, progress, {"round": record.round})

    watched = audit.watch(grid, members, strategy, {}, "a-run", 4)
    run_rounds(strategy, watched, to_record(PARAMS), num_rounds=4, timeout=0.2, hooks=Hook(), evaluate_every=0)
    audit.close()
    return [record for record in records(folder) if record["what"] == "round"]


@pytest.mark.parametrize("name", ["flwr.serverapp.strategy:FedAvg", "fedbuff"])
def test_other_strategies_are_seen_as_well(tmp_path: Path, name: str) -> None:
    folder = run(
        tmp_path, **{"strategy.name": name, "strategy.options": '{"buffer_size": 2}' if "buff" in name else "{}"}
    )
    rounds = [record for record in records(folder) if record["what"] == "round"]
    expected = {2} if "buff" in name else {3}
    assert {len(record["replies"]) for record in rounds} == expected
    assert all(not record["dropped"] for record in rounds)
    assert passed(verify(folder))


@pytest.mark.parametrize("unit", ["user", "example"])
def test_a_private_run_names_no_node_no_update_and_no_time_of_a_round(tmp_path: Path, unit: str) -> None:
    example = {
        "privacy.unit": "example", "privacy.noise-multiplier": 1.0, "privacy.delta": 1e-4, "train.unit": "node",
        "model.options": '{"loss": "bce"}', "train.private-epochs": 0, "privacy.metrics": "withheld",
        "strategy.name": "fedavg", "strategy.options": '{"weighting": "users"}',
        "num-server-rounds": 2, "privacy.sampling-rate": 0.5,
    }  # fmt: skip
    folder = run(tmp_path, **(PRIVATE if unit == "user" else example))
    began, nodes, *rounds, ended = records(folder)
    assert began["withheld"] == ["who was asked", "who replied", "hashes of updates", "times of rounds"]
    for record in rounds:
        assert set(record) == {
            "seq", "previous", "what", "round", "members", "joined", "left", "refused", "drops", "skipped", "model",
            "metrics", "hash",
        }  # fmt: skip
    assert not any("time" in record for record in (nodes, ended))
    assert passed(verify(folder))


def test_ranges_are_short() -> None:
    assert [ranges(n) for n in ([], [3], [2, 0, 1, 1], [9, 1, 2, 4])] == ["", "3", "0-2", "1-2,4,9"]


# What is found -------------------------------------------------------------------------------------------------------


def test_every_changed_byte_of_the_log_is_found(folder: Path) -> None:
    log = folder / AUDIT
    whole = log.read_bytes()
    for place in itertools.chain(range(0, len(whole) - 1, 29), [len(whole) - 2]):
        log.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert failures(folder) == [("chain", whole[:place].count(b"\n") + 1)], place


@pytest.mark.parametrize("number", range(1, 9))
def test_every_line_that_is_removed_repeated_or_moved_is_found(folder: Path, number: int) -> None:
    log = folder / AUDIT
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    at = number - 1

    def changed(*order: bytes) -> list[tuple[str, int]]:
        log.write_bytes(b"".join(order))
        return failures(folder)

    last = number == len(lines)
    assert changed(*lines[:at], *lines[number:]) == [("end" if last else "chain", 7 if last else number)]
    assert changed(*lines[:number], *lines[at:]) == [("chain", number + 1)]
    assert changed(*lines[:at], *lines[number:], lines[at]) == ([] if last else [("chain", number)])


@pytest.mark.parametrize("keep", range(1, 8))
def test_lines_cut_off_the_end_are_found(folder: Path, keep: int) -> None:
    """Beyond the newest checkpoint, of round 4, metrics.jsonl and summary.json know of them."""
    lines = (folder / AUDIT).read_bytes().splitlines(keepends=True)
    (folder / AUDIT).write_bytes(b"".join(lines[:keep]))
    found = dict(failures(folder))
    assert set(found) == {"end", *(["metrics.jsonl"] if keep < 7 else []), *(["checkpoints"] if keep < 6 else [])}


def test_every_field_that_somebody_changes_with_all_hashes_after_it_is_found(folder: Path) -> None:
    """Up to the newest checkpoint, which knows the digest of its line; of later lines, what other files say."""
    lines = records(folder)
    not_held = {"previous", "seq", "hash", "time"}
    later = {"members", "joined", "left", "refused", "asked", "replies", "dropped", "drops", "skipped", "model"}
    for at, record in enumerate(lines):
        for key in sorted(set(record) - not_held - (later if at == 6 else set())):
            changed = [dict(each) for each in lines]
            changed[at][key] = {"changed": 1} if isinstance(record[key], dict) else "changed"
            rewritten(folder, changed)
            assert failures(folder), (at, key)
    rewritten(folder, lines)
    assert failures(folder) == []


def change_json(name: str, change: Callable[[Any], None], line_number: int | None = None) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines() if line_number is not None else [(folder / name).read_text()]
        value = json.loads(lines[line_number or 0])
        change(value)
        lines[line_number or 0] = json.dumps(value)
        (folder / name).write_text("\n".join(lines) + "\n")

    return changed


def other_parameters(folder: Path) -> None:
    arrays = load_file(folder / "model.safetensors")
    name = next(iter(arrays))
    arrays[name] = arrays[name] * 1.5
    save_file(arrays, folder / "model.safetensors")


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return changed


def cut(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))


FILES: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "a setting": (replaced("config.toml", "num-server-rounds = 5", "num-server-rounds = 50"), "config.toml", 1),
    "a metric": (
        change_json("metrics.jsonl", lambda told: told["validation"].update({"ndcg@10": 0.9}), 2), "metrics.jsonl", 5,
    ),
    "a round that is gone": (cut, "metrics.jsonl", 7),
    "a figure": (change_json("summary.json", lambda told: told["test"].update({"ndcg@10": 0.9})), "summary.json", 8),
    "a figure that is gone": (change_json("summary.json", lambda told: told.pop("test")), "summary.json", 8),
    "the model": (other_parameters, "model.safetensors", 8),
    "no model": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors", 8),
    "no summary": (lambda folder: (folder / "summary.json").unlink(), "summary.json", 8),
}  # fmt: skip


@pytest.mark.parametrize("which", FILES)
def test_a_file_that_is_not_the_one_of_the_log_is_named(folder: Path, which: str) -> None:
    change, name, number = FILES[which]
    change(folder)
    assert failures(folder) == [(name, number)]


def test_a_checkpoint_of_other_parameters_is_found(folder: Path) -> None:
    checkpoints = Checkpoints(folder / "checkpoints")
    newest = checkpoints.read_newest()
    name = next(iter(newest.shared))
    newest.shared[name][0] += 1
    checkpoints.write(newest)
    assert failures(folder) == [("checkpoints", 6)]


def test_what_comes_later_into_the_summary_is_named_as_not_covered(folder: Path) -> None:
    change_json("summary.json", lambda told: told.update(virtual_seconds=3.0))(folder)
    (found,) = [finding for finding in verify(folder) if finding.check == "summary.json"]
    assert (found.state, found.text) == ("ok", "the run completed; not covered: virtual_seconds")


def test_a_folder_without_a_log_is_no_clean_one(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"no audit.jsonl in"):
        verify(tmp_path)


# Runs that go on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [False, True])
def test_a_run_that_goes_on_continues_the_chain_and_says_what_it_took_again(tmp_path: Path, private: bool) -> None:
    settings = {**(PRIVATE if private else {})}
    folder = run(tmp_path, stop_after=3, **settings)
    assert passed(verify(folder))
    at = 2  # a private run has a checkpoint after each round, the watcher stops it after the third's
    run(tmp_path, **settings, **{"checkpoint.resume-from": str(folder)})
    log = records(folder)
    assert [record.get("round") for record in log if record["what"] == "round"] == (
        [1, 2, 3, 4, 5] if private else [1, 2, 3, 3, 4, 5]
    )
    starts = [record for record in log if record["what"] == "began"]
    assert [start["resumed"] and start["resumed"]["round"] for start in starts] == [None, 3 if private else at]
    assert [record["status"] for record in log if record["what"] == "ended"] == ["failed", "completed"]
    assert passed(verify(folder))


@pytest.mark.parametrize("harm", ["damaged", "cut", "lost"])
def test_a_damaged_log_does_not_end_the_run_and_is_reported_ever_after(tmp_path: Path, harm: str) -> None:
    folder = run(tmp_path, stop_after=3)
    log = folder / AUDIT
    whole = log.read_bytes()
    if harm == "lost":
        log.unlink()
    else:
        log.write_bytes(whole.replace(b'"round":1', b'"round":9') if harm == "damaged" else whole[:300])
    before = log.read_bytes() if log.exists() else b""
    run(tmp_path, **{"checkpoint.resume-from": str(folder)})
    assert RunFolder(folder).read_summary()["status"] == "completed"
    assert ("set aside", 1) in failures(folder)
    if before:
        assert (folder / "audit.damaged-1.jsonl").read_bytes() == before


def test_a_log_without_the_rounds_after_a_kill_is_whole(folder: Path) -> None:
    """As a kill leaves it: between a round's line and its line of metrics.jsonl, and in the middle of a line."""
    for name in ("summary.json", "model.safetensors"):
        (folder / name).unlink()
    lines = (folder / AUDIT).read_bytes().splitlines(keepends=True)
    (folder / AUDIT).write_bytes(b"".join(lines[:7]) + lines[7][:100])
    cut(folder)
    assert failures(folder) == []
    assert "a crash cut short does not count" in verify(folder)[0].text


def test_nobody_resumes_a_run_that_another_process_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec_app.hash_chain._PATIENCE", 0.05)
    folder = run(tmp_path, stop_after=3)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    file = ChainFile.open(folder / AUDIT)
    with pytest.raises(StateError, match="is in use by another process"):
        run(tmp_path, **{"checkpoint.resume-from": str(folder)})
    file.close()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert read((folder / AUDIT).read_bytes()).damaged == 0


def test_a_reply_that_does_not_validate_is_named_with_its_reason(tmp_path: Path) -> None:
    def lies(reply: Any) -> None:
        if (reply.kind, reply.partition, reply.round) == ("train", 1, 2):
            reply.said["weight"] = -5.0

    log = rounds_with(tmp_path, Nodes(4, lies), {})
    assert [record["dropped"] for record in log] == [{}, {"1": "bad-weight"}, {}, {}]
    assert "1" in log[1]["replies"]


def test_a_run_of_a_model_with_several_parameters_verifies(tmp_path: Path) -> None:
    """In a process of its own: the order in which files give arrays differs from process to process."""
    folder = run(tmp_path, **{"model.name": "neumf", "checkpoint.every": 1})
    for _ in range(3):
        done = subprocess.run(["fedrec", "audit", "verify", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_added_to_a_summary_is_found(folder: Path) -> None:
    summary = RunFolder(folder).read_summary()
    RunFolder(folder).write_summary({**summary, "privacy": {"epsilon": 0.01}})
    assert failures(folder) == [("summary.json", len(records(folder)))]


# The privacy ledger --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_privately(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs"), **PRIVATE)


@pytest.fixture
def private(finished_privately: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_privately, tmp_path / "run"))


def ledger_findings(folder: Path) -> list[tuple[str, str]]:
    return [(finding.state, finding.text) for finding in verify(folder) if finding.check == LEDGER]


def with_charges(folder: Path, noise_multiplier: float, most: int) -> None:
    """Writes the ledger anew, every hash right."""
    with Ledger.open(folder / LEDGER) as ledger:
        header, charges = ledger.header, ledger.charges
    (folder / LEDGER).unlink()
    with Ledger.create(folder / LEDGER, header) as ledger:
        for charge in charges[:most]:
            ledger.charge(replace(charge.event, noise_multiplier=noise_multiplier), charge.what)


def test_a_ledger_goes_with_its_run(private: Path) -> None:
    ((state, text),) = ledger_findings(private)
    assert state == "ok"
    assert text.startswith("6 charges")  # 5 rounds, and the test metrics
    epsilon = RunFolder(private).read_summary()["privacy"]["epsilon"]
    assert float(text.rpartition(" ")[2]) == pytest.approx(epsilon, abs=1e-3)


def test_a_ledger_that_is_lost_damaged_or_cut_short_is_found(private: Path) -> None:
    path = private / LEDGER
    whole = path.read_bytes()
    path.unlink()
    assert ledger_findings(private) == [("failed", "it is lost: nobody knows what the run has released")]
    path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    assert "is damaged" in ledger_findings(private)[0][1]
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    assert "has 5 lines, the checkpoint knows of 6" in ledger_findings(private)[0][1]
    path.write_bytes(b"")
    assert "has no header" in ledger_findings(private)[0][1]
    path.write_bytes(whole)
    with Ledger.open(path) as ledger:
        next_line = ledger._chain.next(ledger.events[0], {"for": "round", "round": 6})
    for cut, ending in ((9, "is removed when the run goes on"), (len(next_line) - 5, "counts when the run goes on")):
        path.write_bytes(whole + next_line[:cut])
        ((state, text),) = ledger_findings(private)
        assert state == "ok"
        assert text.endswith(ending)
    path.write_bytes(whole + b"garbage")
    assert "is damaged" in ledger_findings(private)[0][1]


def test_a_ledger_that_was_written_anew_is_found_with_and_without_checkpoints(private: Path) -> None:
    with_charges(private, 9.0, 6)
    assert "is not the one that the checkpoint knows" in ledger_findings(private)[0][1]
    shutil.rmtree(private / "checkpoints")
    assert "a round told epsilon" in ledger_findings(private)[0][1]
    with_charges(private, 0.5, 6)
    assert "summary.json tells epsilon" in ledger_findings(private)[0][1]
    with_charges(private, 9.0, 4)
    assert ledger_findings(private) == [("failed", "4 charges for 5 rounds that changed the parameters")]


def test_the_ledger_of_another_run_is_found(private: Path, tmp_path: Path) -> None:
    other = run(tmp_path / "runs", **PRIVATE)
    shutil.rmtree(private / "checkpoints")
    shutil.copy(other / LEDGER, private / LEDGER)
    assert "it is of another run: its lineage is" in ledger_findings(private)[0][1]


def test_files_that_are_damaged_beside_the_ledger_do_not_end_the_check(private: Path) -> None:
    summary = RunFolder(private).read_summary()
    for told in (None, {"epsilon": "x"}, {"epsilon": None, "delta": summary["privacy"]["delta"]}):
        RunFolder(private).write_summary({**summary, "privacy": told})
        assert "summary.json" in [check for check, _ in failures(private)]
        assert ledger_findings(private)[0][0] == "ok"
    (private / "summary.json").write_text("{")
    assert "summary.json" in [check for check, _ in failures(private)]
    assert ledger_findings(private)[0][0] == "ok"


def test_a_run_that_told_the_looser_bound_verifies(tmp_path: Path) -> None:
    """What it planned has no room on a grid, what it charged until it was stopped has."""
    large = {"privacy.noise-multiplier": 0.5, "privacy.sampling-rate": 0.1, "num-server-rounds": 6000}
    settings = {"privacy.unit": "user", "privacy.metrics": "withheld", **large}
    folder = run(tmp_path, stop_after=3, **settings)
    told = [json.loads(text)["train"]["epsilon"] for text in (folder / "metrics.jsonl").read_text().splitlines()]
    ((state, text),) = ledger_findings(folder)
    assert state == "ok"
    assert max(told) > float(text.rpartition(" ")[2]) + 0.1


def test_a_charge_that_was_interrupted_counts_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on the disk, and the run does not know."""
    append, calls = ledger_module.append_line, itertools.count()

    def interrupted(descriptor: int, text: bytes) -> None:
        append(descriptor, text)
        if next(calls) == 3:  # after the header and two rounds
            raise KeyboardInterrupt

    monkeypatch.setattr(ledger_module, "append_line", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **PRIVATE)
    (folder,) = tmp_path.glob("*-*-*/*")
    assert RunFolder(folder).read_summary()["status"] == "stopped"
    ((state, text),) = ledger_findings(folder)
    assert (state, text[:9]) == ("ok", "3 charges")
    assert passed(verify(folder))


def test_a_run_that_continues_a_private_one_verifies(private: Path, tmp_path: Path) -> None:
    """Its ledger begins with charges that are for no round of its own."""
    again = {"privacy.unit": "user", "privacy.noise-multiplier": 3.0, "checkpoint.continue-from": str(private)}
    folder = run(tmp_path / "runs", **again)
    assert ledger_findings(folder)[0][0] == "ok"
    assert passed(verify(folder))
