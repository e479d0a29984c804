"""Evidence of a band, and the rows of segment.py that rest on it.   pytest tests/test_evidence.py

The network is a stand-in that calls every strong column NR, as networks do that have seen LTE and NR alone.
"""

import json
import math

import numpy as np
import pytest

import segment
from data.cell_search import LteCell, NrCell
from data.cyclic_prefix import PrefixEvidence
from data.evidence import Evidence, FrameEvidence, Proofs, apart, cells_plain, judge
from tests.conftest import label_by_level, lte_carrier, nr_carrier, resampled
from utils import labelling

RATE, CENTER = 30.72e6, 2600e6
COUNT = round(0.04 * RATE)


def at(wave, hz, db=20.0):
    """A carrier at `hz` in 40 ms at RATE, its occupied band `db` above noise of power 1."""
    samples = resampled(wave.samples, COUNT)
    power = 10 ** (db / 10) * wave.occupied_hz / RATE
    samples *= np.sqrt(power / np.mean(np.abs(samples) ** 2))
    return samples * np.exp(2j * np.pi * hz / RATE * np.arange(COUNT))


def lte(bandwidth, cell, load=0.7, seed=0, **options):
    return lte_carrier(bandwidth, cell, load, seed, **options)


def nr(cell):
    return nr_carrier(10e6, 30e3, cell, load=0.8, ssb_case="C")


def noise(count=COUNT, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 2)).view(complex)[:, 0] / math.sqrt(2)


