"""Small modules, made to be copied out: pruning, losses, metrics, checkpoints, pictures and more.

In this folder a frame is what it is in data/: 40 ms of samples and their spectrogram, or 1024 samples of a modulation.
"""
