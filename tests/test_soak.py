"""The table of faults in its short form: every fault, a small network, a generous deadline."""

import sys

import pytest

from edgeseg.runtime.deadline import Deadline
from tests.bundles import make_bundle
from tests.conftest import ROOT

pytest.importorskip("cv2")
sys.path.insert(0, str(ROOT / "tools"))

import soak_faults
from soak_table import Row, table

NAMES = [
    *("lost", "silent", "corrupt", "frozen", "black", "torn", "ahead", "wall_jump"),
    *("nan", "saturated", "constant", "raises", "slow", "hangs"),
    *("disk_full", "killed_viewer", "many_viewers", "memory"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    bundle = make_bundle(tmp_path_factory.mktemp("soak") / "small")
    # Loaded machines pause a process for a tenth of a second; that is no fault of the run.
    deadline = Deadline(400, "safe", max_misses=2, recover_after=3)
    return soak_faults.cases(bundle, 1500, deadline)


def test_every_fault_is_in_the_list(rows):
    assert sorted(rows) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_is_noticed_and_what_works_goes_on(rows, name):
    row = rows[name]()
    assert row.as_expected, row


def test_the_table_says_what_was_not_as_expected():
    row = Row("nan", 1.5, "not_finite", "ok", None, False, False, "good while broken")
    last = table([row]).splitlines()[-1]
    assert last == "| nan | 1.5 | not_finite | ok | - | no | NO | good while broken |"
