"""Faults in weight matrices, optimizer roles, transforms and stored weights."""

from tests.faults import fault


@fault("miniformer.model.matrices:WeightMatrix.writes_to_residual")
def all_matrices_write_to_the_residual_stream(original):
    """Each matrix counts as the end of a residual branch."""
    return property(lambda self: True)


@fault("miniformer.model.matrices:_unstack")
def stacked_parameter_is_one_matrix(original):
    """A parameter [experts, out, in] counts once."""

    def _unstack(matrix):
        yield matrix

    return _unstack


@fault("miniformer.training.optim.roles:optimizer_roles")
def role_of_a_module_overrides_that_of_its_parameter(original):
    """The attribute of a parameter has no effect."""

    def optimizer_roles(model):
        for parameter in model.parameters():
            vars(parameter).pop("optimizer_role", None)
        return original(model)

    return optimizer_roles


@fault("miniformer.training.optim.roles:freeze_parameters")
def frozen_parameters_are_trained(original):
    """Parameters of the role frozen keep their gradients."""
    return lambda model: None


@fault("miniformer.training.optim.muon:Muon._muon_step")
def stacked_matrices_are_left_to_adamw(original):
    """Muon updates parameters of two dimensions only."""

    def _muon_step(self, group, parameters):
        stacks = [parameter for parameter in parameters if parameter.dim() > 2]
        if stacks:
            self._adamw_step(group, stacks)
        if len(stacks) < len(parameters):
            original(self, group, [parameter for parameter in parameters if parameter.dim() == 2])

    return _muon_step


@fault("miniformer.training.optim.weight_averaging:Ema._parameters")
def frozen_weights_are_averaged(original):
    """The moving average includes weights that are not trained."""

    def _parameters(self):
        return {name: weight.detach() for name, weight in self.model.named_parameters()}

    return _parameters


@fault("miniformer.runtime.native.weights:_weight_of")
def kernels_read_the_stored_weight(original):
    """The kernels take the parameter of an adapted layer."""

    def _weight_of(module):
        weight = getattr(module, "weight", None)
        return original(module) if weight is None else weight.detach()

    return _weight_of
