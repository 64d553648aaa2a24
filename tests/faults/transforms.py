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


@fault("miniformer.model.transforms:apply_transforms")
def loading_omits_transforms(original):
    """A loaded model gets the transforms of its directory without their modules."""

    def apply_transforms(model, transforms):
        if isinstance(transforms, tuple):  # those of a directory
            model.transforms = transforms
            return model
        return original(model, transforms)

    return apply_transforms


@fault("miniformer.model.config_file:_pop_extra")
def required_packages_are_not_checked(original):
    """A model loads without a package that it requires."""

    def _pop_extra(values, path):
        values["requires"] = []
        return original(values, path)

    return _pop_extra


@fault("miniformer.model.config_file:write_description")
def readers_of_format_1_name_no_version(original):
    """The config of a transformed model has no key that names the version."""

    def write_description(directory, description):
        import json

        original(directory, description)
        path = directory / "config.json"
        values = json.loads(path.read_text())
        values.pop("since_format_version_2", None)
        path.write_text(json.dumps(values))

    return write_description


@fault("miniformer.model.pretrained:required_packages")
def packages_of_components_are_not_recorded(original):
    """A model requires the packages that it names itself."""

    def required_packages(config, transforms, weight_storage, others):
        return tuple(others)

    return required_packages


@fault("miniformer.model.transforms:effective_weight")
def merging_leaves_adapters_out(original):
    """A merged model has the weights below the adapters."""

    def effective_weight(module):
        weight = getattr(module, "weight", None)
        return original(module) if weight is None else weight

    return effective_weight


@fault("miniformer.interop.hf.export:effective_state_dict")
def exporters_read_the_stored_weight(original):
    """An export has the promised names of the file, with what is stored there."""

    def effective_state_dict(model):
        names, weights = original(model).keys(), model.state_dict()
        return {name: weights[name] for name in names}

    return effective_state_dict


@fault("miniformer.model.weight_storage:decode_weights")
def stored_types_are_not_decoded(original):
    """Weights have the values of their integers, without scales."""

    def decode_weights(model, stored, entries, path):
        import functools

        import torch

        ones = {
            name: source._replace(read=functools.partial(torch.ones, source.shape))
            if name.endswith(".scale")
            else source
            for name, source in stored.items()
        }
        return original(model, ones, entries, path)

    return decode_weights


@fault("miniformer.model.pretrained:PretrainedMixin.save_pretrained")
def plain_model_retains_stored_types(original):
    """The file of stored types of an earlier model stays in the directory."""

    def save_pretrained(self, directory, *, requires=()):
        from pathlib import Path

        path = Path(directory) / "quantization.json"
        earlier = path.read_bytes() if path.exists() else None
        original(self, directory, requires=requires)
        if earlier is not None:
            path.write_bytes(earlier)

    return save_pretrained


@fault("miniformer.training.setup.init_from:transform_model")
def resumed_run_has_no_transforms(original):
    """A resumed run has the model of its config, without its transforms."""

    def transform_model(model, transforms, console):
        import inspect

        is_resumed = inspect.currentframe().f_back.f_locals["config"].resume is not None
        return model if is_resumed else original(model, transforms, console)

    return transform_model


@fault("miniformer.training.distributed.strategies:apply_fsdp")
def sharding_loses_roles(original):
    """Sharded parameters have no role of their own."""

    def apply_fsdp(module):
        original(module)
        for parameter in module.loss_module.parameters():
            vars(parameter).pop("optimizer_role", None)

    return apply_fsdp


@fault("miniformer.training.resume.config:check_required_packages")
def runs_do_not_name_their_packages(original):
    """A run whose package is missing names its unknown transform only."""
    return lambda directory: None


@fault("miniformer.model.hub:_extra_files")
def hub_omits_extra_files(original):
    """Further files of a model stay on the hub."""
    return lambda directory: []


@fault("miniformer.model.weight_file:assign_weights")
def weights_of_a_part_are_lost(original):
    """Only the last tensors that are read reach the model."""

    def assign_weights(model, sources):
        import torch

        from miniformer.model import weight_file

        small = weight_file._PART_BYTES < 2**20
        names = list(model.state_dict())
        lost = set(names[: len(names) // 2]) if small else set()
        original(
            model,
            {
                name: source._replace(read=lambda x=source: torch.zeros(x.shape, dtype=x.dtype))
                if name in lost
                else source
                for name, source in sources.items()
            },
        )

    return assign_weights


@fault("miniformer.model.pretrained:open_weights")
def weights_of_a_file_are_read_twice(original):
    """The whole file is in memory while the model gets its weights."""
    import contextlib

    @contextlib.contextmanager
    def open_weights(path):
        with original(path) as sources:
            tensors = {name: source.read() for name, source in sources.items()}
            yield {
                name: source._replace(read=tensors[name].clone) for name, source in sources.items()
            }

    return open_weights


@fault("miniformer.model.weight_file:_has_other_tensors")
def plain_tensors_of_parts_have_no_memory(original):
    """Only buffers count as tensors outside of the file."""

    def has_other_tensors(model):
        return bool({name for name, _ in model.named_buffers()} - model.state_dict().keys())

    return has_other_tensors
