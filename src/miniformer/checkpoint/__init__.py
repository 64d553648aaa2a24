"""Model directories: saving, loading, and the `Pipeline` API."""
