"""Which frames are evaluated, and how shards share them."""

import numpy as np
import pytest

from edgeseg.errors import UsageError
from edgeseg.evaluation.protocols import check_protocol, keeps, parse_shard, select

WITH = np.uint8([[0, 1], [255, 0]])
WITHOUT = np.uint8([[0, 0], [255, 0]])


def test_paper_leaves_out_anomaly_frames_without_an_anomaly() -> None:
    assert keeps("paper", "anomaly", WITH)
    assert not keeps("paper", "anomaly", WITHOUT)
    assert keeps("all", "anomaly", WITHOUT)
    assert keeps("paper", "semantic", WITHOUT)


def test_shards_are_disjoint_and_together_the_whole() -> None:
    samples = list(range(23))
    whole = select(samples, every=2)
    parts = [select(samples, every=2, shard=(i, 5)) for i in range(1, 6)]
    assert whole == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]
    assert sorted(number for part in parts for number in part) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "", "²/3"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text)


@pytest.mark.parametrize("text", ["1/10001", "1/1000000000", "1/" + "9" * 5000])
def test_a_part_of_too_many_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text)


def test_names_are_checked() -> None:
    assert parse_shard("2/3") == (2, 3)
    assert parse_shard("10000/10000") == (10000, 10000)
    assert check_protocol("all") == "all"
    with pytest.raises(UsageError, match="paper, all"):
        check_protocol("fishyscapes")
    with pytest.raises(UsageError, match="--every"):
        select([1], every=0)
