"""Subcommands of the `miniformer` command."""
