"""The generator of modulations, judged as signal processing: pytest tests/test_modulations.py"""

import h5py
import numpy as np
import pytest

from data import DataError, modulations
from data.modulations import MODULATORS, channel, constellations, fade, generate, make_frames
from data.radioml import CELLS, MODULATIONS, SAMPLES, SNRS, open_frames

SYMBOL = 8  # samples
EDGE = 48  # samples that a receiver's filter loses at either end
LINEAR = tuple(constellations())


def random(seed=0):
    return np.random.default_rng(seed)


def resample(x, late):
    """x (N, SAMPLES) at times `late` samples later, without the edges: convolution with a windowed sinc."""
    tap = np.arange(-EDGE, EDGE + 1)
    reach = np.clip((tap + late) / (EDGE - SYMBOL), -1, 1)
    kernel = np.sinc(tap + late) * np.cos(reach * np.pi / 2) ** 2  # the window's middle is the sinc's, so its gain is 1
    return np.stack([np.convolve(frame, kernel, "valid") for frame in x])


def power_spectrum(x):
    """Mean power per bin of (N, SAMPLES) frames under a Hann window, with the frequencies in cycles a sample."""
    power = np.mean(np.abs(np.fft.fft(x * np.hanning(SAMPLES), axis=1)) ** 2, axis=0)
    return np.fft.fftfreq(SAMPLES), power


def frequency(x):
    """Frequency of tones (N, SAMPLES), from the slope of the phase."""
    return np.array([np.polyfit(np.arange(SAMPLES), np.unwrap(np.angle(frame)), 1)[0] for frame in x]) / (2 * np.pi)


@pytest.mark.parametrize("name", LINEAR)
def test_symbol_instants_show_the_constellation(name):
    points = constellations()[name]
    seen = set()
    for frame in MODULATORS[name](random(1), 4):
        errors = {}
        for late in np.arange(0, SYMBOL, 1 / 16):  # the right timing is the one with the least distance to points
            distance = np.abs(resample(frame[None], late)[0, ::SYMBOL, None] - points)
            errors[np.sqrt(np.mean(distance.min(1) ** 2))] = distance.argmin(1)
        assert min(errors) < 0.03, "no timing puts the samples on the points"
        assert max(errors) > 2 * min(errors), "any timing would do"
        seen |= set(errors[min(errors)])
    # 464 symbols: how many of M equally likely points should have come up
    assert len(seen) > 0.95 * len(points) * (1 - np.exp(-464 / len(points)))


def test_constellations_have_unit_variance_and_the_right_number_of_points():
    sizes = {"OOK": 2, "BPSK": 2, "QPSK": 4}
    for name, points in constellations().items():
        size = sizes.get(name) or int(name.rstrip("APSKQM"))
        assert len(np.unique(points.round(6))) == size
        assert np.isclose(points.std(), modulations.LEVEL.get(name, 1))
        assert np.isclose(points.mean(), 0, atol=1e-12) != name.endswith(("OOK", "ASK"))


@pytest.mark.parametrize("name", ["QPSK", "16APSK", "64QAM"])
def test_spectrum_falls_as_a_raised_cosine(name):
    f, power = power_spectrum(MODULATORS[name](random(2), 400))
    level = np.median(power[np.abs(f) < 0.03])
    at_half_rate = power[np.abs(np.abs(f) - 1 / 16) < 0.0015].mean() / level
    assert abs(10 * np.log10(at_half_rate) + 6) < 0.5
    outside = np.abs(f) > (1 + max(modulations.ROLL_OFF)) / 16 + 0.004
    assert power[outside].sum() / power.sum() < 1e-4


def test_symbol_rate_is_an_eighth():
    f, power = power_spectrum(np.abs(MODULATORS["16QAM"](random(3), 200)) ** 2)  # has a line at the symbol rate
    power[np.abs(f) < 0.11] = 0  # the envelope's own spectrum
    assert abs(f[power.argmax()]) == 1 / SYMBOL


