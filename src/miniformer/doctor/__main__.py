"""`miniformer doctor`, also `python -m miniformer.doctor`: model size, backends and leaks."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from miniformer import registry
from miniformer.config import TransformerConfig, UserError
from miniformer.config.architectures import SEQ2SEQ_ARCHITECTURES, architecture_config
from miniformer.config.command_line import command_context, parse_flags, resolve_model
from miniformer.config.flags.subcommands import make_command_parser

_TOY_SIZES = {"vocab_size": 100, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}


DESCRIPTION = (
    "Report the size and attention backends of a model and check it, such as for leaks; without "
    "arguments, report the speed of this machine."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "directory", type=str, nargs="?", help="model directory, or the folder of a run"
    )
    parser.add_argument(
        "--family", type=str, help="check a small random model of a family, such as llama"
    )
    known = ", ".join(registry.names("check"))
    parser.add_argument("--check", type=str, nargs="+", help=f"checks: {known}; null: all of them")


def run(values: dict[str, Any]) -> int:
    """Runs the reports; returns 1 if a check finds a problem."""
    checks = values["check"]
    for name in checks or ():
        if name not in registry.names("check"):
            raise UserError(registry.unknown_name_message("check", name, registry.names("check")))
    if values["directory"] is not None and values["family"] is not None:
        raise UserError("name a model directory or a family, not both")
    if values["directory"] is not None:
        return _report_model(_load_model(Path(resolve_model(values["directory"]))), checks)
    if values["family"] is not None:
        return _report_model(_build_model(values["family"]), checks)
    if checks is not None:
        raise UserError("check is for a model; name a model directory or a family, too")
    _report_hardware()
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    with command_context() as command:
        parser = make_command_parser("doctor", sys.modules[__name__])
        command.code = run(parse_flags(parser, argv))
    return command.code


def _load_model(directory: Path) -> Any:
    from miniformer.model.config_file import read_config
    from miniformer.model.seq2seq import Seq2SeqTransformer
    from miniformer.model.transformer import Transformer

    architecture, _ = read_config(directory)
    model_class = Seq2SeqTransformer if architecture == "Seq2SeqTransformer" else Transformer
    return model_class.from_pretrained(directory)


def _build_model(name: str) -> Any:
    try:
        config = TransformerConfig.from_dict(architecture_config(name, **_TOY_SIZES))
    except ValueError as error:
        raise UserError(str(error)) from None
    from miniformer.model.seq2seq import Seq2SeqTransformer
    from miniformer.model.transformer import Transformer

    return (Seq2SeqTransformer if name in SEQ2SEQ_ARCHITECTURES else Transformer)(config)


def _report_model(model: Any, checks: list[str] | None) -> int:
    from miniformer.model.seq2seq import Seq2SeqTransformer

    config, seq2seq = model.config, isinstance(model, Seq2SeqTransformer)
    max_seq_len = config.max_seq_len
    print(f"{type(model).__name__}: {config.num_params(seq2seq=seq2seq):,} parameters")
    flops = config.flops_per_token(seq2seq=seq2seq)
    print(f"forward pass of {max_seq_len} tokens: {flops:,} FLOPs per token")
    passes = [("a full pass", {}), ("a full pass with padding", {"ragged": True})]
    if seq2seq or config.causal:
        source_len = max_seq_len if seq2seq else None
        num_bytes = config.cache_bytes(1, max_seq_len, kind="window", source_len=source_len)
        print(f"cache of {max_seq_len} tokens in float32: {num_bytes:,} bytes")
        passes.append(("cached decoding", {"cached": True}))
    for name, options in passes:
        print(f"attention in {name}:")
        for line in model.backend_report(**options):
            print(f"  {line}")
    num_problems = 0
    for name, check in _selected_checks(checks):
        problems = [*check(model)]
        num_problems += len(problems)
        for problem in problems:
            print(f"{name.upper()} {problem}")
        if not problems:
            print(f"no {name} found: {registry.summary('check', name)}")
    return 1 if num_problems else 0


def _selected_checks(names: list[str] | None) -> Iterable[tuple[str, Any]]:
    """The checks of these names, or all that can be imported."""
    if names is None:
        return registry.load_all("check")
    return [(name, registry.get("check", name)) for name in names]


def _report_hardware() -> None:
    import torch

    from miniformer.training.tuning.hardware import peak_flops

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__} on {device}: {name}")
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix products in {dtype}: {peak_flops(device, dtype) / 1e9:,.0f} GFLOP/s")


if __name__ == "__main__":
    sys.exit(main())
