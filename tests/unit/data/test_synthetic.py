import hashlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrec_app.data import sources
from fedrec_app.data.partition import Prepared
from fedrec_app.data.schema import Dataset


def load(seed: int = 0, **options: object) -> Dataset:
    return sources.load("synthetic", options=json.dumps(options), seed=seed)


def fingerprint(data: Dataset) -> str:
    table = data.interactions.table
    digest = hashlib.sha256(data.catalog.hash.encode())
    for column in (data.user_codes, data.item_codes, table["timestamp"].to_numpy()):
        digest.update(np.ascontiguousarray(column).tobytes())
    digest.update(data.users.to_csv().encode())
    if data.friends is not None:
        digest.update(data.friends.to_csv().encode())
    return digest.hexdigest()


def test_default_is_like_movielens() -> None:
    started = time.perf_counter()
    data = load()
    assert time.perf_counter() - started < 10
    assert (data.num_users, data.num_items) == (943, 1682)
    assert 95_000 < len(data.interactions) < 105_000
    assert np.bincount(data.user_codes).min() >= 20
    pairs = data.user_codes * data.num_items + data.item_codes
    assert len(np.unique(pairs)) == len(pairs)
    popularity = np.sort(np.bincount(data.item_codes, minlength=data.num_items))[::-1]
    assert 0.3 < popularity[: data.num_items // 10].sum() / len(pairs) < 0.5
    assert not data.interactions.has_labels


def test_same_seed_same_data_in_another_process() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(__file__).rsplit('/', 1)[0]!r})\n"
        "from test_synthetic import fingerprint, load; print(fingerprint(load(num_users=50, num_items=90)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == fingerprint(load(num_users=50, num_items=90))


def test_another_seed_gives_other_data_unless_the_data_have_their_own() -> None:
    small = {"num_users": 50, "num_items": 90}
    assert fingerprint(load(1, **small)) != fingerprint(load(2, **small))
    assert fingerprint(load(1, data_seed=3, **small)) == fingerprint(load(3, **small))


def test_server_gets_the_catalog_of_the_data() -> None:
    assert sources.load_catalog("synthetic", seed=5).hash == load(5).catalog.hash


def test_timestamps_follow_the_users_order() -> None:
    data = load()
    time_of = data.interactions.table["timestamp"].to_numpy()
    same_user = np.diff(data.user_codes) == 0
    assert (np.diff(time_of)[same_user] >= 0).mean() > 0.999
    assert (time_of == np.floor(time_of)).all()
    assert np.ptp(time_of) < 5 * 365 * 86_400


def _sampled_hit_rate(scores: NDArray[np.float64], seen: NDArray[np.bool_], test: NDArray[np.int64]) -> float:
    generator = np.random.default_rng(0)
    hits = []
    for user, item in enumerate(test):
        others = np.flatnonzero(~seen[user] & (np.arange(seen.shape[1]) != item))
        rivals = generator.choice(others, 99, replace=False)
        hits.append((scores[user, rivals] >= scores[user, item]).sum() < 10)
    return float(np.mean(hits))


def test_popularity_is_a_fair_baseline_and_factors_beat_it() -> None:
    data = load()
    cohort = Prepared.of(data, "leave-one-out", seed=0).cohort()
    train = cohort.train.matrix(data.num_items)
    seen = cohort.known("test").matrix(data.num_items)
    test = cohort.test.items
    popularity = train.sum(axis=0).astype(np.float64)
    by_popularity = _sampled_hit_rate(np.tile(popularity, (len(cohort), 1)), seen, test)
    scale = np.sqrt(np.maximum(popularity, 1))
    _, _, basis = np.linalg.svd(train / scale, full_matrices=False)
    by_factors = _sampled_hit_rate((seen / scale) @ basis[:24].T @ basis[:24] * scale, seen, test)
    assert 0.35 < by_popularity < 0.46
    assert by_factors > by_popularity + 0.12


def test_taste_drifts() -> None:
    topics = np.array(load().catalog.features["category"].to_list())

    def change(drift: float) -> float:
        data = load(drift=drift)
        histories = Prepared.of(data, "leave-one-out", seed=0).cohort().train
        distances = []
        for user in range(len(histories)):
            early, late = np.array_split(topics[histories[user]], 2)
            distances += [abs((early == t).mean() - (late == t).mean()) for t in np.unique(topics)]
        return float(np.sum(distances) / len(histories))

    assert change(1.0) > change(0.0) + 0.2


def test_friends_are_alike_and_mutual() -> None:
    data = load()
    assert data.friends is not None
    edges = set(map(tuple, data.friends.to_numpy().tolist()))
    assert all((b, a) in edges for a, b in edges)
    topics, _ = np.unique(data.catalog.features["category"], return_inverse=True)
    category = np.searchsorted(topics, data.catalog.features["category"].to_numpy(dtype=str))
    taste = np.zeros((data.num_users, len(topics)))
    np.add.at(taste, (data.user_codes, category[data.item_codes]), 1)
    taste /= np.linalg.norm(taste, axis=1, keepdims=True)
    left, right = (data.users.index.get_indexer(data.friends[name]) for name in ("user_id", "friend_id"))
    strangers = np.random.default_rng(0).permutation(right)
    assert (taste[left] * taste[right]).sum(1).mean() > (taste[left] * taste[strangers]).sum(1).mean() + 0.1
    assert load(friends_per_user=0).friends is None


def test_impressions_have_labels_and_context() -> None:
    plain, data = (
        load(num_users=60, num_items=200, mean_interactions=30),
        load(num_users=60, num_items=200, mean_interactions=30, labels=True),
    )
    table = data.interactions.table
    clicked = table[table["label"] == 1]
    # what is clicked is what would have been chosen
    assert clicked["item_id"].tolist() == plain.interactions.table["item_id"].tolist()
    missed = set(zip(table.loc[table["label"] == 0, "user_id"], table.loc[table["label"] == 0, "item_id"], strict=True))
    assert not missed & set(zip(clicked["user_id"], clicked["item_id"], strict=True))
    assert len(table) > 2 * len(clicked)
    assert table["context_hour"].between(0, 23).all()
    assert set(table["context_device"]) <= {"phone", "tablet", "desktop", "tv"}


@pytest.mark.parametrize(("users", "items"), [(1, 1), (1, 50), (5, 1), (3, 20), (40, 21)])
def test_small_sizes_work(users: int, items: int) -> None:
    data = load(num_users=users, num_items=items)
    lengths = np.bincount(data.user_codes, minlength=users)
    assert lengths.min() >= min(20, items)
    assert lengths.max() <= items
    assert data.num_items == items


def test_blocks_of_users_hold_their_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    load(num_users=20_000, num_items=50_000, mean_interactions=25)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the dense matrix would take 1,000 MB even in bits of a byte
    assert peak < 300e6
