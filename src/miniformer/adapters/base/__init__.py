"""Changes of a base: quantized weights, fewer heads of keys and values."""
