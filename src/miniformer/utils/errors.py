"""User errors and warnings about plugins, which every layer may raise."""

from __future__ import annotations


class UserError(ValueError):
    """Invalid user input; the message gives the value, the limit and the fix."""


class PluginWarning(UserWarning):
    """A component of an installed package is skipped."""
