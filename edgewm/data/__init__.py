"""Recorded episodes, in the layouts that people have: what was seen, what was done, and what a picture shows.

episode.py      one episode: actions at once, pictures when they are asked for; what is refused
layouts/        a file a layout, found by being there
opened.py       which layout a path has, its episodes, and what identifies it
pictures.py     RGB, of the camera's size
video.py        pictures out of a video
hdf5.py         what layouts in HDF5 share

`judge/episodes.py` makes evidence of them for a model.
"""

from .episode import Episode
from .opened import identity, is_recording, opened

__all__ = ["Episode", "identity", "is_recording", "opened"]
