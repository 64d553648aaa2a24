"""Tables of the subcommands of `miniformer`, and of the checks of `miniformer doctor`."""

from __future__ import annotations

# Subcommands of `miniformer`, in the order of the help: import path, and line of the help.
COMMANDS = {
    "train": ("miniformer.trainer", "train a model on your data"),
    "evaluate": ("miniformer.commands.evaluate", "metrics of a model on a labeled file"),
    "predict": ("miniformer.commands.predict", "predictions for inputs or for a file"),
    "generate": (
        "miniformer.commands.generate",
        "continue prompts, or answer sources, with a model",
    ),
    "chat": ("miniformer.commands.chat", "talk to a model that was trained on conversations"),
    "score": ("miniformer.commands.score", "perplexity of a language model on a file"),
    "inspect": (
        "miniformer.commands.inspect",
        "attention, predictions of each layer and log-probabilities of one input",
    ),
    "data": ("miniformer.commands.data", "check data files before training, or convert them"),
    "tokenizer": (
        "miniformer.commands.tokenizer",
        "train a tokenizer, or add special tokens to a model",
    ),
    "import": (
        "miniformer.commands.import_hf",
        "convert a Hugging Face model or a GGUF file to a model directory",
    ),
    "adapter": ("miniformer.adapters.commands.adapter", "list, merge and mix adapters of a model"),
    "convert": (
        "miniformer.adapters.commands.convert",
        "convert a model to fewer heads of keys and values",
    ),
    "quantize": ("miniformer.compression.command", "store a model in fewer bits"),
    "compare": (
        "miniformer.compression.comparison.command",
        "compare size, metric, speed and memory of models",
    ),
    "calibrate-exit": (
        "miniformer.compression.exits.command",
        "choose when records leave a classifier early",
    ),
    "prune": (
        "miniformer.compression.pruning.command",
        "remove parts of a model, or set weights to zero",
    ),
    "serve": ("miniformer.serving.command", "serve models over HTTP, with OpenAI's interface"),
    "export": ("miniformer.exporters.command", "write a model for another program"),
    "export-bench": (
        "miniformer.exporters.bench.command",
        "sizes and times of exported files and of the model itself",
    ),
    "doctor": ("miniformer.doctor.__main__", "check a model, or report the speed of this machine"),
    "verify-resume": (
        "miniformer.commands.verify_resume",
        "check that a killed run resumes bit-exactly",
    ),
    "demo": (
        "miniformer.commands.demo",
        "train a small model on the source of Python's standard library",
    ),
    "completion": ("miniformer.commands.completion", "print the completion script of a shell"),
}

# Checks of `miniformer doctor`, in the order of the report: import path, and the promise.
CHECKS = {
    "files": (
        "miniformer.doctor.checks.files:check_files",
        "all files load, fit each other and hold finite weights",
    ),
    "leak": ("miniformer.doctor.leaks:find_leaks", "no output depends on masked inputs"),
    "batch": (
        "miniformer.doctor.checks.batch:check_batch",
        "a row has the same outputs in a padded batch as alone",
    ),
    "cache": (
        "miniformer.doctor.checks.cache:check_cache",
        "prefill and cached steps give the logits of a full pass",
    ),
    "gradients": (
        "miniformer.doctor.checks.gradients:check_gradients",
        "gradients equal central differences in float64",
    ),
    "tokenizer": (
        "miniformer.doctor.checks.tokenizer:check_tokenizer",
        "ids are in the vocabulary, and decoded text has the same characters and ids",
    ),
    "saving": (
        "miniformer.doctor.checks.saving:check_saving",
        "a saved and loaded copy has the same settings, tensors and outputs",
    ),
    "precision": (
        "miniformer.doctor.checks.precision:check_precision",
        "weights in bf16, int8 and int4 lose little on texts that the model samples",
    ),
    "export": (
        "miniformer.exporters.check:check_export",
        "exported graphs give the outputs of the model",
    ),
    "card": (
        "miniformer.doctor.checks.card:check_card",
        "README.md names the model, its size and its use, and its metrics are numbers",
    ),
    "speed": (
        "miniformer.doctor.checks.speed:measure_speed",
        "speed is compared with that of matrix products and of memory",
    ),
}
