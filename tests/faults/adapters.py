"""Faults in `miniformer.adapters`."""

import torch

from tests.faults import fault


@fault("miniformer.adapters.settings:LoraSettings.scale")
def alpha_is_not_divided_by_the_rank(original):
    """The product is scaled by alpha alone."""

    def scale(self, name):
        return original(self, name) * self.rank(name)

    return scale


@fault("miniformer.adapters.settings:LoraSettings.scale")
def scale_of_rslora_is_that_of_lora(original):
    """The option rslora has no effect."""

    def scale(self, name):
        return original(self, name) / (self.rank(name) ** 0.5 if self.rslora else 1)

    return scale


@fault("miniformer.adapters.parts:LoraPart.reset")
def product_begins_at_random(original):
    """B begins with random values."""

    def reset(self, weight, init):
        original(self, weight, init)
        torch.nn.init.normal_(self.lora_B)

    return reset


@fault("miniformer.adapters.parts:LoraPart._row_factors")
def norm_of_dora_is_that_of_columns(original):
    """The norm of DoRA is over outputs."""

    def _row_factors(self, weight):
        norm = torch.linalg.norm((weight + self.delta()).detach(), dim=0)
        return self.magnitude / norm[: len(self.magnitude)]

    return _row_factors


@fault("miniformer.adapters.parts:LoraPart.product")
def pissa_begins_with_a_change(original):
    """The initial product is not subtracted."""

    def product(self, x):
        out = original(self, x)
        if self.initial_A is not None:
            out = out + self.scale * (x @ self.initial_A.T @ self.initial_B.T)
        return out

    return product


@fault("miniformer.adapters.parts:LoraPart.forward")
def dropout_of_adapters_is_always_on(original):
    """The dropout of an adapter is active in evaluation."""

    def forward(self, base, x):
        training = self.training
        self.train()
        out = original(self, base, x)
        self.train(training)
        return out

    return forward


@fault("miniformer.adapters.parts:Ia3Part.forward")
def factors_of_ia3_leave_the_bias(original):
    """The factors are applied before the bias."""

    def forward(self, base, x):
        if self.on_inputs or base.base_bias() is None:
            return original(self, base, x)
        return base.base_product(x) * self.ia3_l.flatten() + base.base_bias()

    return forward


@fault("miniformer.adapters.modules:AdaptedMatrix.effective_weight")
def merged_weight_is_that_of_the_base(original):
    """Merging keeps the base."""

    def effective_weight(self):
        return self.base_weight()

    return effective_weight


@fault("miniformer.adapters.modules:Adapted.by_rows")
def rows_have_the_adapter_of_the_first(original):
    """All rows have the adapter of the first one."""

    def by_rows(self, x):
        selection = self.selection
        if len(x) != len(selection):
            return original(self, x)
        self.selection = selection[:1] * len(selection)
        out = original(self, x)
        self.selection = selection
        return out

    return by_rows


@fault("miniformer.adapters.modules:Adapted.select")
def kernels_keep_the_earlier_adapter(original):
    """A change of the adapter changes no buffer, so that copied weights stay."""

    def select(self, selection):
        self.selection = selection

    return select


@fault("miniformer.adapters.state:_untie_head")
def tied_head_is_changed_with_the_embedding(original):
    """A tied head stays tied to an adapted embedding."""
    return lambda model, settings: None


@fault("miniformer.adapters.parts:EmbeddingPart.weight")
def rows_of_new_tokens_are_added(original):
    """The tied head has the sum of the rows of the base and of the new ones."""

    def weight(self, base):
        out = original(self, base)
        if self.rows is None:
            return out
        return out.index_add(0, self.tokens, base.base_weight()[self.tokens])

    return weight


@fault("miniformer.adapters.files:check_base")
def adapter_of_another_base_is_accepted(original):
    """The hash of the base is not compared."""
    return lambda files, directory, architecture: None


@fault("miniformer.adapters.directory:base_hash")
def hash_of_the_base_is_of_its_names(original):
    """The hash does not depend on the values of the weights."""
    return lambda directory: "0" * 64


