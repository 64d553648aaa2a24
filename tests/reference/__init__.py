"""A plain Transformer to compare with: float64, loops, nothing shared with `src/`, slow on
purpose."""
