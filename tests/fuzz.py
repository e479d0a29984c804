"""Feed damaged files to every reader of the project, and list what should not happen.

    python -m tests.fuzz --mutants 3000 --seed 0                 # all readers; exit code 1 where there are findings
    python -m tests.fuzz --reader HDF4 --seed 0 --only 17        # one mutant again, with its traceback; it is kept

A reader has a small valid input, a call that reads the whole of it, the errors it may raise, and an oracle: what a
damaged input is that must not be accepted, or that nothing can tell. A mutant is the valid input after one to three
mutations of its bytes, or of its meaning (nan, huge numbers, wrong types, long fields). A finding is another error than
the reader's own, more than ten seconds, more than 2 GB, the death of the process, or acceptance against the oracle.
Mutants are made of (seed, reader, number) alone and run in child processes, which may die.

Readers of data/ are in tests/fuzz_data.py, those of runs and checkpoints in tests/fuzz_runs.py. A new module joins
MODULES and has a tuple READERS.
"""

import argparse
import copy
import faulthandler
import importlib
import importlib.util
import math
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MODULES = ("tests.fuzz_data", "tests.fuzz_runs")
SECONDS, BYTES = 10, 2 << 30  # more is a finding
PER_CHILD = 250  # mutants of one child process: what a library leaks does not add up
EDGE = 2048  # bytes at both ends of a file, where headers are: half of the mutations fall there


@dataclass(frozen=True)
class Reader:
    """A reader under test. All calls get the folder of one mutant, whose files they may change."""

    name: str
    make: Callable[[Path], None]  # write the valid input into an empty folder; the same bytes each time
    read: Callable[[Path], object]  # read all of it, as the program does; returns what `wrong` looks at
    errors: tuple[type[Exception], ...]  # the project's own, with one sentence
    oracle: str  # a sentence: what damage must not be accepted, and what nothing can tell
    wrong: Callable[[object, object], str | None] = lambda value, valid: None  # the oracle: value, that of valid input
    meanings: tuple[Callable[[Path, random.Random], None], ...] = ()  # mutations of meaning
    bytes_of: str = "*"  # glob of the files whose bytes are mutated, such as "**/*.json"; "" for none
    most: int = sys.maxsize  # mutants at most, where one takes a second


@dataclass
class Tally:
    """What came of one reader's mutants."""

    outcomes: Counter = field(default_factory=Counter)  # of "refused", "accepted", "finding"
    findings: list[tuple[int, str]] = field(default_factory=list)  # number of the mutant, what happened


# ---- mutations ------------------------------------------------------------------------------------------------------


def place(data: bytearray, rng: random.Random) -> int:
    """Where to mutate: anywhere, or half of the time near one of the ends."""
    if rng.random() < 0.5:
        return rng.randrange(len(data))
    near = rng.randrange(min(EDGE, len(data)))
    return near if rng.random() < 0.7 else len(data) - 1 - near


def flip_bits(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[place(data, rng)] ^= 1 << rng.randrange(8)


def truncate(data, rng):
    del data[place(data, rng) :]


def insert(data, rng):
    at = place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 64)))


def delete(data, rng):
    at = place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 64, 1024))]


def swap_blocks(data, rng):
    size = rng.choice((1, 4, 16, 256))
    one, other = sorted((place(data, rng), place(data, rng)))
    size = min(size, other - one, len(data) - other)
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def extreme_number(data, rng):
    value = rng.choice((b"\0", b"\xff")) * rng.choice((1, 2, 4, 8))
    value = rng.choice((value, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
    at = place(data, rng)
    data[at : at + len(value)] = value


def repeat(data, rng):
    at, size = place(data, rng), rng.choice((1, 16, 512))
    data[at:at] = data[at : at + size] * rng.choice((1, 3))


BYTES_MUTATIONS = (flip_bits, truncate, insert, delete, swap_blocks, extreme_number, repeat)

NASTY = (
    math.nan, math.inf, -math.inf, 1e308, -1e308, 1e39, 10**30, -(10**30), 2**63, 2**31, -1, 0, 0.5, True, False, None,
    "", "nan", "1e999", "0", "\0", "../..", "x" * 131_073, "\u0663", [], {}, [[]], [None], {"": None},
)  # fmt: skip


def nasty(rng: random.Random):
    """A plain value that seldom is where it is expected."""
    return copy.deepcopy(rng.choice(NASTY))


def damaged_value(value, rng: random.Random):
    """A plain value (dicts and lists, as of JSON) with one entry, at any depth, replaced, lost, renamed or doubled."""
    value = copy.deepcopy(value)
    places = [(None, None)]

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    node, key = rng.choice(places)
    if node is None:
        return nasty(rng) if rng.random() < 0.3 else damaged_value(value, rng) if len(places) > 1 else nasty(rng)
    kind = rng.choice(("replace", "replace", "replace", "lose", "rename", "double", "move"))
    if kind == "replace":
        node[key] = nasty(rng)
    elif kind == "lose":
        del node[key]
    elif kind == "rename" and isinstance(node, dict):
        node[rng.choice(("", "x", str(key) + " "))] = node.pop(key)
    elif kind == "double" and isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]))
    else:  # a value of another place of the same file
        other, at = rng.choice(places[1:])
        node[key] = copy.deepcopy(other[at])
    return value


