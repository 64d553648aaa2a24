"""Faults in `miniformer.runtime.rounded`, and in the choice of its models."""

from tests.faults import fault


@fault("miniformer.runtime.rounded.linear:pack_linear")
def rounded_products_lose_the_bias(original):
    """The copy of a linear layer has no bias."""
    return lambda weight, bias, dtype, store: original(weight, None, dtype, store)


@fault("miniformer.runtime.rounded.linear:pack_linear")
def rounded_weights_are_those_of_other_rows(original):
    """The rows of a matrix are in reverse order."""
    return lambda weight, bias, dtype, store: original(weight.flip(0), bias, dtype, store)


@fault("miniformer.runtime.rounded.linear:RoundedLinear.forward")
def rounded_layers_have_no_gradients(original):
    """The kernels compute with gradients, too."""

    def forward(self, x):
        import torch

        with torch.no_grad():
            return original(self, x)

    return forward


@fault("miniformer.runtime.rounded.model:_copy")
def rounded_copies_change_the_model(original):
    """Linear layers are replaced in the model itself."""

    def copy(module, replaced):
        for path, part in [*module.named_modules()]:
            if part in replaced:
                parent, _, name = path.rpartition(".")
                setattr(module.get_submodule(parent), name, replaced[part])
        return module

    return copy


@fault("miniformer.runtime.rounded.model:_version")
def rounded_layers_keep_old_weights(original):
    """A change of a weight is not noticed."""
    return lambda parameter: None


@fault("miniformer.runtime.rounded.model:_is_plain")
def hooks_of_linear_layers_are_passed_over(original):
    """Linear layers with hooks or methods of their own are replaced."""
    return lambda linear: True


@fault("miniformer.runtime.rounded.model:rounded_model")
def integers_are_slower_than_float32(original):
    """Stored types are taken on processors without instructions for them."""

    def rounded_model(model, weight_dtype):
        is_stored = weight_dtype == "stored" and model.weight_storage
        return original(model, "int8" if is_stored else weight_dtype)

    return rounded_model


@fault("miniformer.generation.encoding:inference_model")
def sources_are_encoded_in_float32(original):
    """The encoder of a seq2seq model ignores the type of weights."""
    return lambda model, weight_dtype: model


@fault("miniformer.generation.encoding:EncoderCache._check_version")
def encoder_outputs_of_another_type_are_kept(original):
    """Outputs of an encoder are used again with another type of weights."""
    return lambda self, model, weight_dtype: original(self, model, "float32")


@fault("miniformer.checkpoint.pipeline:Pipeline.evaluate")
def evaluate_rounds_inputs(original):
    """`evaluate` computes with the stored types."""

    def evaluate(self, data, *, weight_dtype="float32", **options):
        dtype = "stored" if weight_dtype == "float32" else weight_dtype
        return original(self, data, weight_dtype=dtype, **options)

    return evaluate


@fault("miniformer.checkpoint.pipeline:inference_model")
def predict_has_float32_weights(original):
    """`predict` ignores the stored types."""
    return lambda model, weight_dtype: model


@fault("miniformer.compression.comparison.compare:ModelComparison._fastest")
def the_first_model_is_the_fastest(original):
    """The verdict names the first model."""

    def fastest(self):
        import dataclasses

        return original(dataclasses.replace(self, models=self.models[:1]))

    return fastest


@fault("miniformer.compression.exits.calibrate:inference_model")
def exits_are_calibrated_in_float32(original):
    """`calibrate-exit` does not round inputs, as `predict` does."""
    return lambda model, weight_dtype: model
