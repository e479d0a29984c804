"""Networks: torchvision's, plus what this repository adds to them."""


class ModelError(ValueError):
    """A network that cannot be built as asked; the message names the fault and the remedy."""
