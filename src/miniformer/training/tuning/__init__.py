"""Automatic settings of a run: defaults by data, batch size, learning rate, memory, compilation."""
