"""Checks of `miniformer doctor`, one a file, in addition to the leak detector.

A check names what it reads as parameters: `model`, `directory`, `pipeline` or `tokenizer`. It
returns problems, a line each, and `Note` lines, or raises `NotApplicable`.
"""
