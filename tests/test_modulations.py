"""The generator of modulations, judged as signal processing: pytest tests/test_modulations.py"""

import shutil

import h5py
import numpy as np
import pytest

from data import DataError, modulations, modulators
from data.modulations import generate
from data.modulators import MODULATORS, channel, constellations, fade, make_frames
from data.radioml import CELLS, MODULATIONS, SAMPLES, SNRS, open_frames
from data.workers import locked

SYMBOL = 8  # samples
LINEAR = tuple(constellations())
QUICK = ("OOK", "QPSK", "64QAM", "128APSK")  # one of each kind
# The mean pulse of 1,024 genuine frames from 25 samples before to 32 after a symbol's sample, found by least squares.
GENUINE_PULSE = np.array(
    """
    .0010 .0099 .0212 .0327 .0419 .0465 .0441 .0328 .0115 -.0187 -.0557 -.0947 -.1296 -.1527 -.1566 -.1345
    -.0817 .0041 .1206 .2625 .4206 .5833 .7367 .8673 .9631 1.0150 1.0177 .9709 .8793 .7515 .5993 .4364 .2762
    .1311 .0107 -.0788 -.1355 -.1607 -.1589 -.1366 -.1018 -.0618 -.0233 .0091 .0321 .0450 .0484 .0440 .0348
    .0233 .0115 .0014 -.0058 -.0100 -.0116 -.0112 -.0094 -.0064
    """.split(),
    float,
)
GENUINE_TIMES = np.arange(-25, 33)


def random(seed=0):
    return np.random.default_rng(seed)


def power_spectrum(x):
    """Mean power per bin of (N, L) frames under a Hann window, with the frequencies in cycles a sample."""
    size = x.shape[1]
    power = np.mean(np.abs(np.fft.fft(x * np.hanning(size), axis=1)) ** 2, axis=0)
    return np.fft.fftfreq(size), power


def frequency(x):
    """Frequency of tones (N, L), from the slope of the phase."""
    return np.array([np.polyfit(np.arange(len(f)), np.unwrap(np.angle(f)), 1)[0] for f in x]) / (2 * np.pi)


