"""Wide head: a linear model of features of the input, in addition to the Transformer."""
