"""Calibration: records of a task -> inputs of each matrix -> integers that change outputs least."""
