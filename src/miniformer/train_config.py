"""TrainConfig: everything that decides a training run; each field is a flag."""

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
    """A training run.

    Args:
        train_path: data to train on: .jsonl with one record a line, or .txt for language modelling;
            either packed as .gz or .zst; a pattern such as 'data/*.jsonl'; or a list of these.
        val_path: data to validate on, of the same kind; null: no validation.
        test_path: data to test the best model on at the end; null: no test.
        task: what to learn, and from which records: language_modeling {"text"}, masked_lm
            {"text"}, classification {"input", "label"}, regression {"input", "value"}, seq2seq
            {"source", "target"}; an input is a string, two strings, or a list of vectors.
        task_config: options of the task, such as {"label_smoothing": 0.1}.
        model: decoder: a causal Transformer; encoder: a bidirectional Transformer (for
            language_modeling the same as decoder); seq2seq: an encoder and a decoder; null: by the
            task.
        model_config: fields of TransformerConfig; those that follow from task, data and tokenizer,
            such as causal, output_dim and vocab_size, can be left out.
        model_size: of the model, where model_config says nothing of it: tiny (2 layers, d_model 64),
            small (2, 128), medium (3, 192) or base (4, 256); null: by the tokens of the training
            data.
        init_from: model directory that the run begins with, such as one from `miniformer import`:
            its shape, weights and tokenizer, if it has one; null: weights are random.
        pretrain: settings of a run before this one, in which the model learns to guess hidden
            tokens of the training texts (task masked_lm), such as {"max_epochs": 40}; for
            classification and regression of texts; null: there is none.
        tokenizer: bpe (byte-level), unigram, wordpiece, word (what is between spaces), byte or
            char, trained on train_path; or the path of a tokenizer.json, of a Hugging Face
            directory or of a model directory; null: bpe. Its ids are vocab_size in model_config;
            null: 10,000, or fewer in language modelling of little text by bpe or unigram.
        source_tokenizer: the same for the sources of seq2seq, where they have a vocabulary of their
            own, as large as source_vocab_size in model_config; null: one serves both, unless no
            tokenizer is named and sources are single words, which are read letter by letter.
        batch_size: windows in a batch; where batches are of like lengths, examples on average;
            null: 16; in language modelling and seq2seq as many as hold a thousandth of the tokens,
            2,048 at least where there are as many, shared by the devices.
        batch_tokens: tokens in a batch at most, padding included; null: as many as batch_size
            gives.
        seq_len: tokens in a window, or of an input and of a target at most; null: the model's
            max_seq_len.
        lr: learning rate at its highest; null: 0.005 for muon, 0.001 for adamw, 0.002 for
            schedulefree, and a tenth of it after init_from or a warm start.
        find_lr: try rates on the training data first, and train with the one that they suggest.
        weight_decay: decoupled decay of weight matrices; biases, norms and embeddings have none.
        layer_lr_decay: factor on the learning rate from each layer to the one below it.
        scheduler: how the learning rate goes down: cosine, onecycle, linear, wsd, none.
        warmup_steps: optimiser steps in which it first goes up; null: as warmup_ratio says.
        warmup_ratio: the same as a share of the run; null: 0.05, or onecycle's own.
        max_epochs: passes over the training data; null: 10 unless max_steps or max_time is set.
        max_steps: optimiser steps at most.
        max_time: time at most, as 90s, 10m, 1h30m; the learning rate follows the clock.
        val_check_interval: optimiser steps between validations; null: five times over the run.
        optimizer: muon: Muon for the matrices within layers, AdamW for the rest; adamw;
            schedulefree: AdamW without a schedule (needs the extra miniformer[optim]).
        optimizer_config: options of the optimizer, such as {"betas": [0.9, 0.99]}.
        gradient_clip_val: longest gradient (its norm); 0: any.
        accumulate_grad_batches: batches in one optimiser step, as one large batch.
        ema_decay: validate and keep the moving average of the weights, which keeps this share of
            itself at each step, such as 0.999; null: the weights themselves.
        average_checkpoints: at the end, also try the mean of the weights at this many last
            validations, and keep it if it is the best model; null: not.
        activation_checkpointing: what a training pass keeps for the backward pass: none:
            everything; selective: matrix products and attention; full: each layer's input, and
            computes the rest again. The gradients are the same.
        memory_limit: what the process may take, such as 4GB: batches are split and activations computed
            again as it needs; null: no limit.
        find_batch_size: try sizes first, and train with the one of most tokens a second.
        precision: float32, or bf16 (mixed); auto: bf16 where it is measured to be fast (GPUs that
            have it, CPUs with AVX512-BF16 or AMX), else float32.
        compile: compile the layers, and tell when that pays back.
        accelerator: cpu, cuda, mps, or auto: the best there is.
        devices: processes on this machine, one for each device.
        num_nodes: machines; each starts its own, by torchrun.
        strategy: ddp: each device has the whole model; fsdp2: each has a share of it; deepspeed:
            ZeRO (needs CUDA and the extra miniformer[deepspeed]); null: ddp where there are
            several.
        num_workers: processes that read and encode data too large to be kept in memory; 0: a thread
            of the training process.
        streaming: read train_path front to back as it comes, such as from a pipe ("-" is standard
            input), shuffled among neighbours only.
        seed: decides initial weights, order of the data and dropout.
        deterministic: refuse operations that may differ from run to run on a GPU.
        work_dir: folder for runs.
        experiment_name: the run's folder within work_dir; null: the task's name. A number is added
            if it exists.
        resume: a run's folder to go on in, as if it had never stopped; of the flags beside it only
            those that are not at their defaults change its settings.
        checkpoint_interval: optimiser steps between two states of the run that can be resumed;
            null: with each validation, and so often that it takes 2 % of the time.
        sample_prompt: what to continue at each validation, to be read; null: the beginning of a
            text of val_path.
        logger: tensorboard, csv, wandb and mlflow (each needs the extra of its name), none.
        checkpoint_metric: validation figure that tells the best model, such as mcc, and of two that
            are as good the loss; null: accuracy in classification, RMSE in regression, else
            the loss.
        early_stopping_patience: validations without a better checkpoint_metric before the run
            stops; null: never.
    """

    former_names: ClassVar[Mapping[str, str]] = TRAIN_FIELDS

    train_path: list[str] | str = ""
    val_path: list[str] | str | None = None
    test_path: list[str] | str | None = None
    task: str = option("language_modeling", kind="task")
    task_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: str | None = option(None, choices=("encoder", "decoder", "seq2seq"))
    model_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    model_size: str | None = option(None, choices=tuple(SIZE_PRESETS))
    init_from: str | None = None
    pretrain: dict[str, Any] | None = None
    tokenizer: str | None = None
    source_tokenizer: str | None = None
    batch_size: int | None = option(None, low=1)
    batch_tokens: int | None = option(None, low=1)
    seq_len: int | None = option(None, low=1)
    lr: float | None = option(None, low=0.0)
    find_lr: bool = False
    weight_decay: float = option(0.1, low=0.0)
    layer_lr_decay: float = option(1.0, above=0.0, high=1.0)
    scheduler: str = option("cosine", kind="scheduler")
    warmup_steps: int | None = option(None, low=0)
    warmup_ratio: float | None = option(None, low=0.0, high=1.0)
    max_epochs: int | None = option(None, low=1)
    max_steps: int | None = option(None, low=1)
    max_time: str | None = None
    val_check_interval: int | None = option(None, low=1)
    optimizer: str = option("muon", kind="optimizer")
    optimizer_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    gradient_clip_val: float = option(1.0, low=0.0)
    accumulate_grad_batches: int = option(1, low=1)
    ema_decay: float | None = option(None, above=0.0, high=0.999999)
    average_checkpoints: int | None = option(None, low=2)
    activation_checkpointing: str = option("none", choices=("none", "selective", "full"))
    memory_limit: str | None = None
    find_batch_size: bool = False
    precision: str = option("auto", choices=("auto", "float32", "bf16"))
    compile: bool = False
    accelerator: str = option("auto", choices=("auto", "cpu", "cuda", "mps"))
    devices: int = option(1, low=1)
    num_nodes: int = option(1, low=1)
    strategy: str | None = option(None, choices=("ddp", "fsdp2", "deepspeed"))
    num_workers: int = option(0, low=0)
    streaming: bool = False
    seed: int = option(0, low=0, high=2**32 - 1)
    deterministic: bool = False
    work_dir: str = "runs"
    experiment_name: str | None = None
    resume: str | None = None
    checkpoint_interval: int | None = option(None, low=1)
    sample_prompt: str | None = None
    logger: str = option("tensorboard", kind="logger")
    checkpoint_metric: str | None = None
    early_stopping_patience: int | None = option(None, low=1)

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
        """The fields that are not at their defaults."""
        changed = {}
        for field in dataclasses.fields(self):
            value, made = getattr(self, field.name), field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            if value != default:
                changed[field.name] = value
        return copy.deepcopy(changed)

    def cross_check(self) -> list[str]:
        """Problems between fields, each with its fix."""
        problems = []
        if not self.train_path and self.resume is None:
            problems.append("train_path is missing: name a .jsonl or .txt file to train on")
        problems += train_checks.path_problems(self)
        problems += train_checks.unused_setting_problems(self)
        if self.streaming and self.max_steps is None and self.max_time is None:
            problems.append(
                "streaming needs max_steps or max_time: nobody knows how long the stream is"
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
            problems.append("warmup_steps and warmup_ratio say the same; leave one of them out")
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
        """Devices of all machines."""
        return self.devices * self.num_nodes

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds; None where it is not set or not a time."""
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", self.max_time or "")
        if not parts or "".join(number + unit for number, unit in parts) != self.max_time:
            return None
        return sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts) or None

    @property
    def effective_max_epochs(self) -> int | None:
        """Passes over the training text at most; None: another limit ends the run."""
        if self.max_epochs is None and self.max_steps is None and self.max_time is None:
            return 10
        return self.max_epochs
