"""Faults in orders of batches, mixtures and packing of whole examples."""

from tests.faults import fault


@fault("miniformer.data.batching.order:OrderedBatchLoader.load_state_dict")
def state_of_an_order_is_lost(original):
    """A resumed order begins with its first state."""

    def load_state_dict(self, state):
        original(self, {name: x for name, x in state.items() if name != "order"})
        self._state = state

    return load_state_dict


@fault("miniformer.data.batching.order:OrderedBatchLoader._plan")
def order_resumes_from_the_state_after_its_plan(original):
    """The position of a batch has the state after the plan of its chunk."""

    def plan(self, chunk, epoch, chunk_index):
        plans = original(self, chunk, epoch, chunk_index)
        self._planned_from = self._order_state()
        return plans

    return plan


@fault("miniformer.data.batching.loader:BatchLoader._batch_of_rank")
def ranks_of_an_order_get_the_same_batches(original):
    """Each rank gets the first batch of a turn."""
    return lambda self, batches: original(self, [batches[0]] * len(batches))


@fault("miniformer.data.batching.order:OrderedBatchLoader._plan")
def batch_without_rows_is_counted(original):
    """The row in place of none counts."""

    def plan(self, chunk, epoch, chunk_index):
        plans = original(self, chunk, epoch, chunk_index)
        self._empty = set()
        return plans

    return plan
