"""Evaluation of a model on records: metrics with intervals, results by record, reports."""