def mutate(reader: Reader, folder: Path, rng: random.Random) -> None:
    """Damage a copy of the valid input in place."""
    steps = rng.choice((1, 1, 1, 2, 3))
    if reader.meanings and (not reader.bytes_of or rng.random() < 0.5):
        rng.choice(reader.meanings)(folder, rng)  # first: a mutator of meaning needs valid input
        steps = steps - 1 if reader.bytes_of else 0
    files = sorted(path for path in folder.glob(reader.bytes_of) if path.is_file()) if steps else []
    for path in [rng.choice(files) for _ in range(steps if files else 0)]:
        data = bytearray(path.read_bytes())
        if data:
            rng.choice(BYTES_MUTATIONS)(data, rng)
            path.write_bytes(data)


# ---- one mutant -----------------------------------------------------------------------------------------------------


def make_mutant(reader: Reader, pristine: Path, folder: Path, seed: int, number: int) -> None:
    """The mutant of this number in `folder`, which must not exist."""
    shutil.copytree(pristine, folder)
    mutate(reader, folder, random.Random(f"{seed}/{reader.name}/{number}"))


def judge(reader: Reader, folder: Path, valid) -> tuple[str, str]:
    """Read a mutant: ("refused", the sentence), ("accepted", "") or ("finding", what happened)."""
    start = time.process_time()  # of this process alone: others may keep the machine busy
    try:
        fault = reader.wrong(reader.read(folder), valid)
        outcome = ("finding", f"accepted, but {fault}") if fault else ("accepted", "")
    except reader.errors as error:
        told = str(error)
        outcome = ("refused", told) if told.strip() else ("finding", f"{type(error).__name__} without a sentence")
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        outcome = "finding", f"{type(error).__name__}: {str(error)[:120]} ({where})"
    if time.process_time() - start > SECONDS:
        outcome = "finding", f"more than {SECONDS} s"
    return outcome


