"""Values that a run chooses: batch size, learning rate, memory, compilation."""
