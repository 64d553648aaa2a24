"""What a batch means: how a record is encoded, what is lost on it, and which figures tell how well
it goes."""
