"""The parts of a Transformer and the models assembled from them."""
