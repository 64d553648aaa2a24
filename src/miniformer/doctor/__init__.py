"""`miniformer doctor`: a report on a model, with the leak detector."""
