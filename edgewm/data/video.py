"""Pictures out of a video file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import EdgewmError
from .episode import needed

Array = np.ndarray


def frames(file: Path, first: int, count: int, rate_hz: float) -> Array:
    """Frames `first`, `first` + 1, ... (count, H, W, 3) uint8 of a video of `rate_hz`: those shown at first / rate_hz
    and so on. EdgewmError for a file that cannot be decoded, or that ends before."""
    av = needed("av", "a video", str(file))
    found: dict[int, Array] = {}
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            container.seek(int(first / rate_hz / stream.time_base), stream=stream)  # to the key frame before
            for frame in (f for f in container.decode(stream) if f.pts is not None):
                at = round(float(frame.pts * stream.time_base) * rate_hz)
                if first <= at < first + count:
                    found[at] = frame.to_ndarray(format="rgb24")
                if at >= first + count - 1:
                    break
    except (av.FFmpegError, OSError, IndexError) as fault:
        raise EdgewmError(f"a video cannot be decoded: {fault}", str(file), "copy or record it again") from fault
    missing = [at for at in range(first, first + count) if at not in found]
    if missing:
        raise EdgewmError(
            f"no frame at {missing[0] / rate_hz:.3f} s, at {rate_hz:g} Hz", str(file), "copy or record it again"
        )
    return np.stack([found[at] for at in range(first, first + count)])
