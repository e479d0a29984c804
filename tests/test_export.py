"""export.py and utils/export.py, both kinds of networks. Run: python -m pytest tests/test_export.py"""

import copy
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import data.synthetic
import export as script
from data.radioml import open_frames, split
from data.spectrum_sensing import find_frames, read_tensors
from models import segmentation
from models.rebuild import describe, rebuild
from models.vgg10 import VGG10
from tests.conftest import write_levels
from utils import checkpoint, runs
from utils import export as exports
from utils.export import (
    Deployed,
    ExportError,
    different_answers,
    different_labels,
    export,
    export_and_compare,
    export_integer_onnx,
    fold_batch_norm,
    load_exported,
    run_integer_onnx,
    streamline,
)

MODEL = "lraspp_mobilenet_v3_large"


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """20 frames of 64 x 64 pixels."""
    names = [f"{family}_frame_{i}" for family in ("NR", "LTE") for i in range(10)]
    return write_levels(tmp_path_factory.mktemp("levels"), names)


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A segmentation network that was never trained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "student.pt"
    data = describe(segmentation.build(MODEL), *segmentation.factory(MODEL))
    checkpoint.save(path, data | {"kind": "segmentation"})
    return path


# ---- segmentation ----------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """A convolution whose result is used with and without its batch norm, if `twice`."""

    def __init__(self, twice: bool):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), twice
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x):
        maps = self.conv(x)
        return self.norm(maps).relu() + (maps if self.twice else x.mean())


def test_batch_norms_fold_exactly_or_not_at_all():
    torch.manual_seed(0)
    model, x = Shared(False).eval().double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    folded = fold_batch_norm(model, x, tolerance=1e-12)
    assert isinstance(folded.norm, nn.Identity) and isinstance(model.norm, nn.BatchNorm2d)
    assert torch.allclose(folded(x), model(x), atol=1e-12)
    with pytest.raises(ExportError, match="can't be folded"):
        fold_batch_norm(Shared(True).eval(), x.float())


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_a_streamlined_network_computes_the_same(name):
    torch.manual_seed(0)
    model = Deployed(segmentation.build(name), segmentation.MEAN, segmentation.STD).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    light, wanted = streamline(model, images), model(images)
    assert (light(images[:1]) - wanted[:1]).abs().max() < 1e-5 * wanted.abs().max()
    assert not any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in light.modules())
    twice = copy.deepcopy(model)
    twice.__class__ = type("Twice", (Deployed,), {"forward": lambda self, x: 2 * Deployed.forward(self, x)})
    with pytest.raises(ExportError, match="can't be streamlined"):
        streamline(twice, images)


@pytest.mark.slow
def test_an_exported_network_gives_the_same_labels_for_any_batch(student, frames, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exports, "export_and_compare", partial(export_and_compare, runs=2))
    file = tmp_path / "s.pt2"
    assert script.main([str(student), str(file), "--data-dir", str(frames)]) == 0
    assert "0 labels differ" in capsys.readouterr().out
    images, _ = read_tensors(find_frames(frames)[:5], progress=False)
    network = rebuild(checkpoint.load(student)).eval()
    ours, theirs = segmentation.predict(network, images), load_exported(file)(images).argmax(1)
    assert (ours != theirs).float().mean() < 1e-4 and len(np.unique(ours)) > 1
    facts = json.loads((tmp_path / "s.pt2.json").read_text())
    assert facts["latency"]["s.pt2"]["median_ms"] > 0 and facts["images"] == 20 and facts["from"] == str(student)


def test_an_export_without_data_makes_the_few_frames_that_it_compares_on(student, frames, tmp_path, monkeypatch):
    made, compared = [], []

    def generate(folder, counts, workers):
        made.append(counts)
        shutil.copytree(frames, folder)

    def compare(model, light, images, path, others):
        compared.append(len(images))
        raise ExportError("enough")

    monkeypatch.setattr(data.synthetic, "generate", generate)
    monkeypatch.setattr(exports, "export_and_compare", compare)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="enough"):
        script.main([str(student), "s.pt2"])
    assert [sum(counts.values()) for counts in made] == compared == [20]


def test_onnx_without_its_packages_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install onnx onnxscript onnxruntime"):
        export(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_an_export_is_whole_or_the_old_one_and_removes_what_a_kill_left_of_another(monkeypatch, tmp_path):
    def save(content, file):
        file.write(content)
        if content == b"half":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "export", lambda model, *_, **__: model.content)
    monkeypatch.setattr(torch.export, "save", save)
    model, x, path = nn.Identity(), torch.zeros(1, 3), tmp_path / "student.pt2"
    for name in (".student.pt2.ab12_xyz", ".teacher.pt2.ab12_xyz"):
        (tmp_path / name).touch()
    model.content = b"whole"
    export(model, x, path)
    model.content = b"half"
    with pytest.raises(ExportError, match=r"student.pt2: can't be written \(No space left on device\); choose another"):
        export(model, x, path)
    assert path.read_bytes() == b"whole"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".teacher.pt2.ab12_xyz", "student.pt2"]


