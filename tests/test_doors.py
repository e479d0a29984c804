"""What stands at the door of checkpoints.  Run: python -m pytest tests/test_doors.py"""

import json
import os
import resource
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from models import ModelError
from models.rebuild import rebuild
from models.vgg10 import VGG10, from_brevitas, from_checkpoint, to_brevitas, to_checkpoint
from tests.conftest import changed
from utils import checkpoint
from utils.checkpoint import CheckpointError
from utils.pruning_masks import nonzero_masks
from utils.training import Progress

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small() -> VGG10:
    torch.manual_seed(0)
    return VGG10(4, filters=2, dense=4, samples=128)


@pytest.fixture
def saved(small) -> dict:
    """A checkpoint's values; dictionaries may be changed, tensors not."""
    data = to_checkpoint(small)
    return data | {key: dict(data[key]) for key in ("state_dict", "arguments", "attributes", "shapes")}


# ---- the checksum ---------------------------------------------------------------------------------------------------


def test_a_bit_that_flipped_is_told_though_the_files_own_sums_are_right(saved, tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, saved)
    content, tensor = path.read_bytes(), next(iter(saved["state_dict"].values()))
    at = content.index(tensor.detach().numpy().tobytes()[:16])
    flipped = bytearray(content)
    flipped[at] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    # A tool that writes the archive anew mends its CRC; the checksum inside is of the tensors.
    data = torch.load(path, weights_only=True)
    torch.save(data, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with pytest.raises(CheckpointError, match="its checksum is another"):
        checkpoint.load(path)


def test_the_checksum_is_that_of_the_values_wherever_they_lie():
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    sums = {
        checkpoint.checksum({"x": value, "n": 1})
        for value in (x, x.clone(memory_format=torch.channels_last), x[:], nn.Parameter(x))
    }
    assert len(sums) == 1
    others = [{"x": x + 1, "n": 1}, {"x": x.double(), "n": 1}, {"x": x.flatten(), "n": 1}, {"x": x, "n": 1.0}]
    others += [{"n": 1, "x": x}, {"x": x, "n": True}, {"x": [x], "n": 1}, {"x": x, "m": 1}]
    assert len(sums | {checkpoint.checksum(other) for other in others}) == 9


def test_an_older_file_loads_with_a_note_and_gets_a_checksum_without_another_change(saved, tmp_path, capsys):
    path, beside = tmp_path / "w.pt", tmp_path / "w.json"
    torch.save(saved, path)
    facts = {"seed": 3, "figures": [1.5, None], "file": "w.pt", "bytes": 0, "sha256": checkpoint.sha256(path)}
    beside.write_text(json.dumps(facts))
    before = checkpoint.load(path)
    assert "holds no checksum; python -m utils.checkpoint" in capsys.readouterr().err
    assert checkpoint.main([str(path)]) == 0 and "checksum added" in capsys.readouterr().out
    after = checkpoint.load(path)
    assert capsys.readouterr().err == "" and checkpoint.checksum(before) == checkpoint.checksum(after)
    now = json.loads(beside.read_text())
    assert now == facts | {"bytes": path.stat().st_size, "sha256": checkpoint.sha256(path)}
    content = path.read_bytes()
    assert checkpoint.main([str(path)]) == 0 and path.read_bytes() == content


@pytest.mark.parametrize("path", sorted((ROOT / "weights").rglob("*.pt")), ids=lambda path: path.name)
def test_shipped_weights_hold_a_checksum(path, capsys):
    checkpoint.load(path)
    assert capsys.readouterr().err == ""


def test_crc_is_what_zip_calls_it(tmp_path):
    """The door reads the CRC that torch writes, so this must stay torch's default."""
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"x": torch.ones(5)})
    with zipfile.ZipFile(path) as archive:
        record = next(record for record in archive.infolist() if record.filename.endswith("/data/0"))
        assert record.CRC == zlib.crc32(torch.ones(5).numpy().tobytes())


# ---- the structure --------------------------------------------------------------------------------------------------


def in_a_child(work) -> float:
    """Megabytes by which a process grew in work(), at its most."""
    readable, pipe = os.pipe()
    child = os.fork()
    if not child:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        try:
            work()
        finally:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            os.write(pipe, f"{most - pages * resource.getpagesize() / 2**20}".encode())
            os._exit(0)
    os.close(pipe)
    with os.fdopen(readable) as told:
        grown = float(told.read())
    os.waitpid(child, 0)
    return grown


