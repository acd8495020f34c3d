"""The table of faults, in its short form."""

import pytest

from tests.bundles import make_bundle

pytest.importorskip("cv2")
soak = pytest.importorskip("tools.soak")

SHORT = ["lost", "corrupt", "nan", "raises", "wall_jump", "disk_full", "killed_viewer"]
LONG = [
    *("silent", "frozen", "black", "torn", "ahead", "saturated", "constant", "slow", "hangs"),
    *("many_viewers", "memory"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return soak.cases(make_bundle(tmp_path_factory.mktemp("soak") / "small"), 3000)


def test_every_fault_is_in_one_of_the_lists(rows):
    assert sorted(rows) == sorted([*SHORT, *LONG])


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(n, marks=pytest.mark.slow) for n in LONG)])
def test_a_fault_is_noticed_and_what_works_goes_on(rows, name):
    row = rows[name]()
    assert row.as_expected, row


def test_the_table_says_what_was_not_as_expected():
    row = soak.Row("nan", 1.5, "not_finite", "ok", None, False, False, "good while broken")
    last = soak.table([row]).splitlines()[-1]
    assert last == "| nan | 1.5 | not_finite | ok | - | no | NO | good while broken |"
