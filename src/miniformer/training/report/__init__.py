"""The report of a run: an HTML page that stands alone."""
