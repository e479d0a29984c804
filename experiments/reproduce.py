"""Every shipped network from nothing: frames, trainings, scores, and the tables of the documentation.

    python -m experiments.reproduce --dry-run                # the plan: commands, and minutes on this machine
    python -m experiments.reproduce --minutes 9              # a slice of nine minutes; the same call goes on
    python -m experiments.reproduce --preset tiny --out runs/tiny          # the same on a few frames, ships nothing

A step is a command of this repository. Its output goes to logs/STEP.log in the folder --out, and state.json notes what
is finished, so a call that was stopped or killed goes on where it was. While a GPU trains, the cores generate the
frames of the next training; without a GPU one step runs after the other. At the end of a slice the running steps get
SIGTERM: trainings save their state, generators keep whole frames. Steps marked "whole" can't be interrupted, so they
start only if they fit into what is left of the slice.

On a GPU all networks start from new weights. On a CPU teacher and baseline start from the networks of weights/h200, if
they are there and --from-scratch is not given.

A finished network is shipped to weights/ if it is at least as good as the one there, both scored on the same test
frames: by mean IoU or accuracy, and the pruned classifier by the challenge's score as well. Its .pt, its .json and, for
spectrograms, its .calibration.json are copied. Then experiments.report writes docs/RESULTS.md and the other pages.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from utils import runs
from utils.release import shipped
from utils.runs import RunError, StopSignal, hardware, run, write_json

STARTS = [Path(folder) for folder in ("weights/h200", "runs/h200", "../shared/results/h200")]  # networks to start from
START_FILES = ("seg_teacher.pt", "amc_baseline_w8a8.pt")
GRACE = 45  # seconds that a step has to save its state
POLL = 0.2  # seconds between two looks at the running steps

OPEN = "--nr 900 --lte 900 --combined 600 --field 3000 --other 1800 --seed 0"
RADIOML = "--frames-per-cell 800 --seed 53"
LONG = "--schedule cosine --lr 1e-3 --batch-size 64 --epoch-frames 106240 --seed 53"
FMP = "feedback_magnitude_pruning.py --input-bits 6 --score lamp-cost --alpha 1 --schedule cosine --checkpoint {amc}"
# Options of each step, and its work: frames made, frames seen by a training, or recordings. The shipped networks had
# more trainings, one after the other (weights/*.json); a recipe is the shortest way that is known.
RECIPES = {
    "cuda": {
        "modulations": (RADIOML, 499_200),
        "frames": (OPEN, 7_200),
        "baseline": ("train_amc.py --batch-size 512 --lr 2e-3 --schedule cosine --epochs 16", 16 * 424_320),
        "pruned": (FMP + " --p .3 --batch-size 512 --lr 2e-3 --step-epochs 6 --budget 40", 40 * 424_320),
        "teacher": ("--epochs 30", 30 * 5_280),
        "cut": ("", 1),
        "student": ("--keep-logits --epochs 30", 30 * 5_280),
        "confidence": ("--draws 100", 200),
    },
    "cpu": {
        "modulations": (RADIOML, 499_200),
        "frames": (OPEN, 7_200),
        "baseline": ("train_amc.py --epochs 20 {start_baseline} " + LONG, 20 * 106_240),
        "pruned": (FMP + " --p .4 --lr 7e-4 --epoch-frames 106240 --step-epochs 14 --budget 45", 45 * 106_240),
        "teacher": ("--epochs 16 {start_teacher}", 16 * 5_280),
        "cut": ("", 1),
        "student": ("--keep-logits --epochs 20", 20 * 5_280),
        "confidence": ("--draws 200", 400),
    },
    "cpu from scratch": {
        "baseline": ("train_amc.py --epochs 30 " + LONG, 30 * 106_240),
        "teacher": ("--epochs 30", 30 * 5_280),
    },
    "tiny": {
        "modulations": ("--frames-per-cell 4 --seed 53", 2_496),
        "frames": ("--nr 10 --lte 10 --combined 1 --field 0 --other 0 --seed 0", 21),
        "baseline": ("train_amc.py --filters 8 --dense 16 --batch-size 32 --epoch-frames 256 --epochs 1", 256),
        "pruned": (FMP + " --batch-size 32 --epoch-frames 64 --step-epochs 1 --budget 2 --keep .1", 128),
        "teacher": ("--model lraspp_mobilenet_v3_large --batch-size 4 --epochs 1", 16),
        "cut": ("--probe-frames 4 --target-params 400e3", 1),
        "student": ("--keep-logits --batch-size 4 --epochs 1", 16),
        "confidence": ("--draws 4", 8),
    },
}
RECIPES["cpu from scratch"] = RECIPES["cpu"] | RECIPES["cpu from scratch"]
# Units of that work a second. Generation: of one core. Measured on two cores of an AMD EPYC without AMX (README.md) and
# on an H200 with 16 cores (weights/h200/README.md); the confidence takes one core either way.
SPEEDS = {
    "cpu": {"modulations": 520, "frames": 1.9, "baseline": 300, "pruned": 300, "teacher": 9, "student": 27},
    "cuda": {"modulations": 1_040, "frames": 1.75, "baseline": 60_000, "pruned": 60_000, "teacher": 800},
}
SPEEDS["cpu"] |= {"cut": 1 / 240, "confidence": 0.44}
SPEEDS["cuda"] |= {"student": 800, "cut": 1 / 60, "confidence": 0.44}


@dataclass(frozen=True)
class Step:
    name: str
    command: str  # without "python"
    needs: tuple[str, ...] = ()  # steps that come before it
    minutes: float = 0.0  # estimated
    on_cores: bool = False  # runs beside the training on a GPU
    whole: bool = False  # can't be interrupted


@dataclass(frozen=True)
class Network:
    """A network that is shipped, and the steps that it needs."""

    name: str  # of its files, without suffix
    needs: tuple[str, ...]


NETWORKS = (
    Network("seg_teacher", ("teacher", "confidence of the teacher", "scores of seg_teacher")),
    Network("seg_student", ("student", "confidence of the student", "scores of seg_student")),
    Network("amc_baseline", ("baseline", "scores of amc_baseline")),
    Network("amc_fmp", ("pruned", "scores of amc_fmp")),
)


@dataclass
class State:
    """What is finished; state.json holds these values."""

    commands: dict[str, str] = field(default_factory=dict)  # of the steps that have begun
    seconds: dict[str, float] = field(default_factory=dict)  # that they have taken so far
    done: list[str] = field(default_factory=list)
    shipped: dict[str, str] = field(default_factory=dict)  # a sentence for each network that was compared


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["full", "tiny"], default="full", help="tiny: minutes, ships nothing")
    parser.add_argument("--out", type=runs.path, default=Path("runs/reproduce"), help="default runs/reproduce")
    parser.add_argument("--minutes", type=runs.positive, help="length of this slice, default until all is done")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, do nothing")
    parser.add_argument("--from-scratch", action="store_true", help="on a CPU too, start from new weights")
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    into = shipped("") if args.preset == "full" else args.out / "shipped"
    steps = plan_of(args, into)
    state = read_state(args.out, steps)
    compared = {f"scores of {name}" for name in state.shipped}  # what is there is the new network by now
    steps = [step for step in steps if step.name not in compared or step.name in state.done]
    print(table_of(steps, state, args), flush=True)
    if args.dry_run:
        return 0

    with StopSignal() as stop, locked(args.out) as lock:
        slice_ = Slice(args.out, state, args.minutes, beside=args.device.startswith("cuda"), kept_open=(lock,))
        slice_.work(steps, stop)
    left = [step.name for step in steps if step.name not in state.done]
    for network in NETWORKS:
        if not set(network.needs) & set(left) and network.name not in state.shipped:
            state.shipped[network.name] = ship(network.name, args.out, into)
            write_json(args.out / "state.json", vars(state))
            print(state.shipped[network.name], flush=True)
            if args.preset == "full" and subprocess.run([sys.executable, "-m", "experiments.report"]).returncode:
                raise RunError(f"{network.name} is shipped, but experiments.report failed: run it again by hand")
    print(f"left: {', '.join(left)}; the same command goes on" if left else "all steps are done", flush=True)
    return 130 if stop.requested else 0


# ---- the plan --------------------------------------------------------------------------------------------------------


def plan_of(args, into: Path) -> list[Step]:
    """All steps, in the order in which they begin. The networks in `into` are scored on the new frames, for `ship`."""
    on_gpu, out, full = args.device.startswith("cuda"), args.out, args.preset == "full"
    start = {} if args.from_scratch else starts()
    recipe = (
        "tiny" if not full else "cuda" if on_gpu else "cpu" if len(start) == len(START_FILES) else "cpu from scratch"
    )
    speeds, recipe = SPEEDS["cuda" if on_gpu else "cpu"], RECIPES[recipe]
    frames = Path("datasets/open") if full else out / "frames"
    file = Path("datasets/radioml_53.hdf5") if full else out / "modulations.hdf5"
    words = {"amc": out / "baseline/best.pt"}
    words |= {f"start_{name}": f"--checkpoint {start.get(name)}" for name in ("teacher", "baseline")}

    def step(name: str, command: str, needs: tuple[str, ...] = (), **more) -> Step:
        kind = name.partition(" ")[0]  # "confidence of the teacher" is a "confidence"
        options, units = recipe[kind]
        each = units / speeds[kind] / 60
        minutes = each / (os.cpu_count() if kind in ("modulations", "frames") else 1)  # generators take all cores
        return Step(name, command.format(options.format(**words)).replace("  ", " ").rstrip(), needs, minutes, **more)

    def training(name: str, network: str, command: str, needs: tuple[str, ...]) -> Step:
        ends = f" --out {out}/{name} --resume --save-weights {out}/weights/{network}.pt --device {args.device}"
        return step(name, command + ends, needs)

    seg = f"--data-dir {frames}"
    teacher = f"--teacher {out}/teacher/best.pt"
    cut = f"prune_seg.py {seg} {teacher} {{}} --out {out}/cut --resume --device {args.device}"
    student = f"distill_seg.py {seg} {teacher} --student {out}/cut/pruned.pt {{}}"
    confidence = f"-m experiments.confidence {{}} --out {out}/confidence --checkpoint {out}/weights/"
    steps = [
        step("modulations", f"-m data.modulations {file} {{}}", on_cores=True),
        step("frames", f"-m data.synthetic {frames} {{}}", on_cores=True),
        training("baseline", "amc_baseline", f"{{}} --data-file {file}", ("modulations",)),
        training("pruned", "amc_fmp", f"{{}} --data-file {file}", ("modulations", "baseline")),
        training("teacher", "seg_teacher", f"train_seg.py {seg} {{}}", ("frames",)),
        step("cut", cut, ("teacher",), whole=True),
        training("student", "seg_student", student, ("cut",)),
        step("confidence of the teacher", confidence + "seg_teacher.pt", ("teacher",), on_cores=True, whole=True),
        step("confidence of the student", confidence + "seg_student.pt", ("student",), on_cores=True, whole=True),
    ]
    for network in NETWORKS:  # what is there
        of_frames = network.name.startswith("seg")
        data = f"{seg} --part test" if of_frames else f"--data-file {file}"
        command = (
            f"evaluate.py {into / network.name}.pt {data} --out {out}/scores/{network.name} --device {args.device}"
        )
        needs = ("frames" if of_frames else "modulations",)
        scored = Step(f"scores of {network.name}", command, needs, 2 if of_frames else 1, whole=True)
        steps += [scored] if (into / f"{network.name}.pt").exists() else []
    return steps


def starts() -> dict[str, Path]:
    """Networks to start from, {step: path}, each in the first of STARTS that has it."""
    found = {}
    for name, file in zip(("teacher", "baseline"), START_FILES, strict=True):
        places = [folder / file for folder in STARTS if (folder / file).exists()]
        found |= {name: places[0]} if places else {}
    return found


def table_of(steps: list[Step], state: State, args) -> str:
    """The plan: what is done, how long the others take, and all commands."""
    lines = [f"{'step':25} {'minutes':>8}  {'':5}  command"]
    for step in steps:
        taken = state.seconds.get(step.name, 0) / 60
        time_ = f"{taken:8.1f}" if step.name in state.done else f"{'~' + format(max(0.1, step.minutes), '.1f'):>8}"
        mark = "done" if step.name in state.done else "whole" if step.whole else ""
        lines.append(f"{step.name:25} {time_}  {mark:5}  python {step.command}")
    left = [step for step in steps if step.name not in state.done]
    beside = args.device.startswith("cuda")
    minutes = sum(step.minutes for step in left if not (beside and step.on_cores))
    lines.append(f"about {minutes:.0f} minutes are left" + (", besides what the cores do meanwhile" if beside else ""))
    return "\n".join([*lines, hardware(args.device if beside else "cpu")])


def read_state(out: Path, steps: list[Step]) -> State:
    """state.json of an earlier call. RunError: it can't be read, or its steps were begun with other commands."""
    path = out / "state.json"
    if not path.exists():
        return State()
    try:
        state = State(**json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise RunError(f"{path}: can't be read ({error}); choose another --out") from error
    for step in steps:
        if state.commands.get(step.name, step.command) != step.command:
            raise RunError(f"{path}: {step.name} was begun as {state.commands[step.name]}; choose another --out")
    return state


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Hold the folder; the descriptor keeps it for the steps too, which outlive this process if it is killed.

    Raises:
        RunError: another call, or a step that such a one has left behind, is at work in the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out}: another call or a step of it is at work; wait until it has ended") from None
        yield file.fileno()


