"""experiments/reproduce.py: plan, slices, what is shipped. Run: python -m pytest tests/test_reproduce.py"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distill_seg
import evaluate
import feedback_magnitude_pruning
import prune_seg
import train_amc
import train_seg
from data import modulations, synthetic
from experiments import confidence, reproduce
from experiments.reproduce import Slice, State, Step, figures, plan_of, read_state, ship
from utils import runs
from utils.runs import RunError

SCRIPTS = {f"{m.__name__}.py": m for m in (distill_seg, evaluate, feedback_magnitude_pruning, prune_seg)}
SCRIPTS |= {"train_amc.py": train_amc, "train_seg.py": train_seg}
MODULES = {m.__name__: m for m in (modulations, synthetic, confidence)}


def options(tmp_path: Path, *argv: str) -> argparse.Namespace:
    return reproduce.parse_args(["--out", str(tmp_path), *argv])


class StopAt:
    """Ctrl-C that comes once a file is there."""

    def __init__(self, place: Path):
        self.place = place

    requested = property(lambda self: self.place.exists())


def run_slice(folder: Path, steps: list[Step], minutes: float | None = None, beside: bool = False, stop=None) -> State:
    state = read_state(folder, steps)
    Slice(folder, state, minutes, beside).work(steps, stop or StopAt(folder / "never"))
    assert read_state(folder, steps) == state
    return state


def python(code: str) -> str:
    return f"-c {shlex.quote(code)}"


# ---- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", ["--device cpu", "--device cpu --from-scratch", "--device cuda", "--preset tiny"])
def test_every_command_of_the_plan_is_one_that_its_script_takes(argv, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "STARTS", [Path("weights/h200")])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # the plan of a machine with a GPU, on any machine
    steps = plan_of(options(tmp_path, *argv.split()), tmp_path / "shipped")
    for step in steps:
        words = shlex.split(step.command)
        module, given = (MODULES[words[1]], words[2:]) if words[0] == "-m" else (SCRIPTS[words[0]], words[1:])
        if module is confidence:
            monkeypatch.setattr(sys, "argv", [words[1], *given])
            module.parse_args()
        else:
            module.parse_args(given)
        assert {need for need in step.needs} <= {other.name for other in steps[: steps.index(step)]}
    known = {step.name for step in steps}
    assert all(set(network.needs) - {f"scores of {network.name}"} <= known for network in reproduce.NETWORKS)


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    assert reproduce.main(["--out", str(out), "--dry-run", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert not out.exists() and "data.synthetic datasets/open --nr 900" in printed and "minutes are left" in printed


# ---- slices ----------------------------------------------------------------------------------------------------------

WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
place = pathlib.Path({place!r})
if not place.exists():
    place.touch()
    time.sleep(30)
place.write_text("finished")
"""


def test_the_end_of_a_slice_stops_its_step_and_the_next_slice_goes_on(tmp_path):
    place = tmp_path / "place"
    append = python(f"open({str(tmp_path / 'order')!r}, 'a').write('x')")
    steps = [Step("first", append), Step("second", python(WAITS.format(place=str(place))), ("first",))]
    steps += [Step("third", append, ("second",))]
    state = run_slice(tmp_path, steps, stop=StopAt(place))
    assert state.done == ["first"] and place.read_text() == "" and state.seconds["second"] > 0
    before = state.seconds["second"]
    state = run_slice(tmp_path, steps)
    assert state.done == ["first", "second", "third"] and place.read_text() == "finished"
    assert (tmp_path / "order").read_text() == "xx" and state.seconds["second"] > before  # nothing was done twice
    with pytest.raises(RunError, match="third was begun as"):
        read_state(tmp_path, [Step("third", "another.py")])


