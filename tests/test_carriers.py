"""Rows over time, their confidence, the printed table; where no LTE can be.   pytest tests/test_carriers.py

How a frame's bands become rows is in tests/test_evidence.py and tests/test_segment.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from data.spectrogram import SIZE
from data.spectrum_sensing import CLASSES
from experiments import confidence
from utils.carriers import (
    LEAST,
    Calibration,
    Carrier,
    Tracker,
    comma_separated,
    join,
    merge,
    share_of_recording,
    table,
    without_silence,
)


def carrier(technology, lower, upper, start, count=10, **values):
    given = {"absolute": True, "active": 0.5, "confidence": 0.9, "weight": count, "runs": [[start, count]]} | values
    return Carrier(technology, lower * 1e6, upper * 1e6, **given)


def power_of(columns, db):
    """Exponentially distributed power (256, C): `db` above the noise where `columns` has a letter, half of the time."""
    power = np.random.default_rng(0).exponential(1, (SIZE, len(columns)))
    busy = np.array([letter != "." for letter in columns])
    power[::2, busy] *= 10 ** (db / 10)
    return power


@pytest.mark.parametrize(
    ("network", "signal", "db", "expected"),
    [
        ("L" * 50, "L" * 30 + "." * 12 + "L" * 8, 15, "L" * 31 + "." * 11 + "L" * 8),  # .05 * 30 columns of guard band
        ("L" * 50, "L" * 40 + "." * 10, 15, "L" * 42 + "." * 8),
        ("L" * 50, "L" * 24 + "." * 4 + "L" * 22, 15, "L" * 50),  # as narrow as a fade, or as guard bands
        ("L" * 50, "L" * 30 + "." * 12 + "L" * 8, 4, "L" * 50),  # weak: silence proves nothing
        ("N" * 50, "N" * 20 + "." * 30, 15, "N" * 50),  # NR may leave most of its channel empty
        ("." * 10 + "L" * 20 + "." * 10, "." * 10 + "L" * 20 + "." * 10, 15, "." * 10 + "L" * 20 + "." * 10),
    ],
)
def test_lte_is_not_reported_where_it_would_have_to_send_and_does_not(network, signal, db, expected):
    label = np.array([".NL".index(letter) for letter in network])
    result = without_silence(label, power_of(signal, db), 1.0)
    assert "".join(".NL"[kind] for kind in result) == expected


# ---- rows over time -------------------------------------------------------------------------------------------------


def test_a_carrier_seen_in_many_frames_is_one_row_weighted_by_time():
    rows = []
    merge(rows, [carrier("LTE", 10, 20, 0), carrier("NR", 30, 50, 0)])
    merge(rows, [carrier("LTE", 10.3, 20.3, 10, 20, active=0.8), carrier("LTE", 10, 30, 10, 20)])
    merge(rows, [carrier("NR", 30, 50, 30), carrier("NR", 9.9, 20, 30), carrier("LTE", 10, 20, 40)])
    assert [(row.technology, row.weight, row.runs) for row in rows] == [
        ("LTE", 40, [[0, 30], [40, 10]]),
        ("NR", 20, [[0, 10], [30, 10]]),
        ("LTE", 20, [[10, 20]]),
        ("NR", 10, [[30, 10]]),
    ]
    assert rows[0].lower_hz == pytest.approx((10 * 10 + 20 * 10.3 + 10 * 10) / 40 * 1e6)
    assert rows[0].active == pytest.approx((10 * 0.5 + 20 * 0.8 + 10 * 0.5) / 40)
    two = [carrier("LTE", 10, 20, 0), carrier("LTE", 10.2, 20.2, 0)]
    rows = []
    merge(rows, [replace(one) for one in two])
    assert len(rows) == len(join(rows)) == 2  # of one frame: never merged with each other
    assert "no LTE or NR" in table([]) and "-" in table([carrier("LTE", 1, 2, 0, active=None)])


def test_a_carrier_whose_edges_jitter_stays_one_row_over_thousands_of_frames():
    rng, rows = np.random.default_rng(0), []
    for i in range(1000):
        low, high = rng.normal((10, 20), 0.3)
        merge(rows, [carrier("NR", low, high, 10 * i)] if rng.random() < 0.8 else [])
    (row,) = join(rows)
    assert row.lower_hz == pytest.approx(10e6, abs=0.05e6) and row.upper_hz == pytest.approx(20e6, abs=0.05e6)
    assert sum(count for _, count in row.runs) == row.weight
    assert all(a + n < b for (a, n), (b, _) in zip(row.runs, row.runs[1:], strict=False))  # apart, in order


def test_an_edge_that_a_capture_has_cut_gives_way_to_one_that_was_seen():
    rows = []
    merge(rows, [carrier("LTE", 10, 16, 0, cut_above=True)])
    merge(rows, [carrier("LTE", 10.2, 20, 10)])
    assert (rows[0].lower_hz, rows[0].upper_hz, rows[0].cut_above) == (pytest.approx(10.1e6), 20e6, False)


def test_active_is_a_share_of_all_time_that_could_show_the_carrier():
    rows = [carrier("NR", 10, 20, 30, active=1.0), carrier("LTE", 110, 120, 0, 50, active=0.5)]
    rows.append(carrier("NR", -5, 5, 0, absolute=False, active=None))
    share_of_recording(rows, {(15e6, 40e6): 100, (115e6, 30e6): 50, (None, 40e6): 10})
    assert [row.active for row in rows] == [0.1, 0.5, None]


def test_a_row_from_before_the_proof_joins_the_proven_one():
    cell = {"LTE 5": {"cell_id": 5, "words": "cell 5 FDD"}}
    rows = [carrier("NR", 10, 20, 0), carrier("LTE", 10, 20, 10, ground="cell", evidence="cell 5 FDD", cells=cell)]
    (row,) = join(rows)
    assert (row.technology, row.runs, row.seen, row.evidence) == ("LTE", [[0, 20]], 2, "cell 5 FDD")
    unproven = [carrier("NR", 10, 20, 0), carrier("LTE", 10, 20, 10)]
    assert len(join(unproven)) == 2


def test_rows_of_one_cell_with_other_edges_are_one_carrier():
    def proven(lower, upper, start, center, count=10, **cut):
        cell = {"LTE 5": {"cell_id": 5, "center_hz": center * 1e6, "words": "cell 5 FDD"}}
        return carrier("LTE", lower, upper, start, count, ground="cell", evidence="cell 5 FDD", cells=cell, **cut)

    half = proven(10, 11, 30, 11.0, cut_below=True)
    (row,) = join([half, proven(10, 12, 0, 11.01, count=30, cut_below=True, cut_above=True)])
    assert (row.lower_hz, row.upper_hz, row.cut_below, row.cut_above) == (10e6, 12e6, True, True)
    assert (row.runs, row.seen, row.evidence) == ([[0, 40]], 2, "cell 5 FDD")
    assert len(join([proven(10, 12, 0, 11.0), proven(20, 22, 10, 21.0)])) == 2  # another carrier of the same identity
    assert len(join([proven(10, 12, 0, 11.0), proven(9, 11, 5, 11.0)])) == 2  # both at the same time


def test_carriers_come_once_and_go_after_a_second_without_them():
    tracker, rows, rate = Tracker(Calibration(), with_samples=True), [], 250.0  # 10 samples a frame of 40 ms
    cell = {"ground": "cell", "evidence": "cell 5", "cells": {"LTE 5": {"cell_id": 5, "words": "cell 5"}}}

    def step(frame, *found):
        merge(rows, list(found))
        return [(event, row.technology, row.ground) for event, row in tracker.step(rows, 10 * frame + 10, rate)]

    told = {}
    for frame in range(100):
        found = [carrier("other", 50, 60, 10 * frame)]
        if frame < 10:
            found.append(carrier("NR", 10, 20, 10 * frame))  # unproven, until the cell is found
        elif frame < 40:
            edges = (10, 20) if frame % 2 else (13, 17)  # seen in two ways, which do not share half of each other
            found.append(carrier("LTE", *edges, 10 * frame, **cell))
        if frame == 20:
            found.append(carrier("NR", 80, 90, 10 * frame))  # once: chance
        if events := step(frame, *found):
            told[frame] = events
    assert told == {
        2: [("confirmed", "NR", "unproven")],
        10: [("confirmed", "LTE", "cell")],
        34: [("lost", "NR", "unproven")],
        64: [("lost", "LTE", "cell")],
    }
    assert tracker.events == 4 and [row.technology for row in rows].count("NR") == 2
    assert step(10_000) == [] and "NR" not in [row.technology for row in rows]  # forgotten after a minute


def test_a_carrier_is_not_lost_while_too_few_frames_were_looked_at():
    tracker, rows = Tracker(Calibration(), with_samples=True), []
    merge(rows, [carrier("LTE", 10, 20, 0, ground="cell")])
    events = [tracker.step(rows, end, 250.0) for end in range(10, 5000, 1000)]  # a frame each four seconds
    assert [len(found) for found in events] == [1, 0, 0, 0, 0]
    assert [event for event, _ in tracker.step(rows, 6000, 250.0)] == ["lost"]


def test_comma_separated_rows_have_a_head_and_plain_values():
    row = carrier("LTE", 10, 20, 0, evidence='cell 5, "FDD"').plain(1e3)
    head, line = comma_separated([row]).splitlines()
    assert head.startswith("technology,lower_hz,upper_hz") and '"cell 5, ""FDD"""' in line
    assert comma_separated([{"event": "lost", "time_s": 1.5} | row], head=False).startswith("lost,1.5,LTE")
    assert len(comma_separated([]).splitlines()) == 1


