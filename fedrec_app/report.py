"""The report of a run: report.md with its curves as PNG pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrec_app.artifacts import CONFIG, REPORT, RunFolder
from fedrec_app.errors import FedrecError
from fedrec_app.files import write_atomically
from fedrec_app.report_privacy import privacy_lines, privacy_notices

CURVES = "curves.png"
_MARKED = 30
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
_FEW = 3


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
    if "test" not in summary:
        raise FedrecError(f"the run in {folder.path} left the test part out: there is nothing to report")
    lines = [f"# {summary['model']} by {summary['strategy']} on {summary['data']}", ""]
    if "warning" in summary:
        lines += [f"**{summary['warning']}**", ""]
    lines += [*_fusion_lines(summary), *_result_lines(summary), "", *_facts(summary, folder), ""]
    lines += [*privacy_lines(summary), *_pictures(folder, summary, records)]
    lines += ["## Settings", "", "```toml", *_settings(folder), "```", ""]
    path = folder.path / REPORT
    write_atomically(path, "\n".join(lines).encode())
    return path


def _pictures(folder: RunFolder, summary: dict[str, Any], records: list[dict[str, Any]]) -> list[str]:
    if not records:
        return []
    try:
        plot_curves(records, summary, folder.path / CURVES)
    except ImportError:
        return ["No pictures: matplotlib is not installed (`pip install 'fedrec[report]'`).", ""]
    return ["## Rounds", "", f"![validation metrics, loss and traffic by round]({CURVES})", ""]


def result_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (metric, value, 95 % interval) of the test part: full ranking, then 99 sampled negatives.

    Args:
        summary: of a run that completed.
    """
    rows = []
    for title, part in (("", summary["test"]), (" (99 negatives)", summary["sampled"])):
        intervals = part.get("ci", {})
        extra = [name for name in part if name.split("@")[0] in ("coverage", "gini", "popularity")]
        others = [name for name in part if name.startswith(("hr@", "ndcg@")) and name not in _SHOWN]
        for name in [*(n for n in _SHOWN if n in part), *others, *extra]:
            low_high = intervals.get(name)
            interval = f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
            value = "-" if part[name] is None else f"{part[name]:.4f}"
            rows.append((name + title, value, interval))
    return rows


def _result_lines(summary: dict[str, Any]) -> list[str]:
    users = summary["test"].get("num_users", summary.get("privacy", {}).get("num_users", 0))
    chosen = "the last one" if "privacy" in summary else "best on validation"
    which = f"parameters of round {summary['best_round']} ({chosen})"
    if "fusion" in summary:
        which = "the fused parameters"
    noised = "metrics_noise_std" in summary.get("privacy", {})
    intervals = "intervals of the noise alone" if noised else "intervals by Poisson bootstrap over users"
    lines = [
        f"Test, {users} users, {which}. Full ranking over the catalogue unless said otherwise; {intervals}.",
        "",
        "| metric | value | 95 % interval |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {value} | {interval} |" for name, value, interval in result_rows(summary)]
    return [*lines, *(f"\nNote: {remark}." for remark in summary.get("remarks", []))]


def notices(summary: dict[str, Any]) -> list[str]:
    """Returns what else a reader of the figures should know, a line each: what cleaning removed, what was taken from a
    file, what adapters sent before the rounds, and whose sampled negatives are too few."""
    lines = [
        f"removed by data.{rule} = {removed['value']}: {removed['users']:,} users, {removed['items']:,} items, "
        f"{removed['interactions']:,} interactions ({removed['share_of_interactions']:.1%})"
        for rule, removed in summary.get("cleaning", {"rules": {}})["rules"].items()
    ]
    if start := summary.get("init_from") or summary.get("continued_from"):
        missing = start["missing"]
        named = ", ".join(missing[:_FEW]) + (", ..." if len(missing) > _FEW else "")
        as_seeded = f"; {len(missing)} start as the seed says: {named}" if missing else ""
        new = f"; {start['new_items']} items are not in it" if start["new_items"] else ""
        total = start["parameters"] + len(missing)
        lines.append(f"{start['parameters']} of {total} parameters start from {start['file']}{as_seeded}{new}")
    if (adapters := summary.get("adapters")) and adapters["nodes_sent_base"]:
        sent = f"{adapters['bytes_of_base'] / 1e6:.1f} MB to {adapters['nodes_sent_base']} nodes"
        lines.append(f"sent once, before the rounds: {sent}, what stays fixed beside adapters")
    if short := summary.get("test", {}).get("num_short_negatives", 0):
        users = summary["test"]["num_users"]
        lines.append(f"{short} of {users} users have fewer than 99 items to draw negatives from: all of them are taken")
    return [*lines, *privacy_notices(summary)]


def _fusion_lines(summary: dict[str, Any]) -> list[str]:
    """Returns what a fused run is made of, and nothing for another one."""
    if "fusion" not in summary:
        return []
    fusion = summary["fusion"]
    parents, metric = fusion["parents"], fusion["metric"]
    aligned = ", rotated onto those of the best run" if fusion["aligned"] else ""
    return [
        f"A fusion of {len(parents)} runs: nothing was trained, parameters are the weighted mean of theirs{aligned}. "
        f"Weighting: {fusion['weighting']}, the best on validation by {metric} "
        f"({summary['validation'][metric]:.4f}).",
        "",
        f"| run | weight | {metric}, validation | {metric}, test |",
        "|---|---|---|---|",
        *(
            f"| {parent['run']} | {parent['weight']:.4f} | {parent['validation']:.4f} | {_number(parent, metric)} |"
            for parent in parents
        ),
        "",
    ]


def _number(parent: dict[str, Any], metric: str) -> str:
    value = parent["test"].get(metric)
    return "-" if value is None else f"{value:.4f}"


