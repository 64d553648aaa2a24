"""TrainConfig: all settings of a training run; each field is a flag."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from miniformer.config import StrictConfig, TransformerConfig, option, train_checks
from miniformer.config.renames import TASK_OPTIONS, TRAIN_FIELDS
from miniformer.config.size_presets import SIZE_PRESETS
from miniformer.config.strict import rename_keys
from miniformer.utils.units import parse_bytes

_SECONDS_PER_UNIT = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclasses.dataclass(frozen=True)
class TrainConfig(StrictConfig):
    """Configuration of a training run.

    Args:
        train_path: training data: .jsonl with one record per line, or .txt for language modeling;
            .gz and .zst are decompressed; a glob such as 'data/*.jsonl', or a list of paths.
        val_path: validation data in the same formats; null: no validation.
        test_path: test data, evaluated with the best checkpoint at the end; null: no test.
        task: task, with the fields of its records: language_modeling {"text"}, masked_lm {"text"},
            classification {"input", "label"}, regression {"input", "value"}, seq2seq {"source",
            "target"}; an input is a string, two strings, or a list of vectors.
        task_config: options of the task, such as {"label_smoothing": 0.1}.
        tokenizer: bpe (byte-level), unigram, wordpiece, word (separated by spaces), byte or char,
            trained on train_path; or the path of a tokenizer.json, a Hugging Face directory or a
            model directory; null: bpe. vocab_size in model_config sets its vocabulary size; null:
            10,000, or fewer for language modeling of small data with bpe or unigram.
        source_tokenizer: separate tokenizer for the sources of seq2seq, with source_vocab_size in
            model_config; null: one shared tokenizer, or char for sources that are single words.
        seq_len: tokens per window, and maximum tokens of an input and of a target; null: the
            model's max_seq_len.
        batch_size: windows (packed) or average examples (length buckets) per batch and device;
            null: 16; for language_modeling and seq2seq 1/1000 of the training tokens, clamped to
            2,048 to 16,384 tokens per batch of all devices.
        batch_tokens: maximum tokens per batch, padding included; null: derived from batch_size.
        num_workers: worker processes that read and encode data too large for memory; 0: a thread
            of the training process.
        streaming: read train_path once, in order, such as from a pipe ("-" is standard input), with
            a shuffle buffer.
        model: decoder: causal Transformer; encoder: bidirectional Transformer (causal for
            language_modeling); seq2seq: encoder-decoder; null: depends on the task.
        model_config: fields of TransformerConfig. Those that follow from task, data and tokenizer,
            such as causal, output_dim and vocab_size, can be left out.
        model_size: default shape: tiny (2 layers, d_model 64), small (2, 128), medium (3, 192) or
            base (4, 256); null: depends on the number of training tokens.
        init_from: model directory to initialize from, such as one made by `miniformer import`: its
            config, weights and tokenizer; null: random weights.
        pretrain: settings of a masked_lm run on the training texts that precedes this run, such as
            {"max_epochs": 40}; for classification and regression of texts; null: no pretraining.
        lr: peak learning rate; null: 0.005 for muon, 0.001 for adamw, 0.002 for schedulefree; a
            tenth of it with init_from or pretrain.
        find_lr: run the learning-rate finder on the training data first and use its suggestion.
        weight_decay: decoupled weight decay of matrices; not of biases, norms and embeddings.
        layer_lr_decay: factor of the learning rate from each layer to the layer below it.
        scheduler: learning-rate schedule: cosine, onecycle, linear, wsd, none.
        warmup_steps: optimizer steps of learning-rate warmup; null: see warmup_ratio.
        warmup_ratio: warmup as a share of the run; null: 0.05, or onecycle's own warmup.
        optimizer: muon: Muon for the matrices of layers and AdamW for other weights; adamw;
            schedulefree: AdamW without a schedule (needs the extra miniformer[optim]).
        optimizer_config: options of the optimizer, such as {"betas": [0.9, 0.99]}.
        gradient_clip_val: maximum gradient norm; 0: no gradient clipping.
        accumulate_grad_batches: batches per optimizer step, equivalent to one large batch.
        ema_decay: EMA decay per optimizer step, such as 0.999. EMA weights are validated and saved.
            null: no EMA.
        average_checkpoints: number of last validations whose averaged weights are evaluated at the
            end, and saved if they are the best; null: no averaging.
        seed: seed of initial weights, data order and dropout.
        val_check_interval: optimizer steps between validations; null: five validations per run.
        checkpoint_metric: validation metric that selects the best checkpoint, such as mcc; the loss
            decides ties; null: accuracy for classification, RMSE for regression, else the loss.
        early_stopping_patience: validations without improvement of checkpoint_metric before
            training stops; null: no early stopping.
        sample_prompt: prompt that is continued at each validation; null: the start of a text of
            val_path.
        max_epochs: maximum passes over the training data; null: 10, or no limit with max_steps or
            max_time.
        max_steps: maximum optimizer steps; null: no limit.
        max_time: maximum training time, such as 90s, 10m or 1h30m; the learning-rate schedule
            follows the clock; null: no limit.
        memory_limit: memory limit of the process, such as 4GB. Sets the micro-batch size and
            activation checkpointing to fit. null: no limit.
        accelerator: cpu, cuda, mps, or auto: the fastest that is available.
        devices: processes on this machine, one per device.
        num_nodes: number of machines; torchrun starts the processes on each.
        strategy: ddp: replicated model; fsdp2: sharded model; deepspeed: ZeRO (needs CUDA and the
            extra miniformer[deepspeed]); null: ddp for several devices.
        precision: float32 or bf16 (mixed precision); auto: bf16 where it is fast (GPUs with bf16,
            CPUs with AVX512-BF16 or AMX), else float32.
        compile: compile the layers with torch.compile and report when the time is regained.
        activation_checkpointing: activations stored for the backward pass: none: all of them;
            selective: matrix products and attention; full: the input of each layer. The others are
            recomputed; gradients are the same.
        find_batch_size: measure batch sizes first and use the one with the most tokens per second.
        deterministic: refuse operations that are not deterministic on a GPU.
        work_dir: folder for run folders.
        experiment_name: name of the run folder; a number is appended if it exists; null: the task.
        resume: run folder to resume. Other flags change its settings only if they differ from their
            defaults.
        checkpoint_interval: optimizer steps between checkpoints for resuming; null: at each
            validation, and as often as 2 % of the time allows.
        logger: tensorboard, csv, wandb or mlflow (each needs the extra of its name), none.
    """

    former_names: ClassVar[Mapping[str, str]] = TRAIN_FIELDS

    train_path: list[str] | str = option("", group="data")
    val_path: list[str] | str | None = option(None, group="data")
    test_path: list[str] | str | None = option(None, group="data")
    task: str = option("language_modeling", kind="task", group="data")
    task_config: dict[str, Any] = option({}, group="data")
    tokenizer: str | None = option(None, group="data")
    source_tokenizer: str | None = option(None, group="data")
    seq_len: int | None = option(None, low=1, group="data")
    batch_size: int | None = option(None, low=1, group="data")
    batch_tokens: int | None = option(None, low=1, group="data")
    num_workers: int = option(0, low=0, group="data")
    streaming: bool = option(False, group="data")

    model: str | None = option(None, choices=("encoder", "decoder", "seq2seq"), group="model")
    model_config: dict[str, Any] = option({}, group="model")
    model_size: str | None = option(None, choices=tuple(SIZE_PRESETS), group="model")
    init_from: str | None = option(None, group="model")
    pretrain: dict[str, Any] | None = option(None, group="model")

    lr: float | None = option(None, low=0.0, group="optimization")
    find_lr: bool = option(False, group="optimization")
    weight_decay: float = option(0.1, low=0.0, group="optimization")
    layer_lr_decay: float = option(1.0, above=0.0, high=1.0, group="optimization")
    scheduler: str = option("cosine", kind="scheduler", group="optimization")
    warmup_steps: int | None = option(None, low=0, group="optimization")
    warmup_ratio: float | None = option(None, low=0.0, high=1.0, group="optimization")
    optimizer: str = option("muon", kind="optimizer", group="optimization")
    optimizer_config: dict[str, Any] = option({}, group="optimization")
    gradient_clip_val: float = option(1.0, low=0.0, group="optimization")
    accumulate_grad_batches: int = option(1, low=1, group="optimization")
    ema_decay: float | None = option(None, above=0.0, high=0.999999, group="optimization")
    average_checkpoints: int | None = option(None, low=2, group="optimization")
    seed: int = option(0, low=0, high=2**32 - 1, group="optimization")

    val_check_interval: int | None = option(None, low=1, group="evaluation")
    checkpoint_metric: str | None = option(None, group="evaluation")
    early_stopping_patience: int | None = option(None, low=1, group="evaluation")
    sample_prompt: str | None = option(None, group="evaluation")

    max_epochs: int | None = option(None, low=1, group="budgets")
    max_steps: int | None = option(None, low=1, group="budgets")
    max_time: str | None = option(None, group="budgets")
    memory_limit: str | None = option(None, group="budgets")

    accelerator: str = option("auto", choices=("auto", "cpu", "cuda", "mps"), group="hardware")
    devices: int = option(1, low=1, group="hardware")
    num_nodes: int = option(1, low=1, group="hardware")
    strategy: str | None = option(None, choices=("ddp", "fsdp2", "deepspeed"), group="hardware")
    precision: str = option("auto", choices=("auto", "float32", "bf16"), group="hardware")
    compile: bool = option(False, group="hardware")
    activation_checkpointing: str = option(
        "none", choices=("none", "selective", "full"), group="hardware"
    )
    find_batch_size: bool = option(False, group="hardware")
    deterministic: bool = option(False, group="hardware")

    work_dir: str = option("runs", group="output")
    experiment_name: str | None = option(None, group="output")
    resume: str | None = option(None, group="output")
    checkpoint_interval: int | None = option(None, low=1, group="output")
    logger: str = option("tensorboard", kind="logger", group="output")

    @classmethod
    def current_names(
        cls, values: Mapping[str, Any], *, warn: bool = True
    ) -> tuple[dict[str, Any], list[str]]:
        """Also replaces former names within `task_config`, `model_config` and `pretrain`."""
        current, problems = super().current_names(values, warn=warn)

        def replace(name: str, result: tuple[dict[str, Any], list[str]]) -> None:
            current[name] = result[0]
            problems.extend(f"{name}: {problem}" for problem in result[1])

        if isinstance(options := current.get("task_config"), dict):
            table = TASK_OPTIONS.get(str(current.get("task", "language_modeling")), {})
            replace("task_config", rename_keys(options, table, warn=warn))
        if isinstance(fields := current.get("model_config"), dict):
            replace("model_config", TransformerConfig.current_names(fields, warn=warn))
        if isinstance(settings := current.get("pretrain"), dict):
            nested, nested_problems = cls.current_names(
                {"task": "masked_lm", **settings}, warn=warn
            )
            if "task" not in settings:
                del nested["task"]
            replace("pretrain", (nested, nested_problems))
        return current, problems

    def non_default_fields(self) -> dict[str, Any]:
        """Fields that differ from their defaults."""
        changed = {}
        for field in dataclasses.fields(self):
            value, factory = getattr(self, field.name), field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            if value != default:
                changed[field.name] = value
        return copy.deepcopy(changed)

    def cross_check(self) -> list[str]:
        """Conflicts between fields, each with its fix."""
        problems = []
        if not self.train_path and self.resume is None:
            problems.append("train_path is missing: name a .jsonl or .txt file to train on")
        problems += train_checks.path_problems(self)
        problems += train_checks.unused_setting_problems(self)
        if self.streaming and self.max_steps is None and self.max_time is None:
            problems.append(
                "streaming needs max_steps or max_time: the length of the stream is unknown"
            )
        if self.max_time is not None and self.max_seconds is None:
            problems.append(
                f"max_time must be a time such as 90s, 10m or 1h30m, not {self.max_time!r}"
            )
        if self.memory_limit is not None and parse_bytes(self.memory_limit) is None:
            problems.append(
                f"memory_limit must be a size such as 500MB or 4GB, not {self.memory_limit!r}"
            )
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            problems.append(
                "warmup_steps and warmup_ratio both set the warmup; leave one of them out"
            )
        if self.model == "decoder" and self.model_config.get("causal") is False:
            problems.append(
                "model=decoder is causal; leave causal out of model_config, or set model=encoder"
            )
        if self.strategy == "deepspeed" and self.accumulate_grad_batches > 1:
            problems.append(
                "strategy=deepspeed cannot divide the loss of several batches exactly; "
                "set accumulate_grad_batches=1"
            )
        return problems

    @property
    def world_size(self) -> int:
        """Number of devices on all machines."""
        return self.devices * self.num_nodes

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds; None: not set or invalid."""
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", self.max_time or "")
        if not parts or "".join(number + unit for number, unit in parts) != self.max_time:
            return None
        return sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts) or None

    @property
    def effective_max_epochs(self) -> int | None:
        """Maximum passes over the training data; None: another limit ends the run."""
        if self.max_epochs is None and self.max_steps is None and self.max_time is None:
            return 10
        return self.max_epochs