# ---- confidence -----------------------------------------------------------------------------------------------------


def test_confidence_follows_the_calibration_and_unlikely_rows_are_other():
    calibration = Calibration({"cell": (3.0, 0.0), "unproven": (-1.0, 1.0), "picture": (0.0, 0.5)})
    rows = [carrier("LTE", 1, 6, 0, ground="cell", confidence=0.1), carrier("NR", 7, 12, 0, confidence=0.6)]
    rows += [carrier("NR", 13, 18, 0, confidence=0.95)]
    calibration.apply(rows, with_samples=True)
    assert [row.technology for row in rows] == ["LTE", "other", "NR"]
    expected = [1 / (1 + math.exp(-3)), 1 - 1 / (1 + math.exp(1) * 0.4 / 0.6), 1 / (1 + math.exp(1) * 0.05 / 0.95)]
    assert [row.confidence for row in rows] == pytest.approx(expected) and rows[2].confidence > LEAST
    picture = [carrier("NR", 7, 12, 0, confidence=0.2)]
    calibration.apply(picture, with_samples=False)
    assert picture[0].technology == "NR" and picture[0].confidence == pytest.approx(1 / 3)


def test_a_damaged_calibration_is_told_and_a_missing_one_changes_nothing(tmp_path):
    rows = [carrier("NR", 7, 12, 0, confidence=0.7)]
    Calibration.beside(tmp_path / "seg.pt").apply(rows, with_samples=True)
    assert rows[0].confidence == 0.7
    (tmp_path / "seg.calibration.json").write_text('{"curves": {"cell": [1]}}')
    with pytest.raises(ValueError, match="seg.calibration.json: damaged"):
        Calibration.beside(tmp_path / "seg.pt")


