"""A page of results: each experiment owns the section between its two markers."""

from __future__ import annotations

from pathlib import Path

HEADING = "# Results\n\nMade by `scripts/reproduce.py`: each section names the command that writes it anew.\n"


def with_section(page: str, name: str, body: str) -> str:
    """Returns the page with one section replaced, or added at its end, and all else as it was.

    Args:
        page: text with sections between `<!-- name -->` and `<!-- /name -->`; "" for a new one.
        name: of the section.
        body: what goes between the markers.

    Raises:
        ValueError: a marker of the section is missing or there twice.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{start}\n{body.strip()}\n{end}"
    counts = page.count(start), page.count(end)
    if counts == (0, 0):
        return f"{(page or HEADING).rstrip()}\n\n{section}\n"
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if counts != (1, 1) or not found:
        raise ValueError(f"section {name!r}: one {start} and one {end} after it are expected, found {counts}")
    return before + section + after


def write_section(path: Path, name: str, body: str) -> None:
    """Replaces a section of the page at `path`, which is made where there is none; see `with_section`."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(with_section(page, name, body), encoding="utf-8")


def short(value: float) -> str:
    """Returns a metric with three decimals and no leading zero."""
    return f"{value:.3f}".removeprefix("0")
