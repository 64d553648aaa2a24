"""Distillation (Hinton et al. 2015): the loss term `distillation`.

The outputs of a model that is trained are compared with those of a teacher on the same batch:

| task | term of a prediction |
|---|---|
| tokens, classes | T^2 x KL(teacher, model) of softmax(logits / T) |
| several labels, ordered classes | the same of sigmoid(logits / T), summed over the outputs |
| regression | squared difference of the standardized values, summed over the outputs |

Letters: N predictions, D width, V vocabulary or outputs, T temperature.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config import UserError
from miniformer.config.command_line import resolve_model
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import Task
from miniformer.tasks.loss_terms import LossTerm
from miniformer.tasks.multilabel_classification import MultiLabelClassification
from miniformer.tasks.ordinal_regression import OrdinalRegression
from miniformer.tasks.regression import Regression

_MAX_LOGITS = 2**24  # elements of logits in memory
# Options of a task by which equal outputs mean the same, and equal inputs are encoded alike.
_MEANING = (
    "classes", "value_names", "num_values", "target_mean", "target_std", "target_delta_of",
    "scale_epsilon", "feature_means", "feature_stds",
)  # fmt: skip


class Distillation:
    """The divergence of the outputs of a model from those of a teacher.

    Its sum is divided by the count of the task's loss, such as the number of labeled tokens.

    Args:
        teacher: model directory, or the folder of a run, for the same task; it is not trained.
        temperature: divisor of both logits; above 1, unlikely outputs count more.

    Raises:
        UserError: the temperature is not positive, or the directory has no model with a task.
    """

    def __init__(self, teacher: str, temperature: float = 2.0) -> None:
        if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
            raise UserError(f"distillation: temperature must be above 0, not {temperature!r}")
        self.temperature = float(temperature)
        self.teacher = load(resolve_model(str(teacher), note=False))
        model = self.teacher.model
        model.exit_policy = model.wide_head = None  # the outputs of all layers alone
        model.eval().requires_grad_(False)
        self._task = self.teacher.task
        self._recorder: OutputRecorder | None = None

    def start(self, model: Any, task: Task, tokenizer: Tokenizer | None) -> None:
        """Checks that the outputs of the teacher mean what those of the model mean.

        Args:
            model, task, tokenizer: of the run.

        Raises:
            UserError: the task, its classes or scales, the tokenizer or the outputs differ.
        """
        check_teacher(self.teacher, model, task, tokenizer)
        self._task = task

    def observe(self, model: Any) -> Any:
        """The model, whose outputs are recorded: the task computes its loss with it."""
        self._recorder = OutputRecorder(model)
        return self._recorder

    def __call__(self, model: Any, batch: Batch) -> LossTerm:
        """The term of a batch; without a recorded pass of the model, in a pass of its own."""
        student, self._recorder = self._recorder, None
        if student is None:
            student = OutputRecorder(model, computes_loss=False)
            self._task.loss(student, batch)
        teacher = OutputRecorder(self._teacher_on(model), computes_loss=False)
        with torch.no_grad():
            self._task.loss(teacher, batch)
        if student.head_inputs is not None and teacher.head_inputs is not None:
            total = feature_divergence(
                model, student.head_inputs, teacher.model, teacher.head_inputs, self.temperature
            )
        elif student.head_outputs is not None and teacher.head_outputs is not None:
            total = self._output_divergence(student.head_outputs, teacher.head_outputs, batch)
        else:
            raise UserError(
                f"distillation: the loss of the task {self._task.name} is not that of logits"
            )
        return LossTerm(total)

    def _teacher_on(self, model: Any) -> Any:
        """The teacher on the device of a model."""
        device = next(model.parameters()).device
        if next(self.teacher.model.parameters()).device != device:
            self.teacher.model.to(device)
        return self.teacher.model

    def _output_divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Divergence of outputs [..., V], without those of padding."""
        labels = batch.get("labels")
        if isinstance(labels, Tensor) and labels.shape == student.shape[:-1]:
            labeled = labels != IGNORE_INDEX
            student, teacher = student[labeled], teacher[labeled]
        if isinstance(self._task, Regression):
            return (student.float() - teacher.float()).square().sum()
        if isinstance(self._task, MultiLabelClassification | OrdinalRegression):
            student, teacher = (
                torch.stack([x, torch.zeros_like(x)], -1) for x in (student, teacher)
            )
        return divergence(student, teacher, self.temperature)


