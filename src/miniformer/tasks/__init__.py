"""Tasks: how records are encoded, the loss, and the metrics."""
