"""All tables of the documentation, made from the JSON files that runs have written. A second.

    python -m experiments.report            # fills README.md, docs/*.md and weights/README.md
    python -m experiments.report --check    # writes nothing; exit code 2 if one of them is out of date

A part of these pages between `<!-- report: NAME FILE -->` and `<!-- end -->` is what the function NAME returns, here or
in report_tables.py; FILE is its argument, where it has one. All other text is written by hand. The sources are
weights/*.json, written with the networks, and experiments/results, written by the experiments: call this script after
one of them has changed.
tests/test_report.py fails where that was forgotten.
"""

import argparse
import math
import re
import statistics
import sys
from pathlib import Path

from experiments.report_tables import (
    H200_TEACHER,
    MAIN_SETS,
    MODULATION,
    RESULTS,
    ROOT,
    SEGMENTATION,
    about_other_modulations,
    cell_detection,
    cell_false_alarms,
    compression,
    compression_by_snr,
    compression_groups,
    confidence,
    cuts,
    fresh_frames,
    from_10_db,
    h200_pruning,
    lines_of,
    machine,
    magnitude_pruning,
    modulation_by,
    modulation_reference,
    modulation_summary,
    open_world,
    other_modulations,
    prefix_detection,
    prefix_false_alarms,
    pruner_speed,
    pruner_timm,
    read,
    reliability,
    segmentation_reference,
    segmentation_sets,
    segmentation_summary,
    share,
    table,
    widths,
)
from utils.runs import RunError, run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, only tell what is out of date")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    old = {path: text for path in pages() if (text := filled(path)) != path.read_text()}
    if args.check and old:
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in old)
        raise RunError(f"{names}: out of date; run python -m experiments.report")
    for path, text in old.items():
        path.write_text(text)
        print(f"{path.relative_to(ROOT)}: written")
    return 0


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "weights/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(path: Path) -> str:
    """The page's text with every marked part made anew. RunError: it asks for a part that is not there."""

    def part(match: re.Match) -> str:
        begin, name, argument, end = match.groups()
        if name not in PARTS:
            raise RunError(f"{path.name} asks for {name!r}: experiments/report.py has {', '.join(PARTS)}")
        text = PARTS[name](argument) if argument else PARTS[name]()
        line = "\n" if "\n" in text else ""  # a sentence stays on the line of its marks
        return f"{begin}{line}{text}{line}{end}"

    pattern = r"(<!-- report: (\w+)(?: (\S+))? -->).*?(<!-- end -->)"
    return re.sub(pattern, part, path.read_text(), flags=re.DOTALL)


# ---- what it takes ---------------------------------------------------------------------------------------------------


def takes(script: str, what: str) -> str:
    """A sentence on the processor time of a step of the demo, with a space behind it; "" if nobody has measured it."""
    for step in read(RESULTS / "demo.json")["steps"]:
        if step["script"] == script:
            return f"{what} {step['processor_seconds']:.0f} s. "
    return ""


def demo() -> str:
    data = read(RESULTS / "demo.json")
    rows = [[f"`{step['command']}`", f"{step['processor_seconds']:.0f}"] for step in data["steps"]]
    about = f"{machine(data)}, PyTorch {data['torch']}, commit {data['commit']}. {about_demo()}"
    return f"{table(['command', 'processor seconds'], rows)}\n\n{about}".rstrip()


def about_demo() -> str:
    """Minutes of the whole demo after installation, where they were measured."""
    data = read(RESULTS / "demo.json")
    return f"All of it takes {data['minutes']:.0f} minutes ({machine(data)})." if "minutes" in data else ""


def h200_speed() -> str:
    """Median images a second of the H200's teacher, without its first epoch."""
    return f"{statistics.median(row['images_per_second'] for row in lines_of(RESULTS / 'h200/teacher.jsonl')[1:]):.0f}"


def kept(size: str, way: str, epochs: int) -> str:
    teacher = read(RESULTS / "compression/teacher.json")["sets"]["test"]["mean_iou"]
    rows = compression_groups()[size, way, epochs]
    return f"{100 * statistics.mean(row['sets']['test']['mean_iou'] for row in rows) / teacher:.1f} %"


def about_synthetic() -> str:
    return takes("data.synthetic", "The demo's 176 frames take").rstrip()


def about_modulations() -> str:
    return takes("data.modulations", "The demo's 7,488 frames take").rstrip()


def about_train_seg() -> str:
    shipped, h200 = read(SEGMENTATION["teacher"]), read(H200_TEACHER)
    text = takes("train_seg.py", "The demo's four epochs take")
    text += f"One H200 reaches test mIoU {share(h200['sets']['test']['mean_iou'])} in 24 epochs "
    text += f"({h200_speed()} images a second), "
    return text + f"the shipped teacher {share(shipped['sets']['test']['mean_iou'])}."