class OutputRecorder:
    """A model that records what a task computes its first loss from.

    Args:
        model: the model; other attributes are its own, too.
        computes_loss: `cross_entropy` is that of the model; else it is 0.

    Attributes:
        model: the model.
        head_inputs: inputs of the head at labeled positions, [N, D]; None: not recorded.
        head_outputs: outputs of the head, [..., V]; None: not recorded.
    """

    def __init__(self, model: Any, *, computes_loss: bool = True) -> None:
        self.model, self._computes_loss = model, computes_loss
        self.head_inputs: Tensor | None = None
        self.head_outputs: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The model's own output."""
        return self.model(*args, **options)

    def cross_entropy(self, features: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """The model's summed cross-entropy, of features [N, D] and labels [N]."""
        self.head_inputs = features if self.head_inputs is None else self.head_inputs
        if not self._computes_loss:
            return features.new_zeros(())
        total: Tensor = self.model.cross_entropy(features, labels, **options)
        return total

    def classify(self, *args: Any, **options: Any) -> Tensor:
        """The model's outputs of sequences, [B, V]."""
        return self._record(self.model.classify(*args, **options))

    def logits(self, features: Tensor) -> Tensor:
        """The model's outputs, [..., V]."""
        return self._record(self.model.logits(features))

    def _record(self, outputs: Tensor) -> Tensor:
        self.head_outputs = outputs if self.head_outputs is None else self.head_outputs
        return outputs


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 x KL(teacher, student) of softmax(logits / T) in nats, summed.

    Args:
        student, teacher: logits, [..., V].
        temperature: T.
    """
    q, p = ((x.float() / temperature).log_softmax(-1) for x in (student, teacher))
    return F.kl_div(q, p, reduction="sum", log_target=True) * temperature**2


def feature_divergence(
    model: Any, features: Tensor, teacher: Any, targets: Tensor, temperature: float
) -> Tensor:
    """`divergence` of the logits of features, whose logits are computed in chunks.

    Args:
        model: the trained model.
        features: inputs of its head, [N, D].
        teacher: the teacher.
        targets: inputs of the head of the teacher, [N, D'].
        temperature: T.
    """
    size = max(1, _MAX_LOGITS // model.config.vocab_size)

    def chunk_divergence(x: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = teacher.logits(target)
        return divergence(model.logits(x), expected, temperature)

    chunks = [*zip(torch.split(features, size), torch.split(targets, size), strict=True)]
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.stack([chunk_divergence(*chunk) for chunk in chunks]).sum()
    # The logits of a chunk are computed again in the backward pass.
    parts = [checkpoint(chunk_divergence, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(parts).sum()


def check_teacher(teacher: Pipeline, model: Any, task: Task, tokenizer: Tokenizer | None) -> None:
    """Checks that the outputs of a teacher mean what those of a model mean.

    Args:
        teacher: the teacher.
        model, task, tokenizer: of the run.

    Raises:
        UserError: the task, its classes or scales, the tokenizer or the outputs differ.
    """
    if teacher.task.name != task.name:
        raise UserError(
            f"distillation: the teacher is a model for {teacher.task.name}, and the run trains "
            f"{task.name}; name a model for {task.name}"
        )
    problem = "; train with the classes, data statistics and tokenizer of the teacher (init_from)"
    for name in _MEANING:
        values = (getattr(teacher.task, name, None), getattr(task, name, None))
        if values[0] != values[1]:
            raise UserError(f"distillation: {name} of the teacher differs{problem}")
    if _vocabularies(teacher.tokenizer) != _vocabularies(tokenizer):
        raise UserError(f"distillation: the tokenizer of the teacher differs{problem}")
    sizes = [(x.config.vocab_size, x.config.output_dim) for x in (teacher.model, model)]
    if sizes[0] != sizes[1]:
        names = [f"{outputs or vocabulary:,}" for vocabulary, outputs in sizes]
        raise UserError(
            f"distillation: the teacher has {names[0]} outputs, and the model {names[1]}{problem}"
        )


def _vocabularies(tokenizer: Tokenizer | None) -> list[dict[str, int]]:
    """Ids of the tokens, also of separate sources; none without a tokenizer."""
    if tokenizer is None:
        return []
    return [x.backend.get_vocab() for x in (tokenizer, tokenizer.source_tokenizer)]