def limit_memory() -> None:
    """No more than BYTES beyond what the process has now; no core files."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def silenced() -> Iterator[None]:
    """Without progress bars."""
    kept, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)


def child(reader: Reader, pristine: Path, seed: int, numbers: list[int], pipe: int) -> None:
    """Judge mutants in this process; a line "number, outcome, what was told" for each goes into the pipe."""
    faulthandler.disable()  # pytest's, for its own crashes
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # stderr is silenced while a mutant is read: what else fails is the tool's own fault
    with silenced():
        valid = reader.read(pristine)
    limit_memory()
    with os.fdopen(pipe, "w", errors="replace") as out:
        for number in numbers:
            folder = pristine.with_name(f"mutant{number}")
            make_mutant(reader, pristine, folder, seed, number)
            with silenced():
                outcome, told = judge(reader, folder, valid)
            out.write(f"{number}\t{outcome}\t{' '.join(told.split())[:300]}\n")
            out.flush()
            shutil.rmtree(folder)


# ---- many mutants ---------------------------------------------------------------------------------------------------


def patience() -> float:
    """Seconds after which a silent process hangs: more where others keep the machine busy."""
    return 2 * SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def outcomes(reader: Reader, pristine: Path, seed: int, numbers: list[int]) -> Iterator[tuple[int, str, str]]:
    """(number, outcome, what was told) of each mutant. Child processes that hang are killed, and others go on."""
    numbers = list(numbers)
    while numbers:
        readable, pipe = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(readable)
                os.setsid()
                child(reader, pristine, seed, numbers[:PER_CHILD], pipe)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(pipe)
        told = len(numbers) - min(PER_CHILD, len(numbers))
        with os.fdopen(readable, "rb", buffering=0) as lines:
            rest, hangs = b"", False
            while len(numbers) > told:
                ready, _, _ = select.select([lines], [], [], patience())
                hangs = not ready
                some = lines.read(65536) if ready else b""
                if not some:
                    break
                *whole, rest = (rest + some).split(b"\n")
                for line in whole:
                    number, outcome, text = line.decode(errors="replace").split("\t", 2)
                    assert int(number) == numbers.pop(0)
                    yield int(number), outcome, text
        if hangs:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if len(numbers) > told:  # it died or hung in this one
            how = f"hangs for more than {patience():.0f} s" if hangs else f"its process ended with status {status}"
            yield numbers.pop(0), "finding", how


def tally(reader: Reader, seed: int, numbers: list[int], show: Callable[[str], None] = print) -> Tally:
    """Judge mutants of a reader, and tell each finding as it comes."""
    result = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz") as place:
        pristine = Path(place) / "valid"
        pristine.mkdir()
        reader.make(pristine)
        fault = reader.wrong(reader.read(pristine), reader.read(pristine))
        if fault:
            raise AssertionError(f"{reader.name}: the valid input is {fault}")
        for number, outcome, told in outcomes(reader, pristine, seed, numbers):
            result.outcomes[outcome] += 1
            if outcome == "finding":
                result.findings.append((number, told))
                show(f"{reader.name} --seed {seed} --only {number}: {told}")
    return result


def readers() -> dict[str, Reader]:
    """All readers by name."""
    found = [name for name in MODULES if importlib.util.find_spec(name)]
    return {reader.name: reader for name in found for reader in importlib.import_module(name).READERS}


def again(reader: Reader, seed: int, number: int) -> int:
    """One mutant once more in this process, with a traceback; its folder is kept."""
    place = Path(tempfile.mkdtemp(prefix="fuzz"))
    (place / "valid").mkdir()
    reader.make(place / "valid")
    make_mutant(reader, place / "valid", place / "mutant", seed, number)
    print(f"{reader.name}, seed {seed}, mutant {number}: {place / 'mutant'}", flush=True)
    valid = reader.read(place / "valid")
    try:
        fault = reader.wrong(reader.read(place / "mutant"), valid)
    except reader.errors as error:
        print(f"refused: {error}")
        return 0
    print(f"accepted, but {fault}" if fault else "accepted")
    return 1 if fault else 0


def table(tallies: dict[str, Tally], every: dict[str, Reader]) -> str:
    lines = ["| reader | mutants | refused | accepted | findings | what corrupt means |", "|---|---|---|---|---|---|"]
    for name, one in tallies.items():
        counts = [one.outcomes.total(), *(one.outcomes[key] for key in ("refused", "accepted", "finding"))]
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {every[name].oracle} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=3000, help="of each reader, less where one takes a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only this one; may be repeated")
    parser.add_argument("--only", type=int, metavar="K", help="repeat mutant K of the one reader, with its traceback")
    args = parser.parse_args(argv)
    every = readers()
    names = args.reader or list(every)
    if unknown := [name for name in names if name not in every]:
        parser.error(f"no reader {unknown[0]!r}; choose among {', '.join(every)}")
    if args.only is not None:
        if len(names) != 1:
            parser.error("--only needs one --reader")
        return again(every[names[0]], args.seed, args.only)
    tallies = {}
    for name in names:
        start = time.monotonic()
        numbers = list(range(min(args.mutants, every[name].most)))
        tallies[name] = tally(every[name], args.seed, numbers)
        print(f"{name}: {dict(tallies[name].outcomes)}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(table(tallies, every))
    return 1 if any(one.findings for one in tallies.values()) else 0


if __name__ == "__main__":
    from tests.fuzz import main as run  # not __main__'s: readers use the classes of tests.fuzz

    sys.exit(run())
