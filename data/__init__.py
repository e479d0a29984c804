"""Data sets: readers for the published files, and generators that write the same layouts."""


class DataError(ValueError):
    """A file or folder that cannot be used; the message names the file, the fault and the remedy."""
