"""Tables of the documentation as Markdown, each made from the JSON files of weights/ and experiments/results.

print(segmentation_summary())                          # experiments/report.py puts them into the pages
"""

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path("experiments/results")
SEGMENTATION = {"teacher": "weights/seg_teacher.json", "student": "weights/seg_student.json"}
MODULATION = {"8-bit baseline": "weights/amc_baseline.json", "pruned": "weights/amc_fmp.json"}
H200_TEACHER = RESULTS / "h200/seg_teacher.json"
MAIN_SETS = {  # of segmentation: name in the JSON file, name in a table
    "test": "test",
    "test, single-signal": "single-signal",
    "test, FIELD": "field",
    "combined": "combined",
}
SIZES = ("ours 299 K", "published 299 K", "ours 600 K", "ours 172 K", "ours 110 K")  # order of the compression table
CLASSES = ("noise", "NR", "LTE")


# ---- small helpers ---------------------------------------------------------------------------------------------------


def read(name: str | Path) -> dict:
    return json.loads((ROOT / name).read_text())


def rows_of(folder: str) -> list[dict]:
    """The rows of an experiment, one JSON file each."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / RESULTS / folder).glob("*_seed*.json"))]


def lines_of(name: str | Path) -> list[dict]:
    """A run's log."""
    return [json.loads(line) for line in (ROOT / name).read_text().splitlines()]


def widths(data: dict, between: str) -> str:
    """The bits of a network's weights: one number, or the least and the most of ten layers."""
    bits = data["bits"]
    return f"{bits}" if isinstance(bits, int) else f"{min(bits)}{between}{max(bits)}"


def share(value: float | None, digits: int = 3) -> str:
    """.882 for 0.882; "-" where a class or a set is absent."""
    return "-" if value is None else f"{value:.{digits}f}".removeprefix("0")