def symbols_by_least_squares(frame, pulse, times):
    """Whole-sample timing and symbols of a frame: those that explain it best as a sum of pulses each 8 samples.

    Args: frame complex (L,); pulse (K,) at `times`.
    Returns: timing, symbols, their places in samples, rms of the rest.
    """
    best = None
    for timing in range(SYMBOL):
        places = timing + SYMBOL * np.arange(-5, len(frame) // SYMBOL + 5)
        lag = np.arange(len(frame))[:, None] - places  # (L, symbols)
        inside = (lag >= times[0]) & (lag <= times[-1])
        matrix = np.where(inside, pulse[np.clip(lag - times[0], 0, len(pulse) - 1)], 0)
        seen = (matrix**2).sum(0) > 0.02
        symbols = np.linalg.lstsq(matrix[:, seen], frame, rcond=1e-3)[0]
        rest = np.sqrt(np.mean(np.abs(frame - matrix[:, seen] @ symbols) ** 2))
        if best is None or rest < best[3]:
            best = timing, symbols, places[seen], rest
    return best


def test_received_pulse_is_the_genuine_one():
    pulse = modulators.received_pulse(np.array([[0.5]]), np.array([[0.547]]))[0]
    zero = modulators.SPAN * SYMBOL
    assert np.abs(pulse[zero + GENUINE_TIMES] - GENUINE_PULSE).max() < 0.006 * GENUINE_PULSE.max()
    assert np.isclose((pulse**2).sum(), SYMBOL)
    rest = np.delete(pulse, zero + GENUINE_TIMES)
    assert np.abs(rest).max() < 0.02  # nothing else is far from the symbol


def test_least_squares_recover_the_genuine_pulse_from_generated_frames():
    frames = make_frames("BPSK", 30, 256, random(20)).view(np.complex64)[:, :128, 0]
    rows, values = [], []
    for frame in frames:
        frame = frame * np.exp(-0.5j * np.angle(np.sum(frame**2)))  # BPSK squared has one phase
        _, symbols, places, _ = symbols_by_least_squares(frame, GENUINE_PULSE, GENUINE_TIMES)
        signs = dict(zip(places.tolist(), np.sign(symbols.real), strict=True))
        for n in range(40, 88):  # far enough from the ends that all symbols are known
            rows.append([signs.get(n - time, 0) for time in GENUINE_TIMES])
            values.append(frame[n].real)
    pulse = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    pulse *= np.sign(pulse[25])
    # The mean over the roll-offs of generated frames, which is not a genuine pulse's to the last digit.
    assert np.abs(pulse - GENUINE_PULSE).max() < 0.015
    # Neighbours a symbol away do not vanish: this is no Nyquist pulse. Between samples 0 and 1 lies its peak.
    assert abs(np.interp(0.547 + SYMBOL, GENUINE_TIMES, pulse) - 0.065) < 0.015
    spectrum = 20 * np.log10(np.abs(np.fft.fft(pulse, 4096)))
    for rate, decibels in ((0.44, -4.0), (0.5, -9.0), (0.56, -17.3)):  # of the symbol rate
        assert abs(spectrum[round(rate / SYMBOL * 4096)] - spectrum[0] - decibels) < 0.8


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LINEAR]
)
def test_symbols_lie_on_the_constellation(name, monkeypatch):
    monkeypatch.setattr(modulators, "ROLL_OFF", (0.5, 0.5))
    monkeypatch.setattr(modulators, "LATE", (0.55, 0.55))
    pulse = modulators.received_pulse(np.array([[0.5]]), np.array([[0.55]]))[0]
    times = np.arange(len(pulse)) - modulators.SPAN * SYMBOL
    points, seen = constellations()[name], set()
    for frame in MODULATORS[name](random(1), 3)[:, 3:1027]:
        timing, symbols, places, rest = symbols_by_least_squares(frame, pulse, times)
        assert timing == SYMBOL - 3 and rest < 1e-2
        inner = symbols[(places > 100) & (places < 924)]
        nearest = np.abs(inner[:, None] - points).argmin(1)
        gain = np.vdot(points[nearest], inner) / np.vdot(points[nearest], points[nearest])
        assert abs(gain - 1) < 0.05 and np.abs(inner / gain - points[nearest]).max() < 0.02
        seen |= set(nearest)
    # 309 symbols: how many of M equally likely points should have come up
    assert len(seen) > 0.9 * len(points) * (1 - np.exp(-309 / len(points)))


def test_constellations_have_unit_variance_and_the_right_number_of_points():
    sizes = {"OOK": 2, "BPSK": 2, "QPSK": 4}
    for name, points in constellations().items():
        size = sizes.get(name) or int(name.rstrip("APSKQM"))
        assert len(np.unique(points.round(6))) == size
        assert np.isclose(points.std(), 1)
        assert np.isclose(points.mean(), 0, atol=1e-12) != name.endswith(("OOK", "ASK"))


def test_128apsk_is_the_standards_and_its_rings_are_not_even():
    points = constellations()["128APSK"]
    radii = np.unique(np.abs(points).round(6))
    assert np.allclose(radii / radii[0], [1, 1.715, 2.118, 2.681, 2.75, 3.819], atol=1e-4)
    assert [int(np.isclose(np.abs(points), radius).sum()) for radius in radii] == [16, 16, 16, 16, 16, 48]
    assert set(points.round(9)) == set(points.conj().round(9)) == set((-points).round(9))
    outer = np.sort(np.angle(points[np.isclose(np.abs(points), radii[-1])]))
    gaps = np.diff(outer)
    assert gaps.max() > 1.5 * gaps.min()


