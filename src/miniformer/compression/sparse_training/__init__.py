"""Training with sparse weights: RigL and movement pruning, as the callback `sparse_training`."""