@fault("miniformer.adapters.tensors:adapter_tensors")
def pissa_is_written_without_its_start(original):
    """The written adapter has no initial product, which the base still has."""

    def adapter_tensors(model, name):
        tensors = original(model, name)
        for key, tensor in tensors.items():
            path = key.partition(".lora_")[0]
            if path == key:
                continue
            part = model.get_submodule(path).adapters[name]
            if getattr(part, "initial_A", None) is not None and key.endswith("lora_B.weight"):
                tensor[:, tensor.shape[1] // 2 :] = 0
        return tensors

    return adapter_tensors


@fault("miniformer.adapters.commands.mix:_stack")
def mixed_adapters_have_equal_weights(original):
    """The weights of a mixture have no effect."""

    def _stack(files, weights):
        return original(files, [1 / len(weights)] * len(weights))

    return _stack


@fault("miniformer.adapters.exchange.hf_names:hf_plan")
def names_of_a_backbone_keep_their_prefix(original):
    """An adapter of a backbone alone is not recognized."""

    def hf_plan(model, *, model_type, backbone=False, per_token=False):
        return original(model, model_type=model_type, per_token=per_token)

    return hf_plan


@fault("miniformer.adapters.exchange.hf_names:_join_lora")
def fused_products_share_the_first_rows(original):
    """Of several products that a family stores as one, B has the rows of the first."""

    def _join_lora(item, names, own, scales, model):
        joined, rank, scale = original(item, names, own, scales, model)
        if len(own) > 1:
            joined["lora_B"] = joined["lora_B"].roll(1, 0)
        return joined, rank, scale

    return _join_lora


@fault("miniformer.adapters.exchange.peft_config:to_peft_config")
def alpha_is_written_as_the_rank(original):
    """`adapter_config.json` has the rank as alpha."""

    def to_peft_config(*args, **options):
        values = original(*args, **options)
        return values | ({"lora_alpha": values["r"]} if "r" in values else {})

    return to_peft_config


@fault("miniformer.adapters:add")
def added_adapters_are_nameless(original):
    """The option `name` has no effect."""
    return lambda model, method="lora", *, name="default", **options: original(
        model, method, **options
    )


@fault("miniformer.adapters.api:disable")
def disabled_adapters_stay_disabled(original):
    """The adapter is not in use after the context."""
    import contextlib

    @contextlib.contextmanager
    def disable(model):
        from miniformer.adapters.state import use_adapter

        use_adapter(model, None)
        yield

    return disable


@fault("miniformer.adapters.targets:find_targets")
def unknown_targets_are_ignored(original):
    """Targets that match nothing are left out."""

    def find_targets(model, targets, option):
        if isinstance(targets, str):
            return original(model, targets, option)
        from miniformer.adapters.targets import adaptable_modules

        ends = {name.rpartition(".")[2] for name in adaptable_modules(model)}
        known = [target for target in targets if target in ends or "." in target]
        return original(model, known, option) if known else ["layers.0.attention.q_proj"]

    return find_targets


@fault("miniformer.adapters.commands.listing:merge_directory")
def merged_directory_is_the_base(original):
    """`adapter merge` writes the base."""

    def merge_directory(base, adapter, out):
        from miniformer.checkpoint.pipeline import load

        load(base).save(out)

    return merge_directory


@fault("miniformer.adapters.commands.adapter:run")
def weights_of_mix_are_not_passed(original):
    """The flag `--weights` has no effect."""

    def run(values):
        values.get("mix", {})["weights"] = None
        return original(values)

    return run


@fault("miniformer.adapters.exchange.peft_export:_doubled")
def exported_pissa_has_half_the_alpha(original):
    """The doubled ranks keep their alpha."""

    def _doubled(settings):
        import dataclasses

        return dataclasses.replace(original(settings), alpha=settings.alpha)

    return _doubled


@fault("miniformer.exporters.peft:export_peft")
def family_of_an_exported_adapter_is_lost(original):
    """The option `family` has no effect."""
    return lambda directory, out, *, family=None: original(directory, out)


@fault("miniformer.adapters.base.quantized:dequantize")
def scales_are_of_the_next_group(original):
    """Each group has the scale of its neighbor."""
    return lambda values, scales, bits: original(values, scales.roll(1, 1), bits)


@fault("miniformer.adapters.base.quantized:quantized_base")
def base_weights_are_not_quantized(original):
    """The transform leaves the weights as they are."""
    return lambda model, bits=8: model


@fault("miniformer.adapters.files:write")
def saved_adapter_is_that_of_the_start(original):
    """The adapter directory of a run has the values of a new adapter."""

    def write(directory, base, out):
        from miniformer.adapters.files import save
        from miniformer.checkpoint.pipeline import load
        from miniformer.model.transforms import apply_transforms

        trained, pipeline = load(directory), load(base)
        pipeline.model = apply_transforms(pipeline.model, trained.model.transforms)
        save(pipeline, out, base=base)
        return ""

    return write


@fault("miniformer.adapters.base.gqa:_shared_keys")
def queries_keep_their_turn(original):
    """The queries do not get the factors of their keys."""

    def _shared_keys(keys, queries, moment, rotary):
        return original(keys, queries, moment, rotary)[0], queries

    return _shared_keys


@fault("miniformer.adapters.base.gqa:convert_heads")
def groups_are_of_distant_heads(original):
    """The groups of heads are in another order than those of the queries."""

    def convert_heads(model, n_kv_heads, method="mean", moments=None):
        converted = original(model, n_kv_heads, method, moments)
        if n_kv_heads == model.config.kv_heads or n_kv_heads == 1:
            return converted
        for name, parameter in converted.named_parameters():
            if "k_proj" in name:
                parameter.data = parameter.data.roll(converted.config.head_width, 0)
        return converted

    return convert_heads


@fault("miniformer.adapters.commands.convert:cache_bytes_per_token")
def cache_is_counted_in_bits(original):
    """The printed size is in bits."""
    return lambda model: 8 * original(model)


@fault("miniformer.adapters.settings:LoraSettings.cross_check")
def types_of_patterns_are_not_checked(original):
    """Values of the patterns may have any type."""
    return lambda self: []


@fault("miniformer.adapters.row_runtime:RowRuntime.select")
def rows_keep_the_adapters_of_their_first_places(original):
    """Rows get the adapters of the places that they move to, once others are removed."""

    def select(self, rows, copies=1):
        selection = self._selection
        original(self, rows, copies)
        if copies == 1:
            self._selection = selection[: len(rows)]

    return select


@fault("miniformer.adapters.by_input:_by_adapter")
def inputs_have_the_adapter_of_the_first(original):
    """All inputs have the adapter of the first one."""

    def _by_adapter(pipeline, inputs, names, function):
        if isinstance(names, str) or len(names) != len(inputs):
            return original(pipeline, inputs, names, function)
        return original(pipeline, inputs, list(names[:1]) * len(names), function)

    return _by_adapter


@fault("miniformer.commands.predict:_adapter_names")
def field_of_adapters_is_ignored(original):
    """All records have the adapter of the first one."""

    def _adapter_names(inputs, field):
        return original(inputs, field)[:1] * len(inputs)

    return _adapter_names


@fault("miniformer.commands.chat:run")
def chat_has_no_adapter(original):
    """The flag `--adapter` of `chat` has no effect."""
    return lambda values: original({k: v for k, v in values.items() if k != "adapter"})


@fault("miniformer.adapters.directory:write_adapter")
def template_of_an_adapter_is_lost(original):
    """An adapter directory has no chat template."""

    def write_adapter(out, model, name, *, task=None, **options):
        task = None if task is None else {k: v for k, v in task.items() if k != "chat_template"}
        original(out, model, name, task=task, **options)

    return write_adapter


@fault("miniformer.adapters.files:_check_head")
def heads_of_any_size_are_made(original):
    """The tensors of a head are not compared with its config."""
    return lambda files, config, tied: None


@fault("miniformer.registry:named_options")
def settings_of_components_have_any_form(original):
    """Settings without a type are taken."""
    return lambda setting, label="setting": (
        {"type": setting} if isinstance(setting, str) else dict(setting)
    )
