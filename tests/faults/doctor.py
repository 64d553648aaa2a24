"""Faults in `miniformer.doctor`."""

from tests.faults import fault


@fault("miniformer.doctor.leaks:_replace_where")
def detector_changes_nothing(original):
    """Inputs are not exchanged for others."""
    return lambda x, other, where: x


@fault("miniformer.doctor.leaks:_max_relative_change")
def large_output_hides_leaks(original):
    """Outputs are compared with the largest of all."""

    def distance(one, two):
        size = one.abs().masked_fill(~one.isfinite(), 0.0).amax().clamp_min(1e-12)
        return ((one - two).abs() / size).masked_fill(one == two, 0.0).amax(-1)

    return distance


@fault("miniformer.doctor.leaks:_Probe._row_masks")
def detector_changes_one_row_only(original):
    """Only the first row of a batch is exchanged."""

    def rows(self, real):
        yield next(original(self, real))

    return rows


@fault("miniformer.doctor.layouts:padded_layouts")
def rows_of_a_layout_are_alike(original):
    """All rows of a layout have the padding of the first."""

    def padded_layouts(length, device):
        found = []
        for layout in original(length, device):
            real = layout.token_mask[:1].expand_as(layout.token_mask)
            found.append(layout._replace(real=real, mask=None if layout.mask is None else real))
        return found

    return padded_layouts


@fault("miniformer.doctor.__main__:_report_model")
def leaking_model_exits_with_0(original):
    """A leak is printed, and the exit code is that of success."""
    return lambda model: original(model) * 0