def about_prune_seg() -> str:
    row = compression_groups()["ours 299 K", "KD", 3][0]
    text = takes("prune_seg.py", "The demo's cut takes")
    nominal = row["parameters_dense"] / row["parameters"]
    return f"{text}The default target is {nominal:.1f} times fewer parameters than torchvision's network."


def about_distill_seg() -> str:
    text = takes("distill_seg.py", "The demo's six epochs take")
    shipped = read(SEGMENTATION["student"])["sets"]["test"]["mean_iou"]
    text += f"Three epochs give the student {kept('ours 299 K', 'KD', 3)} of its teacher's test mIoU; "
    return text + f"the shipped one has {share(shipped)}."


def about_segment() -> str:
    return takes("segment.py", "The demo's recording of 40 ms takes, start-up included,").rstrip()


def about_prefix() -> str:
    """Carriers that had the energy which the answer "none" asks for."""
    energy = read(RESULTS / "cyclic_prefix/result.json")["energy"]
    text = (
        f"Of {energy['points']} LTE and NR draws over fading channels, {energy['points_with_enough']} had the energy "
    )
    return text + f'that the answer "none" asks for; the prefix of {energy["found_with_enough"]} of these was found.'


def about_train_amc() -> str:
    data = read(MODULATION["8-bit baseline"])
    test = data["sets"]["test"]
    text = f"The shipped 8-bit network has accuracy {share(test['accuracy'], 4)} on {test['frames']:,} test frames of "
    return text + f"all SNRs, {from_10_db(test)} from +10 dB on."


def about_pruning() -> str:
    data = read(MODULATION["pruned"])
    test, cost = data["sets"]["test"], data["cost"]
    text = takes("feedback_magnitude_pruning.py", "The demo's pruning takes")
    text += f"The shipped {widths(data, '- to ')}-bit network has {cost['nonzero']:,} of {cost['weights']:,} "
    text += "weights left, score "
    return text + f"{cost['score']:.5f}, and has accuracy {share(test['accuracy'], 4)}."


def quickstart() -> str:
    """What segment.py printed, its confidence by the calibration as it is now."""
    data, curves = read(RESULTS / "quickstart.json"), read("weights/seg_student.calibration.json")["curves"]
    lines = []
    for line, row in zip(data["printed"], data["rows"], strict=True):
        if row:
            offset, slope = curves[row["ground"]]
            odds = row["probability"] / (1 - row["probability"])
            confidence = 1 / (1 + math.exp(-offset) * odds**-slope)
            line = line.replace("CONFIDENCE", f"{confidence:10.2f}")
        lines.append(line)
    return "\n".join(["```", *lines, "```"])


# ---- a model card ----------------------------------------------------------------------------------------------------


def card(name: str) -> str:
    """The facts of a network from the JSON file that was written with it."""
    data = read(name)
    facts = {}
    if "cost" in data:
        facts["weights"] = f"{data['cost']['weights']:,}, of which {data['cost']['nonzero']:,} are not zero"
        facts["bits of weights and activations"] = str(data["bits"])
        facts["challenge's score"] = f"{data['cost']['score']:.5f}"
    else:
        facts["parameters"] = f"{data['parameters']:,}"
    facts["size"] = f"{data['bytes'] / 1e6:.2f} MB"
    commands = data.get("commands") or [data["trained_by"]]  # one after the other, the last one's result is this file
    facts["trained by"] = ", then ".join(f"`{command}`" for command in commands)
    facts["scores"] = card_scores(data)
    facts["hardware"] = f"{machine(data)}, PyTorch {data['torch']}"
    facts["SHA-256"] = f"`{data['sha256']}`"
    return table(["file", data["file"]], [[key, value] for key, value in facts.items()])


def card_scores(data: dict) -> str:
    if "sets" not in data:
        return f"validation accuracy {share(data['validation'], 4)}"
    if "cost" in data:
        test = data["sets"]["test"]
        return (
            f"accuracy {share(test['accuracy'], 4)}, from +10 dB on {from_10_db(test)}; {test['frames']:,} test frames"
        )
    scores = [f"{title} {share(data['sets'][key]['mean_iou'])}" for key, title in MAIN_SETS.items()]
    return f"mIoU with channels fitted: {', '.join(scores)}"


PARTS = {  # what pages may ask for
    part.__name__: part
    for part in (segmentation_summary, segmentation_sets, segmentation_reference, compression, compression_by_snr, cuts)
    + (
        modulation_summary,
        modulation_by,
        modulation_reference,
        other_modulations,
        about_other_modulations,
        magnitude_pruning,
        h200_pruning,
        confidence,
        reliability,
    )
    + (about_prefix, prefix_false_alarms, prefix_detection, cell_false_alarms, cell_detection)
    + (
        demo,
        quickstart,
        about_demo,
        about_synthetic,
        about_modulations,
        about_train_seg,
        about_prune_seg,
        about_distill_seg,
        about_segment,
    )
    + (about_train_amc, about_pruning, card, pruner_timm, pruner_speed, fresh_frames, open_world)
}


if __name__ == "__main__":
    sys.exit(run(main))
