"""The waterfall of a whole recording.   pytest tests/test_waterfall.py"""

import numpy as np
import pytest
from PIL import ImageDraw

from data.spectrogram import PARULA
from utils import pictures
from utils.pictures import WATERFALL_COLUMNS, WATERFALL_ROWS, Box, Waterfall, levels_over_time

NAMES = ("noise", "NR", "LTE")
LEFT = 64


def noise(count, seed=0):
    pairs = np.random.default_rng(seed).standard_normal((count, 2), np.float32) * np.float32(0.5**0.5)
    return pairs.view(np.complex64)[:, 0]


def test_levels_are_power_in_time_and_frequency():
    rate, count = 2e6, 80_000
    tone = np.exp(2j * np.pi * 0.25 * np.arange(count)).astype(np.complex64)
    tone[: count // 2] = 0
    levels = levels_over_time(noise(count) + tone, 8)
    assert levels.shape == (8, WATERFALL_COLUMNS) and levels.dtype == np.float32
    quiet = levels[:4].mean()
    assert quiet == pytest.approx(1, rel=0.05) and (levels[4:].argmax(1) == 384).all()  # 256 + 512 / 4
    assert levels[4:].sum() / 4 / 512 == pytest.approx(2, rel=0.1)  # Parseval
    assert levels_over_time(noise(100), 8).shape == (1, WATERFALL_COLUMNS)
    assert rate  # per Hz: the caller divides


@pytest.mark.parametrize("frames", [3, 700])
def test_any_length_keeps_its_mean_and_its_time_resolution(frames):
    waterfall, each = Waterfall(), np.ones((16, WATERFALL_COLUMNS), np.float32)
    for i in range(frames):
        waterfall.add(each * (i % 2 * 2 + 1), 0.04 * i, 0.04, 1e9, 2e6)
    seconds = np.array([row.seconds for row in waterfall.rows])
    assert seconds.sum() == pytest.approx(0.04 * frames) and len(seconds) <= 4 * WATERFALL_ROWS
    assert seconds.max() <= 0.04 * frames / WATERFALL_ROWS * 2 + 0.0026
    assert sum(row.seconds * row.power.mean() for row in waterfall.rows) / seconds.sum() == pytest.approx(2, rel=0.2)


def drawn(boxes, hop=0.0):
    waterfall = Waterfall()
    for i in range(10):
        levels = np.random.default_rng(i).gamma(8, 1 / 8, (16, WATERFALL_COLUMNS)).astype(np.float32)
        levels[:, 100:110] = 1000 * (i >= 5) + 1
        waterfall.add(levels, 0.04 * i, 0.04, 1e9 + hop * (i >= 5), 10e6)
    return np.asarray(waterfall.draw(boxes, PARULA, NAMES, "title"))


def test_time_goes_down_frequency_right_and_the_strongest_is_yellow():
    picture = drawn([])
    top = picture.shape[0] - 44 - WATERFALL_ROWS
    inside = picture[top : top + WATERFALL_ROWS, LEFT : LEFT + 900]
    band = slice(int(101 / 512 * 900), int(109 / 512 * 900))
    assert (inside[400:690, band].astype(int)[..., 0] > 240).all()
    assert (inside[10:340, band].astype(int)[..., 0] < 200).all()
    hopped = drawn([], hop=20e6)
    top = hopped.shape[0] - 44 - WATERFALL_ROWS
    inside = hopped[top : top + WATERFALL_ROWS, LEFT : LEFT + 900]
    assert (inside[:340, 310:] == 255).all() and (inside[360:, :590] == 255).all()  # nothing was recorded there


def test_rows_are_outlined_in_their_colour_and_no_label_covers_another(monkeypatch):
    texts, original = [], ImageDraw.ImageDraw.text

    def text(self, at, words, *arguments, **options):
        texts.append((words, self.textbbox(at, words, anchor=options.get("anchor"))))
        return original(self, at, words, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    boxes = [Box(1e9 + i * 3e5, 1e9 + i * 3e5 + 2e5, [(0.1, 0.3)], i % 3 or None, f"LTE {i} MHz") for i in range(30)]
    picture = drawn([*boxes, Box(1.0052e9, 1.0082e9, [(0.05, 0.1), (0.2, 0.35)], 2, "wide")])
    labels = [box for words, box in texts if words.startswith("LTE ") or words == "wide"]
    assert len(labels) == 31
    for i, a in enumerate(labels):
        assert a[0] >= LEFT and a[2] <= LEFT + 900
        for b in labels[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    colour = pictures.COLOURS[2].numpy()
    top = picture.shape[0] - 44 - WATERFALL_ROWS
    x = LEFT + round(0.67 * 899)  # inside the wide row
    lines = [y - top for y in range(top, top + WATERFALL_ROWS) if (picture[y, x] == colour).all()]
    for seconds in (0.05, 0.1, 0.2, 0.35):
        assert any(abs(y - seconds / 0.4 * 699) <= 2 for y in lines)
    for words in ("title", "frequency (MHz)", "time (s)", "dB per Hz", "NR", "LTE", "other", "0.40"):
        assert any(found.startswith(words) for found, _ in texts)
