from tests.battery.variants import VARIANTS, all_pairs, pairs_of


def test_every_pair_of_options_is_in_some_variant():
    covered = set().union(*map(pairs_of, VARIANTS))
    assert all_pairs() <= covered
