"""A few seeded mutants of checkpoints, plans and rows; python -m tests.fuzz tries thousands, and whole runs."""

import pytest

from tests.fuzz import readers, tally

QUICK = ("checkpoint, bytes", "checkpoint, meaning", "challenge's checkpoint", "plan.json", "pruning rows")
SLOW = (
    "segmentation checkpoint",
    "run of train_amc.py",
    "run of train_seg.py",
    "run of distill_seg.py",
    "run of FMP",
    "compression rows",
)


@pytest.mark.parametrize("name", QUICK)
def test_no_damage_to_it_gets_past_the_door(name):
    found = tally(readers()[name], 0, list(range(12)))
    assert not found.findings and found.outcomes.total() == 12 and found.outcomes["refused"] >= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_no_damage_gets_past_the_door_where_that_takes_seconds(name):
    found = tally(readers()[name], 0, list(range(8)))
    assert not found.findings and found.outcomes.total() == 8


def test_every_reader_of_runs_is_tried_here():
    from tests.fuzz_runs import READERS

    assert sorted((*QUICK, *SLOW)) == sorted(reader.name for reader in READERS)
