"""Faults in `miniformer.checkpoint`."""

from tests.faults import fault


@fault("miniformer.checkpoint.directory:require_empty")
def export_overwrites_a_full_directory(original):
    """Files are written into a directory that is not empty."""
    return lambda directory: None


@fault("miniformer.checkpoint.artifacts:_read_tokenizer")
def tokenizer_of_another_model_is_taken(original):
    """A tokenizer may have more ids than its model."""

    def read_tokenizer(path, size_field, config):
        from miniformer.data.tokenizers.tokenizer import Tokenizer

        return Tokenizer.from_path(path)

    return read_tokenizer


@fault("miniformer.checkpoint.pipeline:Pipeline.save")
def saved_pipeline_samples_by_default(original):
    """A model directory is saved with default decoding options."""

    def save(self, directory):
        generation, self.generation = self.generation, type(self.generation)()
        try:
            original(self, directory)
        finally:
            self.generation = generation

    return save


@fault("miniformer.checkpoint.speculation_check:benchmark_speculation")
def speculation_answers_with_every_second_text(original):
    """Answers are given for the last of the prompts only."""

    def benchmark_speculation(pipeline, draft, prompts, options):
        texts, verdict = original(pipeline, draft, prompts, options)
        return [texts[-1]] * len(texts), verdict

    return benchmark_speculation


@fault("miniformer.config.generation_config:GenerationConfig.override")
def settings_of_the_directory_are_ignored(original):
    """Default decoding options replace those of the model directory."""

    def override(self, options, *, stacklevel=3):
        return original(type(self)(), options, stacklevel=stacklevel)

    return override


@fault("miniformer.tasks.common.sequence_input:InputTask.predict_outputs")
def embed_reads_features_as_they_stand(original):
    """`embed` ignores the task's statistics of features."""

    def predict_outputs(self, model, tokenizer, inputs, *, output_fn=None, **options):
        from miniformer.tasks.embedding import EmbeddingTask

        bare = EmbeddingTask(
            input_kind=self.resolved_input_kind(), input_dim=model.config.input_dim
        )
        task = self if output_fn is None else bare
        return original(task, model, tokenizer, inputs, output_fn=output_fn, **options)

    return predict_outputs


@fault("miniformer.checkpoint.artifacts:read_task")
def features_of_earlier_directories_are_standardized(original):
    """A task.json without `standardize` is read as standardize=true."""

    def read_task(path, kind):
        import dataclasses

        task = original(path, kind)
        known = hasattr(task, "standardize")
        return dataclasses.replace(task, standardize=True) if known else task

    return read_task


@fault("miniformer.checkpoint.pipeline:upload_directory")
def private_pipelines_are_public(original):
    """`push_to_hub(private=True)` of a model directory makes a public repository."""
    return lambda directory, repo_id, *, private=False, message=None: original(
        directory, repo_id, message=message
    )


@fault("miniformer.checkpoint.input_checks:check_prompts")
def prompts_of_any_type_are_taken(original):
    """Prompts are not checked for their type."""
    return lambda prompts, method="generate", name="prompts": prompts


@fault("miniformer.tasks.base:Task.default_generation_config")
def pipeline_needs_decoding_options(original):
    """A pipeline that is given no decoding options has those of no task."""
    from miniformer.config import GenerationConfig

    return lambda self, config, tokenizer: GenerationConfig()


@fault("miniformer.checkpoint.pipeline:eval_mode")
def pipeline_predicts_with_dropout(original):
    """A pipeline predicts in the mode that its model has."""
    import contextlib

    return lambda *models: contextlib.nullcontext()


@fault("miniformer.checkpoint.summary:key_value_table")
def summary_is_not_escaped(original):
    """Names of classes are part of the HTML of a summary."""

    def key_value_table(values):
        return original(values).replace("&lt;", "<")

    return key_value_table


@fault("miniformer.checkpoint.summary:read_card_metrics")
def card_metrics_are_not_read(original):
    """A summary has no metrics."""
    return lambda directory: {}


@fault("miniformer.checkpoint.card:render_default_card")
def default_card_says_nothing(original):
    """A saved pipeline has a card of one heading."""
    return lambda pipeline: "# A model\n"
