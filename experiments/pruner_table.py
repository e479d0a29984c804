"""Is the pruner exact, and how fast is it? torchvision's models one by one, then small random networks.

    python -m experiments.pruner_table                          # 5 minutes on one core; error < 1e-9 everywhere
    python -m experiments.pruner_table --models resnet18 vit_b_32 --random 10           # seconds
    python -m experiments.pruner_table --timm           # one architecture of each family of timm; --speed: 22 models;
                                                        # both beside Torch-Pruning, see experiments/pruner_rivals.py

Half of the channels of each model, chosen at random, are removed; the pruned model is compared in float64 with the
dense one whose removed entries are zero. Where Torch-Pruning is installed (`pip install torch-pruning`), it prunes the
same model beside ours, in turn, and its seconds and parameters are printed; elsewhere "-". An error of the other tool
is printed as "fails". Weights are random, no normalisation is trivial and no layer starts at zero.
"""

import argparse
import copy
import math
import os
import platform
import random
import signal
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from utils import runs
from utils.dependency_graph import DependencyGraph, PruneError, prune, verify

try:
    import torch_pruning
except ImportError:  # optional: only for the comparison
    torch_pruning = None

SIZES = {"inception_v3": 299, "vit_b_32": 224, "swin_t": 224, "maxvit_t": 224}  # height and width; the others 64
LIMIT = 60  # seconds of CPU for the other tool, which does not end on some models
MODELS = """alexnet vgg11_bn vgg16_bn resnet18 resnet50 resnet101 resnext50_32x4d wide_resnet50_2 densenet121
densenet161 googlenet googlenet_without_aux inception_v3 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large
efficientnet_b0 efficientnet_v2_s mnasnet1_0 regnet_x_400mf regnet_y_400mf squeezenet1_0 squeezenet1_1
shufflenet_v2_x0_5 shufflenet_v2_x1_0 convnext_tiny vit_b_32 deeplabv3_mobilenet_v3_large deeplabv3_resnet50
fcn_resnet50 fcn_resnet101 lraspp_mobilenet_v3_large swin_t maxvit_t""".split()


def build(name, seed=0):
    """(model in eval mode, images float32 (1, 3, H, W)), random weights; segmentation models have their aux head."""
    torch.manual_seed(seed)
    options = {"weights": None}
    if "_without_aux" in name or name.startswith("googlenet"):
        options |= {"aux_logits": "_without_aux" not in name, "init_weights": False}
    if name.startswith("inception"):
        options |= {"init_weights": False}
    if name.startswith(("deeplabv3", "fcn", "lraspp")):
        options |= {"weights_backbone": None} | ({} if name.startswith("lraspp") else {"aux_loss": True})
    model = torchvision.models.get_model(name.removesuffix("_without_aux"), **options)
    size = SIZES.get(name, 64)
    return randomise(model, seed).eval(), torch.randn(1, 3, size, size)


