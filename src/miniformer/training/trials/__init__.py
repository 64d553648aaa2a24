"""Settings that are chosen by short trial runs (`auto`)."""
