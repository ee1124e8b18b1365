"""The GPU half of a bundle: CUDA text of the same calls, compiled ahead of time with no GPU and no driver present."""
