"""Code that several tasks share: more than 12 files, since each is one topic, not one task."""
