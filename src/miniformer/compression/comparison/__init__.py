"""`miniformer compare`: a comparison of models."""