def test_fitted_curves_are_calibrated():
    rng = np.random.default_rng(3)
    told = rng.random(4000)
    true = 1 / (1 + np.exp(-(0.5 + 2 * np.log(told / (1 - told)))))
    offset, slope = confidence.fit(list(zip(told, rng.random(4000) < true, strict=True)))
    assert offset == pytest.approx(0.5, abs=0.15) and slope == pytest.approx(2, abs=0.2)
    for points in ([(0.99, True)] * 30 + [(0.01, False)] * 30, [(0.9, False)] * 40, [(0.3, True)]):  # separable, or few
        curve = confidence.fit(points)
        assert np.isfinite(curve).all() and 0 <= Calibration({"picture": curve}).confidence("picture", 0.999) <= 1
    offset, slope = confidence.share([(0.3, True)] * 8)  # nine of ten, whatever the network says
    assert 1 / (1 + math.exp(-offset)) == pytest.approx(0.9, abs=1e-3) and slope == 0


def test_a_row_is_right_if_a_carrier_of_its_technology_covers_it():
    truth = [{"technology": "LTE", "center_hz": 0.0, "bandwidth_hz": 10e6}]
    middle = confidence.CENTER_HZ / 1e6
    for technology, low, high, right in (("LTE", -5, 5, True), ("NR", -5, 5, False), ("LTE", 4, 14, False),
                                         ("other", 6, 14, True), ("other", -5, 5, False)):  # fmt: skip
        assert confidence.is_right(carrier(technology, middle + low, middle + high, 0), truth) is right


# ---- the table ------------------------------------------------------------------------------------------------------


def test_the_table_has_a_column_for_all_that_is_known():
    about = {"level_db": 17.2, "seen": 3, "ground": "cell", "evidence": "cell 5 FDD", "cut_above": True}
    row = carrier("LTE", 10, 20, 1000, 3000, **about)
    head, line = table([row], sample_rate=1e5, first_sample=1000).splitlines()
    for word in ("level", "seen", "active", "from s", "to s", "confidence", "evidence"):
        assert word in head
    for word in ("17 dB", "0.000", "0.030", ">=20.00", "cell 5 FDD", "reaches the capture's edge"):
        assert word in line
    others = table([carrier("other", 1, 9, 0)])
    assert others.endswith("no LTE or NR carrier found") and "other" in others
    assert CLASSES == ("noise", "NR", "LTE")
