"""A catalog that grows: new items go to its end, so that every old one keeps its row."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fedrec_app.data.catalog import Catalog
from fedrec_app.data.sources.files import read_text
from fedrec_app.errors import DataError, did_you_mean
from fedrec_app.files import write_atomically

_SHOWN = 5


def extended(catalog: Catalog, items: Catalog) -> Catalog:
    """Returns a catalog with more items at its end; features that they do not have are missing.

    Args:
        catalog: what there is.
        items: the new ones.

    Raises:
        DataError: an item is there already, or has a feature that the catalog does not have.
    """
    known = set(catalog.item_ids)
    if again := [item for item in items.item_ids if item in known]:
        more = f" and {len(again) - _SHOWN} more" if len(again) > _SHOWN else ""
        raise DataError(f"already in the catalog: {', '.join(map(repr, again[:_SHOWN]))}{more}; leave them out")
    names = [str(name) for name in catalog.features.columns]
    for name in map(str, items.features.columns):
        if name not in names:
            told = ", ".join(names) or "none"
            raise DataError(f"new items have a feature {name!r}: the catalog has {told}{did_you_mean(name, names)}")
    features = catalog.features.astype("object")
    new = items.features.astype("object").reindex(columns=catalog.features.columns)
    return Catalog((*catalog.item_ids, *items.item_ids), pd.concat([features, new], ignore_index=True))


def extend_file(catalog: Path, items: Path, out: Path) -> tuple[int, int]:
    """Returns how many items a catalog has, and had, that is written to a file with those of another file at its end.

    Whoever may read the old file may read the new one.

    Args:
        catalog: JSON lines or Parquet.
        items: JSON lines, Parquet, or CSV with a column item_id.
        out: where to; it may be `catalog` itself.

    Raises:
        DataError: a file is missing or malformed, or the items do not fit; nothing is written.
    """
    before = Catalog.from_file(catalog)
    if items.suffix in (".csv", ".tsv") and items.is_file():
        table = read_text(items, "\t" if items.suffix == ".tsv" else ",", as_text=("item_id",)).rows
        new = Catalog.from_table(table, str(items))
    else:
        new = Catalog.from_file(items)
    after = extended(before, new)
    try:
        mode = catalog.stat().st_mode & 0o777
        write_atomically(out, after.content(out.suffix))
        out.chmod(mode)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error}") from None
    return len(after), len(before)
