"""Reading of files into checked records."""
