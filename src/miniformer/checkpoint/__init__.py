"""The model directory, and `load`, which makes one ready to use."""
