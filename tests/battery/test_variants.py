from tests.battery.variants import VARIANTS, _pairs, all_pairs


def test_every_pair_of_options_is_in_some_variant():
    covered = set().union(*map(_pairs, VARIANTS))
    assert all_pairs() <= covered
