"""Faults in the features of the overlap of two texts."""

from tests.faults import fault


@fault("miniformer.model.wide_head.overlap:OverlapFeatures.compute")
def overlap_counts_separators(original):
    """Tokens of all examples count like others."""

    def compute(self, inputs):
        self.idf.clamp_min_(0.1)
        return original(self, inputs)

    return compute


@fault("miniformer.model.wide_head.overlap:_order")
def overlap_ignores_the_order(original):
    """Positions of the second text are reversed."""
    return lambda matches, first, second: original(matches, first, -second)


@fault("miniformer.training.tuning.wide_head.overlap:fit_overlap")
def overlap_weights_all_tokens_alike(original):
    """The document frequencies of tokens are not read."""

    def fit_overlap(group, config, data):
        features = original(group, config, data)
        features.idf.fill_(1.0)
        return features

    return fit_overlap


@fault("miniformer.training.tuning.wide_head.overlap:propose_overlap")
def overlap_is_left_out(original):
    """Pairs of texts have n-grams alone."""
    return lambda config, data: []
