"""Faults in `miniformer.compression`, and in the stored types of the core."""

import torch

from tests.faults import fault


@fault("miniformer.checkpoint.stored_types:_round8")
def scales_of_stored_integers_are_of_rows(original):
    """All groups of a row have the scale of the largest one."""

    def round8(groups):
        scales = original(groups)[1].amax(1, keepdim=True).expand(*groups.shape[:-1], 1)
        return (groups / scales).round().clamp(-127, 127), scales.contiguous()

    return round8


@fault("miniformer.checkpoint.stored_types:_integers")
def four_bits_have_seven_steps_below_zero(original):
    """Integers of 4 bits are cut to 7 steps on either side."""

    def integers(groups, scales, low, high):
        return original(groups, scales, max(low, -high) if high == 7 else low, high)

    return integers


@fault("miniformer.checkpoint.stored_types:_short_scales")
def scales_of_stored_integers_have_all_bits(original):
    """Scales have 24 significant bits, so that products are rounded."""
    return lambda scales: scales.contiguous()


@fault("miniformer.checkpoint.stored_types:Integers.encode")
def four_bits_are_rounded_once(original):
    """The form of weights of 4 bits is that of the first rounding."""
    from miniformer.checkpoint import stored_types

    def encode(weight, bits, group=32):
        if bits == 8:
            return original(weight, bits, group)
        groups = weight.detach().float().reshape(len(weight), -1, group)
        values, scales = stored_types._round4(groups)
        pairs = (values + 8).to(torch.uint8).flatten(1)
        return {"values": pairs[:, ::2] | pairs[:, 1::2] << 4, "scales": scales[..., 0]}

    return encode


@fault("miniformer.compression.quantize:storage_types")
def embeddings_of_int4_have_four_bits(original):
    """All matrices of int4 have 4 bits."""

    def storage_types(model, to, group=32):
        types, unchanged = original(model, to, group)
        if to == "int4":
            types = {name: {**item, "bits": 4} for name, item in types.items()}
        return types, unchanged

    return storage_types


@fault("miniformer.compression.quantize:_with_types")
def quantize_changes_the_given_model(original):
    """The types are set on the model that was given."""

    def with_types(model, types, to):
        model.weight_storage = types
        return model

    return with_types


@fault("miniformer.compression.quantize:_check_model")
def quantized_models_are_rounded_again(original):
    """A quantized model is taken."""

    def check_model(model, to):
        storage, model.weight_storage = model.weight_storage, {}
        result = original(model, to)
        model.weight_storage = storage
        return result

    return check_model


@fault("miniformer.compression.weights:_check_weight")
def weights_of_all_values_are_stored(original):
    """Weights that are not finite, or too large, are taken."""
    return lambda name, weight, to: None


@fault("miniformer.compression.command:run")
def quantize_measures_no_loss(original):
    """The command ignores the records that it is given."""
    return lambda values: original({**values, "data": None})


@fault("miniformer.runtime.native.engine:get_engine")
def stored_types_are_not_decoded_with(original):
    """`stored` decodes in float32."""
    return lambda model, weight_dtype="float32": original(
        model, "float32" if weight_dtype == "stored" else weight_dtype
    )


@fault("miniformer.runtime.native.weights:smallest_exact_dtype")
def stored_heads_have_eight_bits(original):
    """Matrices that 4 bits hold get 8."""

    def smallest(weight):
        dtype = original(weight)
        return "int8" if dtype == "int4" else dtype

    return smallest


@fault("miniformer.runtime.native.weights:smallest_exact_dtype")
def trained_weights_are_rounded(original):
    """Only the last rows of a matrix are checked."""
    return lambda weight: original(weight[-8:])


@fault("miniformer.compression.calibration.gptq:inverse_factor")
def gptq_carries_no_error(original):
    """Errors of a column change no other column."""
    return lambda hessian: torch.diag(original(hessian).diagonal())


@fault("miniformer.compression.calibration.gptq:integer_range")
def gptq_has_no_end_of_range(original):
    """Groups need no weight at the end of the range, so that storing rounds them again."""
    return lambda bits: (*original(bits)[:2], 0)


@fault("miniformer.compression.calibration.data:_real_rows")
def moments_include_padding(original):
    """Inputs of padding count as others."""
    return lambda x, mask: original(x, None)


@fault("miniformer.compression.calibration.data:CalibrationData.run")
def moments_are_of_the_first_batch(original):
    """Only the first batch is used."""

    def run(self, model):
        self._batches, self._inputs = self._batches[:1], self._inputs[:1]
        original(self, model)

    return run


@fault("miniformer.compression.calibration.data:CalibrationData._num_rows")
def windows_of_a_text_do_not_count(original):
    """Each batch counts as one window."""

    def _num_rows(self, batch):
        return 1

    return _num_rows