def ofdm(symbol_s, prefix_s, width_hz, seed=2):
    """OFDM that is neither LTE's nor NR's, at RATE."""
    rng, size, guard = np.random.default_rng(seed), round(symbol_s * RATE), round(prefix_s * RATE)
    used = round(width_hz * symbol_s / 2)
    bins = np.zeros((COUNT // (size + guard) + 1, size), complex)
    where = np.r_[1 : used + 1, -used:0]
    bins[:, where] = rng.choice([-1, 1], (len(bins), 2 * used)) + 1j * rng.choice([-1, 1], (len(bins), 2 * used))
    symbols = np.fft.ifft(bins)
    samples = np.concatenate([symbols[:, size - guard :], symbols], 1).ravel()[:COUNT]
    return samples / samples.std()


def call_it_nr(logits_of, picture):
    noise_, nr_, lte_ = label_by_level(logits_of, picture)  # (256, 256) each
    return np.stack([noise_, np.maximum(nr_, lte_), np.minimum(nr_, lte_)])


@pytest.fixture
def find(monkeypatch, tmp_path, untrained):
    """segment.py on samples; returns (rows of result.json, what it printed)."""
    monkeypatch.setattr(labelling, "class_probabilities", call_it_nr)

    def call(samples, *arguments, rate=RATE):
        path = tmp_path / "recording.cf32"
        np.asarray(samples, np.complex64).tofile(path)
        known = ["--datatype", "cf32_le", "--sample-rate", str(rate), "--center-frequency", str(CENTER)]
        known += ["--checkpoint", str(untrained), "--device", "cpu", "--pictures", "0", "--out", str(tmp_path / "out")]
        assert segment.main([str(path), *known, *arguments]) in (0, segment.NOTHING_FOUND)
        return json.loads((tmp_path / "out" / "result.json").read_text())["carriers"]

    return call


# ---- evidence and judgement ------------------------------------------------------------------------------------------


def prefix(outcome, spacing=None):
    return PrefixEvidence(outcome, spacing, {}, 2e4, 1e4)


LTE_CELL = LteCell(301, "FDD", "normal", 1e3, 0.0, 60.0)
NR_CELL = NrCell(7, 30e3, 2e6, 2602e6, 0.0, 60.0)


@pytest.mark.parametrize(
    ("network", "evidence", "fits_nr", "expected"),
    [
        ("NR", Evidence(lte=(LTE_CELL,)), True, ("LTE", "cell")),
        ("LTE", Evidence(nr=(NR_CELL,)), False, ("NR", "cell")),
        ("LTE", Evidence(prefix=prefix("prefix", 30e3)), False, ("NR", "prefix")),
        ("NR", Evidence(prefix=prefix("prefix", 60e3)), False, ("NR", "unproven")),
        ("LTE", Evidence(prefix=prefix("prefix", 15e3)), False, ("LTE", "unproven")),
        ("LTE", Evidence(prefix=prefix("prefix", 15e3), sync_due=True), False, ("other", "refuted")),  # a drone
        ("NR", Evidence(prefix=prefix("prefix", 15e3), sync_due=True), True, ("NR", "unproven")),
        ("NR", Evidence(prefix=prefix("none")), True, ("other", "refuted")),
        ("NR", Evidence(prefix=prefix("unknown")), True, ("NR", "unproven")),
        ("other", Evidence(prefix=prefix("unknown")), False, ("other", "unproven")),
        ("other", Evidence(), False, ("other", "unproven")),
    ],
)
def test_what_decides(network, evidence, fits_nr, expected):
    assert judge(network, evidence, fits_nr)[:2] == expected


def test_cells_are_told_with_their_centres_where_carriers_lie_inside_one_another():
    cells = (LTE_CELL, LteCell(86, "TDD", "extended", -4.2e6, 0.0, 40.0))
    words = [cell["words"] for cell in cells_plain(Evidence(lte=cells), 1871.75e6).values()]
    assert words == ["cell 301 FDD, centre 1871.75 MHz", "cell 86 TDD, extended prefix, centre 1867.55 MHz"]
    assert cells_plain(Evidence(lte=(LTE_CELL,)), None)["LTE 301"]["words"] == "cell 301 FDD"
    assert [len(group) for group in apart((*cells, LTE_CELL._replace(cell_id=4)))] == [1, 2]


def test_evidence_is_looked_for_once_a_second_and_for_each_band():
    asked = []

    class Look(FrameEvidence):
        def of(self, low_hz, high_hz, **about):
            asked.append(low_hz)
            return Evidence(lte=(LTE_CELL,)) if low_hz < 10e6 else Evidence()

    look, proofs = Look(noise(100), RATE, CENTER, 1.0), Proofs()
    for time in (0.0, 0.04, 0.9, 1.04):
        proofs.of(look, time, 1e6 + time * 1e4, 11e6)  # a cell is there
        proofs.of(look, time, 12e6, 14e6)  # nothing was told: asked again after .2 seconds
    assert [sum(low < 10e6 for low in asked), sum(low > 10e6 for low in asked)] == [2, 2]


@pytest.mark.parametrize("width", [0.3e6, 1e6, 1.7e6, 2.1e6, 5e6, 30.72e6])
@pytest.mark.parametrize("samples", [100, 20_000, COUNT])
def test_noise_of_any_width_and_length_proves_nothing_and_raises_nothing(width, samples):
    look = FrameEvidence(noise(samples).astype(np.complex64), RATE, CENTER, 1 / RATE)
    evidence = look.of(-width / 2, width / 2, cut=width > 30e6)
    assert evidence.proven is None and not evidence.lte and not evidence.nr


def test_carriers_whose_subcarriers_lie_differently_do_not_cancel_in_one_band():
    """5 MHz apart is no multiple of 15 kHz: the three prefixes' phases are a third of a circle apart."""
    waves = [at(lte(5e6, i, load=1.0, seed=i), hz) for i, hz in enumerate((-5e6, 0.0, 5e6))]
    samples = (sum(waves) + noise()).astype(np.complex64)
    evidence = FrameEvidence(samples, RATE, CENTER, 1 / RATE).prefix(-7.5e6, 7.5e6)
    assert evidence.outcome == "prefix" and evidence.spacing_hz == 15e3


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_an_lte_carrier_that_the_network_calls_nr_is_told_by_its_cell(find, capsys):
    (row,) = find(at(lte(10e6, 77), 4e6) + noise())
    assert (row["technology"], row["ground"]) == ("LTE", "cell") and row["evidence"] == "cell 77 FDD"
    assert row["center_hz"] - CENTER == pytest.approx(4e6, abs=0.3e6) and row["cells"][0]["cell_id"] == 77
    assert row["level_db"] == pytest.approx(20, abs=2) and row["frames_seen"] == 1
    assert "cell 77 FDD" in capsys.readouterr().out


def test_an_nr_carrier_is_told_by_its_block_or_its_prefix(find):
    wave = nr(501)
    (row,) = find(at(wave, 3e6) + noise())
    assert row["technology"] == "NR" and row["ground"] in ("cell", "prefix")


def test_an_nr_cell_without_a_centre_frequency_takes_a_blind_search():
    samples = (at(nr(501), 3e6) + noise()).astype(np.complex64)
    look = FrameEvidence(samples, RATE, None, 1 / RATE)
    assert not look.of(-2e6, 8e6).nr
    look = FrameEvidence(samples, RATE, None, 1 / RATE, blind_seconds=5.0)
    assert [cell.cell_id for cell in look.of(-2e6, 8e6).nr] == [501]


def test_four_lte_carriers_side_by_side_are_four_rows(find):
    waves = [at(lte(5e6, 10 + i, seed=i), hz) for i, hz in enumerate((-7.5e6, -2.5e6, 2.5e6, 7.5e6))]
    rows = find(sum(waves) + noise())
    assert [row["technology"] for row in rows] == ["LTE"] * 4
    centres = [(row["center_hz"] - CENTER) / 1e6 for row in rows]
    assert centres == pytest.approx([-7.5, -2.5, 2.5, 7.5], abs=0.3)
    assert sorted(cell["cell_id"] for row in rows for cell in row["cells"]) == [10, 11, 12, 13]


def test_a_band_narrower_than_any_channel_is_other(find):
    time = np.arange(COUNT) / RATE
    remote = np.exp(2j * np.pi * np.cumsum(3e6 + 0.4e6 * np.sign(np.sin(2 * np.pi * 5e3 * time))) / RATE)
    rows = find(3 * remote * (time < 0.004) + noise())
    assert {row["technology"] for row in rows} <= {"other"}


@pytest.mark.slow  # four carriers side by side show the same split in less time
def test_strong_carriers_whose_skirts_fill_the_gaps_are_parted_by_their_cells(find):
    rng = np.random.default_rng(3)
    waves = [at(lte(10e6, 100 + i, load=load, seed=i), hz, 28)
             for i, (hz, load) in enumerate(((-10e6, 1.0), (0.0, 0.2), (10e6, 0.7)))]  # fmt: skip
    samples = sum(waves)
    samples = samples + 0.03 * np.abs(samples) ** 2 * samples / np.mean(np.abs(samples) ** 2)  # an amplifier's skirts
    rows = find(samples + rng.standard_normal((COUNT, 2)).view(complex)[:, 0] / math.sqrt(2))
    assert [row["technology"] for row in rows] == ["LTE"] * 3
    assert [cell["cell_id"] for row in rows for cell in row["cells"]] == [100, 101, 102]


@pytest.mark.slow
def test_a_cell_in_a_band_wider_than_any_lte_channel_gets_its_own_channel_and_the_rest_another_row(find):
    beside = ofdm(1 / 15e3, 144 / 30.72e6, 13e6) * np.exp(2j * np.pi * 6.2e6 / RATE * np.arange(COUNT))
    rows = find(at(lte(10e6, 55), -5e6) + 8 * beside / beside.std() + noise())  # no gap between the two
    (row,) = [row for row in rows if row["technology"] == "LTE"]
    assert row["cells"][0]["cell_id"] == 55 and row["bandwidth_hz"] == pytest.approx(10e6, abs=0.5e6)
    assert row["center_hz"] - CENTER == pytest.approx(-5e6, abs=0.3e6)
    assert any(other["technology"] == "other" and other["upper_hz"] - CENTER > 10e6 for other in rows)


@pytest.mark.parametrize(
    "emission",
    [
        pytest.param("802.11", marks=pytest.mark.slow),
        pytest.param("DVB-T", marks=pytest.mark.slow),
        "noise",
        "drone",
        "chirps",
    ],
)
def test_what_is_neither_is_other_whatever_the_network_says(find, emission):
    time = np.arange(COUNT) / RATE
    samples = {
        "802.11": lambda: ofdm(3.2e-6, 0.8e-6, 16.6e6),
        "DVB-T": lambda: ofdm(896e-6, 28e-6, 7.6e6),
        "noise": lambda: np.fft.ifft(np.fft.fft(noise(seed=5)) * (np.abs(np.fft.fftfreq(COUNT, 1 / RATE)) < 5e6)),
        "drone": lambda: ofdm(1 / 15e3, 144 / 30.72e6, 9e6),
        "chirps": lambda: np.exp(2j * np.pi * np.cumsum((time * 1e3 % 1 - 0.5) * 12e6) / RATE),
    }[emission]()
    rows = find(10 * samples / samples.std() + noise())
    assert rows and {row["technology"] for row in rows} == {"other"}


def test_a_slice_of_a_carrier_that_fills_the_capture_is_found_by_its_cell(find):
    wave = lte(1.4e6, 222)
    samples = wave.samples / wave.samples.std() + 0.1 * noise(len(wave.samples))
    rate = wave.sample_rate  # 1.92 MS/s
    (row,) = find(samples, rate=rate)
    assert row["technology"] == "LTE" and row["cells"][0]["cell_id"] == 222


def test_the_middle_of_a_wide_idle_carrier_is_found_in_a_narrow_capture_that_the_network_calls_noise(find, monkeypatch):
    nothing = np.repeat(np.float32([0.9, 0.05, 0.05])[:, None, None], 256, 1).repeat(256, 2)
    monkeypatch.setattr(labelling, "class_probabilities", lambda model, picture: nothing)
    wave = lte(10e6, 86, load=0.0)
    samples = resampled(wave.samples, round(1.92e6 * 0.04))
    samples = samples / samples.std() + 0.3 * noise(len(samples)) + 2.0  # the receiver's DC
    samples = samples * np.exp(-2j * np.pi * 42e3 / 1.92e6 * np.arange(len(samples)))
    (row,) = find(samples, rate=1.92e6)
    assert row["technology"] == "LTE" and row["cells"][0]["cell_id"] == 86 and row["reaches_lower_edge"]
    assert row["level_db"] is None and row["active"] is None  # there is no floor to tell them


def test_without_evidence_the_network_decides(find):
    (row,) = find(at(lte(10e6, 77), 4e6) + noise(), "--no-evidence")
    assert (row["ground"], row["evidence"]) == ("unproven", "-")
    rows = find(10 * ofdm(896e-6, 28e-6, 7.6e6) + noise(), "--no-evidence")  # DVB-T, which it takes for one of the two
    assert {row["technology"] for row in rows} & {"LTE", "NR"}


# ---- where the floor is no measure, and names without a cell ---------------------------------------------------------


def test_a_guessed_floor_refutes_only_with_much_energy():
    def outcome(samples, **floor):
        look = FrameEvidence(samples.astype(np.complex64), RATE, None, **floor)
        return look.prefix(-0.45 * RATE, 0.45 * RATE).outcome

    air = noise()
    assert outcome(air, floor=None, guess=None) == "unknown"
    assert outcome(air, floor=None, guess=0.03 / RATE) == "none"
    short = air[: round(0.001 * RATE)]  # 28,000 Hz s
    assert outcome(short, floor=0.03 / RATE) == "none"
    assert outcome(short, floor=None, guess=0.03 / RATE) == "unknown"


def test_a_prefix_of_15_khz_without_a_cell_in_no_width_of_nr_is_called_lte():
    prefix = PrefixEvidence("prefix", 15e3, {15e3: 20.0}, 1e5, 1e4)
    assert judge("NR", Evidence(prefix=prefix, whole=True), fits_nr=False)[:2] == ("LTE", "unproven")
    assert judge("NR", Evidence(prefix=prefix, whole=True), fits_nr=True)[:2] == ("NR", "unproven")
    assert judge("NR", Evidence(prefix=prefix), fits_nr=False)[:2] == ("NR", "unproven")  # its edges are unknown


def test_a_carrier_that_leaves_no_floor_is_found_by_its_cell(find, monkeypatch):
    def nearly_all_noise(model, picture):
        label = np.zeros((3, 256, 256))
        label[0], label[2, :, :126] = 0.6, 0.9  # one column of the capture: the others tell a wrong floor
        return label / label.sum(0)

    monkeypatch.setattr(labelling, "class_probabilities", nearly_all_noise)
    wave = lte(10e6, 30, load=0.8)
    samples = resampled(at(wave, 0.0, 25.0), round(1.92e6 * 0.04))
    samples = samples / samples.std() + 0.1 * noise(len(samples))
    (row,) = find(samples, rate=1.92e6)
    assert row["technology"] == "LTE" and row["cells"][0]["cell_id"] == 30
