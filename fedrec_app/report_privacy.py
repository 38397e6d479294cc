"""What a report says of differential privacy."""

from __future__ import annotations

from typing import Any


def privacy_notices(summary: dict[str, Any]) -> list[str]:
    """Returns epsilon and whom it holds against, and what the figures carry or lack, a line each; none without
    privacy."""
    if "privacy" not in summary:
        return []
    p = summary["privacy"]
    lines = [
        f"{p['unit']}-level differential privacy: epsilon {_number(p['epsilon'])}, delta {p['delta']:.3g}, against: "
        f"{p['adversary']}; against the server itself: {p['server']}"
    ]
    if "metrics_noise_std" in p:
        lines.append(f"each test figure carries noise of standard deviation {p['metrics_noise_std']:.4f}")
    if "start" in p:
        lines.append(f"parameters start from {p['start']}")
    if p["metrics"] == "exact":
        lines.append('privacy.metrics="exact": metrics of held-out data are exact, and no epsilon covers them')
    return lines


def privacy_lines(summary: dict[str, Any]) -> list[str]:
    """Returns the section on privacy of a report, none without privacy."""
    if "privacy" not in summary:
        return []
    p = summary["privacy"]
    target = f" (target {p['target_epsilon']:g})" if "target_epsilon" in p else ""
    server, of_server = _number(p["epsilon"]), f"{p['delta']:.3g}"
    if p["server"].startswith("none"):
        server = of_server = "not protected"
    return [
        "## Privacy",
        "",
        f"What is protected: {p['protects']}, added or removed. Noise multiplier {p['noise_multiplier']:g}, sampling "
        f"rate {p['sampling_rate']:g}, clipping bound {p['clip_norm']:g}, {p['num_users']} users; the last round is "
        "released, not the best.",
        "",
        "| adversary | epsilon | delta |",
        "|---|---|---|",
        f"| {p['adversary']} | {_number(p['epsilon'])}{target} | {p['delta']:.3g} |",
        f"| the server itself | {server} | {of_server} |",
        "",
        "Whatever anybody concludes from what was released, he would have concluded with at most e^epsilon times the "
        "probability had this one never taken part, except with probability delta. Smaller is more private.",
        "",
        f"By Renyi differential privacy, a looser bound, epsilon is at most {_number(p['epsilon_rdp'])}. Against the "
        f"server: {p['server']}.",
        "",
        f"Withheld: {', '.join(p['withheld'])}.",
        "",
    ]


def _number(epsilon: float | None) -> str:
    """Returns epsilon with three digits after the point; JSON has no infinity."""
    return "without bound" if epsilon is None else f"{epsilon:.3f}"
