"""What a batch means: how a record is encoded, what is lost on it, which figures tell."""