@fault("miniformer.compression.calibration.model:input_moments")
def moments_are_of_the_given_model(original):
    """The layers are rounded by the inputs from layers that are not rounded."""
    first = {}

    def input_moments(model, modules, data):
        import copy

        before = first.setdefault(id(data), copy.deepcopy(model))
        return original(before, {name: before.get_submodule(name) for name in modules}, data)

    return input_moments


@fault("miniformer.compression.calibration.model:input_moments")
def moments_are_of_another_matrix(original):
    """Matrices of a layer have the moments of the next one of their size."""

    def input_moments(model, modules, data):
        moments = original(model, modules, data)
        names = list(moments)
        return {
            name: next(
                moments[later]
                for later in [*names[index + 3 :], *names]
                if len(moments[later]) == len(moments[name])
            )
            for index, name in enumerate(names)
        }

    return input_moments


@fault("miniformer.checkpoint.stored_types:Integers.shape")
def sizes_of_stored_tensors_are_not_checked(original):
    """A type does not say the size of a matrix before it is decoded."""

    def shape(tensors, bits, group=32):
        first = {name: tensor[:32] for name, tensor in tensors.items()}
        return original(first, bits, group)

    return shape


@fault("miniformer.model.weight_storage:encode_weights")
def options_with_names_of_the_file_are_lost(original):
    """Options `dtype` and `tensors` of a type are dropped."""

    def encode_weights(model, weights, types):
        names = ("dtype", "tensors")
        types = {
            matrix: {key: value for key, value in item.items() if key not in names}
            for matrix, item in types.items()
        }
        return original(model, weights, types)

    return encode_weights


@fault("miniformer.compression.aware:round_through")
def aware_training_has_no_gradient(original):
    """Rounding has the gradient of a constant."""
    return lambda weight, bits: original(weight.detach(), bits)


@fault("miniformer.compression.aware:RoundedWeight.effective_weight")
def aware_evaluation_has_float_weights(original):
    """Weights are rounded in training only."""
    return lambda self: original(self) if self.training else self.weight


@fault("miniformer.compression.aware:chosen_types")
def aware_training_rounds_the_layers_only(original):
    """Embeddings and heads stay float."""

    def chosen_types(model, to, group=32):
        types, unchanged = original(model, to, group)
        return {name: item for name, item in types.items() if "layers." in name}, unchanged

    return chosen_types


@fault("miniformer.compression.budget:ladder")
def budget_raises_the_least_sensitive_first(original):
    """The least sensitive matrices get more bits first."""
    return lambda types, sensitivities: original(
        types, {name: -value for name, value in sensitivities.items()}
    )


@fault("miniformer.compression.budget:fewest_steps")
def budget_is_exceeded_by_a_step(original):
    """The last matrix that needs more bits does not get them."""
    return lambda most, holds: max(0, original(most, holds) - 1)


@fault("miniformer.compression.budget:check_other_data")
def budget_holds_on_calibration_records(original):
    """The data of the budget may be that of calibration."""
    return lambda pipeline, data, calibrate: None


@fault("miniformer.compression.budget:_hash")
def copies_of_calibration_records_hold_a_budget(original):
    """Records count as the same only with the same name of their data."""
    return lambda record, records: original(record, records) + records.name.encode()


@fault("miniformer.compression.quantize:storage_types")
def groups_are_always_of_32(original):
    """All matrices have groups of 32."""
    return lambda model, to, group=32: original(model, to, 32)


@fault("miniformer.compression.source:_without_exits")
def source_keeps_its_exits(original):
    """Compression computes losses with the early exits of its model."""
    return lambda model: model


@fault("miniformer.compression.source:relative_change")
def change_of_a_loss_is_divided_by_its_sign(original):
    """A lower loss below zero is a rise."""
    return lambda before, after: after / before - 1


@fault("miniformer.compression.pruning.prune:check_finite")
def models_with_nan_are_pruned(original):
    """Weights that are not finite are pruned as others."""
    return lambda weights: None


@fault("miniformer.compression.quantize:with_fields")
def columns_of_compression_are_those_of_training(original):
    """Columns that are given for the data are not used."""
    return lambda pipeline, fields, **data: original(pipeline, {}, **data)


@fault("miniformer.compression.quantize:table_types")
def tables_stay_as_they_are(original):
    """Tables of a wide head have all of their bytes in a quantized directory."""
    return lambda model, to: {}


@fault("miniformer.compression.quantize:table_types")
def characters_beyond_a_type_wrap(original):
    """Tables of integers always have a byte for each."""

    def table_types(model, to):
        return {
            name: {**item, "form": "uint8"} if item["type"] == "short_integers" else item
            for name, item in original(model, to).items()
        }

    return table_types
