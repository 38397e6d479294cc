from __future__ import annotations

import numpy as np
import pytest

from fedrec_app.threads import even_parts, in_threads


@pytest.mark.parametrize("num_parts", [1, 2, 3, 8])
def test_parts_cover_everything_once_and_share_the_work(num_parts: int) -> None:
    work = np.random.default_rng(0).integers(0, 100, size=500)
    parts = even_parts(work, num_parts)
    assert [start for start, _ in parts] == [0, *[stop for _, stop in parts[:-1]]]
    assert parts[-1][1] == 500
    assert len(parts) == num_parts
    assert max(work[a:b].sum() for a, b in parts) <= work.sum() / num_parts + 2 * 100


def test_no_part_is_empty_when_there_is_less_work_than_threads() -> None:
    assert even_parts(np.zeros(0, dtype=np.int64), 4) == []
    assert even_parts(np.array([5]), 4) == [(0, 1)]
    assert even_parts(np.array([0, 0, 0]), 2) == [(0, 1), (1, 3)]


def test_results_come_in_the_order_of_parts_and_errors_come_through() -> None:
    assert in_threads(lambda a, b: (a, b), [(0, 2), (2, 5)]) == [(0, 2), (2, 5)]
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda a, b: a // (b - 5), [(0, 2), (2, 5)])
