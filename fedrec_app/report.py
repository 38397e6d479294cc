"""The report of a run: report.md with its curves as PNG pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fedrec_app.artifacts import REPORT, RunFolder
from fedrec_app.errors import FedrecError

CURVES = "curves.png"
_SHOWN = (
    "hr@5",
    "ndcg@5",
    "hr@10",
    "ndcg@10",
    "recall@10",
    "precision@10",
    "f1@10",
    "mrr@10",
    "hr@20",
    "ndcg@20",
    "recall@20",
)


def write_report(folder: RunFolder) -> Path:
    """Returns the path of report.md, written anew from summary.json and metrics.jsonl.

    Pictures need matplotlib (`pip install 'fedrec[report]'`); without it the report says so and has none.

    Args:
        folder: of a run that completed.

    Raises:
        FedrecError: the run did not complete.
    """
    summary, records = folder.read_summary(), folder.read_metrics()
    if summary.get("status") != "completed":
        raise FedrecError(
            f"the run in {folder.path} is {summary.get('status')}: {summary.get('error', 'no reason given')}"
        )
    lines = [f"# {summary['model']} by {summary['strategy']} on {summary['data']}", ""]
    if "warning" in summary:
        lines += [f"**{summary['warning']}**", ""]
    lines += [*_result_lines(summary), "", *_facts(summary), ""]
    if importlib.util.find_spec("matplotlib") is None:
        lines += ["No pictures: matplotlib is not installed (`pip install 'fedrec[report]'`).", ""]
    elif records:
        plot_curves(records, summary, folder.path / CURVES)
        lines += ["## Rounds", "", f"![validation metrics, loss and traffic by round]({CURVES})", ""]
    lines += ["## Settings", "", "```toml", *_settings(folder), "```", ""]
    path = folder.path / REPORT
    path.write_text("\n".join(lines))
    return path


def result_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (metric, value, 95 % interval) of the test part: full ranking, then 99 sampled negatives.

    Args:
        summary: of a run that completed.
    """
    rows = []
    for title, part in (("", summary["test"]), (" (99 negatives)", summary["sampled"])):
        intervals = part.get("ci", {})
        extra = [name for name in part if name.split("@")[0] in ("coverage", "gini", "popularity")]
        for name in [*(n for n in _SHOWN if n in part), *extra]:
            low_high = intervals.get(name)
            interval = f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
            rows.append((name + title, f"{part[name]:.4f}", interval))
    return rows


def _result_lines(summary: dict[str, Any]) -> list[str]:
    users = summary["test"].get("num_users", 0)
    lines = [
        f"Test, {users} users, parameters of round {summary['best_round']} (best on validation). Full ranking over the catalogue "
        "unless said otherwise; intervals by Poisson bootstrap over users.",
        "",
        "| metric | value | 95 % interval |",
        "|---|---|---|",
    ]
    return [*lines, *(f"| {name} | {value} | {interval} |" for name, value, interval in result_rows(summary))]


def _facts(summary: dict[str, Any]) -> list[str]:
    dropped = ", ".join(f"{count} {reason}" for reason, count in summary["dropped_updates"].items()) or "none"
    skipped = summary["test"].get("num_without_held_out", 0)
    return [
        "## Run",
        "",
        f"- protocol {summary['protocol']}; unit of training: {summary['unit']}; seed {summary['seed']}",
        f"- {summary['num_nodes']} nodes; {summary['rounds']} rounds, {summary['seconds_per_round']:.2f} s a round (median)",
        f"- payload over all rounds: {summary['bytes_down'] / 1e6:.1f} MB to the nodes, {summary['bytes_up'] / 1e6:.1f} MB back",
        f"- updates dropped: {dropped}; users with nothing held out: {skipped}",
    ]


def _settings(folder: RunFolder) -> list[str]:
    from fedrec_app.artifacts import CONFIG

    return (folder.path / CONFIG).read_text().strip().splitlines()


def plot_curves(records: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Draws validation metrics, training loss and traffic by round.

    Args:
        records: lines of metrics.jsonl.
        summary: of the run.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    quality, loss, traffic = figure.subplots(1, 3)
    judged = [r for r in records if r["validation"]]
    rounds = [r["round"] for r in judged]
    for name, label in (
        ("ndcg@10", "NDCG@10, full"),
        ("hr@10", "HR@10, full"),
        ("sampled/ndcg@10", "NDCG@10, 99 negatives"),
    ):
        if judged and name in judged[0]["validation"]:
            quality.plot(rounds, [r["validation"][name] for r in judged], label=label)
    quality.axvline(summary["best_round"], color="grey", linestyle=":", label=f"best: round {summary['best_round']}")
    quality.set(title="Validation", xlabel="round", ylim=(0, None))
    quality.legend(fontsize=7)
    trained = [r for r in records if "loss" in r["train"]]
    loss.plot([r["round"] for r in trained], [r["train"]["loss"] for r in trained], color="tab:red")
    loss.set(title="Training loss", xlabel="round")
    for key, label in (("bytes_down", "to the nodes"), ("bytes_up", "back")):
        traffic.plot([r["round"] for r in records], [r[key] / 1e6 for r in records], label=label)
    traffic.set(title="Payload, MB a round", xlabel="round", ylim=(0, None))
    traffic.legend(fontsize=7)
    figure.suptitle(
        f"{summary['model']} by {summary['strategy']} on {summary['data']}"
        + (" — LEAKY PROTOCOL" if "warning" in summary else "")
    )
    figure.savefig(path, dpi=120)
