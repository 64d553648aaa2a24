"""Dynamic sparse attention, as the transform `sparse_attention`."""
