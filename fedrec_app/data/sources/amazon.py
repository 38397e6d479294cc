"""Amazon Instant Video reviews of users who wrote at least five (McAuley et al., SIGIR 2015).

ratings.dat has lines of user,item,rating,timestamp.
"""

from __future__ import annotations

from typing import ClassVar

from fedrec_app.data.schema import Dataset
from fedrec_app.data.sources.base import DataSource, SourceOptions
from fedrec_app.data.sources.files import find, read_text

RATINGS = "ratings.dat"


class AmazonVideo(DataSource[SourceOptions]):
    """Reviews of Amazon Instant Video; the catalog is the sorted list of the items that were reviewed."""

    name: ClassVar[str] = "amazon-video"
    summary: ClassVar[str] = "Amazon Instant Video reviews: 8,072 users of at least 5, 11,830 items, 63,836 ratings"

    def load(self, path: str, columns: str, options: SourceOptions, seed: int) -> Dataset:
        """Returns the reviews; `path` is ratings.dat or its folder. See `DataSource.load`."""
        names = ["user_id", "item_id", "rating", "timestamp"]
        raw = read_text(find(path, self.name, RATINGS), ",", names, as_text=names[:2])
        return Dataset.assemble(raw.rows, raw.lines, malformed=raw.malformed)
