"""Find LTE and 5G NR carriers in a radio recording, or in samples as they arrive.

    python segment.py capture.sigmf-meta                                   # table, runs/segment/waterfall.png
    python segment.py capture.sigmf-meta --annotate                        # and write them into the metadata
    python segment.py capture.bin --datatype ci8 --sample-rate 19.2e6 --center-frequency 1815.3e6
    rtl_sdr -f 1815.3e6 -s 1.92e6 - | python segment.py - --datatype cu8 --sample-rate 1.92e6
    python segment.py captures/*.sigmf-meta --workers 8                    # many: one table, a folder for each
    python segment.py spectrogram.png                                      # 256x256 pixels of 240 kHz x 156 us

Processing takes about .1 s per 40 ms on one core. A frame is 40 ms of the recording. The network labels the pixels of
its spectrogram. Neighbouring columns whose most probable class, on average over time, is the same technology are a
band. Then the samples are searched for evidence (docs/evidence.md), and a band becomes one or more carriers, the rows
of the table. Edges are those of the channel, guard bands included, right to about 240 kHz. `active` is the share of
time in which a carrier's mean level is more than 2 dB above the noise. `confidence` is the chance that the row is
right, measured with experiments/confidence.py. The folder --out gets waterfall.png and result.json.

Exit codes: 0 LTE or NR found, 3 none found, 2 input that can't be used. From a pipe a row is printed when a carrier has
come or gone; the table follows at the end, or after Ctrl-C.
"""

import _signal  # the part of `signal` that needs no import of other modules

if __name__ == "__main__":  # while Python imports, Ctrl-C ends it without a traceback
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from data import DataError
from data.recording_formats import open_recording
from data.sigmf import annotated_metadata, check_annotatable, metadata_path
from models import ModelError
from utils import runs
from utils.runs import RunError, StopSignal, command, path, run, write_json