@pytest.mark.slow
def test_an_onnx_file_gives_the_same_labels_for_any_batch(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    torch.manual_seed(0)
    model, x = Shared(False).eval(), torch.randn(6, 3, 8, 8)
    export(fold_batch_norm(model, x), x, tmp_path / "m.onnx")
    assert different_labels(model, load_exported(tmp_path / "m.onnx"), x)[0] == 0


def test_other_labels_are_counted_and_ties_told_apart():
    logits = F.one_hot(torch.randint(3, (4, 5, 5)), 3).permute(0, 3, 1, 2).float()  # (4, 3, 5, 5)
    changed = logits.clone()
    changed[0, :, 0, 0], changed[3, :, 4, 4] = logits[0, :, 0, 0].roll(1), logits[3, :, 4, 4].roll(1)
    logits[3, :, 4, 4] *= 1e-4
    table = {"ours": logits, "theirs": changed}

    def lookup(name):
        return lambda numbers: table[name][numbers]

    assert different_labels(lookup("ours"), lookup("theirs"), torch.arange(4)) == (1, 1)


# ---- modulations -----------------------------------------------------------------------------------------------------


def test_mixed_widths_give_the_same_answers_from_integer_weights(radioml_file, tmp_path):
    onnx = pytest.importorskip("onnx", reason="optional: pip install onnx onnxruntime")
    pytest.importorskip("onnxruntime", reason="optional: pip install onnx onnxruntime")
    torch.manual_seed(0)
    network, file = VGG10((4, 2, 3, 8, 5, 2, 6, 3, 7, 4), (5, 4, 8, 2, 3, 6, 7, 2, 3, 8), filters=8, dense=16), "m.onnx"
    frames = open_frames(radioml_file)
    x = frames[np.arange(0, len(frames), 7)][0]
    network.train()(x)  # thresholds and norms that fit
    network.eval()
    export_integer_onnx(network, tmp_path / file)
    assert different_answers(network, tmp_path / file, x) <= 0.02 * len(
        x
    )  # a value between two codes may go either way
    written = [
        onnx.numpy_helper.to_array(c) for c in onnx.load(tmp_path / file).graph.initializer if len(c.dims) in (2, 4)
    ]
    for codes, layer in zip(written, network.layers().values(), strict=True):
        assert np.array_equal(codes, layer.weight_codes().numpy())
        assert np.abs(codes).max() == 2 ** (layer.weight_bits - 1) - 1


def test_onnx_runtime_gives_the_same_answers_from_integer_weights(radioml_file, untrained_classifier, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="optional: pip install onnx onnxruntime")
    pytest.importorskip("onnxruntime", reason="optional: pip install onnx onnxruntime")
    file, frames = tmp_path / "network.onnx", open_frames(radioml_file)
    assert script.main([str(untrained_classifier), str(file), "--data-file", str(radioml_file)]) == 0
    assert "frames are named otherwise" in capsys.readouterr().out
    network, x = rebuild(checkpoint.load(untrained_classifier)).eval(), frames.samples(split(frames)["test"][::7])
    with torch.no_grad():
        expected = network(x)
    found = run_integer_onnx(file, x)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95  # a value between two codes may go either way
    assert ((found - expected).abs().max(1).values < 1e-4).float().mean() > 0.8
    types = [constant.data_type for constant in onnx.load(file).graph.initializer if len(constant.dims) in (2, 4)]
    assert types == [onnx.TensorProto.INT8] * 10


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence_and_exit_code_2(student, untrained_classifier, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: None)
    checkpoint.save(tmp_path / "odd.pt", {"1.weight": torch.zeros(1)})
    (tmp_path / "empty").mkdir()
    for argv, words in [
        ([str(tmp_path / "nowhere.pt"), "x.pt2"], "no such checkpoint"),
        ([str(tmp_path / "odd.pt"), "x.onnx"], "not a VGG10 checkpoint"),
        ([str(student), "x.pt2", "--data-dir", str(tmp_path / "empty")], "no frames"),
        ([str(untrained_classifier), str(tmp_path / "x.pt2")], ".onnx only"),
        ([str(untrained_classifier), str(tmp_path / "x.onnx")], "pip install onnx"),
    ]:
        assert runs.run(lambda argv=argv: script.main(argv), *script.ERRORS) == 2, argv
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and words in error
    with pytest.raises(SystemExit, match="2"):
        script.parse_args([str(student), "x.pth"])
