"""Subcommands of the `miniformer` command, one a file: with shared helpers more than 12 files."""