def randomise(model, seed):
    """Give every parameter and every statistic of batch norm a random value that keeps activations moderate."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        key = name.rpartition(".")[2]
        if key == "running_var" or (key == "weight" and tensor.dim() == 1):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        elif key == "running_mean" or (isinstance(tensor, nn.Parameter) and tensor.dim() < 2):
            tensor.data.normal_(0, 0.1, generator=generator)
        elif isinstance(tensor, nn.Parameter):
            tensor.data.normal_(0, math.sqrt(tensor.shape[0] / tensor.numel()), generator=generator)
    return model


class RandomGraph(nn.Module):
    """Random operations on 8x8 maps, the same for the same seed. Images (n, 3, 8, 8) -> tuple of tensors."""

    def __init__(self, seed, depth=12):
        super().__init__()
        self.random, self.layers, self.steps, self.widths = random.Random(seed), nn.ModuleList(), [], [3]
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.add("conv", 0)
            for _ in range(depth):
                self.add(
                    self.random.choice(KINDS), self.random.randrange(max(0, len(self.widths) - 4), len(self.widths))
                )
            used = {source for _, sources, _ in self.steps for source in sources}
            ends = [k for k in range(1, len(self.widths)) if k not in used]
            self.step("cat", ends, sum(self.widths[k] for k in ends))
            self.add("conv", len(self.widths) - 1)
            self.head = nn.Linear(4 * self.widths[-1], 5)
            self.also = [self.random.randrange(1, len(self.widths))] if self.random.random() < 0.3 else []
            randomise(self, seed)

    def step(self, kind, sources, width, layer=None):
        """Append an operation on earlier maps whose result has `width` channels."""
        if layer is not None:
            self.layers.append(layer)
            layer = len(self.layers) - 1
        self.steps.append((kind, sources, layer))
        self.widths.append(width)

    def add(self, kind, source):
        """Append an operation of this kind on map `source` if its width allows it."""
        c, pick = self.widths[source], self.random.choice
        even = c % 2 == 0
        if kind == "conv":
            out = pick([4, 6, 8, 12])
            self.step("layer", [source], out, nn.Conv2d(c, out, pick([1, 3]), padding="same", bias=pick([True, False])))
        elif kind == "grouped" and even:
            self.step("layer", [source], 8, pick([nn.Conv2d, nn.ConvTranspose2d])(c, 8, 3, padding=1, groups=2))
        elif kind == "depthwise" and c > 1:
            out = c * pick([1, 2])
            self.step("layer", [source], out, nn.Conv2d(c, out, 3, padding=1, groups=c))
        elif kind == "layer":
            self.step("layer", [source], c, pick([nn.BatchNorm2d, nn.PReLU])(c))
        elif kind == "gate":
            self.step(
                "gate", [source], c, nn.Sequential(nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), nn.Sigmoid())
            )
        elif kind == "group_norm" and even:
            self.step("layer", [source], c, nn.GroupNorm(2, c))
        elif kind == "again":
            fits = [m for m in self.layers if isinstance(m, nn.Conv2d) and m.in_channels == c]
            if fits:
                self.step("layer", [source], (layer := pick(fits)).out_channels, layer)
        elif kind == "sum":
            fits = [k for k, width in enumerate(self.widths) if width == c and k != source]
            if fits:
                self.step("sum", [source, pick(fits)], c)
        elif kind == "cat":
            other = pick(range(len(self.widths)))
            self.step("cat", [source, other], c + self.widths[other])
        elif kind == "halves" and even:
            self.step("halves", [source], c // 2)
        elif kind == "shuffle" and even:
            self.step("shuffle", [source], c)
        elif kind == "slice" and c > 1:
            self.step("slice", [source], c - 1)
        elif kind == "pad":
            self.step("pad", [source], c + 2)
        elif kind in ("relu", "hardswish", "softmax", "centre", "square"):
            self.step(kind, [source], c)

    def forward(self, x):
        maps = [x]
        for kind, sources, layer in self.steps:
            maps.append(
                OPERATIONS[kind](*[maps[k] for k in sources], **({} if layer is None else {"m": self.layers[layer]}))
            )
        head = self.head(F.adaptive_avg_pool2d(maps[-1].relu(), 2).flatten(1))
        return head, *[maps[k] for k in self.also]


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


OPERATIONS = {
    "layer": lambda x, m: m(x),
    "gate": lambda x, m: x * m(x.mean((2, 3), keepdim=True)),
    "sum": lambda x, y: x + y,
    "cat": lambda *x: torch.cat(x, 1),
    "halves": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(),
    "shuffle": shuffle,
    "slice": lambda x: x[:, 1:],
    "pad": lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
    "relu": torch.relu,
    "hardswish": F.hardswish,
    "softmax": lambda x: x.softmax(1),
    "centre": lambda x: x - x.mean(1, keepdim=True),
    "square": lambda x: x * x / 4,
}
KINDS = ["conv"] * 5 + ["layer"] * 3 + ["sum"] * 3 + ["cat"] * 2 + ["relu", "hardswish", "square", "grouped",
         "depthwise", "gate", "again", "halves", "shuffle", "slice", "pad", "softmax", "centre",
         "group_norm"]  # fmt: skip


def random_scores(graph, seed):
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=generator) for group in graph.groups}


def ours(model, images):
    """(seconds to build the graph, plan and prune; plan; pruned model)."""
    start = time.process_time()
    graph = DependencyGraph(model, images)
    plan = graph.plan(0.5, random_scores(graph, 0))
    pruned = prune(model, plan)
    return time.process_time() - start, plan, pruned


def theirs(model, images):
    """(seconds, pruned model, fault) of Torch-Pruning with random importance; None where it cannot or does not run."""
    model = copy.deepcopy(model)
    classes = (1000, 21)  # of classification and of segmentation: the layers that make the outputs are left alone
    ignored = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) in classes]
    signal.signal(signal.SIGPROF, stop_waiting)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    start, seconds = time.process_time(), None
    try:
        importance = torch_pruning.importance.RandomImportance()
        pruner = torch_pruning.pruner.BasePruner(model, images, importance, pruning_ratio=0.5, ignored_layers=ignored)
        pruner.step()
        seconds = time.process_time() - start
        with torch.no_grad():
            model(images)
    except Exception as error:  # whatever the other tool raises is its result
        fault = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:90]}"
        return seconds, None, fault
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return seconds, model, None


def stop_waiting(number, frame):
    raise TimeoutError(f"no end after {LIMIT} s")


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def model_row(name, repeats):
    """Prune one model: a dict of plain values; seconds are medians over `repeats` alternating runs of both tools."""
    model, images = build(name)
    row, times, other_times = {"model": name, "parameters": parameters(model)}, [], []
    for _ in range(repeats):
        seconds, plan, pruned = ours(model, images)
        times.append(seconds)
        if torch_pruning is not None:
            seconds, other, fault = theirs(model, images)
            other_times.append(seconds)
            if fault:
                tqdm.write(f"torch-pruning: {fault}", file=sys.stderr)
    row |= {"left": parameters(pruned), "seconds": statistics.median(times), "notes": len(plan.notes)}
    try:
        row["error"] = verify(model, pruned, plan, images)
    except PruneError as error:
        row["error"] = str(error)
    pruned.train()(images.repeat(2, 1, 1, 1))  # raises if a part that runs only in training was broken
    if torch_pruning is not None:
        row["other_seconds"] = None if other is None else statistics.median(other_times)
        row["other_left"] = None if other is None else parameters(other)
    return row


def graph_row(seed):
    """Prune the random network of this seed: its error, and the share of parameters that left."""
    model, images = RandomGraph(seed), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    graph = DependencyGraph(model, images)
    plan = graph.plan(0.5, random_scores(graph, seed))
    pruned = prune(model, plan)
    return {"seed": seed, "error": verify(model, pruned, plan, images), "left": parameters(pruned) / parameters(model)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--random", type=runs.whole(0), default=300, help="number of random networks")
    parser.add_argument("--repeats", type=runs.count, default=1, help="alternating timings of each model")
    parser.add_argument("--timm", type=runs.words, nargs="*", metavar="MODEL", help="these of timm, or one a family")
    parser.add_argument("--speed", type=runs.words, nargs="*", metavar="MODEL", help="time both on these, or 22 models")
    parser.add_argument("--limit", type=runs.count, default=45, help="seconds of CPU for a row of --timm, default 45")
    parser.add_argument("--out", type=runs.path, default=Path("runs/pruner_table"))
    args = parser.parse_args(argv)
    if args.timm is not None or args.speed is not None:
        from experiments import pruner_rivals  # which uses this file

        if args.timm is not None:
            pruner_rivals.timm_table(args.timm, args.out, args.limit)
        if args.speed is not None:
            pruner_rivals.speed_table(args.speed, args.out, args.limit)
        return
    warnings.filterwarnings("ignore", category=UserWarning)  # torchvision's, about weight initialisation

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, torchvision {torchvision.__version__}"
    )
    print(f"{'model':<28}{'parameters':>12}{'left':>12}{'error':>10}{'s':>7}{'other s':>9}{'other left':>12}")
    rows = []
    for name in tqdm(args.models, disable=None):
        row = model_row(name, args.repeats)
        rows.append(row)
        error = row["error"] if isinstance(row["error"], str) else f"{row['error']:.0e}"
        other, other_left = "-", "-"
        if torch_pruning is not None:
            other = "fails" if row["other_seconds"] is None else f"{row['other_seconds']:.2f}"
            other_left = {None: "-", row["left"]: "equal"}.get(row["other_left"], row["other_left"])
        tqdm.write(
            f"{name:<28}{row['parameters']:>12}{row['left']:>12}{error:>10}{row['seconds']:>7.2f}{other:>9}{other_left:>12}"
        )
    graphs = [graph_row(seed) for seed in tqdm(range(args.random), disable=None)]

    ratios = [row["seconds"] / row["other_seconds"] for row in rows if row.get("other_seconds")]
    if ratios:
        print(
            f"seconds of ours / theirs, geometric mean of {len(ratios)} models: {statistics.geometric_mean(ratios):.2f}"
        )
    if graphs:
        print(f"{len(graphs)} random networks: largest error {max(g['error'] for g in graphs):.0e}, "
              f"mean share of parameters left {statistics.mean(g['left'] for g in graphs):.2f}")  # fmt: skip
    runs.write_json(args.out / "result.json", {"models": rows, "random": graphs})


if __name__ == "__main__":
    sys.exit(runs.run(main))
