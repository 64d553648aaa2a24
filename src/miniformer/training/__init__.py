"""Training on Lightning: the module, what it optimises with, what the user watches, and `train`."""
