"""Reports of a run: a self-contained HTML page, model cards, plots and loggers."""
