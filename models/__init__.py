"""Networks: torchvision's, plus what this repository adds to them.

In this folder a frame is one input of a network: the picture of a spectrogram, or the samples of one modulation.
"""


class ModelError(ValueError):
    """A network that cannot be built as asked; the message names the fault and the remedy."""
