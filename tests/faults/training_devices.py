"""Faults in `miniformer.training` that only several processes show."""

from tests.faults import fault


@fault("miniformer.training.engines:agree")
def loss_is_divided_on_each_rank(original):
    """Each rank divides by its own count, and the mean is taken of the quotients."""

    def agree(module, sums, told, budget, stop):
        _, told, stop = original(module, sums.clone(), told, budget, stop)
        return sums * module.trainer.world_size, told, stop

    return agree


@fault("miniformer.training.engines:_gathered")
def ranks_measure_with_sharded_weights(original):
    """Sharded weights are gathered pass by pass while texts of different lengths are written."""
    import contextlib

    return lambda objective: contextlib.nullcontext()
