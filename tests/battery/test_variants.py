from tests.battery.variants import EACH_VALUE, OPTIONS, VARIANTS, all_pairs, pairs_of


def test_every_pair_of_options_is_in_a_variant():
    covered = set().union(*map(pairs_of, VARIANTS))
    assert all_pairs() <= covered


def test_every_value_of_an_option_is_in_the_subset():
    for option, values in OPTIONS.items():
        assert {row[option] for row in EACH_VALUE} == set(values)
    layers = {(row["architecture"], row["layer"]) for row in EACH_VALUE}
    assert len(layers) == 3 * len(OPTIONS["layer"]) - 1  # two stacks have no parallel layers
    assert len(EACH_VALUE) <= 20
    assert all(row in VARIANTS for row in EACH_VALUE)
