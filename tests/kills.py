"""Kill programs at random moments, start them again, and compare what they leave with an uninterrupted run.

    python -m tests.kills                                   # 20 SIGKILLs of each program, and the comparisons
    python -m tests.kills --part data.synthetic --kills 5 --seed 1

A part is a function (folder, kills, random numbers) -> lines of the table; it raises AssertionError where results
differ. Parts of this file and of MODULES are in PARTS. Exit code 1 where a part fails.
"""

import argparse
import importlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

MODULES = ("tests.kills_of_runs",)  # modules with more PARTS
ROOT = Path(__file__).parent.parent
PATIENCE = 600  # seconds for one uninterrupted run
LINGER = 60  # seconds that a worker may take to import before it finds its parent dead

Part = Callable[[Path, int, random.Random], list[str]]


def run_whole(command: list[str], cwd: Path) -> float:
    """Run a command to its end, which must be 0; returns the seconds it took."""
    start = time.monotonic()
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stderr[-2000:]}"
    return time.monotonic() - start


def run_killed(command: list[str], cwd: Path, after: float, number: int = signal.SIGKILL) -> int | None:
    """Start a command and send it a signal after some seconds; its exit code, None if it had ended before."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after)
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(number)  # to it alone: its workers must notice by themselves
        return process.wait(PATIENCE)


def environment() -> dict:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def left_over(cwd: Path) -> int:
    """How many processes still work in a folder after a kill, once those that were just starting have noticed it."""
    end = time.monotonic() + LINGER
    while (found := sum(works_in(process, cwd) for process in Path("/proc").glob("[0-9]*"))) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def works_in(process: Path, cwd: Path) -> bool:
    try:
        return Path(os.readlink(process / "cwd")) == cwd
    except OSError:
        return False  # it has ended, or it isn't ours


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_files(one: Path, other: Path) -> int:
    """Compare two folders byte for byte; returns the number of files."""
    left, right = contents(one), contents(other)
    assert left.keys() == right.keys(), f"files differ: {sorted(left.keys() ^ right.keys())[:5]}"
    unequal = [name for name in left if left[name] != right[name]]
    assert not unequal, f"contents differ: {unequal[:5]}"
    return len(left)


# ---- the generators -------------------------------------------------------------------------------------------------

# Small sets. A set is finished after some kills, and compared; then the next one is begun.
COUNTS = ["--nr", "2", "--lte", "2", "--combined", "1", "--field", "2", "--other", "1"]
GENERATORS = {
    "data.synthetic": ["whole", *COUNTS, "--workers", "2"],
    "data.modulations": ["whole/set.hdf5", "--frames-per-cell", "2", "--workers", "2"],
}  # fmt: skip


def generator(folder: Path, kills: int, rng: random.Random, module: str) -> list[str]:
    """SIGKILL a generator at random moments of a run; go on each time; compare with an uninterrupted run."""
    place, *options = GENERATORS[module]
    command, base = [sys.executable, "-m", module], folder / module
    base.mkdir()
    seconds = run_whole([*command, place, *options], base)
    killed = rounds = files = 0
    while killed < kills:
        rounds += 1
        target = base / f"round{rounds}"
        goes_on = [*command, place.replace("whole", target.name), *options]
        while killed < kills:
            code = run_killed(goes_on, base, rng.uniform(0.3, 1.0) * seconds / 2)
            if code is None:
                break
            assert code == -signal.SIGKILL, code
            killed += 1
            workers = left_over(base)
            assert not workers, f"{workers} workers of {module} went on after their parent was killed"
            if rng.random() < 0.2:  # otherwise short bursts might never finish a frame
                break
        run_whole(goes_on, base)
        files = assert_same_files(base / "whole", target)
    return [f"| {module} | {killed} SIGKILLs in {rounds} sets | all {files} files of each byte for byte equal |"]


PARTS: dict[str, Part] = {module: partial(generator, module=module) for module in GENERATORS}


def parts() -> dict[str, Part]:
    """All parts by name."""
    found = dict(PARTS)
    for name in MODULES:
        if importlib.util.find_spec(name):
            found |= importlib.import_module(name).PARTS
    return found


def main(argv: list[str] | None = None) -> int:
    every = parts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(every), help="default all; may be repeated")
    parser.add_argument("--kills", type=int, default=20, help="of each program")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    failed = False
    for name in args.part or every:
        with tempfile.TemporaryDirectory(prefix="kills") as folder:
            try:
                print("\n".join(every[name](Path(folder), args.kills, random.Random(args.seed))), flush=True)
            except AssertionError as error:
                failed = True
                print(f"{name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