def test_timing_is_uniform_over_a_symbol():
    energy = np.abs(MODULATORS["QPSK"](random(4), 600)) ** 2
    line = energy @ np.exp(-2j * np.pi * np.arange(SAMPLES) / SYMBOL)
    counts = np.histogram(np.angle(line), 8, (-np.pi, np.pi))[0]
    assert counts.min() > 45 and counts.max() < 110  # 75 expected


def test_oqpsk_has_a_bit_a_rail_every_second_symbol_and_q_half_a_symbol_late():
    x = MODULATORS["OQPSK"](random(5), 100)
    tone = np.exp(-2j * np.pi * np.arange(SAMPLES) / (2 * SYMBOL))
    i, q = x.real**2 @ tone, x.imag**2 @ tone
    late = np.angle(i / q) / (2 * np.pi) * 2 * SYMBOL
    assert np.all(np.abs(late - SYMBOL / 2) < 0.5)


def test_gmsk_turns_a_quarter_circle_a_bit_at_constant_envelope():
    x = MODULATORS["GMSK"](random(6), 50)
    assert np.allclose(np.abs(x), 1, atol=1e-5)
    turn = np.angle(x[:, SYMBOL:] * x[:, :-SYMBOL].conj()) / (np.pi / 2)
    assert np.abs(turn).max() < 1.001  # never more than a quarter of a circle in a bit's time
    assert np.mean(np.abs(np.abs(turn) - 1) < 0.02) > 0.25  # and that whole quarter where a bit repeats
    step = modulations.gaussian_step(np.array([-9.0, 0.0, 9.0]), 0.5)
    assert np.allclose(step, [0, 0.5, 1])


def test_analogue_classes_are_what_their_names_say():
    made = {name: MODULATORS[name](random(7), 300) for name in MODULATIONS if name[:2] in ("AM", "FM")}
    low, high = modulations.ANALOGUE_CARRIER
    for name in ("AM-DSB-WC", "AM-DSB-SC"):
        assert not np.iscomplexobj(made[name]), "both sidebands alike means real"
        assert np.isclose(made[name].var(), 1, atol=0.1)
        f, power = power_spectrum(made[name])
        near = (np.abs(f) > low - 0.008) & (np.abs(f) < high + 0.008)
        assert power[near].sum() / power.sum() > 0.999
    peaks = [np.abs(made[name]).max(1) for name in ("AM-DSB-WC", "AM-DSB-SC")]
    assert peaks[0].std() < 0.1 < 0.5 < peaks[1].std()  # a carrier keeps the level, without one it is the message's
    assert np.allclose(np.abs(made["FM"]), 1, atol=1e-5)
    assert np.isclose(frequency(made["FM"]).mean(), (low + high) / 2, atol=5e-4)
    instant = np.diff(np.unwrap(np.angle(made["FM"]))) / (2 * np.pi)
    least, most = modulations.FM_DEVIATION  # the mean square of what is even between two limits, and of the carrier
    expected = (least**2 + least * most + most**2) / 3 + (high - low) ** 2 / 12
    assert np.isclose(instant.std(), np.sqrt(expected), rtol=0.1)
    for name, limits in modulations.SSB_SPEECH.items():
        level = np.abs(made[name].mean(1))
        assert 1.3 < np.median(level) < 3.2, "a constant that no speech moves far"
        varying = np.sqrt(np.mean(made[name].var(1)))
        assert limits[0] / 2 < varying < limits[1]
    ac = made["AM-SSB-SC"] - made["AM-SSB-SC"].mean(1, keepdims=True)
    f, power = power_spectrum(ac)
    upper, lower = power[f > 0.002].sum(), power[f < -0.002].sum()
    assert lower < 0.02 * upper, "one sideband only"


def test_single_sideband_grows_with_the_snr_and_its_varying_part_has_unit_variance(monkeypatch):
    monkeypatch.setattr(modulations, "CARRIER_SIGMA", 0.0)  # would turn the constant, and that varies too
    x = {snr: make_frames("AM-SSB-WC", snr, 200, random(12)).view(np.complex64)[..., 0] for snr in (-20, 30)}
    for frames in x.values():
        assert np.isclose(np.median(frames.var(1)), 1, atol=0.1)
    assert np.median(np.abs(x[-20].mean(1))) < 0.1 and np.median(np.abs(x[30].mean(1))) > 3


