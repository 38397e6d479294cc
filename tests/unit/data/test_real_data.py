from collections import Counter
from pathlib import Path

import numpy as np

from fedrec_app.data import sources
from fedrec_app.data.partition import Prepared


def test_movielens_counts_and_known_rows(real_data: Path) -> None:
    data = sources.load("ml-100k", str(real_data / "ml-100k"))
    assert (data.num_users, data.num_items, len(data.interactions)) == (943, 1682, 100_000)
    assert data.report.lines() == ["100,000 of 100,000 rows kept"]
    assert data.users.index.tolist() == [str(n) for n in range(1, 944)]
    assert data.catalog.item_ids == tuple(str(n) for n in range(1, 1683))
    assert data.users.loc["1"].to_dict() == {"age": 24, "gender": "M", "occupation": "technician"}
    toy = data.catalog.features.iloc[0]
    assert (toy["title"], toy["category"], toy["year"]) == (
        "Toy Story (1995)",
        "Animation|Children's|Comedy",
        1995,
    )
    assert "Misérables, Les (1995)" in set(data.catalog.features["title"])
    first = data.interactions.table.iloc[0]
    assert first.to_dict() == {"user_id": "196", "item_id": "242", "rating": 3.0, "timestamp": 881250949.0}
    assert np.bincount(data.user_codes).min() == 20


def test_movielens_server_reads_the_catalog_alone(real_data: Path) -> None:
    path = str(real_data / "ml-100k")
    assert sources.load_catalog("ml-100k", path).hash == sources.load("ml-100k", path).catalog.hash


def test_amazon_counts(real_data: Path) -> None:
    data = sources.load("amazon-video", str(real_data / "amazon-video"), min_interactions=5)
    assert (data.num_users, data.num_items, len(data.interactions)) == (8072, 11830, 63836)
    assert list(data.catalog.item_ids) == sorted(data.catalog.item_ids)
    assert data.users.index[0] == "AGZ8SM1BGK3CK"


def test_the_5_core_of_amazon_is_the_published_one(real_data: Path) -> None:
    # 5,130 users, 1,685 items and 37,126 reviews: "Amazon Instant Video, 5-core" (McAuley et al., SIGIR 2015)
    data = sources.load("amazon-video", str(real_data / "amazon-video"), k_core=5)
    assert (data.num_users, data.num_items, len(data.interactions)) == (5130, 1685, 37126)


def test_lastfm_counts_friends_and_titles(real_data: Path) -> None:
    data = sources.load("lastfm-2k", str(real_data / "lastfm-2k"), min_interactions=5)
    assert (data.num_users, data.num_items, len(data.interactions)) == (1877, 17632, 92801)
    assert len(np.unique(data.item_codes)) == 17617
    assert not data.interactions.has_timestamps
    assert data.friends is not None
    assert len(data.friends) == 25218
    pairs = set(data.friends.itertuples(index=False, name=None))
    assert all((friend, user) in pairs for user, friend in pairs)
    assert data.interactions.table.iloc[0].to_dict() == {"user_id": "2", "item_id": "51", "rating": 13883.0}
    assert data.catalog.features["title"].iloc[0] == "MALICE MIZER"


def test_a_file_works_as_well_as_its_folder(real_data: Path) -> None:
    folder = real_data / "amazon-video"
    by_file = sources.load("amazon-video", str(folder / "ratings.dat"))
    assert by_file.catalog.hash == sources.load("amazon-video", str(folder)).catalog.hash


def test_impressions_of_kuaisar(real_data: Path) -> None:
    mapping = "item_id=video_id,label=is_click"
    data = sources.load("csv", str(real_data / "kuaisar-r" / "df.csv"), mapping)
    assert data.report.rows_kept == 117_590
    assert data.interactions.has_labels
    clicks = data.interactions.table.query("label == 1").drop_duplicates(["user_id", "item_id"])
    parts = Prepared.of(data, "leave-one-out", 0).split
    assert sum(len(part.items) for part in (parts.train, parts.validation, parts.test)) == len(clicks)


def test_movielens_leave_one_out_is_the_plain_one(real_data: Path) -> None:
    rows = [line.split("\t") for line in (real_data / "ml-100k" / "u.data").read_text().splitlines()]
    by_user: dict[str, list[tuple[int, int, str]]] = {}
    for place, (user, item, _, time) in enumerate(rows):
        by_user.setdefault(user, []).append((int(time), place, item))
    data = sources.load("ml-100k", str(real_data / "ml-100k"))
    cohort = Prepared.of(data, "leave-one-out", seed=0).cohort()
    assert Counter(cohort.test.lengths.tolist()) == {1: 943}
    for place, user in enumerate(cohort.user_ids):
        expected = [item for _, _, item in sorted(by_user[user])]
        parts = [cohort.train[place], cohort.validation[place], cohort.test[place]]
        assert [data.catalog.item_ids[i] for part in parts for i in part] == expected
