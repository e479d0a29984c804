"""Shared by all tests: one thread, small frames that look a little like spectrograms, generated carriers, a server."""

import copy
import csv
import functools
import http.server
import io
import json
import os
import signal
import socket
import tarfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_amc
from data.augment import colormap_index
from data.hdf4 import write_raster
from data.lte_nr import LTE_RB, NR_RB, LteConfig, NrConfig, Waveform, lte_waveform, nr_waveform
from data.radioml import create_file
from data.spectrogram import PARULA, SIZE
from models import segmentation
from models.rebuild import describe
from models.vgg10 import VGG10
from utils import checkpoint, cost, runs

torch.set_num_threads(1)
# Tests that kill a run fork first. Autograd starts threads of its own at the first backward that comes after an export,
# and then refuses to work in a fork; a backward before everything else keeps it without threads.
torch.ones(1, requires_grad=True).sum().backward()

BANDS = {  # label and colour of each carrier; NR blinks, LTE is steady
    "NR": [(127, (250, 220, 60))],
    "LTE": [(255, (60, 190, 170))],
    "LTE_NR": [(255, (60, 190, 170)), (127, (250, 220, 60))],
    "FIELD": [(127, (250, 220, 60)), (255, (60, 190, 170))],
}
FOLDERS = {"LTE_NR": "LTE_NR/", "FIELD": "FIELD/"}