@pytest.mark.parametrize("name", ["QPSK", "16APSK", "64QAM"])
def test_spectrum_falls_as_three_root_raised_cosines(name):
    f, power = power_spectrum(MODULATORS[name](random(2), 300))
    level = np.median(power[np.abs(f) < 0.03])
    at_half_rate = power[np.abs(np.abs(f) - 1 / 16) < 0.0015].mean() / level
    assert abs(10 * np.log10(at_half_rate) + 9) < 0.6
    assert power[np.abs(f) > 0.09].sum() / power.sum() < 1e-5


def test_symbol_rate_is_an_eighth():
    f, power = power_spectrum(np.abs(MODULATORS["16QAM"](random(3), 200)) ** 2)  # has a line at the symbol rate
    power[np.abs(f) < 0.11] = 0  # the envelope's own spectrum
    assert abs(f[power.argmax()]) == 1 / SYMBOL


def test_a_frame_starts_at_any_of_the_eight_samples_of_a_symbol():
    frames = make_frames("BPSK", 30, 400, random(4)).view(np.complex64)[:, :128, 0]
    timings = [symbols_by_least_squares(frame, GENUINE_PULSE, GENUINE_TIMES)[0] for frame in frames[:200]]
    counts = np.bincount(timings, minlength=SYMBOL)
    assert counts.min() > 8 and counts.max() < 50  # 25 expected


def test_gain_of_a_frame_varies_as_in_the_genuine_set():
    """256 genuine BPSK frames .0136, 64 QPSK frames .0102, nine of APSK and QAM .012: what overlapping pulses do."""
    size = modulators.WINDOW // SYMBOL + 2 * modulators.SPAN
    for name, expected in (("BPSK", 0.0136), ("QPSK", 0.0102), ("64QAM", 0.0102)):
        points, rng = constellations()[name].astype(np.complex64), random(14)
        symbols = points[rng.integers(len(points), size=(800, size))]
        draws = [rng.uniform(*limits, (800, 1)) for limits in (modulators.ROLL_OFF, modulators.LATE)]
        gain = MODULATORS[name](random(14), 800).std(1) / modulators.waveform(symbols, *draws).std(1)
        assert np.isclose(gain.std(), expected, rtol=0.15) and np.isclose(gain.mean(), 1, atol=0.005)
    power = (make_frames("64QAM", 60, 800, random(15)) ** 2).sum(2).mean(1)  # a frame's own, of 128 symbols
    assert np.isclose(power.std(), np.sqrt(0.38 / 128), rtol=0.15)  # E|s|^4 = 1.38