def test_a_file_that_claims_a_giant_network_is_refused_before_that_takes_memory(saved, tmp_path):
    saved["arguments"]["num_classes"] = 400_000_000  # output.weight alone would have 6.4 GB
    checkpoint.save(tmp_path / "a.pt", saved)

    def work():
        with pytest.raises(ModelError, match="output"):
            rebuild(checkpoint.load(tmp_path / "a.pt"))

    assert in_a_child(work) < 200


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(1).expand(4_000_000_000)}, path)
    with pytest.raises(CheckpointError, match="more than it holds"):
        checkpoint.load(path)
    torch.save({"x": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:  # the record is cut, its CRC is right
        for name, content in records.items():
            archive.writestr(name, content[:100] if name.endswith("/data/0") else content)
    with pytest.raises(CheckpointError, match="claims more than its record 0 holds"):
        checkpoint.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoint.load(path)


def test_what_is_no_checkpoint_value_is_refused_whatever_it_is(tmp_path):
    nested = []
    for _ in range(40):
        nested = [nested, nested]  # 2^40 values for whoever walks through them all
    for fault in (nested, 2**70, torch.zeros(2, 2).to_sparse(), {1: object}):
        data = {"x": fault}
        if fault != {1: object}:
            torch.save(data, tmp_path / "a.pt")
            with pytest.raises(CheckpointError):
                checkpoint.load(tmp_path / "a.pt")
        with pytest.raises(CheckpointError):
            checkpoint.save(tmp_path / "b.pt", data)
    assert not (tmp_path / "b.pt").exists()


WEIGHT = "features.0.layer.weight"
FAULTS = {
    "factory of another type": (("factory",), 7),
    "arguments of another type": (("arguments",), [1]),
    "an argument that is text": (("arguments", "filters"), "abc"),
    "an argument below 0": (("arguments", "num_classes"), -1),
    "a state that is a list": (("state_dict",), [torch.zeros(1)]),
    "a weight that is a number": (("state_dict", WEIGHT), 1.0),
    "a weight with NaN": (("state_dict", WEIGHT), torch.full((2, 2, 1, 3), torch.nan)),
    "a weight of whole numbers": (("state_dict", WEIGHT), torch.ones(2, 2, 1, 3, dtype=torch.int64)),
    "a weight of another shape": (("state_dict", WEIGHT), torch.ones(3, 2, 1, 3)),
    "a variance below 0": (("state_dict", "features.0.norm.running_var"), torch.tensor([1.0, -1.0])),
    "a shape that is a number": (("shapes", WEIGHT), 3),
    "a shape of another tensor": (("shapes", "nothing"), [1]),
    "a shape that holds a tensor": (("shapes", WEIGHT), [torch.ones(2)] * 2),
    "attributes of no layer": (("attributes", "nothing"), {"bits": 4}),
    "attributes that are a list": (("attributes", "input"), [4]),
    "bits that are text": (("attributes", "input"), {"bits": "four"}),
    "bits that are NaN": (("attributes", "input"), {"limit": torch.nan}),
    "channels that are not the weight's": (("attributes", "features.0.layer"), {"out_channels": 5}),
    "a stride of 0": (("attributes", "features.0.layer"), {"stride": (0, 1)}),
    "groups that don't divide": (("attributes", "features.0.layer"), {"groups": 0}),
    "an attribute that is none": (("attributes", "input"), {"forward": 1}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_part_of_a_network_is_checked_and_one_sentence_names_it(fault, saved):
    from_checkpoint(saved)
    with pytest.raises(ModelError) as caught:
        from_checkpoint(changed(saved, *FAULTS[fault]))
    assert "\n" not in str(caught.value)


def test_what_a_file_says_of_its_network_holds_no_tensor(saved, tmp_path):
    fine = {"accuracy": 0.5, "absent": ["NR"], "classes": {"LTE": None}}
    for value, good in (
        (0.5, True),
        (fine, True),
        (fine | {"accuracy": torch.ones(2)}, False),
        ({"a": [1e999]}, False),
    ):
        checkpoint.save(tmp_path / "a.pt", saved | {"validation": value})
        if good:
            assert checkpoint.load(tmp_path / "a.pt")["validation"] == value
        else:
            with pytest.raises(CheckpointError, match="validation holds"):
                checkpoint.load(tmp_path / "a.pt")


def test_the_challenges_file_is_checked_too(small):
    state = to_brevitas(small)
    for key, value in (
        ("1.weight", torch.full((2, 2, 3), torch.inf)),
        ("36.bias", 7),
        ("1.weight", torch.ones(10**6, 0, 3)),
    ):
        with pytest.raises(ModelError):
            from_brevitas(state | {key: value}, 4)
    with pytest.raises(ModelError):
        from_brevitas({**state, 7: 1}, 4)


FORM = {"masks": dict[str, torch.Tensor], "history": list[str], "progress": Progress}


def state_of(network: VGG10) -> dict:
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    network(torch.zeros(2, 2, 128)).sum().backward()
    optimizer.step()
    progress = {"epochs": 1, "batch": 0, "loss_sum": 0.0, "accuracy": 0.5, "best": -1.0, "waited": 0, "drops": 0}
    return to_checkpoint(network) | {
        "optimizer": optimizer.state_dict(),
        "masks": nonzero_masks(network.weights()),
        "history": ["a"],
        "progress": progress,
    }


def test_the_state_of_a_training_is_checked_before_it_goes_on(tmp_path):
    torch.manual_seed(0)
    network, path = VGG10(4, filters=2, dense=4, samples=128), tmp_path / "last.pt"
    data = state_of(network)

    def resumed(data):
        checkpoint.save(path, data)
        return checkpoint.resumed(path, True, FORM, from_checkpoint, "modulation")

    again = resumed(data)
    assert checkpoint.restored(Progress, again["progress"]) == Progress(1, 0, 0.0, 0.5)
    assert checkpoint.resumed(path, False, FORM, from_checkpoint) is None
    best = {key: value for key, value in data.items() if key not in ("optimizer", "masks", "progress")}
    with pytest.raises(CheckpointError, match="or of no training .there is no optimizer"):
        resumed(best)  # best.pt under the name last.pt
    optimizer, groups = data["optimizer"], data["optimizer"]["param_groups"]
    moment = optimizer["state"][0] | {"exp_avg": torch.zeros(3)}
    less = {key: value for key, value in optimizer["state"][0].items() if key != "exp_avg_sq"}
    for place, value in (
        (("progress", "epochs"), -1),
        (("progress", "best"), torch.inf),
        (("progress", "batch"), 1.5),
        (("progress", "more"), 1),
        (("history",), [1]),
        (("masks", "output.weight"), torch.ones(3, 3)),
        (("masks", "nothing"), torch.ones(1)),
        (("optimizer", "state", 0), moment),
        (("optimizer", "state", 99), moment),
        (("optimizer", "state", 0), less),
        (("optimizer", "param_groups"), [{key: value for key, value in groups[0].items() if key != "betas"}]),
        (("optimizer", "param_groups"), [{key: value for key, value in groups[0].items() if key != "eps"}]),
        (("optimizer", "param_groups"), [groups[0] | {"betas": (0.9,)}]),
        (("optimizer", "param_groups"), [groups[0] | {"amsgrad": True}]),
        (("optimizer", "param_groups"), [groups[0] | {"lr": torch.nan}]),
        (("optimizer", "param_groups"), [groups[0] | {"betas": (0.9, "x")}]),
        (("optimizer", "param_groups"), [groups[0] | {"params": [0]}]),
        (("optimizer", "param_groups"), [groups[0] | {"params": [0, torch.ones(2)]}]),
        (("optimizer", "param_groups"), groups * 2),
    ):
        with pytest.raises(CheckpointError, match="last.pt: "):
            resumed(changed(data, place, value))


def test_random_states_and_schedules_are_checked_and_the_check_draws_nothing():
    torch.manual_seed(1)
    state = checkpoint.rng_state()
    assert checkpoint.random_state(state, "rng") is None and checkpoint.random_state([state, state], "rng") is None
    for fault in ({}, 7, [], state | {"torch": torch.zeros(3)}, state | {"python": (3, (1,), None)}, [state, None]):
        assert checkpoint.random_state(fault, "rng")
    assert torch.equal(torch.get_rng_state(), state["torch"])
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5).state_dict()
    assert checkpoint.schedule(schedule, "scheduler") is None
    for fault in (
        {"last_epoch": -7},
        {"last_epoch": "1"},
        {"base_lrs": [torch.nan]},
        {"base_lrs": []},
        {"optimizer": 1},
    ):
        assert checkpoint.schedule(schedule | fault, "scheduler")
