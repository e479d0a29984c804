"""Small modules to copy out: metrics, checkpoints, pictures."""
