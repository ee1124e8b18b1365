"""The GPU half of a bundle: its schedule, its CUDA source, and what that is compiled to."""
