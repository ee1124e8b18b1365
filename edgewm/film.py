"""A short film of the robot acting: the world enlarged, what the camera sees, what it wants to see, and the clock."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .errors import EdgewmError
from .judge.sides import Observation
from .manifest import Manifest

Array = np.ndarray

FILMED_EPISODES = 3
FRAME_MS = 80.0  # at least, between frames: people see motion, and the file stays small
WORLD_PX, VIEW_PX, GAP_PX, CAPTION_PX = 320, 132, 12, 40
PAPER, INK, FAINT = (250, 250, 247), (28, 32, 40), (120, 126, 136)


def enlarged(image: Array, size_px: int) -> Array:
    """A uint8 picture (h, w, 3) at `size_px` on its longer side, every pixel a square block where it fits."""
    scale = size_px / max(image.shape[:2])
    rows = (np.arange(int(image.shape[0] * scale)) / scale).astype(int)
    columns = (np.arange(int(image.shape[1] * scale)) / scale).astype(int)
    return image[rows][:, columns]


def is_picture(value: Array) -> bool:
    return value.dtype == np.uint8 and value.ndim >= 3 and value.shape[-1] == 3


def check_place(path: Path) -> None:
    """EdgewmError when no film can be written there; nothing is left behind."""
    if path.is_dir():
        raise EdgewmError("the film's place is a directory", str(path), "give --gif a file, such as run.gif")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as fault:
        raise _unwritten(path, fault) from fault


def _unwritten(path: Path, fault: OSError) -> EdgewmError:
    return EdgewmError(f"the film cannot be written: {fault.strerror}", str(path), "give --gif a writable place")


class Film:
    """Frames as they come; `save` writes them as an endless GIF in real time. Needs Pillow."""

    def __init__(self, manifest: Manifest):
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ModuleNotFoundError as fault:
            raise EdgewmError("films need Pillow", "--gif", "pip install pillow, or leave --gif out") from fault
        self._image, self._draw = Image, ImageDraw
        self._font, self._small = ImageFont.load_default(15), ImageFont.load_default(12)
        self._frames: list[Any] = []
        self._period_ms = 1e3 / manifest.rate_hz
        self._every = max(1, math.ceil(FRAME_MS / self._period_ms))
        self._rate_hz = manifest.rate_hz

    def add(self, world: Any, seen: Observation, period: int, plan_ms: float) -> None:
        """One control period; every few of them become a frame, and the one that ends the episode."""
        if period % self._every and not world.success:
            return
        sees = next((v for v in seen.values() if is_picture(v)), None)
        wants = next((v for v in world.goal.values() if is_picture(v)), None)
        big = (
            world.render(WORLD_PX)
            if hasattr(world, "render")
            else None
            if sees is None
            else enlarged(_flat(sees), WORLD_PX)
        )
        width = WORLD_PX + 3 * GAP_PX + VIEW_PX
        height = WORLD_PX + 2 * GAP_PX + CAPTION_PX
        sheet = self._image.new("RGB", (width, height), PAPER)
        draw = self._draw.Draw(sheet)
        if big is not None:
            sheet.paste(self._image.fromarray(big), (GAP_PX, GAP_PX))
        left = WORLD_PX + 2 * GAP_PX
        for top, name, picture in ((GAP_PX, "camera", sees), (GAP_PX + VIEW_PX + 34, "goal", wants)):
            if picture is not None:
                draw.text((left, top), name, FAINT, self._small)
                sheet.paste(self._image.fromarray(enlarged(_flat(picture), VIEW_PX)), (left, top + 17))
        caption = (
            f"{period * self._period_ms / 1e3:4.1f} s   step {period}/{world.max_steps}   last plan {plan_ms:.0f} ms"
        )
        draw.text((GAP_PX, WORLD_PX + 2 * GAP_PX), f"{caption}   {self._rate_hz:g} Hz", INK, self._font)
        self._frames.append(sheet)

    def hold(self, succeeded: bool, frames: int = 10) -> None:
        """The end of an episode stays for a moment, with its outcome."""
        if not self._frames:
            return
        last = self._frames[-1].copy()
        text = "goal reached" if succeeded else "not reached"
        where = (WORLD_PX + 2 * GAP_PX, WORLD_PX + 2 * GAP_PX)
        self._draw.Draw(last).text(where, text, (13, 125, 100) if succeeded else (180, 50, 40), self._font)
        self._frames += [last] * frames

    def save(self, path: Path) -> None:
        """Write the film beside its place and rename it there. EdgewmError when nothing was filmed or writing fails."""
        if not self._frames:
            raise EdgewmError("nothing was filmed", str(path), "run at least one episode")
        palette = self._frames[0].quantize(128)
        frames = [f.quantize(palette=palette, dither=self._image.Dither.NONE) for f in self._frames]
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        duration_ms = 10 * round(self._every * self._period_ms / 10)  # GIF counts hundredths of a second
        timing = {"duration": duration_ms, "loop": 0, "optimize": False}
        try:
            frames[0].save(beside, "GIF", save_all=True, append_images=frames[1:], **timing)
            beside.replace(path)
        except OSError as fault:
            beside.unlink(missing_ok=True)
            raise _unwritten(path, fault) from fault


def _flat(picture: Array) -> Array:
    """The first picture of a stack."""
    return picture.reshape(-1, *picture.shape[-3:])[0]
