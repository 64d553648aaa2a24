"""Faults in the runner of exported ONNX folders."""

import json

import numpy as np

from tests.faults import fault

_DECODING = "miniformer.exporters.onnx.runner.decoding"
_ENCODING = "miniformer.exporters.onnx.runner.encoding"
_RUN = "miniformer.exporters.onnx.runner.run"


@fault(f"{_DECODING}:State._run")
def masked_past_is_attended(original):
    """The first column of a past counts as a token."""

    def _run(self, ids):
        self.mask[:, 0] = True
        return original(self, ids)

    return _run


@fault(f"{_DECODING}:pad")
def rows_end_in_different_columns(original):
    """Prompts are padded on the right."""
    return lambda rows, left=False: original(rows)


@fault(f"{_DECODING}:choose")
def temperature_after_the_filters(original):
    """top_k, top_p and min_p see the logits before the temperature."""

    def choose(logits, options, uniform):
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        order = np.argsort(-p)
        ranked = np.take_along_axis(p, order, -1)
        removed = ranked.cumsum(-1) - ranked >= (options["top_p"] or 2)
        removed[:, options["top_k"] :] |= options["top_k"] is not None
        removed |= ranked < (options["min_p"] or 0) * ranked[:, :1]
        masked = logits.copy()
        np.put_along_axis(
            masked, order, np.where(removed, -1e9, np.take_along_axis(logits, order, -1)), -1
        )
        plain = {**options, "top_k": None, "top_p": None, "min_p": None}
        return original(masked, plain, uniform)

    return choose


@fault(f"{_DECODING}:penalized")
def prompt_counts_as_new(original):
    """Penalties of new tokens count the last tokens of the prompt."""
    return lambda scores, state, options, step: original(scores, state, options, step + 2)


@fault(f"{_DECODING}:State.select")
def rows_take_the_past_of_ended_rows(original):
    """Rows that continue take the keys and values of ended rows."""

    def select(self, rows, same_source=False):
        past, ends = self.past, len(rows) < len(self.mask)
        original(self, rows, same_source)
        if ends:
            arrays = {k: v if isinstance(v, np.ndarray) else v.numpy() for k, v in past.items()}
            self.past = {name: value[: len(rows)] for name, value in arrays.items()}

    return select


@fault(f"{_DECODING}:State.select")
def beams_keep_their_past(original):
    """Beams continue other hypotheses with their own keys and values."""

    def select(self, rows, same_source=False):
        past = self.past
        original(self, rows, same_source)
        if same_source:
            self.past = past

    return select


@fault(f"{_DECODING}:State.select")
def beams_take_the_source_of_others(original):
    """The cross-attention of beams is in the order of the sources, over and over."""

    def select(self, rows, same_source=False):
        source = self.source
        original(self, rows, same_source)
        if not same_source and len(rows) > len(np.unique(rows)):
            cycled = np.resize(np.unique(rows), len(rows))
            arrays = {k: v if isinstance(v, np.ndarray) else v.numpy() for k, v in source.items()}
            self.source = {name: value[cycled] for name, value in arrays.items()}

    return select


@fault(f"{_DECODING}:is_final")
def beam_search_ends_early(original):
    """The search of an input ends with the first N ended hypotheses."""
    return lambda running, ended, step, options: len(ended) == len(running)


@fault(f"{_DECODING}:length_divisor")
def beam_scores_ignore_length(original):
    """Scores of hypotheses are sums."""
    return lambda length, options: 1.0


@fault(f"{_RUN}:Model.stop_function")
def stop_strings_are_of_one_token(original):
    """A stop string that spans tokens is not found."""

    def stop_function(self, options):
        stop = original(self, options)
        return lambda tokens: stop(tokens[-1:])

    return stop_function


@fault(f"{_RUN}:Model.stable_length")
def stream_cuts_characters(original):
    """A stream yields the bytes of a character one by one."""
    return lambda self, tokens, text: len(text)


@fault(f"{_RUN}:read_description")
def any_format_is_read(original):
    """The format of export.json is not checked."""
    return lambda path: json.loads(path.read_text(encoding="utf-8"))


@fault("miniformer.exporters.onnx.description:_describe_output")
def classes_are_sorted_again(original):
    """export.json has the classes in alphabetical order."""

    def _describe_output(task):
        settings = original(task)
        return {**settings, "labels": settings["labels"] and sorted(settings["labels"])}

    return _describe_output


@fault(f"{_ENCODING}:encode_text")
def shared_tokens_have_plain_types(original):
    """Tokens that both texts of a pair contain are not marked."""

    def encode_text(value, settings, tokenizer, limit):
        return original(value, {**settings, "marks_shared": False}, tokenizer, limit)

    return encode_text


@fault(f"{_ENCODING}:encode_vectors")
def series_has_plain_values(original):
    """The value of a series is not added to its last number."""

    def encode_vectors(value, settings, limit):
        row, length = original(value, settings, limit)
        return row._replace(base=0.0), length

    return encode_vectors


@fault("miniformer.exporters.onnx.bundle:RUNNER_FILES")
def runner_lacks_a_file(original):
    """The exported folder has no encoding.py."""
    return original[:-1]
