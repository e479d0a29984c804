"""Parts of tests/kills.py: the scripts that have a run's folder, killed again and again.

    python -m tests.kills --part train_amc.py --kills 20 --seed 0

A life of a run ends by SIGKILL after a drawn number of files or steps: while a file is half written, when it is whole
but not renamed, just after its renaming, or in the middle of a step. The next life goes on with --resume. When a run is
finished, weights, optimizer, log and scores are compared with a run that was left alone, and the next one begins, until
there were enough kills. Nothing half written may be left.
"""

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from functools import partial
from pathlib import Path

import torch

import distill_seg
import feedback_magnitude_pruning
import prune_seg
import train_amc
import train_seg
from tests.conftest import assert_equal
from tests.fuzz_runs import LRASPP, make_frames, make_network, make_samples, make_teacher
from utils import checkpoint, cost, runs

KINDS = ("half written", "not renamed", "renamed", "in a step")
UNEQUAL = ("command", "scored_by", "trained_by", "latency", "hardware", "seconds")  # differ from call to call
AMC = ["--data-file", "{data}/tiny.hdf5", "--batch-size", "16", "--seed", "1", "--save-every", "2"]
SEG = ["--data-dir", "{data}/frames", "--batch-size", "2", "--save-every", "1", "--epochs", "3"]
SCRIPTS = {
    "train_amc.py": (
        train_amc,
        [*AMC, "--epoch-frames", "160", "--filters", "4", "--dense", "8", "--epochs", "3"],
    ),
    "feedback_magnitude_pruning.py": (
        feedback_magnitude_pruning,
        [*AMC, "--epoch-frames", "320", "--checkpoint", "{data}/net.pt", "--threshold", ".06", "--p", ".3"]
        + ["--step-epochs", "4", "--budget", "6", "--lr", ".01"],
    ),
    "train_seg.py": (train_seg, [*SEG, "--model", LRASPP]),
    "distill_seg.py": (distill_seg, [*SEG, "--teacher", "{data}/teacher.pt", "--student", "{data}/teacher.pt"]),
    "prune_seg.py": (
        prune_seg,
        ["--data-dir", "{data}/frames", "--teacher", "{data}/teacher.pt", "--probe-frames", "3"]
        + ["--target-params", "1e6"],
    ),
}


def make_data(folder: Path) -> None:
    """A file of samples, frames, a classifier and a teacher."""
    make_samples(folder / "tiny.hdf5")
    make_frames(folder / "frames")
    make_network(folder)
    make_teacher(folder)


def doom(kind: str, count: int) -> None:
    """This process dies at its count-th file, or at its count-th step."""
    write, check, left = runs.write_whole, runs.check_loss, [count]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fatal_write(path, write_file):
        left[0] -= 1
        if left[0]:
            return write(path, write_file)

        def broken(file):
            write_file(file)
            file.flush()
            if kind == "half written":
                os.ftruncate(file.fileno(), file.tell() // 2)
            die()

        write(path, write_file if kind == "renamed" else broken)
        die()

    def fatal_check(*values):
        left[0] -= 1
        if not left[0]:
            die()
        check(*values)

    if kind == "in a step":
        runs.check_loss = fatal_check
        for module, _ in SCRIPTS.values():
            if hasattr(module, "check_loss"):
                module.check_loss = fatal_check
    else:
        runs.write_whole = fatal_write


def live(module, argv: list[str], fate: tuple[str, int] | None, log: Path) -> int:
    """One life of a run in a child process; the signal that ended it, or 0. AssertionError: it ended with a fault."""
    child = os.fork()
    if not child:
        try:
            told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(told, 1)
            os.dup2(told, 2)
            sys.argv = ["kill_runs.py"]
            few = cost.latency  # two threads on a busy machine may wait for each other for minutes
            cost.latency = lambda models, x, threads, **_: few(models, x, 1, runs=1, warm_up=0)
            if fate:
                doom(*fate)
            os._exit(runs.run(lambda: module.main(argv), *module.ERRORS))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise AssertionError(f"exit code {os.WEXITSTATUS(status)}: {log.read_text(errors='replace')[-2000:]}")
    return os.WTERMSIG(status)


def contents(folder: Path) -> dict:
    """What must not depend on interruptions: files by name, weights and states, log and scores."""

    def stripped(value):
        if isinstance(value, dict):
            if "python" in value and "torch" in value:  # random states: nothing draws from Python's or numpy's
                value = {"torch": value["torch"]}
            kept = {key: item for key, item in value.items() if key not in UNEQUAL and "per_second" not in str(key)}
            return {key: stripped(item) for key, item in kept.items()}
        return [stripped(item) for item in value] if isinstance(value, list) else value

    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".pt":
            found[name] = stripped(checkpoint.load(path))
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            found[name] = [stripped(json.loads(line)) for line in lines]
        elif path.is_file():
            found[name] = None
    found.pop("config.json")
    return found


def ordeal(data: Path, kills: int, rng: random.Random, name: str) -> list[str]:
    """Kill a script and compare; a line of the table. AssertionError: a run ended otherwise than one left alone."""
    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).sum().backward()  # before any fork: autograd starts its threads later otherwise
    make_data(data)
    module, options = SCRIPTS[name]
    argv = [option.replace("{data}", str(data)) for option in options] + ["--resume", "--out"]
    log, tally, lives = data / f"{name}.log", Counter(), 0
    assert live(module, [*argv, str(data / "whole")], None, log) == 0
    whole = contents(data / "whole")
    while tally.total() < kills:
        folder, deaths = data / f"killed_{lives}", 0
        while True:
            kind = rng.choice(KINDS)
            fate = (kind, rng.randrange(1, 7)) if tally.total() < kills and deaths < 40 else None
            if not live(module, [*argv, str(folder)], fate, log):
                break
            tally[kind] += 1
            deaths += 1
        left = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
        assert not left, f"{name}: a kill left {left}"
        assert_equal(contents(folder), whole, name)
        shutil.rmtree(folder)
        lives += 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.items()))
    return [f"| {name} | {tally.total()} SIGKILLs in {lives} runs ({kinds}) | equal weights, states, log and scores |"]


PARTS = {name: partial(ordeal, name=name) for name in SCRIPTS}