def spread(values: list[float]) -> str:
    """Mean, and standard deviation if there are several."""
    mean = share(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {share(statistics.stdev(values))}"


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    cells = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def thousands(count: float) -> str:
    return f"{count / 1e3:,.0f} K"


def machine(data: dict) -> str:
    """The hardware in plain words."""
    return data["hardware"].replace("(R)", "").replace("1 threads", "1 thread")


def machines(rows: list[dict]) -> str:
    """A line below a table: all hardware that its rows were made on."""
    return "\n\nMade on: " + "; ".join(sorted({f"{machine(row)}, PyTorch {row['torch']}" for row in rows})) + "."


# ---- segmentation ----------------------------------------------------------------------------------------------------


def segmentation_summary() -> str:
    """Shipped networks, mIoU with channels fitted."""
    titles = ["network", "parameters", "file", *MAIN_SETS.values(), "trained on"]
    rows = []
    for title, name in SEGMENTATION.items():
        data = read(name)
        row = [title, thousands(data["parameters"]), f"{data['bytes'] / 1e6:.2f} MB"]
        row += [share(data["sets"][key]["mean_iou"]) for key in MAIN_SETS]
        rows.append([*row, machine(data)])
    return table(titles, rows)


def segmentation_sets(name: str | Path) -> str:
    """Every set on which a network was scored."""
    data = read(name)
    titles = ["set", "frames", "accuracy", "recall", "mIoU", *CLASSES, "mIoU, network alone"]
    rows = []
    for key, scores in data["sets"].items():
        classes = [scores["classes"][one] for one in CLASSES]
        row = [key, str(scores["frames"]), share(scores["accuracy"]), share(scores["mean_recall"])]
        row += [share(scores["mean_iou"]), *(share(one and one["iou"]) for one in classes)]
        rows.append([*row, share(data["network_alone"][key]["mean_iou"])])
    undone = data["class_weights_undone"]
    about = f"Validation mIoU of the network alone {share(data['validation']['mean_iou'])}"
    if undone is not None:  # an average of two networks has no epoch of its own
        about += f" in the chosen epoch ({data['epoch']}), before {undone} of the class weights was undone"
    return (
        f"{table(titles, rows)}\n\n{about}. {machine(data)}, PyTorch {data['torch']}. Command: `{data['trained_by']}`"
    )


NETWORKS = {  # before and after OTHER frames: file in experiments/results/fresh_frames and open_world, name in a table
    "weights_earlier_seg_student": "student before",
    "weights_seg_student": "student",
}


def fresh_frames() -> str:
    """Networks before and after OTHER frames, on the same frames that no training has seen."""
    rows, facts = [], {}
    for name, title in NETWORKS.items():
        data, world = (read(RESULTS / folder / f"{name}.json") for folder in ("fresh_frames", "open_world"))
        cells = [f"{share(score['mean_iou'])}{_interval(score)}" for score in data["sets"].values()]
        cells += [share(data["full_load"][one]) for one in ("NR", "LTE")]
        rows.append([title, *cells, f"{world['mean']:.1%}", f"{world['worst'][1]:.1%} ({world['worst'][0]})"])
        facts = {one: score["frames"] for one, score in data["sets"].items()}
    titles = [f"{one} ({count})" for one, count in facts.items()]
    titles += ["NR found at full load", "LTE at full load"]
    text = table(["network", *titles, "OTHER called LTE or NR", "worst kind"], rows)
    return f"{text}\n\n`{data['command']}`, `{world['command']}`, {machine(data)}."


def _interval(score: dict) -> str:
    low_high = score.get("difference")
    return f" ({low_high[0]:+.3f} to {low_high[1]:+.3f})" if low_high else ""


def open_world() -> str:
    """By kind of OTHER frames: the share of their pixels without a carrier that each network calls LTE or NR."""
    worlds = {title: read(RESULTS / "open_world" / f"{name}.json")["kinds"] for name, title in NETWORKS.items()}
    kinds = sorted(worlds["student"], key=lambda kind: -(worlds["student"][kind]["share"] or 0))
    rows = []
    for kind in kinds:
        shares = [world[kind]["share"] for world in worlds.values()]
        rows.append([kind, *("-" if value is None else f"{value:.1%}" for value in shares)])
    return table(["kind", *worlds], rows)


def segmentation_reference() -> str:
    """A network that knows real frames only, on generated ones."""
    data = read(RESULTS / "segmentation_reference/result.json")
    rows = []
    for name, scores in data["sets"].items():
        row = [name, str(scores["frames"]), share(scores["mean_recall"]), share(scores["mean_iou"])]
        rows.append(row + [share(one and one["iou"]) for one in (scores["classes"][key] for key in CLASSES)])
    return table(["set", "frames", "recall", "mIoU", *CLASSES], rows) + f"\n\n`{data['command']}`, {machine(data)}."


def compression_groups() -> dict[tuple, list[dict]]:
    """Rows that differ in the seed only, in the table's order."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows_of("compression"):
        groups.setdefault((row["size"], row["way"], row["epochs"]), []).append(row)
    order = {size: place for place, size in enumerate(SIZES)}
    return dict(sorted(groups.items(), key=lambda item: (order[item[0][0]], item[0][1].lower(), item[0][2])))


def compression() -> str:
    """Costs and mIoU of every pruned and retrained network."""
    teacher = read(RESULTS / "compression/teacher.json")
    titles = ["network", "retrained by", "epochs", "seeds", "parameters", "MMAC", "MB", "times faster", "kept"]
    rows = []
    for (size, way, epochs), group in {("dense teacher", "", 0): [teacher], **compression_groups()}.items():
        first = group[0]
        faster = statistics.median(row["latency"]["this"]["speed_up"] for row in group)
        kept = statistics.mean(row["sets"]["test"]["mean_iou"] for row in group) / teacher["sets"]["test"]["mean_iou"]
        nominal = first["parameters_dense"] / first["parameters"]
        row = [size, way or "-", str(epochs or "-"), str(len(group)) if way else "-"]
        row += [f"{thousands(first['parameters'])} ({nominal:.1f}x)", f"{first['macs_live'] / 1e6:,.0f}"]
        row += [f"{first['bytes'] / 1e6:.2f}", f"{faster:.1f}", f"{100 * kept:.1f} %"]
        rows.append(row + [spread([one["sets"][key]["mean_iou"] for one in group]) for key in MAIN_SETS])
    return table(titles + list(MAIN_SETS.values()), rows) + machines(rows_of("compression"))


def compression_by_snr() -> str:
    teacher = read(RESULTS / "compression/teacher.json")
    sets = [name for name in teacher["sets"] if name.startswith("test, ") and name.endswith("dB")]
    rows = []
    for (size, way, epochs), group in {("dense teacher", "", 0): [teacher], **compression_groups()}.items():
        scores = [spread([one["sets"][key]["mean_iou"] for one in group]) for key in sets]
        rows.append([size, way or "-", str(epochs or "-"), *scores])
    return table(["network", "retrained by", "epochs", *(name.removeprefix("test, ") for name in sets)], rows)


def cuts() -> str:
    """What a cut costs before any retraining."""
    rows = {}
    for row in rows_of("compression"):
        if row["before_retraining"]:
            scores = row["before_retraining"]
            rows[row["size"]] = [
                row["size"],
                *(share(scores[key]["miou"]) for key in ("dense", "pruned", "recalibrated")),
            ]
    return table(
        ["network", "teacher", "cut", "statistics measured anew"], [rows[size] for size in SIZES if size in rows]
    )


# ---- modulations -----------------------------------------------------------------------------------------------------


def from_10_db(test: dict) -> str:
    """Mean accuracy from +10 dB on; every SNR has equally many frames."""
    return share(statistics.mean(value for snr, value in test["by_snr"].items() if int(snr) >= 10), 4)


def modulation_summary() -> str:
    """The shipped networks; shares of the test part and the challenge's cost."""
    titles = ["network", "bits", "accuracy", "from +10 dB", "non-zero weights", "compression", "score", "trained on"]
    rows = []
    for title, name in MODULATION.items():
        data = read(name)
        cost, test = data["cost"], data["sets"]["test"]
        row = [title, widths(data, " to "), share(test["accuracy"], 4), from_10_db(test), f"{cost['nonzero']:,}"]
        row += [f"{cost['weights'] / cost['nonzero']:.2f}x", f"{cost['score']:.5f}", machine(data)]
        rows.append(row)
    return table(titles, rows)


def modulation_by(kind: str) -> str:
    """Test accuracy of the shipped networks by SNR, or by class."""
    scores = {title: read(name)["sets"]["test"][kind] for title, name in MODULATION.items()}
    first = next(iter(scores.values()))
    rows = [[key, *(share(one[key]) for one in scores.values())] for key in first]
    return table(["dB" if kind == "by_snr" else "class", *scores], rows)


def modulation_reference() -> str:
    """Accuracy of networks that know genuine frames only, on genuine and on generated ones."""
    data = read(RESULTS / "modulation_reference/result.json")
    networks = {name: facts for name, facts in data.items() if isinstance(facts, dict) and "genuine_accuracy" in facts}
    titles = ["dB", *(f"{name}, {frames}" for name in networks for frames in ("genuine", "generated"))]
    rows = []
    for title, key in (("all", "accuracy"), ("from +10", "accuracy_from_10_db")):
        rows.append([title, *(share(facts[kind + key]) for facts in networks.values() for kind in ("genuine_", ""))])
    for snr in next(iter(networks.values()))["accuracy_by_snr"]:
        scores = [facts[kind + "accuracy_by_snr"][snr] for facts in networks.values() for kind in ("genuine_", "")]
        rows.append([snr, *(share(score) for score in scores)])
    about = f"{data['frames_per_cell']} frames of each class and SNR, seed {data['seed']}. {machine(data)}."
    return f"{table(titles, rows)}\n\n{about}"


def other_modulations() -> str:
    """The shipped baseline on another library's signals: recall of each class, one row a convention that differs."""
    recall = read(RESULTS / "other_modulations/result.json")["recall"]
    classes = list(recall["generated"])
    return table(["signals", *classes], [[name, *(share(row[c], 2) for c in classes)] for name, row in recall.items()])


def about_other_modulations() -> str:
    recall = {name: row["mean"] for name, row in read(RESULTS / "other_modulations/result.json")["recall"].items()}
    alike, filters, samples = (recall[name] for name in ("symbols at any time", "one filter", "4 samples a symbol"))
    return (
        f"On scikit-commpy's PSK and QAM the shipped baseline has {share(alike, 2)} where generated frames give "
        f"{share(recall['generated'], 2)}; {share(filters, 2)} without the receiver's filter, {share(samples, 2)} at 4 "
        "samples a symbol."
    )


def magnitude_pruning() -> str:
    rows = rows_of("magnitude_pruning")
    if not rows:
        return "No row is there yet: the command makes them."
    titles = ["row", "seed", "test accuracy", "non-zero weights", "compression", "paper's formula", "bops"]
    lines = []
    for row in sorted(rows, key=lambda row: -row["score"]):
        accuracy = f"{share(row['test_accuracy'], 4)} ± {share(row['standard_error'], 4)}"
        cells = [row["row"], str(row["seed"]), accuracy, f"{row['nonzero']:,}", f"{row['compression']:.2f}x"]
        formula = row["papers_formula"]  # None: the baseline, which nothing was cut from
        cells += [f"{formula:.2f}x" if formula else "-", f"{row['bops']:,}", f"{row['weight_bits']:,}"]
        lines.append([*cells, f"{row['score']:.5f}", str(row["pruning_epochs"]), machine(row)])
    return table([*titles, "weight bits", "score", "epochs", "hardware"], lines)


def h200_pruning() -> str:
    """A pruning on one H200, step by step."""
    rows = []
    for row in lines_of(RESULTS / "h200/fmp_lampcost.jsonl"):
        if "score" in row:  # the end of a step; other lines are epochs
            cells = [str(row["step"]), f"{row['p']:g}", f"{row['nonzero']:,}", f"{row['score']:.5f}"]
            rows.append(
                [*cells, share(row["validation"], 4), str(row["epochs"]), "kept" if row["good"] else "went back"]
            )
    return table(["step", "p", "non-zero weights", "score", "validation accuracy", "epochs", "outcome"], rows)


# ---- evidence --------------------------------------------------------------------------------------------------------


def calibrations() -> list[tuple[str, dict]]:
    files = sorted((ROOT / "weights").glob("*.calibration.json"))
    return [(path.name.removesuffix(".calibration.json"), json.loads(path.read_text())) for path in files]


def confidence() -> str:
    """How many rows of segment.py were right, by what their name rests on."""
    rows = []
    for name, data in calibrations():
        for ground, (count, right) in data["rows_and_right"].items():
            rows.append([name, ground, str(count), str(right), share(right / count, 2) if count else "-"])
    return table(["network", "ground", "rows", "right", "share"], rows)


def reliability() -> str:
    rows = []
    for name, data in calibrations():
        for kind, points in data["reliability"].items():
            told = "network alone" if kind == "picture" else "with evidence"
            rows += [[name, told, share(mean, 2), share(right, 2), str(count)] for mean, right, count in points]
    return table(["network", "rows", "mean confidence", "right", "count"], rows)


def prefix_false_alarms() -> str:
    rows = []
    for kind, data in read(RESULTS / "cyclic_prefix/result.json")["false_alarms"].items():
        row = [kind, *(f"{data[key]:,}" for key in ("claims", "none", "unknown"))]
        rows.append([*row, f"{data['highest']:.2f}", f"{data['fitted_rate']:.1e}"])
    return table(["emission or event", "claims", "none", "unknown", "highest", "fitted rate"], rows)


def prefix_detection() -> str:
    data = read(RESULTS / "cyclic_prefix/result.json")["detection"]
    levels = list(next(iter(data.values())))
    rows = [[kind, *(share(found[level][0], 2) for level in levels)] for kind, found in data.items()]
    return table(["carrier", *(f"{float(level):+.0f} dB" for level in levels)], rows)


def cell_false_alarms() -> str:
    """Of the first file of each search, and the highest statistic of all seeds."""
    rows, folder = [], ROOT / RESULTS / "cell_search"
    for search, name in (("LTE", "trials"), ("NR", "trials"), ("aligned LTE", "aligned"), ("aligned NR", "aligned")):
        files = [read(path.relative_to(ROOT)) for path in sorted(folder.glob(f"{name}*.json"))]
        tables = [file["false_alarms"][search] for file in files]
        for kind, first in tables[0].items():
            every = [found[kind] for found in tables]
            counts = [f"{sum(one[key] for one in every):,}" for key in ("draws", "above_threshold")]
            highest = max(one["highest"] for one in every)
            rows.append([search, kind, *counts, f"{highest:.1f}", f"{first['rate_at_threshold']:.1e}"])
    return table(["search", "emission or event", "draws", "above threshold", "highest", "rate"], rows)


def cell_detection() -> str:
    data = read(RESULTS / "cell_search/trials.json")["detection"]["share_found_by_snr"]
    levels = [level for level, _ in next(iter(data.values()))]
    rows = [[kind, *(share(found, 2) for _, found in points)] for kind, points in data.items()]
    return table(["carrier", *(f"{level:+d} dB" for level in levels)], rows)


# ---- the pruner ------------------------------------------------------------------------------------------------------


def seconds_of(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def pruner_timm() -> str:
    """Half of the channels of timm's architectures, ours and Torch-Pruning."""
    rows, data = [], lines_of(RESULTS / "pruner/timm.jsonl")
    for row in data:
        ours, theirs, count = row["ours"], row["theirs"], row["ours"].get("parameters")
        error = ours.get("error", ours.get("fault"))
        gone, other = (share(1 - tool["left"] / count, 2) if tool.get("left") else "-" for tool in (ours, theirs))
        exact = f"{error:.0e}" if isinstance(error, float) else error.partition(":")[0]
        answer = "runs" if theirs.get("left") else (theirs.get("fault") or "-").partition(":")[0]
        times = (seconds_of(tool.get("seconds")) for tool in (ours, theirs))
        rows.append([row["model"].removeprefix("timm:"), exact, gone, answer, other, *times])
    titles = ["architecture", "error", "removed", "Torch-Pruning", "removed", "s", "s, Torch-Pruning"]
    return table(titles, rows) + machines(data)


def pruner_speed() -> str:
    """CPU seconds of both tools, and the geometric mean of their ratios."""
    data = lines_of(RESULTS / "pruner/speed.jsonl")
    pairs = [(row["model"].removeprefix("timm:"), row["speed"].get("ours"), row["speed"].get("theirs")) for row in data]
    ratios = [a / b for _, a, b in pairs if a and b]
    rows = [[name, seconds_of(a), seconds_of(b), f"{a / b:.2f}" if a and b else "-"] for name, a, b in pairs]
    mean = f"Geometric mean of {len(ratios)}: {statistics.geometric_mean(ratios):.2f}, largest {max(ratios):.2f}."
    return table(["model", "s", "s, Torch-Pruning", "ratio"], rows) + f"\n\n{mean}" + machines(data)
