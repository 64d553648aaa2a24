"""Replaces pictures by empty ones; the fixture `real_pictures` undoes it."""

import contextlib
from pathlib import Path

import miniformer.utils.plotting


class NoAxes:
    """Stands for the axes of a plot, and for all that belongs to them: draws nothing."""

    width = height = 1.0

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **options):
        return self

    def __getitem__(self, key):
        return self

    def __iter__(self):
        return iter(())

    def __float__(self):
        return 1.0

    def get_xlim(self):
        return 0.0, 1.0

    def transform(self, points):
        return points


def save_no_picture(axes, file, *, format, **options):
    """Replaces `miniformer.utils.plotting._save`: an empty picture."""
    content = b"" if format == "png" else b"<svg></svg>"
    if isinstance(file, Path):
        file.write_bytes(content)
    else:
        file.write(content)


NO_PICTURES = {
    "_plot_style": contextlib.nullcontext,
    "_make_axes": lambda width, height: NoAxes(),
    "_make_figure": lambda width, height: NoAxes(),
    "_save": save_no_picture,
}
PICTURES = {name: getattr(miniformer.utils.plotting, name) for name in NO_PICTURES}


def draw_pictures(patch, functions):
    """Sets the functions that draw: NO_PICTURES or PICTURES; `patch` is a MonkeyPatch."""
    for name, function in functions.items():
        patch.setattr(miniformer.utils.plotting, name, function)
