"""Launch of workers and distributed strategies."""
