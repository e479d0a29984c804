"""How much faster a pruned network is than torchvision's unmodified one, same engine, batch 1, in turns. A minute.

    python -m experiments.prune_speed runs/pruned/pruned.pt
    python -m experiments.prune_speed runs/pruned/pruned.pt --profile      # and where the milliseconds go

Engines are eager PyTorch in channels_last and, where onnx, onnxscript and onnxruntime are installed, ONNX Runtime. The
final upsampling is included. "folded" networks have batch norm in the convolutions (utils/export.py), which is exact.
Rows of one engine run in turns, so a busy machine slows all of them. Speed-ups are medians over the rounds.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.profiler import profile

from models import ModelError
from models.rebuild import build, rebuild
from utils import checkpoint, cost, release, runs
from utils.export import ExportError, export, fold_batch_norm, load_exported
from utils.runs import hardware, run, write_json

ERRORS = (ModelError, checkpoint.CheckpointError, ExportError)


class Logits(nn.Module):
    """The "out" of a segmentation network: images float (N, 3, H, W) -> (N, classes, H, W)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)["out"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=runs.path, help="pruned.pt of prune_seg.py, or a network trained from it")
    parser.add_argument(
        "--size", type=runs.whole(16, 8192), default=256, help="height and width of the image, default 256"
    )
    parser.add_argument("--runs", type=runs.count, default=40, help="timed forwards of each network, default 40")
    parser.add_argument("--threads", type=runs.count, default=1)
    parser.add_argument("--profile", action="store_true", help="also the operations of the pruned network by time")
    parser.add_argument("--out", type=runs.path, default=Path("runs/prune_speed"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    data = release.load_segmentation(args.checkpoint)
    x = torch.randn(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    networks = {"torchvision": build(data["factory"], data["arguments"]), "pruned": rebuild(data)}
    networks = {name: Logits(network).eval() for name, network in networks.items()}
    networks |= {f"{name}, folded": fold_batch_norm(network, x) for name, network in networks.items()}

    result = {"hardware": hardware(), "torch": torch.__version__, "checkpoint": str(args.checkpoint)}
    result["eager"] = cost.latency(networks, x, args.threads, args.runs)
    try:
        with tempfile.TemporaryDirectory() as folder:
            sessions = {}
            for name in ("torchvision", "pruned"):
                export(networks[name], x, Path(folder, f"{name}.onnx"))
                sessions[name] = load_exported(Path(folder, f"{name}.onnx"))
            result["ONNX Runtime"] = cost.latency(sessions, x, args.threads, args.runs, channels_last=False)
    except ExportError as error:
        print(f"no ONNX Runtime: {error}", file=sys.stderr)
    print(
        f"{result['hardware']}, torch {torch.__version__}, batch 1, {args.threads} thread(s), {args.size}x{args.size}"
    )
    for engine in ("eager", "ONNX Runtime"):
        for name, times in result.get(engine, {}).items():
            if name != "conditions":
                spread = f"{times['low_ms']:.1f} .. {times['high_ms']:.1f}"
                print(f"{engine:14}{name:22}{times['median_ms']:8.1f} ms ({spread}){times['speed_up']:7.1f}x")
    if args.profile:
        print(operations(networks["pruned"], x))
    write_json(args.out / "result.json", result)
    return 0


def operations(network: nn.Module, x: torch.Tensor) -> str:
    """A table of the operations of ten forwards, the slowest first."""
    network, x = network.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        network(x)
        with profile() as recorded:
            for _ in range(10):
                network(x)
    return recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=32)


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
