"""Automatic settings of a run: batch size, learning rate, memory, compilation."""
