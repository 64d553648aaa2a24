"""Model inspection: size, backends and the leak detector."""
