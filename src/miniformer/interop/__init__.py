"""Other programs' files: they come in and go out here."""
