"""Thresholds of early exits of classifiers, with a bound of what they cost."""
