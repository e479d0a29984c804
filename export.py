"""Write a network as a file that runs without this repository, and compare both.

    python export.py runs/distill/best.pt student.pt2              # segmentation: torch.export
    python export.py runs/distill/best.pt student.onnx             # or ONNX, for ONNX Runtime and others
    python export.py weights/amc_fmp.pt classifier.onnx            # modulations: ONNX with integer weights

A segmentation network takes pictures uint8 (N, 3, H, W) and gives logits (N, 3, H, W), for the height and width of the
frames in --data-dir. Batch norm is folded into the convolutions, and channels are zero-padded to multiples of 16, which
inference engines compute faster. The file's labels are compared with the network's on 20 frames, and the speed on one
thread with that of the unpruned network; student.onnx.json, beside student.onnx, has the result. A modulation network
takes frames float (N, 2, 1024) and gives logits (N, 24). Its answers are compared on up to 500 test frames. Either
takes a minute. .onnx files need `pip install onnx onnxscript onnxruntime`.
"""

import argparse
import sys
from pathlib import Path

import torch

from data import DataError
from data.modulations import default_file
from data.radioml import open_frames
from data.radioml import split as split_rows
from data.spectrum_sensing import find_frames, read_tensors
from data.synthetic import FEW_COUNTS, default_set
from models import ModelError, segmentation
from models.rebuild import build, rebuild
from models.vgg10 import VGG10, from_checkpoint
from utils import checkpoint, export, release, runs
from utils.dependency_graph import PruneError, zero_pad_channels
from utils.runs import RunError, command, hardware, path, run, single_process, write_json

# Faults that a user can mend: one sentence, exit code 2
ERRORS = (DataError, ModelError, PruneError, checkpoint.CheckpointError, export.ExportError)
FRAMES, AMC_FRAMES = 20, 500  # to compare on


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=path, metavar="CHECKPOINT", help="of a training script, or from weights/")
    parser.add_argument("file", type=path, metavar="FILE", help="ends in .pt2 or .onnx")
    parser.add_argument("--data-dir", type=path, help="frames; default datasets/spectrum_sensing if there, else made")
    parser.add_argument("--data-file", type=path, help="modulations, HDF5; default a known file if there, else made")
    parser.add_argument(
        "--bits", type=runs.whole(2, 8), default=8, help="of the challenge's networks, whose files don't hold it"
    )
    parser.add_argument("--workers", type=runs.processes, help="processes that generate frames, default all cores")
    args = parser.parse_args(argv)
    if args.file.suffix not in (".pt2", ".onnx"):
        parser.error("FILE must end in .pt2 or .onnx")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    single_process("cpu")
    data = checkpoint.load(args.checkpoint)
    torch.set_num_threads(1)  # the speeds are of one thread
    if data.get("kind") == "segmentation":
        data = release.load_segmentation(args.checkpoint)
        frames = find_frames(args.data_dir or default_set(args.workers, FEW_COUNTS))
        images, _ = read_tensors(frames[:: max(1, len(frames) // FRAMES)][:FRAMES])
        facts = export_segmentation(data, images, args.file)
        facts |= {
            "from": str(args.checkpoint),
            "command": command(),
            "hardware": hardware(),
            "torch": torch.__version__,
        }
        write_json(args.file.with_name(f"{args.file.name}.json"), facts)
        print(summary(facts))
    else:
        network = from_checkpoint(data, args.bits).eval()
        if args.file.suffix != ".onnx":
            raise RunError(f"{args.file}: a modulation network is written as .onnx only; choose such a name")
        export.export_integer_onnx(network, args.file)
        print(f"{args.file} written, {args.file.stat().st_size / 1e3:.0f} kB")
        print(compare_answers(network, args.file, args.data_file or default_file(args.workers, few=True)))
    return 0


def export_segmentation(data: dict, images: torch.Tensor, file: Path) -> dict:
    """Write a network for pictures uint8 (N, 3, H, W); compare its labels and speed with the network's.

    The speed of the unpruned network is measured as well.
    """

    def deployed(network: torch.nn.Module) -> export.Deployed:
        return export.Deployed(network, segmentation.MEAN, segmentation.STD).eval()

    dense = deployed(build(data["factory"], data["arguments"]))  # for its speed: its weights don't matter
    network = deployed(rebuild(data))
    # Widths padded for the engine, then operations that engines have fast code for, then no batch norms
    wide = deployed(zero_pad_channels(network.network, torch.zeros(1, 3, 64, 64)))
    light = export.fold_batch_norm(export.streamline(wide, images[:2]), images[:2])
    return export.export_and_compare(network, light, images, file, {"dense, eager": dense})


def summary(facts: dict) -> str:
    """What a reader wants to know of an export: which labels differ, and how fast each engine is."""
    pixels, wrong, ties = (facts[key] for key in ("pixels", "different", "different_ties"))
    lines = [f"{facts['file']} written, {facts['bytes'] / 1e6:.2f} MB"]
    lines.append(
        f"{facts['images']} frames, {pixels} pixels: {wrong} labels differ from {facts['from']}, and {ties} near ties"
    )
    for name, times in facts["latency"].items():
        lines.append(f"{name:28}{times['median_ms']:8.2f} ms  {times['speed_up']:6.1f}x")
    return "\n".join(
        [*lines, f"one picture, one thread, medians in turns; {facts['hardware']}, torch {facts['torch']}"]
    )


def compare_answers(network: VGG10, file: Path, data_file: Path) -> str:
    """How many answers of ONNX Runtime differ from the network's."""
    frames = open_frames(data_file)
    rows = split_rows(frames)["test"]
    samples = frames.samples(rows[:: -(-len(rows) // AMC_FRAMES)])
    try:
        wrong = export.different_answers(network, file, samples)
    except export.ExportError as error:
        return f"not compared with the network: {error}"
    return f"{wrong} of {len(samples)} frames are named otherwise than by the network"


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
