"""Resume checkpoints and bit-exact resumption."""