def write_frames(root, counts: dict[str, int], size: int = 256, seed: int = 0) -> Path:
    """Write `counts` = {"NR": 3, "LTE_NR": 2, ...} frames of size x size pixels in the archive's layout; returns root.

    Each carrier is a bright band on blue noise; FIELD_frame_1 is empty. frames.csv lists them as the generator does.
    """
    root, rows = Path(root), []
    for family, count in counts.items():
        for number in range(1, count + 1):
            rng = np.random.default_rng([seed, len(family), ord(family[0]), number])
            name = f"{FOLDERS.get(family, '')}{family}_frame_{number}"
            image = rng.normal((50, 60, 150), 12, (size, size, 3))
            mask = np.zeros((size, size), np.uint8)
            carriers = [] if (family, number) == ("FIELD", 1) else BANDS[family]
            for slot, (label, colour) in enumerate(carriers):
                room = size // len(carriers)
                width = int(rng.integers(room // 5, room // 2))
                left = slot * room + int(rng.integers(1, room - width))
                active = rng.random(size) < (0.6 if label == 127 else 1.0)
                image[active, left : left + width] = rng.normal(colour, 12, (active.sum(), width, 3))
                mask[:, left : left + width] = label
            snr = 10.0 * (number % 4) if carriers else ""
            rows.append([name, family, number, snr, json.dumps([{"snr_db": snr}] * len(carriers))])
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{name}.png")
            write_raster(root / f"{name}.hdf", mask)
    with open(root / "frames.csv", "w", newline="") as file:
        csv.writer(file).writerows([["frame", "family", "seed", "snr_db", "carriers"], *rows])
    return root


@pytest.fixture(scope="session")
def frames_dir(tmp_path_factory) -> Path:
    """A set to read, not to change: 6 NR, 6 LTE, 4 LTE_NR and 4 FIELD frames of 256x256 pixels."""
    return write_frames(tmp_path_factory.mktemp("frames"), {"NR": 6, "LTE": 6, "LTE_NR": 4, "FIELD": 4})


@pytest.fixture(scope="session")
def small_frames_dir(tmp_path_factory) -> Path:
    """The same in 128x128 pixels, for tests that train."""
    return write_frames(tmp_path_factory.mktemp("small"), {"NR": 6, "LTE": 6, "LTE_NR": 4, "FIELD": 4}, size=128)


def write_levels(root: Path, names: list[str], seed: int = 0, size: int = 64) -> Path:
    """Frames in parula colours: noise, and one band, brighter for LTE; the labels are 127 and 255."""
    for number, name in enumerate(names):
        rng = np.random.default_rng([seed, number])
        lte = "LTE" in name
        levels, mask = rng.normal(60, 15, (size, size)), np.zeros((size, size), np.uint8)
        left, width = rng.integers(32), rng.integers(12, 32)
        levels[:, left : left + width] += 120 if lte else 60
        mask[:, left : left + width] = 255 if lte else 127
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PARULA[levels.clip(0, 255).astype(np.uint8)]).save(root / f"{name}.png")
        write_raster(root / f"{name}.hdf", mask)
    return root


@pytest.fixture(scope="module")
def short_timing():
    """Two threads on a busy machine may wait for each other for minutes; how latency is taken: tests/test_cost.py."""
    few = functools.partial(cost.latency, warm_up=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "latency", lambda models, x, threads, **_: few(models, x, threads, runs=2))
        yield


# ---- an archive, and a server that misbehaves ------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `breaks` lists after how many bytes each of the next replies breaks off (None: it does not)."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/set/archive.tar.gz"
        self.content, self.etag = content, '"one"'
        self.breaks, self.ranges, self.if_range, self.status = [], True, True, None
        self.flowing = threading.Event()  # cleared: after a reply's last byte the line stays open, silent
        self.flowing.set()
        self.asked, self.sent = [], 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if server.if_range and self.headers.get("If-Range", server.etag) != server.etag:
            start = 0
        if server.status or start >= len(server.content):
            return self.send_error(server.status or 416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        if start:
            total = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        limit = server.breaks.pop(0) if server.breaks else None
        body = body[:limit]
        server.sent += len(body)  # before the write: the client may look as soon as it has the last byte
        self.wfile.write(body)
        server.flowing.wait()

    def log_message(self, *args):
        pass


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    """A Server that answers in a thread of its own until the block ends."""
    server = Server(content)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def packed(members: dict) -> bytes:
    """A .tar.gz of {name: bytes, or a TarInfo for special members}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# ---- segment.py and its evidence ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """A checkpoint as train_seg.py writes it, of an untrained network."""
    factory, arguments = segmentation.factory("lraspp_mobilenet_v3_large")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("untrained") / "seg.pt"
    network = segmentation.build("lraspp_mobilenet_v3_large")
    checkpoint.save(path, describe(network, factory, arguments) | {"kind": "segmentation"})
    return path


def label_by_level(logits_of, picture):
    """In place of utils.labelling.class_probabilities: columns 5 dB above the noise are LTE, columns 25 dB above it NR.

    The picture's scale comes from its noise.
    """
    index, _ = colormap_index(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None], torch.from_numpy(PARULA))
    index = index[0].numpy()
    quiet = index[:, index.mean(0) <= np.percentile(index.mean(0), 20)]
    db = 6.83 / max(1, np.subtract(*np.percentile(quiet, (75, 25))))
    level = (np.percentile(index, 90, axis=0) - np.percentile(quiet, 90)) * db
    kind = np.where(level > 25, 1, np.where(level > 5, 2, 0))
    one_hot = np.eye(3, dtype=np.float32)[kind].T  # (3, 256)
    return np.repeat((0.7 * one_hot + 0.1)[:, None], SIZE, 1)


def lte_carrier(bandwidth_hz=5e6, cell_id=7, load=0.5, seed=0, **options) -> Waveform:
    """40 ms of LTE with a random part of its resource blocks in use."""
    rng = np.random.default_rng(seed)
    allocation = (rng.random((40, LTE_RB[bandwidth_hz])) < load).astype(np.float32)
    return lte_waveform(LteConfig(bandwidth_hz, cell_id, allocation, **options), rng)


def nr_carrier(bandwidth_hz=10e6, spacing_hz=30e3, cell_id=7, load=0.5, seed=0, **options) -> Waveform:
    """40 ms of NR with a random part of its resource blocks in use."""
    rng = np.random.default_rng(seed)
    slots = round(40 * spacing_hz / 15e3)
    allocation = (rng.random((slots, NR_RB[spacing_hz][bandwidth_hz])) < load).astype(np.float32)
    return nr_waveform(NrConfig(bandwidth_hz, spacing_hz, cell_id, allocation, **options), rng)


def resampled(samples, count):
    """The same time in `count` samples, complex (count,), through the spectrum: what a slower rate lacks is cut off."""
    spectrum, bins = np.zeros(count, complex), np.fft.fft(samples)
    half = min(len(samples), count) // 2
    spectrum[:half], spectrum[-half:] = bins[:half], bins[-half:]
    return np.fft.ifft(spectrum) * (count / len(samples))


def lte_capture(rate, load, snr_db=20):
    """40 ms of a 10 MHz LTE carrier, captured at any rate: complex64, noise of power 1 / rate per Hz."""
    spectrum = np.fft.fft(lte_carrier(10e6, 7, load, seed=1).samples)  # lines of 25 Hz, as every 40 ms
    line = np.round(np.fft.fftfreq(len(spectrum), 1 / len(spectrum))).astype(int)
    count = round(rate * 0.04)
    inside = np.abs(line) < min(count // 2, 201_000)
    wide = np.zeros(count, complex)
    wide[line[inside]] = spectrum[inside]
    x = np.fft.ifft(wide)
    pairs = np.random.default_rng(0).standard_normal((count, 2), np.float32) * np.float32(0.5**0.5)
    level = 10 ** (snr_db / 10) * 9e6 / rate * min(1, rate / 9e6)
    return (x * np.sqrt(level / np.mean(np.abs(x) ** 2)) + pairs.view(np.complex64)[:, 0]).astype(np.complex64)


# ---- modulations: a tiny file, a network trained on it, and runs that must not depend on interruptions

AMC_SMALL = ["--batch-size", "16", "--lr", ".01", "--seed", "1"]


@pytest.fixture(scope="session")
def radioml_file(tmp_path_factory) -> Path:
    """All 24 x 26 cells, three frames each: one to train on, one to choose by, one to report.

    A frame is noise around a mean that names its class, so that a network of eight filters learns something at once.
    """
    path = tmp_path_factory.mktemp("radioml") / "tiny.hdf5"
    with create_file(path, 3) as file:
        rng = np.random.default_rng(0)
        mean = np.stack(np.divmod(np.arange(24), 6), axis=1) * (0.8, 0.5) - (1.2, 1.25)  # (24, 2), I and Q
        noise = rng.standard_normal((24, 26 * 3, 1024, 2), np.float32)
        file["X"][:] = (mean[:, None, None] + 0.1 * noise).reshape(-1, 1024, 2)
    return path


@pytest.fixture(scope="session")
def amc_baseline(radioml_file, tmp_path_factory) -> Path:
    """The run folder of a w8a8 network of eight filters, trained for two epochs."""
    folder = tmp_path_factory.mktemp("amc") / "baseline"
    argv = ["--data-file", str(radioml_file), *AMC_SMALL, "--filters", "8", "--dense", "16", "--epochs", "2"]
    assert train_amc.main([*argv, "--schedule", "cosine", "--save-every", "30", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def untrained_classifier(tmp_path_factory) -> Path:
    """A small VGG10 that was never trained."""
    torch.manual_seed(0)
    network = VGG10(8, filters=8, dense=16)
    path = tmp_path_factory.mktemp("classifier") / "vgg10.pt"
    checkpoint.save(path, describe(network, "models.vgg10.VGG10", network.arguments()) | {"kind": "modulation"})
    return path


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in open(folder / "log.jsonl")]


def contents(folder: Path) -> dict:
    """Everything that a modulation run leaves and that must not depend on interruptions."""
    states = {path.name: checkpoint.load(path) for path in sorted(folder.glob("*.pt"))}
    return states | {"log": log_of(folder), "result": json.loads((folder / "result.json").read_text())}


def assert_equal(ours, theirs, name=""):
    """Same structure, plain values equal, tensors bit for bit; commands and speeds may differ."""
    assert type(ours) is type(theirs), name
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"command", "scored_by", "trained_by", "frames_per_second"}:
            assert_equal(ours[key], theirs[key], f"{name}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), name
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b, name)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), name
    else:
        assert ours == theirs, name


def kill_inside(module, name: str, count: int, main, argv: list[str]) -> int:
    """Run main(argv) in a child that is killed at the count-th call of module.NAME; the signal that ended it."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    try:
        inner, left = getattr(module, name), [count]

        def counting(*args, **values):
            left[0] -= 1
            return inner(*args, **values) if left[0] else os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, name, counting)
        main(argv)
    except BaseException:  # told here: nothing of the child's survives it
        traceback.print_exc()
    finally:
        os._exit(1)


def signalled(inner: Callable, count: int, number: int, rank: int = 0) -> Callable:
    """A function that sends its own process a signal at its `count`-th call, in the process of that rank."""
    calls = []

    def outer(*args):
        calls.append(None)
        if len(calls) == count and runs.rank_and_world()[0] == rank:
            os.kill(os.getpid(), number)
        return inner(*args)

    outer.calls = calls
    return outer


def two_processes(work: Callable[[], object]) -> list:
    """work() in each of two children that find each other as torchrun's do (gloo); what they return, by rank.

    What comes back must be plain values or tensors. A child that fails tells on stderr, and gives None.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    children = []
    for rank in range(2):
        reader, writer = os.pipe()
        if child := os.fork():
            os.close(writer)
            children.append((child, reader))
            continue
        try:
            os.environ |= meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open(writer, "wb") as pipe:
                torch.save(work(), pipe)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    told = []
    for child, reader in children:
        with open(reader, "rb") as pipe:
            content = pipe.read()
        os.waitpid(child, 0)
        told.append(torch.load(io.BytesIO(content), weights_only=True) if content else None)
    return told


# ---- pruned networks, and changed values ----------------------------------------------------------------------------


def zeroed(model, plan):
    """The dense model with the plan's entries set to zero, by hand."""
    model = copy.deepcopy(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, axis, indices in plan.remove:
        tensors[name].data.index_fill_(axis, torch.tensor(indices), 0)
    return model


def kept(plan):
    """How many units of each group stay."""
    return {group["name"]: group["kept"] for group in plan.groups}


def changed(data: dict, place: tuple, value) -> dict:
    """A copy with another value at a place."""
    head, *rest = place
    return {**data, head: changed(data[head], rest, value) if rest else value}
