"""Damaged inputs are refused in a sentence, by every reader of data/; and the fuzz tool finds what it should.

Run: python -m pytest tests/test_fuzz.py. The long form: python -m tests.fuzz --mutants 3000 --seed 0
"""

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from data import DataError
from tests import fuzz, fuzz_data
from tests.fuzz import Reader, damaged_value, make_mutant, tally

MUTANTS = 14  # of each reader; with those of tests/test_fuzz_of_runs.py 200


@pytest.mark.parametrize("reader", fuzz_data.READERS, ids=lambda reader: reader.name)
def test_no_damage_to_it_is_more_than_a_sentence_or_harm_that_nothing_can_tell(reader):
    found = tally(reader, 0, list(range(MUTANTS)), show=lambda line: None)
    assert not found.findings and found.outcomes.total() == MUTANTS


# ---- the tool -------------------------------------------------------------------------------------------------------


def reader(read, wrong=lambda value, valid: None, **options) -> Reader:
    """A reader of a file of a hundred zeros, whose read is called with the file's bytes."""
    return Reader(
        "test",
        lambda folder: (folder / "zeros").write_bytes(bytes(100)),
        lambda folder: read((folder / "zeros").read_bytes()),
        (DataError,),
        "all bytes are zero",
        wrong,
        **options,
    )


def only_when_damaged(action):
    return lambda data: action() if any(data) or len(data) != 100 else None


def refuse():
    raise DataError("it is damaged; mend it")


def fail():
    raise DataError("")


def work_for(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


FAULTS = {
    "another error": (lambda: {}["key"], "KeyError: 'key' (test_fuzz.py:"),
    "no sentence": (fail, "DataError without a sentence"),
    "a crash": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "its process ended with status 11"),
    "an exit": (lambda: os._exit(0), "its process ended with status 0"),
    "a hang": (lambda: time.sleep(60), "hangs for more than 1 s"),
    "a long wait": (lambda: work_for(0.2), "more than 0.1 s"),
    "memory": (lambda: np.ones(1 << 29), "MemoryError: Unable to allocate 4.00 GiB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_finding_is_told_and_does_not_end_the_others(monkeypatch, fault):
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    monkeypatch.setattr(fuzz, "patience", lambda: 1.0 if fault == "a hang" else 30.0)
    action, told = FAULTS[fault]
    lines = []
    found = tally(reader(only_when_damaged(action)), 3, [0, 1], lines.append)
    assert found.outcomes["finding"] == 2 and told in found.findings[0][1] and told in found.findings[1][1]
    assert f"test --seed 3 --only {found.findings[0][0]}: " in lines[0]


def test_acceptance_against_the_oracle_is_a_finding_and_refusal_is_none():
    accepting = tally(
        reader(lambda data: data, lambda value, valid: "unequal" if value != valid else None), 0, [0, 1, 2]
    )
    refusing = tally(reader(only_when_damaged(refuse)), 0, [0, 1, 2])
    assert accepting.outcomes["finding"] >= 2 and "accepted, but unequal" in accepting.findings[0][1]
    assert refusing.outcomes["refused"] == accepting.outcomes["finding"] and not refusing.findings


def test_valid_input_that_fails_the_oracle_is_a_fault_of_the_reader_under_test():
    with pytest.raises(AssertionError, match="the valid input is wrong"):
        tally(reader(lambda data: data, lambda value, valid: "wrong"), 0, [0])


def test_a_mutant_depends_on_seed_reader_and_number_alone(tmp_path):
    zeros = reader(lambda data: data)
    (tmp_path / "valid").mkdir()
    zeros.make(tmp_path / "valid")
    made = {}
    for name, seed, number in (("a", 0, 1), ("b", 0, 1), ("c", 1, 1), ("d", 0, 2)):
        make_mutant(zeros, tmp_path / "valid", tmp_path / name, seed, number)
        made[name] = (tmp_path / name / "zeros").read_bytes()
    assert made["a"] == made["b"] and len(set(made.values())) == 3
    assert (tmp_path / "valid" / "zeros").read_bytes() == bytes(100)


def test_damage_of_plain_values_changes_one_place_and_spares_the_original():
    value = {"a": [1, 2, {"b": "c"}], "d": 0.5}
    kept = {"a": [1, 2, {"b": "c"}], "d": 0.5}
    results = [damaged_value(value, random.Random(number)) for number in range(200)]
    assert value == kept and sum(repr(result) != repr(kept) for result in results) > 190
    assert any(isinstance(result, dict) and result.get("d") == 0.5 for result in results)


def test_the_command_repeats_a_mutant_and_names_unknown_readers(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(fuzz, "readers", lambda: {"test": reader(only_when_damaged(refuse))})
    monkeypatch.setattr(fuzz.tempfile, "tempdir", str(tmp_path))
    assert fuzz.main(["--reader", "test", "--only", "0"]) == 0
    assert "refused: it is damaged; mend it" in capsys.readouterr().out
    assert fuzz.main(["--mutants", "5"]) == 0
    assert "| test | 5 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        fuzz.main(["--reader", "none"])
    assert "no reader 'none'" in capsys.readouterr().err
    assert len(list(Path(tmp_path).iterdir())) == 1  # only the repeated mutant is kept