def _length(summary: dict[str, Any], folder: RunFolder) -> str:
    """Returns how many rounds there were, and why no more."""
    if "fusion" in summary:
        return "no rounds: a fusion"
    rounds = f"{summary['rounds']} rounds"
    if "seconds_per_round" in summary:
        rounds += f", {summary['seconds_per_round']:.2f} s a round (median)"
    if not summary.get("stopped_early"):
        return rounds
    settings = folder.read_config() if (folder.path / CONFIG).is_file() else {}
    asked = f" of {settings['num-server-rounds']}" if "num-server-rounds" in settings else ""
    patience = settings.get("evaluate.early-stopping-rounds", "?")
    metric = settings.get("evaluate.metric", "the metric")
    return (
        f"{rounds}; stopped early, after round {summary['rounds']}{asked}: no better {metric} on validation since "
        f"round {summary['best_round']} (evaluate.early-stopping-rounds = {patience})"
    )


def _facts(summary: dict[str, Any], folder: RunFolder) -> list[str]:
    dropped = ", ".join(f"{count} {reason}" for reason, count in summary["dropped_updates"].items()) or "none"
    held = summary["test"].get("num_without_held_out")
    skipped = "" if held is None else f"; users with nothing held out: {held}"
    cold = f"; items that nobody trains on: {summary['cold_items']}" if "cold_items" in summary else ""
    aside = [f"- rows of data set aside: {summary['quarantined_rows']}"] if "quarantined_rows" in summary else []
    return [
        "## Run",
        "",
        f"- protocol {summary['protocol']}; unit of training: {summary['unit']}; seed {summary['seed']}",
        f"- {summary['num_nodes']} nodes; {_length(summary, folder)}",
        f"- payload over all rounds: {summary['bytes_down'] / 1e6:.1f} MB to the nodes, "
        f"{summary['bytes_up'] / 1e6:.1f} MB back",
        f"- updates dropped: {dropped}{skipped}{cold}",
        *aside,
        *(f"- {line}" for line in notices(summary)),
    ]


def _settings(folder: RunFolder) -> list[str]:
    path = folder.path / CONFIG
    if not path.is_file():
        return [f"# no {CONFIG} in this folder"]
    return path.read_text(encoding="utf-8").strip().splitlines()


def plot_curves(records: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Draws validation metrics, training loss and traffic by round.

    Args:
        records: lines of metrics.jsonl.
        summary: of the run.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    quality, loss, traffic = figure.subplots(1, 3)
    judged = [r for r in records if r["validation"]]
    for name, label in _curves(judged):
        if points := [(r["round"], r["validation"][name]) for r in judged if r["validation"].get(name) is not None]:
            quality.plot(*zip(*points, strict=True), label=label, **_line(points))
    if judged:
        best = summary["best_round"]
        quality.axvline(best, color="grey", linestyle=":", label=f"released: round {best}")
        quality.legend(fontsize=8)
    else:
        quality.text(0.5, 0.5, "no validation metrics were told", ha="center", transform=quality.transAxes)
    quality.set(title="Validation")
    losses = [(r["round"], r["train"]["loss"]) for r in records if r["train"].get("loss") is not None]
    spent = [(r["round"], r["train"]["epsilon"]) for r in records if r["train"].get("epsilon") is not None]
    if losses:
        loss.plot(*zip(*losses, strict=True), color="tab:red", **_line(losses))
        loss.set(title="Training loss, mean over interactions")
    elif spent:
        loss.plot(*zip(*spent, strict=True), color="tab:purple", **_line(spent))
        loss.set(title="Privacy spent: epsilon", ylim=(0, None))
        if target := summary.get("privacy", {}).get("target_epsilon"):
            loss.axhline(target, color="grey", linestyle=":")
    else:
        loss.text(0.5, 0.5, "no losses were told", ha="center", va="center", transform=loss.transAxes)
        loss.set(title="Training loss, mean over interactions")
    largest = max(max(r["bytes_down"], r["bytes_up"]) for r in records)
    unit, scale = ("MB", 1e6) if largest >= 1e6 else ("kB", 1e3)
    for key, label in (("bytes_down", "to the nodes"), ("bytes_up", "back")):
        points = [(r["round"], r[key] / scale) for r in records]
        traffic.plot(*zip(*points, strict=True), label=label, **_line(points))
    traffic.set(title=f"Payload, {unit} a round")
    traffic.legend(fontsize=8)
    for axes in (quality, loss, traffic):
        axes.set_xlabel("round")
        axes.set_xlim(records[0]["round"] - 0.5, records[-1]["round"] + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
    quality.set_ylim(bottom=0)
    traffic.set_ylim(0, 1.1 * largest / scale or 1)
    warning = " (LEAKY PROTOCOL)" if "warning" in summary else ""
    figure.suptitle(f"{summary['model']} by {summary['strategy']} on {summary['data']}{warning}")
    figure.savefig(path, dpi=120)


def _curves(judged: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns (metric, label) of what is drawn: at 10, or at the longest lists where 10 is not measured."""
    measured = judged[0]["validation"] if judged else {}
    ks = [int(name.removeprefix("ndcg@")) for name in measured if name.startswith("ndcg@")]
    k = 10 if 10 in ks else max(ks, default=10)
    sampled = ("sampled/ndcg@10", "NDCG@10, 99 negatives")
    return [(f"ndcg@{k}", f"NDCG@{k}, full"), (f"hr@{k}", f"HR@{k}, full"), sampled]


def _line(points: Sequence[object]) -> dict[str, Any]:
    """Returns how a curve is drawn: few points are marked, or a run of one round would show nothing."""
    return {"marker": "o", "markersize": 4} if len(points) <= _MARKED else {}
