"""`miniformer compare`: models beside each other."""