def test_oqpsk_has_points_on_the_axes_and_q_half_a_symbol_late():
    x = MODULATORS["OQPSK"](random(5), 100)
    tone = np.exp(-2j * np.pi * np.arange(x.shape[1]) / SYMBOL)
    i, q = x.real**2 @ tone, x.imag**2 @ tone  # each rail's energy has a line at the symbol rate
    late = np.angle((i * q.conj()).sum()) / (2 * np.pi) * SYMBOL
    assert abs(abs(late) - SYMBOL / 2) < 0.3
    both = x.real[:, : -SYMBOL // 2] + 1j * x.imag[:, SYMBOL // 2 :]  # with the delay undone
    assert np.isclose(np.mean(np.abs(x) ** 2), 1, atol=0.02)
    fourth = np.mean(both**4)  # of points on the axes positive, of points at 45 degrees negative
    assert fourth.real > 0.2 and abs(fourth.imag) < 0.1


def test_gmsk_turns_more_than_a_quarter_circle_and_its_envelope_is_uneven():
    x = MODULATORS["GMSK"](random(6), 60)
    turn = np.angle(x[:, SYMBOL:] * x[:, :-SYMBOL].conj()) / (np.pi / 2)
    steady = np.abs(turn)[np.abs(np.abs(turn) - modulators.GMSK_TURN) < 0.1]
    assert len(steady) > 0.15 * turn.size and np.isclose(np.median(steady), modulators.GMSK_TURN, atol=0.03)
    envelope = np.abs(x) / np.sqrt(np.mean(np.abs(x) ** 2))
    assert 0.04 < envelope.std() < 0.12
    f, power = power_spectrum(x)
    assert power[np.abs(f) > 0.1].sum() / power.sum() < 1e-4  # the receiver's filters leave nothing there
    step = modulators.gaussian_step(np.array([-9.0, 0.0, 9.0]), 0.5)
    assert np.allclose(step, [0, 0.5, 1])


def test_analogue_classes_are_what_their_names_say():
    made = {name: MODULATORS[name](random(7), 300) for name in MODULATIONS if name[:2] in ("AM", "FM")}
    carrier = modulators.ANALOGUE_CARRIER
    for name in ("AM-DSB-WC", "AM-DSB-SC"):
        assert np.abs(made[name].imag).max() < 1e-6, "both sidebands alike means real"
        f, power = power_spectrum(made[name])
        assert power[np.abs(np.abs(f) - carrier) < 0.003].sum() / power.sum() > 0.999
    short = {name: np.abs(made[name][:, :128]) for name in ("AM-SSB-WC", "AM-SSB-SC")}
    move = {name: np.median(x.std(1) / x.mean(1)) for name, x in short.items()}
    assert 0.001 < move["AM-SSB-WC"] < 0.03 and 0.005 < move["AM-SSB-SC"] < 0.1  # genuine: .033 and .014
    for name in short:
        assert np.abs(made[name].imag).max() < 1e-6, "the message has no sideband of its own"
        constant = np.abs(made[name].mean(1)) / made[name].std(1)
        assert 1.5 < np.median(constant) < 60
        assert np.mean(constant < 1) < 0.1, "a message that passes through zero is taken for ASK by both references"
    assert np.allclose(np.abs(made["FM"]), 1, atol=1e-5)
    assert np.isclose(frequency(made["FM"]).mean(), carrier, atol=2e-4)
    assert frequency(made["FM"]).std() < 0.001


def test_single_sideband_grows_with_the_snr_and_its_deviation_is_one(monkeypatch):
    monkeypatch.setattr(modulators, "CARRIER_SIGMA", 0.0)  # would turn the constant, and that varies too
    x = {snr: make_frames("AM-SSB-WC", snr, 200, random(12)).view(np.complex64)[..., 0] for snr in (-20, 30)}
    assert np.isclose(np.median(x[-20].var(1)), 1, atol=0.1)
    assert np.median(np.abs(x[-20].mean(1))) < 0.1 and np.median(np.abs(x[30].mean(1))) > 3
    assert np.abs(x[-20]).max() < 6  # the original's samples lie within -4 .. 4


@pytest.mark.parametrize("snr", [-4, 0, 6, 20])
def test_label_is_half_the_true_ratio_in_db(snr):
    clean = MODULATORS["8PSK"](random(8), 200)
    x = channel(random(9), clean, snr)
    f, power = power_spectrum(x)
    noise = power[np.abs(f) > 0.2].mean()  # white, and nothing else out there
    everything = power.mean()
    ratio = 10 * np.log10(everything / noise - 1)
    assert np.isclose(ratio, 2 * snr - 20 * np.log10(modulators.NOISE), atol=0.4)


def test_carrier_has_the_stated_statistics():
    tone = np.exp(2j * np.pi * 0.05 * np.arange(SAMPLES))[None].repeat(1500, 0).astype(np.complex64)
    x = channel(random(10), tone, 60)
    offset = frequency(x) - 0.05
    assert np.isclose(offset.std(), modulators.CARRIER_SIGMA, rtol=0.1) and abs(offset.mean()) < 3e-6
    assert abs(np.mean(np.exp(1j * np.angle(x[:, 0])))) < 0.08  # phases all around the circle


def test_rayleigh_taps_have_unit_power_and_the_delay_spread():
    pulse = np.zeros((4000, SAMPLES), np.complex64)
    pulse[:, 0] = 1
    assert fade(random(), pulse, 0) is pulse
    response = fade(random(), pulse, 4.0)
    power = np.mean(np.abs(response) ** 2, axis=0)
    assert np.isclose(power.sum(), 1, atol=0.05)
    mean = power @ np.arange(SAMPLES)
    assert np.isclose(np.sqrt(power @ (np.arange(SAMPLES) - mean) ** 2), 4, rtol=0.15)
    strength = np.abs(response[:, 0]) ** 2  # exponentially distributed, so as far spread as its mean
    assert np.isclose(strength.std() / strength.mean(), 1, atol=0.1)


@pytest.fixture
def cheap_frames(monkeypatch):
    """Noise around a number that tells class and SNR, instead of signals: for tests of the file around the frames."""

    def noise(modulation, snr_db, count, rng, delay_spread=0.0):
        mean = MODULATIONS.index(modulation) + snr_db / 100
        return rng.normal(mean, 0.01, (count, SAMPLES, 2)).astype(np.float32)

    monkeypatch.setattr(modulations, "make_frames", noise)


def test_file_has_the_original_layout(tmp_path, cheap_frames):
    path = tmp_path / "new" / "set.hdf5"
    generate(path, 2, seed=5, workers=1)
    with h5py.File(path) as file:
        x, y, z = (file[name][:] for name in "XYZ")
    assert x.shape == (2 * CELLS, SAMPLES, 2) and x.dtype == np.float32
    assert y.shape == (2 * CELLS, 24) and y.dtype == np.int64 and z.shape == (2 * CELLS, 1) and z.dtype == np.int64
    assert np.array_equal(y.argmax(1), np.repeat(np.arange(24), 2 * 26)) and np.all(y.sum(1) == 1)
    assert np.array_equal(z[:, 0], np.tile(np.repeat(np.arange(-20, 31, 2), 2), 24))
    assert np.isfinite(x).all() and (np.abs(x).max((1, 2)) > 0).all()
    cell = 12 * len(SNRS) + 25  # 16QAM at 30 dB
    expected = modulations.make_frames("16QAM", 30, 2, random([5, cell]))
    assert np.array_equal(x[2 * cell : 2 * cell + 2], expected)
    assert np.allclose(x.mean((1, 2)), y.argmax(1) + z[:, 0] / 100, atol=0.005)  # each frame is where its label is
    assert np.array_equal(open_frames(path).x, x)
    assert [file.name for file in path.parent.iterdir()] == ["set.hdf5"]
    generate(path, 2, seed=5)  # whole: nothing to do
    with pytest.raises(DataError, match="is there already"):
        generate(path, 2, seed=6)


def test_who_needs_a_few_frames_makes_a_few_and_finds_them_again(tmp_path, monkeypatch, cheap_frames):
    monkeypatch.chdir(tmp_path)
    made = []
    real = modulations.generate
    monkeypatch.setattr(modulations, "generate", lambda path, *a, **k: made.append(path) or real(path, 1, workers=1))
    first = modulations.default_file(few=True)
    assert modulations.default_file(few=True) == first == modulations.FEW_FILE and made == [first]
    assert modulations.FEW_FRAMES * CELLS < 3000
    assert modulations.default_file() == modulations.SMALL_FILE  # more frames are another file
    assert modulations.default_file(few=True) == modulations.SMALL_FILE  # which then serves both


def interrupted(path, monkeypatch, last):
    """Begin to write a file, and stop after a cell."""
    write = modulations._write_cell

    def stopping(job):
        if job.cell == last + 1:
            raise KeyboardInterrupt
        return write(job)

    with monkeypatch.context() as patch:
        patch.setattr(modulations, "_write_cell", stopping)
        with pytest.raises(KeyboardInterrupt):
            generate(path, 1, workers=1)


def interrupt_and_complete(folder, monkeypatch, workers):
    """Write a file at once, and another with an interruption; compare them. Returns its frames."""
    generate(folder / "whole", 1, workers=1)
    interrupted(folder / "parts", monkeypatch, 599)
    assert not (folder / "parts").exists()
    with pytest.raises(DataError, match="other options"):
        generate(folder / "parts", 1, seed=1, workers=1)
    with (folder / ".parts.done").open("a") as file:
        file.write("60")  # a kill may leave half a line
    generate(folder / "parts", 1, workers=workers)
    frames = open_frames(folder / "parts")
    assert np.array_equal(frames.x, open_frames(folder / "whole").x)
    return frames


def test_interrupted_generation_goes_on_and_gives_the_same_file(tmp_path, monkeypatch, cheap_frames):
    interrupt_and_complete(tmp_path, monkeypatch, workers=1)


@pytest.mark.parametrize("damage", ["line", "settings", "huge", "all"])
def test_a_damaged_journal_costs_cells_and_nothing_else(tmp_path, monkeypatch, cheap_frames, damage):
    generate(tmp_path / "whole", 1, workers=1)
    interrupted(tmp_path / "parts", monkeypatch, 598)
    journal = tmp_path / ".parts.done"
    lines = journal.read_bytes().split(b"\n")
    if damage == "line":
        lines[5], lines[6], lines[7] = b"\xff", b"9" * 5000, b"[]"
    else:
        lines[0] = {"settings": b"\xff", "huge": b"[" * 100_000, "all": b"17"}[damage]
    journal.write_bytes(b"\n".join(lines))
    write, made = modulations._write_cell, []
    monkeypatch.setattr(modulations, "_write_cell", lambda job: made.append(job.cell) or write(job))
    generate(tmp_path / "parts", 1, workers=1)
    assert made == ([4, 5, 6, *range(599, 624)] if damage == "line" else list(range(624)))
    assert np.array_equal(open_frames(tmp_path / "parts").x, open_frames(tmp_path / "whole").x)


def test_one_generator_at_a_time(tmp_path, cheap_frames):
    (tmp_path / ".set.lock").touch()
    with locked(tmp_path / ".set.lock"), pytest.raises(DataError, match="another process is writing"):
        generate(tmp_path / "set", 1, workers=1)


def test_parts_of_several_machines_join_into_the_file_of_one_byte_for_byte(tmp_path, cheap_frames):
    machines = [tmp_path / name for name in ("one", "two", "three")]
    for number, folder in enumerate(machines[:2], 1):
        argv = [str(folder / "set.hdf5"), *"--frames-per-cell 1 --workers 1 --part".split(), f"{number}/3"]
        assert modulations.main(argv) == 0
        assert [file.name for file in folder.iterdir()] == [f"set.part{number}of3.hdf5"]  # its name says: a part
    assert (machines[0] / "set.part1of3.hdf5").stat().st_size < 1.01 * CELLS / 3 * SAMPLES * 8
    for folder in machines[1:2]:
        shutil.copytree(folder, machines[0], dirs_exist_ok=True)
    with pytest.raises(DataError, match="set.part1of3.hdf5 has other frames"):
        generate(machines[0] / "set.hdf5", 1, seed=1, workers=1)
    generate(machines[0] / "set.hdf5", 1, workers=1)  # the third part is made here
    generate(tmp_path / "set.hdf5", 1, workers=1)
    assert (machines[0] / "set.hdf5").read_bytes() == (tmp_path / "set.hdf5").read_bytes()
    for wrong in ("0/3", "4/3", "3", "a/b", "1/0", "-1/2"):
        with pytest.raises(SystemExit):
            modulations.main([str(tmp_path / "x"), f"--part={wrong}"])


@pytest.mark.slow
def test_more_workers_complete_the_same_file_of_real_signals(tmp_path, monkeypatch):
    frames = interrupt_and_complete(tmp_path, monkeypatch, workers=2)
    assert np.array_equal(frames.x[[617]], make_frames("OQPSK", 18, 1, random([0, 617])))


def test_command_line_says_what_is_wrong_in_one_sentence(tmp_path, capsys):
    (tmp_path / "x").write_text("something else")
    assert modulations.main([str(tmp_path / "x")]) == 2
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    assert modulations.main([str(tmp_path / "folder" / "file" / "x")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
