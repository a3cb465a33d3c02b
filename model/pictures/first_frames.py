"""Pillow's readers of formats that can be animated, for who asks for no second frame."""

from __future__ import annotations

from PIL import GifImagePlugin, Image, WebPImagePlugin


class FirstFrameGif(GifImagePlugin.GifImageFile):
    """A GIF of which nobody asks for a second frame.

    When Pillow opens one whose first frame is to be disposed of, it makes the colour that would be laid over that, as
    large as the frame says it is: gigabytes for 43 bytes, before a size can be looked at.
    """

    @property
    def disposal_method(self) -> int:
        """None, whatever the file says."""
        return 0

    @disposal_method.setter
    def disposal_method(self, _method: int) -> None:
        pass


class FirstFrameWebP(WebPImagePlugin.WebPImageFile):
    """A WebP of which nobody asks for a second frame.

    What decodes it has two canvases of four bytes a pixel each, and Pillow keeps them for as long as the picture is
    there. They go before it makes memory for the pixels.
    """

    def _get_next(self) -> tuple[bytes, int, int]:
        frame = super()._get_next()
        del self._decoder
        return frame


def read_first_frames_only() -> None:
    """Let Pillow read GIF and WebP files by these classes, from now on."""
    for kind, reader in (("GIF", FirstFrameGif), ("WEBP", FirstFrameWebP)):
        Image.register_open(kind, reader, Image.OPEN[kind][1])
