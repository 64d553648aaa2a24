"""`miniformer convert`: a model with fewer heads of keys and values."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.config.command_line import miniformer_command, resolve_model

DESCRIPTION = (
    "Convert a model to grouped-query or multi-query attention, whose cache is smaller; then train "
    "it further: miniformer train FILE --init_from OUT."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument("out", type=str, help="directory to write")
    parser.add_argument(
        "--n_kv_heads", type=int, required=True, help="heads of keys and values; 1: multi-query"
    )
    parser.add_argument(
        "--method",
        type=str,
        default="mean",
        help="mean: of the heads of a group; svd: the projection that loses least on --data",
    )
    parser.add_argument(
        "--data", type=str | None, default=None, help="records; the loss on them is printed"
    )


def run(values: dict[str, Any]) -> int:
    """Converts; returns the exit code."""
    import contextlib

    from miniformer.adapters.base.gqa import METHODS, convert_heads, input_moments
    from miniformer.checkpoint.directory import require_empty
    from miniformer.checkpoint.pipeline import Pipeline, load

    if values["method"] not in METHODS:
        raise UserError(f"method must be one of {', '.join(METHODS)}, not {values['method']!r}")
    out = Path(values["out"])
    require_empty(out)
    pipeline, moments, data = load(resolve_model(values["directory"])), None, values["data"]
    before = None
    if data is not None:
        needs_moments = values["method"] == "svd"
        with input_moments(pipeline.model) if needs_moments else contextlib.nullcontext() as sums:
            before = pipeline.evaluate(data, num_resamples=0).metrics["loss"]
        moments = sums
    model = convert_heads(pipeline.model, values["n_kv_heads"], values["method"], moments)
    converted = Pipeline(model, pipeline.tokenizer, pipeline.task, pipeline.generation)
    converted.directory, converted.hf_metadata = pipeline.directory, pipeline.hf_metadata
    converted.data_settings = pipeline.data_settings
    converted.save(out)
    sizes = [cache_bytes_per_token(item.model) for item in (pipeline, converted)]
    print(f"cache: {sizes[0]:,} bytes per token before, {sizes[1]:,} after (float32)")
    if before is not None:
        after = converted.evaluate(data, num_resamples=0).metrics["loss"]
        print(f"loss: {before:.4f} before, {after:.4f} after")
    name = shlex.quote(values["out"])
    print(f"model: {out}\ntrain it further: {miniformer_command()} train FILE --init_from {name}")
    return 0


def cache_bytes_per_token(model: Any) -> int:
    """Bytes of keys and values of one token, and of one of a source, in float32."""
    source_len = 1 if hasattr(model, "decoder") else None
    return int(model.config.cache_bytes(1, 1, source_len=source_len))