# ---- a slice ---------------------------------------------------------------------------------------------------------


class Slice:
    """The steps that run between now and the end of the slice.

    Args:
        out: the folder.
        state: changed as steps begin and end, and written to state.json.
        minutes: length of the slice; None: no end.
        beside: the steps on the cores run beside a training, which a GPU does.
        kept_open: file descriptors that the steps keep open, see `locked`.
    """

    def __init__(self, out: Path, state: State, minutes: float | None, beside: bool, kept_open: tuple[int, ...] = ()):
        self.out, self.state, self.beside, self.kept_open = out, state, beside, kept_open
        self.end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.running: dict[str, tuple[Step, subprocess.Popen, float]] = {}

    def work(self, steps: list[Step], stop: StopSignal) -> None:
        """Run the steps until all are done, none fits any more, or the slice ends. RunError: one has failed."""
        (self.out / "logs").mkdir(parents=True, exist_ok=True)
        try:
            while not stop.requested and time.monotonic() < self.end:
                self.look()
                for step in steps:
                    if self.may_begin(step, {step.name for step in steps}):
                        self.begin(step)
                if not self.running:
                    return
                time.sleep(POLL)
        finally:
            self.interrupt()

    def may_begin(self, step: Step, planned: set[str]) -> bool:
        if step.name in self.state.done or step.name in self.running:
            return False
        missing = set(step.needs) & planned - set(self.state.done)
        busy = any(not (self.beside and other.on_cores) for other, *_ in self.running.values())
        alone = not (self.beside and step.on_cores)
        fits = not step.whole or time.monotonic() + 60 * step.minutes <= self.end
        return not missing and not (alone and busy) and fits

    def begin(self, step: Step) -> None:
        print(f"{step.name}: begins", flush=True)
        self.state.commands[step.name] = step.command
        write_json(self.out / "state.json", vars(self.state))
        with open(self.log_of(step), "a") as log:
            log.write(f"$ python {step.command}\n")
            log.flush()
            # A session of its own, so that Ctrl-C reaches this process alone, which passes it on, once.
            process = subprocess.Popen(
                [sys.executable, *shlex.split(step.command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.kept_open,
            )
        self.running[step.name] = step, process, time.monotonic()

    def look(self) -> None:
        """Note the steps that have ended."""
        for step, process, _ in list(self.running.values()):
            if process.poll() is not None:
                self.ended(step)
                if process.returncode:
                    last = self.log_of(step).read_text().strip().splitlines()[-1]
                    raise RunError(
                        f"{step.name} ended with exit code {process.returncode} ({last}): see {self.log_of(step)}"
                    )
                self.state.done.append(step.name)
                write_json(self.out / "state.json", vars(self.state))
                print(f"{step.name}: done, {self.state.seconds[step.name] / 60:.1f} minutes", flush=True)

    def ended(self, step: Step) -> None:
        _, _, began = self.running.pop(step.name)
        self.state.seconds[step.name] = self.state.seconds.get(step.name, 0) + time.monotonic() - began
        write_json(self.out / "state.json", vars(self.state))

    def interrupt(self) -> None:
        """SIGTERM for all that still run; what doesn't end in time is killed, and goes on from its last checkpoint.

        Not Ctrl-C: what a shell has started in the background ignores it, and so would the steps.
        """
        for step, process, _ in self.running.values():
            print(f"{step.name}: is stopped", flush=True)
            process.send_signal(signal.SIGTERM)
        for step, process, _ in list(self.running.values()):
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self.ended(step)
            if process.returncode == 0:
                self.state.done.append(step.name)
                write_json(self.out / "state.json", vars(self.state))

    def log_of(self, step: Step) -> Path:
        return self.out / "logs" / f"{step.name.replace(' ', '_')}.log"


# ---- what is shipped -------------------------------------------------------------------------------------------------


def ship(name: str, out: Path, into: Path) -> str:
    """Copy a network into a folder, unless the one there is better; a sentence that tells which."""
    pruned, before = name == "amc_fmp", out / "scores" / name / "result.json"
    new = figures(json.loads((out / "weights" / f"{name}.json").read_text()), pruned)
    old = figures(json.loads(before.read_text()), pruned) if (into / f"{name}.pt").exists() else {}
    told = ", ".join(f"{key} {value:.5g}" + (f" (there {old[key]:.5g})" if old else "") for key, value in new.items())
    worse = [key for key in old if (new[key] > old[key] if key == "score" else new[key] < old[key])]
    if worse:
        return f"{name}: not shipped, its {worse[0]} is worse: {told}"
    into.mkdir(parents=True, exist_ok=True)
    # The sum in the old JSON goes first: a kill in between leaves weights without one rather than with a wrong one.
    (into / f"{name}.json").unlink(missing_ok=True)
    for end in (".pt", ".calibration.json", ".json"):
        source, place = out / "weights" / (name + end), into / (name + end)
        if source.exists():
            shutil.copyfile(source, place.with_name(f".{place.name}"))
            os.replace(place.with_name(f".{place.name}"), place)
    return f"{name}: shipped, {told}"


def figures(facts: dict, pruned: bool) -> dict[str, float]:
    """What a network is judged by, from its result.json: its test frames; a pruned classifier by its cost as well."""
    test = facts["sets"]["test"]
    if "mean_iou" in test:
        return {"mean IoU": test["mean_iou"]}
    return {"accuracy": test["accuracy"]} | ({"score": facts["cost"]["score"]} if pruned else {})


if __name__ == "__main__":
    sys.exit(run(main))
