"""Faults in `miniformer.checkpoint`."""

from tests.faults import fault


@fault("miniformer.checkpoint.directory:require_empty")
def export_overwrites_a_full_directory(original):
    """Files are written into a directory that holds something."""
    return lambda directory: None


@fault("miniformer.checkpoint.artifacts:_read_tokenizer")
def tokenizer_of_another_model_is_taken(original):
    """A tokenizer may have more ids than its model."""

    def read_tokenizer(path, name, config):
        from miniformer.data.tokenizers.tokenizer import Tokenizer

        return Tokenizer.from_path(path)

    return read_tokenizer


@fault("miniformer.checkpoint.pipeline:Pipeline.save")
def saved_pipeline_samples_by_default(original):
    """A model directory is written with default decoding settings."""

    def save(self, directory):
        kept, self.generation = self.generation, type(self.generation)()
        try:
            original(self, directory)
        finally:
            self.generation = kept

    return save


@fault("miniformer.checkpoint.speculation_check:benchmark_speculation")
def speculation_answers_with_every_second_text(original):
    """Answers are given for the last of the prompts only."""

    def speculated(pipeline, draft, prompts, options):
        texts, verdict = original(pipeline, draft, prompts, options)
        return [texts[-1]] * len(texts), verdict

    return speculated


@fault("miniformer.checkpoint.text_generation:TextGenerationMixin._generation_config")
def settings_of_the_directory_are_ignored(original):
    """Text is written with default settings where nothing is given."""

    def settings(self, options, depth=3):
        from miniformer.config import GenerationConfig

        kept, self.generation = self.generation, GenerationConfig()
        try:
            return original(self, options, depth)
        finally:
            self.generation = kept

    return settings


@fault("miniformer.checkpoint.pipeline:batches_of")
def embed_reads_features_as_they_stand(original):
    """`embed` reads inputs without what the task knows of them."""

    def batches_of(task, model, tokenizer, inputs, *, truncate=False, output=None):
        from miniformer.tasks.embedding import EmbeddingTask

        bare = EmbeddingTask(input_kind=task.kind(), input_dim=model.config.input_dim)
        return original(bare, model, tokenizer, inputs, truncate=truncate, output=output)

    return batches_of


@fault("miniformer.checkpoint.artifacts:read_task")
def features_of_earlier_directories_are_standardized(original):
    """A model whose task.json says nothing of standardization is fine-tuned with it."""

    def read_task(path, kind):
        import dataclasses

        found = original(path, kind)
        known = hasattr(found, "standardize")
        return dataclasses.replace(found, standardize=True) if known else found

    return read_task


@fault("miniformer.checkpoint.pipeline:upload_directory")
def private_pipelines_are_public(original):
    """`push_to_hub(private=True)` of a whole model directory makes a public repository."""
    return lambda directory, repo_id, *, private=False, message=None: original(
        directory, repo_id, message=message
    )
