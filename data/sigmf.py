"""Metadata of SigMF recordings: read, checked, and written with annotations. Standard library only.

meta = read_meta(Path("capture.sigmf-meta"))
check_annotatable(recording)                                             # before the work
annotated_metadata(recording, annotations, generator="my program")       # the metadata to write
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from data import DataError
from data.wav import WAV_24

if TYPE_CHECKING:
    from data.recording_formats import Recording


def read_meta(path: Path) -> dict:
    """The JSON of a .sigmf-meta with its three parts, global, captures and annotations; DataError if they are not."""
    try:
        return checked_meta(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path}: is no readable SigMF metadata ({error}); write it again") from error


def checked_meta(data, path):
    try:
        meta = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, numbers of 5,000 digits
        raise DataError(f"{path}: is no readable SigMF metadata ({error}); write it again") from error
    parts = {"global": dict, "captures": list, "annotations": list}
    meta = {part: kind() for part, kind in parts.items()} | meta if isinstance(meta, dict) else None
    if meta is None or not all(isinstance(meta[part], kind) for part, kind in parts.items()):
        raise DataError(f"{path}: is no SigMF metadata: global, captures and annotations are expected; write it again")
    for entry in meta["captures"] + meta["annotations"]:
        if not isinstance(entry, dict):
            raise DataError(f"{path}: captures and annotations must hold objects, not {entry!r}; write it again")
    for entry in meta["captures"]:
        number(path, entry, "core:sample_start", 0, whole=True)
    return meta


def number(path, entry, key, default=None, whole=False):
    """A number of the metadata; a missing one is `default`. A count may be written as 3.0."""
    value = entry.get(key, default)
    if value is default:
        return default
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18
    if not good or (whole and (value < 0 or value != int(value))):
        raise DataError(f"{path}: {key} is {value!r}, not a {'count' if whole else 'number'}; correct it")
    return int(value) if whole else value


def metadata_path(recording: Recording) -> Path:
    """The recording's .sigmf-meta, there or to be written."""
    return recording.meta_path or recording.path.with_name(recording.path.name + ".sigmf-meta")


def check_annotatable(recording: Recording) -> None:
    """Whether annotations can be written beside a recording, before it is labelled. DataError: they can't."""
    path, meta_path = recording.path, metadata_path(recording)
    if path.suffix == ".sigmf":
        raise DataError(f"{path}: an archive can't be annotated; unpack it and name its .sigmf-meta")
    if recording.datatype == WAV_24:
        raise DataError(f"{path}: SigMF has no 24-bit samples; leave --annotate out, or convert it to 16 or 32 bits")
    if recording.contradictions:
        told = "; ".join(recording.contradictions)
        raise DataError(f"{meta_path}: {told}; correct the metadata, or leave that option or --annotate out")
    probe = meta_path.with_name(f".{meta_path.name}.probe")
    try:
        if meta_path.exists():
            meta_path.open("r+b").close()
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"{meta_path}: can't be written ({error.strerror}); copy the recording elsewhere") from error


def annotated_metadata(recording: Recording, annotations: list[dict], generator: str) -> dict:
    """The recording's metadata, as on disk now, with annotations in place of those that have the same core:generator.

    What an option told, because the metadata or the file did not, is written into them.
    """
    if recording.meta_path:
        meta = read_meta(recording.meta_path)
    else:  # SigMF calls bare samples a non-conforming dataset; its metadata name the file
        meta = recording.meta | {"global": {"core:dataset": recording.path.name} | recording.meta["global"]}
    known = {"core:version": "1.0.0", "core:datatype": recording.datatype, "core:sample_rate": recording.sample_rate}
    general = known | meta["global"]
    extensions = general.get("core:extensions", [])
    if any("signal:detail" in entry for entry in annotations) and isinstance(extensions, list):
        if not any(isinstance(one, dict) and one.get("name") == "signal" for one in extensions):
            signal = {"name": "signal", "version": "1.0.0", "optional": True}
            general["core:extensions"] = [*extensions, signal]
    centers = {capture.center_hz for capture in recording.captures}
    told = {"core:frequency": centers.pop()} if len(centers) == 1 and None not in centers else {}
    captures = [told | entry for entry in meta["captures"] or [{"core:sample_start": 0}]]
    kept = [entry for entry in meta["annotations"] if entry.get("core:generator") != generator]
    return meta | {"global": general, "captures": captures, "annotations": sorted(kept + annotations, key=_start)}


def _start(entry):
    start = entry.get("core:sample_start", 0)
    return start if isinstance(start, (int, float)) else 0
