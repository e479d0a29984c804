"""How often a row of segment.py is right: its confidence, calibrated on generated recordings.

    calibration = Calibration.beside(Path("weights/seg_student.pt"))   # seg_student.calibration.json
    calibration.apply(carriers, with_samples=True)

The network's mean softmax probability is no probability of being right: on what it has never seen it is confidently
wrong. `python -m experiments.confidence` counts, for each ground that a row rests on, how often rows are right, and
writes the file beside the network: a logistic curve of the network's probability for "unproven" rows and for pictures,
a share for the others (Platt 1999). Needs utils/carriers.py only.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from utils.carriers import Carrier

LEAST = 0.5  # an unproven row less likely than that is "other"


@dataclass(frozen=True)
class Calibration:
    """curves: {ground: (offset, slope)} of logit(p) = offset + slope * logit(network's probability)."""

    curves: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def beside(cls, weights: Path) -> "Calibration":
        """Of the file beside a network; without one a row's confidence stays the network's probability.

        Raises: ValueError for a damaged file.
        """
        path = weights.with_suffix(".calibration.json")
        if not path.exists():
            return cls()
        try:
            curves = json.loads(path.read_text())["curves"]
            return cls({ground: (float(offset), float(slope)) for ground, (offset, slope) in curves.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged ({error}); make it with python -m experiments.confidence") from error

    def confidence(self, ground: str, probability: float) -> float:
        """Of a row with that ground and the network's mean probability, 0 to 1."""
        if ground not in self.curves:
            return probability
        offset, slope = self.curves[ground]
        return 0.5 * (1 + math.tanh((offset + slope * logit(probability)) / 2))  # the logistic function

    def apply(self, carriers: list[Carrier], with_samples: bool) -> None:
        """Set each row's confidence, and call unproven rows below LEAST "other"; in place.

        with_samples: False for a picture, whose rows keep the network's name.
        """
        for carrier in carriers:
            ground = carrier.calibration_ground if with_samples else "picture"
            carrier.confidence = self.confidence(ground, carrier.confidence)
            unproven = with_samples and carrier.ground == "unproven" and carrier.technology != "other"
            if unproven and carrier.confidence < LEAST:
                carrier.evidence = f"{carrier.evidence} {carrier.technology} ({carrier.confidence:.2f})"
                carrier.technology, carrier.confidence = "other", 1 - carrier.confidence


def logit(probability: float) -> float:
    clipped = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(clipped / (1 - clipped))
