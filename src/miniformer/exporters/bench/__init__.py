"""`miniformer export-bench`: sizes and times of a model and of its exported files."""
