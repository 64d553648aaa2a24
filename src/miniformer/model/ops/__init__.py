"""Operations shared by models: cross-entropy, activation checkpointing, linear maps."""
