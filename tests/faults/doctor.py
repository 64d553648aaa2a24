"""Faults in `miniformer.doctor`."""

from tests.faults import fault


@fault("miniformer.doctor.leaks:_replace_where")
def detector_changes_nothing(original):
    """Inputs are not replaced."""
    return lambda x, replacement, mask: x


@fault("miniformer.doctor.leaks:_max_relative_change")
def large_output_hides_leaks(original):
    """Changes are relative to the largest output of all."""

    def max_relative_change(reference, outputs):
        scale = reference.abs().masked_fill(~reference.isfinite(), 0.0).amax().clamp_min(1e-12)
        change = (reference - outputs).abs() / scale
        return change.masked_fill(reference == outputs, 0.0).amax(-1)

    return max_relative_change


@fault("miniformer.doctor.leaks:_Probe._row_masks")
def detector_changes_one_row_only(original):
    """Only the first row of a batch is replaced."""

    def row_masks(self, token_mask):
        yield next(original(self, token_mask))

    return row_masks


@fault("miniformer.doctor.layouts:padded_layouts")
def rows_of_a_layout_are_alike(original):
    """All rows of a layout have the padding of the first."""

    def padded_layouts(length, device):
        layouts = []
        for layout in original(length, device):
            mask = layout.token_mask[:1].expand_as(layout.token_mask)
            attention_mask = None if layout.attention_mask is None else mask
            layouts.append(layout._replace(token_mask=mask, attention_mask=attention_mask))
        return layouts

    return padded_layouts


@fault("miniformer.doctor.__main__:_report_model")
def leaking_model_exits_with_0(original):
    """Leaks are printed, but the exit code is 0."""
    return lambda subject, target, values: original(subject, target, values) * 0
