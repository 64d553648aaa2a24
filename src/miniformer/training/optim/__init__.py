"""Optimizers, schedules, weight averaging."""