GENERATOR = "spectrum sensing, segment.py"  # core:generator of our annotations
STUDENT = Path(__file__).resolve().parent / "weights/seg_student.pt"
NOTHING_FOUND = 3  # exit code


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tells = "SigMF, WAV, bare I/Q samples, a spectrogram .png, or - (a pipe)"
    parser.add_argument("recording", type=path, nargs="+", help=tells)
    parser.add_argument("--datatype", type=runs.words, help="of bare samples: ci8, cu8, ci16_le, cf32_le")
    parser.add_argument("--sample-rate", type=runs.positive, metavar="HZ", help="of bare samples; a picture's width")
    parser.add_argument(
        "--center-frequency", type=runs.real(-1e15, 1e15), metavar="HZ", help="on the air, of the centre"
    )
    parser.add_argument("--channel", type=runs.whole(0), default=0, help="of a recording with several, from 0")
    parser.add_argument("--checkpoint", type=path, default=STUDENT, help="default weights/seg_student.pt")
    parser.add_argument("--out", type=path, default=Path("runs/segment"))
    parser.add_argument("--annotate", action="store_true", help="write the carriers into the SigMF metadata")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, from a pipe a line for each event")
    form.add_argument("--csv", action="store_true", help="print comma-separated values")
    parser.add_argument(
        "--blind-search",
        type=runs.positive,
        metavar="SECONDS",
        help="look for NR cells though no centre frequency is known",
    )
    parser.add_argument("--no-evidence", action="store_true", help="let the network decide alone")
    parser.add_argument("--pictures", type=runs.whole(0), default=0, metavar="N", help="also draw the first N frames")
    parser.add_argument("--workers", type=runs.processes, default=1, metavar="N", help="that share frames, default 1")
    parser.add_argument("--device", type=runs.device, help="default cuda if there is one, else cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    runs.alone()
    calls = calls_of(args)

    # What is to be labelled. All that can be wrong with it is told before torch is imported, which takes seconds.
    recordings, stream = [], None
    is_picture = calls[0].recording.suffix.lower() == ".png"
    if str(calls[0].recording) == "-":
        stream = open_stream(calls[0])
    elif is_picture:
        if args.annotate:
            raise RunError(f"{calls[0].recording}: a picture can't be annotated; leave --annotate out")
        if not calls[0].recording.is_file():
            raise DataError(f"{calls[0].recording}: no such file; name a .png or a recording")
    else:
        form = args.datatype, args.sample_rate, args.center_frequency, args.channel
        recordings = [open_recording(call.recording, *form) for call in calls]
        for recording in recordings if args.annotate else ():
            check_annotatable(recording)
    if not args.checkpoint.is_file():
        raise RunError(f"{args.checkpoint}: no such checkpoint; train one with train_seg.py, or name another")

    from utils import labelling
    from utils.carriers import Calibration

    calibration = Calibration.beside(args.checkpoint)

    # Frames: rows of each are merged with those of the frames before
    if is_picture:
        surveys = [survey_picture(calls[0], labelling.load_network(args.checkpoint, args.device))]
    elif stream:
        surveys = [survey_stream(calls[0], stream, settings_of(calls[0]), calibration)]
    else:
        settings = [settings_of(call, len(recording)) for call, recording in zip(calls, recordings, strict=True)]
        results = labelling.label_recordings(recordings, settings, args.workers)
        jobs = zip(results, calls, recordings, strict=True)
        surveys = (survey_recording(call, recording, own) for own, call, recording in jobs)

    # Each whole recording: a folder, and its rows; then the table of all
    found, facts = [], []
    for i, survey in enumerate(surveys):
        found.append((survey, rows_of(survey, calibration, with_samples=not is_picture and not args.no_evidence)))
        facts.append(write_result(calls[i], *found[-1]))
    show(args, found, facts)
    for recording, (_, carriers) in zip(recordings, found, strict=True) if args.annotate else ():
        meta_path = metadata_path(recording)
        write_json(meta_path, annotated_metadata(recording, annotations(carriers), GENERATOR))
        print(f"{meta_path}: annotated", file=sys.stderr if args.json or args.csv else sys.stdout)
    return 0 if any(row.technology != "other" for _, carriers in found for row in carriers) else NOTHING_FOUND


def calls_of(args) -> list[argparse.Namespace]:
    """The arguments for each recording. Of several, each has a folder below --out with its name."""
    names, calls = Counter(), []
    for place in args.recording:
        if len(args.recording) > 1 and (str(place) == "-" or place.suffix.lower() == ".png"):
            raise RunError(f"{place}: a pipe or a picture is named alone; leave the other recordings out")
        names[place.stem] += 1
        folder = place.stem if names[place.stem] == 1 else f"{place.stem}_{names[place.stem]}"
        out = args.out / folder if len(args.recording) > 1 else args.out
        calls.append(argparse.Namespace(**vars(args) | {"recording": place, "out": out}))
    return calls


def settings_of(args, frames: int | None = None):
    """labelling.Settings for a recording of so many frames; None: for a stream."""
    from utils.labelling import Settings

    return Settings(
        checkpoint=args.checkpoint,
        device=args.device,
        evidence=not args.no_evidence,
        blind_seconds=args.blind_search,
        pictures=args.pictures,
        out=args.out,
        waterfall_rows=max(16, min(256, -(-1024 // frames))) if frames else 16,  # of a frame
    )


def rows_of(survey, calibration, with_samples: bool) -> list:
    """A row for each carrier of the whole recording, with its share of all time and a calibrated confidence."""
    from utils.carriers import join, share_of_recording

    carriers = join(survey.carriers)
    share_of_recording(carriers, survey.shown)
    calibration.apply(carriers, with_samples=with_samples)
    return sorted(carriers, key=lambda carrier: (not carrier.absolute, carrier.lower_hz, carrier.upper_hz))


# ---- frame by frame -------------------------------------------------------------------------------------------------


class Survey:
    """What the frames so far have shown."""

    def __init__(self, name: str, clock: tuple[float | None, int], notes: list[str]):
        from data.recording import FrameNotes
        from utils.pictures import Waterfall

        self.name, self.clock, self.notes = name, clock, notes  # clock: rate in Hz, number of the first sample
        self.carriers, self.frames = [], 0
        self.shown = Counter()  # {(centre, width) in Hz of a part of the spectrum: samples that show it}
        self.frame_notes, self.waterfall = FrameNotes(), Waterfall()
        self.facts = {}  # for result.json

    def add(self, result) -> None:
        """The result of a frame, labelling.FrameResult."""
        from utils.carriers import merge

        merge(self.carriers, result.rows)
        self.frames += 1
        self.shown[result.center_hz, result.span_hz] += result.count
        self.frame_notes += result.notes
        rate, first = self.clock
        low_hz = (result.center_hz or 0.0) - result.span_hz / 2
        self.waterfall.add(result.levels, (result.start - first) / rate, result.count / rate, low_hz, result.span_hz)


def survey_recording(args, recording, results) -> Survey:
    from tqdm import tqdm

    survey = Survey(args.recording.name, (recording.sample_rate, recording.offset), list(recording.notes))
    prepare(args.out)
    for result in tqdm(results, args.recording.name, len(recording), unit="frame", file=sys.stderr):
        survey.add(result)
    survey.notes += survey.frame_notes.lines(recording)
    return survey


def survey_picture(args, logits_of) -> Survey:
    """A spectrogram as a picture: one frame without samples."""
    from data.spectrogram import SAMPLE_RATE
    from utils.carriers import find_carriers, merge
    from utils.labelling import label_picture, read_picture, save_overlay

    picture, notes = read_picture(args.recording)
    notes.append("a picture has no samples: the evidence is -, the network alone decides")
    survey = Survey(args.recording.name, (None, 0), notes)
    view = label_picture(picture, logits_of, args.sample_rate or SAMPLE_RATE, args.center_frequency)
    rows = find_carriers(view)
    prepare(args.out)
    if args.pictures:
        save_overlay(view, rows, args.out / "frame_00000.png")
    merge(survey.carriers, rows)
    survey.frames = 1
    survey.shown[view.center_hz, view.span_hz] += view.count
    return survey


def open_stream(args):
    """Standard input; a thread begins to read it."""
    from data.stream import SampleStream

    if args.annotate or args.workers > 1 or args.channel:
        raise RunError("-: a pipe has no metadata and one channel; leave --annotate, --workers and --channel out")
    stream = SampleStream(sys.stdin.buffer, args.datatype, args.sample_rate, args.center_frequency)
    stream.start()
    return stream


def survey_stream(args, stream, settings, calibration) -> Survey:
    """Samples as they arrive, until the pipe ends or Ctrl-C; carriers that come and go are printed."""
    from utils import labelling
    from utils.carriers import Tracker, comma_separated, event_line, table_head

    rate = stream.recording.sample_rate
    survey = Survey("-", (rate, 0), [])
    tracker = Tracker(calibration, with_samples=not args.no_evidence)
    logits_of = labelling.load_network(args.checkpoint, args.device)
    prepare(args.out)
    if not args.json and not args.csv:
        print(f"{'time':>10}  {'event':9}  {table_head()}", flush=True)
    with StopSignal() as stop:
        for result in labelling.label(stream.frames(lambda: stop.requested), logits_of, settings):
            survey.add(result)
            end = result.start + result.count
            first = tracker.events == 0
            for event, row in tracker.step(survey.carriers, end, rate):
                plain = {"event": event, "time_s": round(end / rate, 3)} | row.plain(rate)
                if args.json:
                    print(json.dumps(plain), flush=True)
                elif args.csv:
                    print(comma_separated([plain], head=first), end="", flush=True)
                    first = False
                else:
                    print(event_line(event, row, end / rate, survey.clock), flush=True)
    seconds = survey.frames and end / rate
    if stream.dropped:
        share = f"{stream.dropped / rate:.2f} of {seconds:.2f} s, {stream.dropped_at_start / rate:.2f} during start-up"
        survey.notes.append(f"dropped samples: {stream.dropped:,} came too fast and were never looked at ({share})")
    survey.notes += survey.frame_notes.lines(stream.recording)
    survey.facts = {"seconds": seconds, "dropped_samples": stream.dropped}
    survey.facts["dropped_at_start"] = stream.dropped_at_start
    return survey


# ---- what is printed and written ------------------------------------------------------------------------------------


def write_result(args, survey: Survey, carriers: list) -> dict:
    """Write result.json and waterfall.png; the values of the former."""
    rows = [carrier.plain(*survey.clock) for carrier in carriers]
    checkpoint = args.checkpoint
    checkpoint = checkpoint.relative_to(Path.cwd()) if checkpoint.is_relative_to(Path.cwd()) else checkpoint
    result = {"recording": survey.name, "frames": survey.frames, "checkpoint": str(checkpoint), "command": command()}
    result |= survey.facts | {"notes": survey.notes, "carriers": rows}
    write_json(args.out / "result.json", result)
    if survey.waterfall.rows:
        save_waterfall(survey, carriers, args.out / "waterfall.png")
    return result


def show(args, found: list[tuple[Survey, list]], facts: list[dict]) -> None:
    """Print the rows of all recordings; of several also write them into one result.json."""
    from utils.carriers import comma_separated, table, table_of_several

    several, streaming = len(found) > 1, found[0][0].name == "-"
    rows = [{"recording": one["recording"]} | row if several else row for one in facts for row in one["carriers"]]
    whole = {"recordings": facts} if several else facts[0]
    if args.json:
        print(json.dumps({"event": "end"} | whole) if streaming else json.dumps(whole, indent=2))
    elif args.csv:
        print("" if streaming else comma_separated(rows), end="")
    elif several:
        print(table_of_several([(survey.name, carriers, *survey.clock) for survey, carriers in found]))
    else:
        print(table(found[0][1], *found[0][0].clock))
    notes = [(f"{survey.name}: " if several else "") + note for survey, _ in found for note in survey.notes]
    for note in [] if args.json else notes:
        print(f"note: {note}", file=sys.stderr if args.csv else sys.stdout)
    if several:
        write_json(args.out / "result.json", whole)


def save_waterfall(survey: Survey, carriers: list, path: Path) -> None:
    """The whole recording, with its rows drawn in."""
    from data.spectrogram import PARULA
    from data.spectrum_sensing import CLASSES
    from utils import pictures

    rate, first = survey.clock
    boxes = []
    for carrier in carriers:
        kind = CLASSES.index(carrier.technology) if carrier.technology in CLASSES else None
        times = [((start - first) / rate, (start + count - first) / rate) for start, count in carrier.runs]
        text = f"{carrier.technology} {carrier.width_hz / 1e6:.2f} MHz, {carrier.confidence:.2f}"
        boxes.append(pictures.Box(carrier.lower_hz, carrier.upper_hz, times, kind, text))
    try:
        pictures.save(survey.waterfall.draw(boxes, PARULA, CLASSES, survey.name), path)
    except OSError as error:
        raise RunError(f"{path}: can't be written ({error.strerror}); choose another folder with --out") from error


def prepare(folder: Path) -> None:
    """Make and lock the folder, and delete an earlier call's pictures, which would lie beside the new table."""
    try:
        runs.lock(folder)
        for old in [*folder.glob("frame_[0-9][0-9][0-9][0-9][0-9].png"), *folder.glob("waterfall.png")]:
            old.unlink()
    except OSError as error:
        raise RunError(f"{folder}: can't be changed ({error.strerror}); choose another folder with --out") from error


def annotations(carriers: list) -> list[dict]:
    """SigMF annotations, one for each unbroken appearance of a carrier."""
    found = []
    for carrier in carriers:
        about = {
            "core:freq_lower_edge": carrier.lower_hz,
            "core:freq_upper_edge": carrier.upper_hz,
            "core:label": carrier.technology,
            "core:generator": GENERATOR,
            "core:comment": carrier.comment(),
        } | ({"signal:detail": detail} if (detail := carrier.signal_detail()) else {})
        found += [{"core:sample_start": start, "core:sample_count": count} | about for start, count in carrier.runs]
    return found


if __name__ == "__main__":
    sys.exit(run(main, DataError, ModelError))