def test_generators_run_beside_a_training_on_a_gpu_and_after_it_on_a_cpu(tmp_path):
    meet = (
        "import pathlib, time; a, b = map(pathlib.Path, {}); a.touch()\nfor _ in range({}):\n  if b.exists(): break\n"
    )
    meet += "  time.sleep(0.05)\nelse: raise SystemExit('alone')"
    places = [str(tmp_path / name) for name in "ab"]
    steps = [
        Step("train", python(meet.format(places, 100))),
        Step("make", python(meet.format(places[::-1], 100)), on_cores=True),
    ]
    assert sorted(run_slice(tmp_path / "gpu", steps, beside=True).done) == ["make", "train"]
    for place in places:
        Path(place).unlink()
    steps[0] = Step("train", python(meet.format(places, 2)))
    with pytest.raises(RunError, match=r"train ended with exit code 1 \(alone\): see .*logs/train.log"):
        run_slice(tmp_path / "cpu", steps)


def test_a_step_that_can_not_be_interrupted_begins_only_if_it_fits(tmp_path):
    steps = [Step("cut", python("pass"), minutes=3, whole=True), Step("next", python("pass"), ("cut",))]
    assert run_slice(tmp_path, steps, minutes=2).done == []
    assert run_slice(tmp_path, [Step("made", python("pass"))], minutes=1e-9).done == []  # the slice is over
    assert run_slice(tmp_path, steps, minutes=4).done == ["cut", "next"]


# ---- what is shipped -------------------------------------------------------------------------------------------------


def facts(accuracy: float, score: float = 1.0) -> str:
    return json.dumps({"sets": {"test": {"accuracy": accuracy}}, "cost": {"score": score}})


@pytest.mark.parametrize(
    "name, new, old, ships",
    [
        ("amc_fmp", (0.5, 0.02), (0.5, 0.02), True),
        ("amc_fmp", (0.6, 0.03), (0.5, 0.02), False),
        ("amc_fmp", (0.4, 0.01), (0.5, 0.02), False),
        ("amc_baseline", (0.6, 1.01), (0.5, 1.0), True),
        ("amc_baseline", (0.4, 0.9), (0.5, 1.0), False),
    ],
)
def test_a_network_is_shipped_if_nothing_about_it_is_worse(name, new, old, ships, tmp_path):
    out, into = tmp_path / "out", tmp_path / "into"
    (out / "weights").mkdir(parents=True)
    (out / "scores" / name).mkdir(parents=True)
    (out / f"weights/{name}.pt").write_text("new")
    (out / f"weights/{name}.json").write_text(facts(*new))
    assert "shipped" in ship(name, out, into) and (into / f"{name}.pt").read_text() == "new"  # none was there
    (into / f"{name}.pt").write_text("old")
    (out / f"scores/{name}/result.json").write_text(facts(*old))
    told = ship(name, out, into)
    assert ("not shipped" not in told) == ships and (into / f"{name}.pt").read_text() == ("new" if ships else "old")
    assert figures({"sets": {"test": {"mean_iou": 0.8}}}, pruned=False) == {"mean IoU": 0.8}


def test_a_second_call_waits_for_the_first_and_for_steps_that_it_left_behind(tmp_path):
    with reproduce.locked(tmp_path) as lock:
        with pytest.raises(RunError, match="is at work"), reproduce.locked(tmp_path):
            pass
        step = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(RunError, match="is at work"), reproduce.locked(tmp_path):
        pass
    step.communicate(b"\n")
    with reproduce.locked(tmp_path):
        pass


@pytest.mark.slow
def test_the_tiny_preset_makes_and_ships_all_four_networks_in_slices(tmp_path, capsys):
    argv = ["--preset", "tiny", "--out", str(tmp_path), "--device", "cpu", "--minutes"]
    assert runs.run(lambda: reproduce.main([*argv, "0.5"])) == 0
    for _ in range(40):
        assert runs.run(lambda: reproduce.main([*argv, "6"])) == 0, capsys.readouterr()
        if "all steps are done" in capsys.readouterr().out:
            break
    shipped = {path.name for path in (tmp_path / "shipped").iterdir()}
    names = ("seg_teacher", "seg_student", "amc_baseline", "amc_fmp")
    assert shipped == {f"{n}{end}" for n in names for end in (".pt", ".json")} | {
        f"{n}.calibration.json" for n in names[:2]
    }
