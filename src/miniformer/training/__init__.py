"""Training with Lightning: the module, optimizers, callbacks, reports, and `train`."""
