"""Reading files into checked records."""