@pytest.mark.parametrize("snr", [-4, 0, 6, 20])
def test_label_is_half_the_true_ratio_in_db(snr):
    clean = MODULATORS["8PSK"](random(8), 200)
    x = channel(random(9), clean, snr)
    f, power = power_spectrum(x)
    noise = power[np.abs(f) > 0.2].mean()  # white, and nothing else out there
    everything = power.mean()
    signal = np.mean(np.abs(clean) ** 2)
    assert np.isclose(10 * np.log10((everything / noise - 1) / signal), 2 * snr, atol=0.4)
    assert np.isclose(np.var(x), (signal + 10 ** (-snr / 5)) / (1 + 10 ** (-snr / 5)), rtol=0.02)


def test_offsets_have_the_stated_statistics(monkeypatch):
    tone = np.exp(2j * np.pi * 0.05 * np.arange(SAMPLES))[None].repeat(1500, 0).astype(np.complex64)
    levels = np.abs(channel(random(13), tone, 60)).mean(1)
    assert np.isclose(levels.std(), modulations.LEVEL_SIGMA, rtol=0.1) and np.isclose(levels.mean(), 1, atol=2e-3)
    monkeypatch.setattr(modulations, "CLOCK_SIGMA", 0.0)
    x = channel(random(10), tone, 60)
    offset = frequency(x) - 0.05
    assert np.isclose(offset.std(), modulations.CARRIER_SIGMA, rtol=0.1) and abs(offset.mean()) < 3e-6
    assert abs(np.mean(np.exp(1j * np.angle(x[:, 0])))) < 0.08  # phases all around the circle
    monkeypatch.undo()
    monkeypatch.setattr(modulations, "CARRIER_SIGMA", 0.0)
    clock = frequency(channel(random(11), tone, 60)) / 0.05 - 1
    assert np.isclose(clock.std(), modulations.CLOCK_SIGMA, rtol=0.1)


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


def test_file_has_the_original_layout(tmp_path):
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
    expected = make_frames("16QAM", 30, 2, random([5, cell]))
    assert np.array_equal(x[2 * cell : 2 * cell + 2], expected)
    assert np.array_equal(open_frames(path).x, x)
    assert [file.name for file in path.parent.iterdir()] == ["set.hdf5"]
    generate(path, 2, seed=5)  # whole: nothing to do
    with pytest.raises(DataError, match="is there already"):
        generate(path, 2, seed=6)


def test_interrupted_generation_goes_on_and_gives_the_same_file_with_more_workers(tmp_path, monkeypatch):
    generate(tmp_path / "whole", 1, workers=1)
    write = modulations._write_cell

    def stop_at_600(job):
        if job[3] == 600:
            raise KeyboardInterrupt
        return write(job)

    monkeypatch.setattr(modulations, "_write_cell", stop_at_600)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "parts", 1, workers=1)
    monkeypatch.undo()
    assert not (tmp_path / "parts").exists()
    with pytest.raises(DataError, match="other options"):
        generate(tmp_path / "parts", 1, seed=1, workers=1)
    with (tmp_path / ".parts.done").open("a") as file:
        file.write("60")  # a kill may leave half a line
    generate(tmp_path / "parts", 1, workers=2)
    assert np.array_equal(open_frames(tmp_path / "parts").x, open_frames(tmp_path / "whole").x)


def test_command_line_says_what_is_wrong_in_one_sentence(tmp_path, capsys):
    assert modulations.main([str(tmp_path / "x"), "--frames-per-cell", "0"]) == 2
    (tmp_path / "x").write_text("something else")
    assert modulations.main([str(tmp_path / "x")]) == 2
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    assert modulations.main([str(tmp_path / "folder" / "file" / "x")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)
