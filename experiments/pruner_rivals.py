"""The pruner beside Torch-Pruning: one architecture of each family of timm, and the time of both on 22 models.

    python -m experiments.pruner_table --timm                      # all families, about an hour on one core
    python -m experiments.pruner_table --timm resnet18 vit_tiny_patch16_224
    python -m experiments.pruner_table --speed                     # minutes; alternating, minimum of three

Every row is made in child processes of its own, which end after --limit seconds of CPU, because Torch-Pruning does not
answer on some models. A finished row is appended to timm.jsonl or speed.jsonl at once, and is not made again: stop it
and start it again as you like. Needs timm and torch-pruning.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import warnings

import torch

from experiments import pruner_table
from utils.dependency_graph import PruneError, verify
from utils.runs import RunError, count, hardware, words

PACKAGES = {"timm": "timm", "torch_pruning": "torch-pruning"}
SMALL = ["atto", "femto", "pico", "nano", "xxs", "xx_small", "tiny", "x_small", "xs", "mini", "small", "b0", "18", "_s"]
SPEED = """resnet18 resnet50 resnet101 resnext50_32x4d vgg16_bn densenet121 mobilenet_v2 mobilenet_v3_large
efficientnet_b0 regnet_y_400mf convnext_tiny vit_b_32 timm:mobilenetv4_conv_small timm:vit_tiny_patch16_224
timm:resnet50d timm:dla34 timm:ese_vovnet19b_dw timm:hrnet_w18_small timm:hgnetv2_b0 timm:repvgg_a0
timm:mobileone_s0 timm:repvit_m1""".split()
REPEATS = 3
ERRORS = (PruneError, RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)


def check_packages():
    """RunError where an optional package is missing."""
    missing = [pip for name, pip in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f"this table needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def families():
    """One name of each family of timm: the one that sounds smallest."""
    import timm

    def size(name):
        return next((k for k, word in enumerate(SMALL) if word in name), len(SMALL)), len(name), name

    return [min(names, key=size) for family in timm.list_modules() if (names := timm.list_models(module=family))]


def build(name, speed):
    """(model, images). Names without "timm:" are torchvision's. For speed, maps are small where the model allows it."""
    if not name.startswith("timm:"):
        return pruner_table.build(name)
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name.removeprefix("timm:"))
    channels, *size = model.default_cfg.get("input_size", (3, 224, 224))
    small = speed and not name.startswith("timm:vit")
    images = torch.randn(1, channels, *((64, 64) if small else size))
    return pruner_table.randomise(model, 0).eval(), images


def ours_row(name):
    """Follows, prunes and verifies the model: plain values, among them `error`, a number or what went wrong."""
    model, images = build(name, speed=False)
    row = {"parameters": pruner_table.parameters(model)}
    try:
        seconds, plan, pruned = pruner_table.ours(model, images)
        row |= {"seconds": seconds, "left": pruner_table.parameters(pruned)}
        row["error"] = verify(model, pruned, plan, images)
        pruned.train()(images.repeat(2, 1, 1, 1))  # raises if a part that runs only in training was broken
    except ERRORS as error:
        row["error"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return row


def theirs_row(name):
    model, images = build(name, speed=False)
    seconds, pruned, fault = pruner_table.theirs(model, images)
    return {"seconds": seconds, "left": pruned and pruner_table.parameters(pruned), "fault": fault}


def speed_row(name):
    """Seconds of CPU to build the graph, plan and prune, in turns; the minimum of each."""
    model, images = build(name, speed=True)
    rows = []
    for _ in range(REPEATS):
        mine = pruner_table.ours(model, images)[0]
        rows.append((mine, *pruner_table.theirs(model, images)[::2]))
    if any(other is None for _, other, _ in rows):
        return {"ours": min(mine for mine, _, _ in rows), "theirs": None, "fault": rows[0][2]}
    return {"ours": min(row[0] for row in rows), "theirs": min(row[1] for row in rows), "fault": rows[0][2]}


ROWS = {"ours": ours_row, "theirs": theirs_row, "speed": speed_row}


def child(kind, name, limit):
    """The row that a process of its own makes; {"fault": why} if it does not end well."""
    command = [sys.executable, "-m", "experiments.pruner_rivals", kind, name, f"{limit}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=40 * limit)
    except subprocess.TimeoutExpired:
        return {"fault": "no answer"}
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2][:200]
        return {"fault": f"no answer in {limit} s of CPU" if done.returncode < 0 else last}
    return json.loads(done.stdout.strip().rpartition("\n")[2])  # before it, what the model's libraries print


def conditions():
    versions = {name: importlib.import_module(name).__version__ for name in PACKAGES}
    return {"hardware": hardware(), "torch": torch.__version__, **versions}


def make_rows(path, names, kinds, limit):
    """Append the rows that the file does not have yet, and return all of them."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in {row["model"] for row in done}:
            row = {"model": name, **{kind: child(kind, name, limit) for kind in kinds}, **conditions()}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.append(row)
            print(json.dumps({key: row[key] for key in ("model", *kinds)}), flush=True)
    return done


def timm_table(names, out, limit):
    """The rows of timm's architectures, one a family by default; prints how many of them each tool prunes."""
    check_packages()
    rows = make_rows(out / "timm.jsonl", [f"timm:{name}" for name in names or families()], ("ours", "theirs"), limit)
    exact = sum(isinstance(row["ours"].get("error"), float) for row in rows)
    ran = sum(row["theirs"].get("left") is not None for row in rows)
    print(f"{len(rows)} architectures: ours exact on {exact}; Torch-Pruning's network runs on {ran}")


def speed_table(names, out, limit):
    """The rows of 22 models; prints the geometric mean of the ratios of CPU time, and the largest."""
    check_packages()
    rows = [row["speed"] for row in make_rows(out / "speed.jsonl", names or SPEED, ("speed",), 10 * limit)]
    ratios = [row["ours"] / row["theirs"] for row in rows if row.get("theirs")]
    if ratios:
        mean = statistics.geometric_mean(ratios)
        print(f"CPU time ours / theirs on {len(ratios)} models: geometric mean {mean:.2f}, largest {max(ratios):.2f}")


def main(argv=None):
    """One row, printed as JSON; what `child` starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=ROWS)
    parser.add_argument("model", type=words)
    parser.add_argument("limit", type=count, help="seconds of CPU, imports left out")
    args = parser.parse_args(argv)
    check_packages()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    used = sum(os.times()[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + args.limit) + 1, resource.RLIM_INFINITY))
    row = ROWS[args.kind](args.model)
    print("\n" + json.dumps(row))


if __name__ == "__main__":
    main()
