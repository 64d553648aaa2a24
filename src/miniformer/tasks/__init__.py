"""Tasks: how records are encoded, the loss, and the metrics.

It has more than 12 files, since each is one task, a variant of one, or a part of their interface.
"""
