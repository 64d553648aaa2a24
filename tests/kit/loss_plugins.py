"""Toy plug-ins of losses as a user would write them: terms, a teacher, GradCache, expert biases."""

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F

from miniformer.model.transformer import Transformer
from miniformer.tasks.base import Task
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.loss_terms import LossTerm
from tests.kit import plugins


def row_length(model, batch, scale=1.0):
    """Squared length of the mean vector of each row; its count is the number of rows."""
    features = model.features(batch["input_ids"], segment_ids=batch.get("segment_ids"))
    return scale * features.mean(1).square().sum(), len(features)


def z_loss(model, batch):
    """Squared log-normalizer of each predicted token, with the count of the loss."""
    features = model.features(batch["input_ids"], segment_ids=batch.get("segment_ids"))
    logits = model.logits(features[batch["labels"] != -100])
    return LossTerm(logits.logsumexp(-1).square().sum())


class Drift(torch.nn.Module):
    """Squared distance of each row from a running mean, which changes after each step."""

    def __init__(self, decay=0.5, width=16):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, model, batch):
        vectors = model.features(batch["input_ids"], segment_ids=batch.get("segment_ids")).mean(1)
        stats = {"sum": vectors.sum(0), "rows": torch.tensor(len(vectors))}
        return LossTerm((vectors - self.mean).square().sum(), len(vectors), stats=stats)

    def after_optimizer_step(self, model, sums):
        self.mean.lerp_((sums["sum"] / sums["rows"]).to(self.mean), 1 - self.decay)


@dataclasses.dataclass(frozen=True)
class Distillation(LanguageModeling):
    """Language modeling with the divergence from a teacher (Hinton et al. 2015)."""

    name: ClassVar[str] = "distillation"
    models: ClassVar[tuple[str, ...]] = ("encoder",)
    loss_terms: ClassVar[tuple[str, ...]] = ("kl",)

    teacher: str = ""

    def helper_models(self):
        return {"teacher": Transformer.from_pretrained(self.teacher)}

    def loss(self, model, batch):
        student, teacher = (
            m(batch["input_ids"], segment_ids=batch.get("segment_ids")).float().log_softmax(-1)
            for m in (model, self.helpers["teacher"])
        )
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        kl = divergence[batch["labels"] != -100].sum()
        return *super().loss(model, batch), {"kl": LossTerm(kl, weight=0.5)}

    def eval_step(self, model, batch):  # also of `miniformer evaluate`, without a teacher
        loss, count = super().loss(model, batch)
        return {"loss": loss, "count": count, "bytes": batch.get("bytes", 0.0)}


@dataclasses.dataclass(frozen=True)
class Chunked(LanguageModeling):
    """Language modeling with a pass for each row of a batch."""

    name: ClassVar[str] = "chunked"
    models: ClassVar[tuple[str, ...]] = ("encoder",)

    def step(self, context):
        for row in range(len(context.batch["input_ids"])):
            part = {
                name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
                for name, value in context.batch.items()
            }
            context.backward(*context.loss(part))


@dataclasses.dataclass(frozen=True)
class Contrastive(Task):
    """Matches each text of a batch with its other half, in one pass."""

    name: ClassVar[str] = "contrastive"

    def vectors(self, model, batch):
        """Unit vectors of both halves, [B, D] each."""
        halves = batch["input_ids"].chunk(2, 1)
        return [F.normalize(model.embed(half.contiguous()), dim=-1) for half in halves]

    def info_nce(self, first, second):
        labels = torch.arange(len(first), device=first.device)
        return F.cross_entropy(first @ second.T / 0.1, labels, reduction="sum"), len(labels)

    def loss(self, model, batch):
        loss, count = self.info_nce(*self.vectors(model, batch))
        return loss, loss.new_tensor(count)


@dataclasses.dataclass(frozen=True)
class GradCache(Contrastive):
    """The same with the memory of a chunk: vectors first, then gradients (Gao et al. 2021)."""

    name: ClassVar[str] = "grad_cache"

    chunk: int = 2

    def step(self, context):
        parts = [{"input_ids": ids} for ids in context.batch["input_ids"].split(self.chunk)]
        with torch.no_grad():
            rows = [self.vectors(context.model, part) for part in parts]
        cached = [torch.cat(side).requires_grad_() for side in zip(*rows, strict=True)]
        loss, count = self.info_nce(*cached)
        context.record(loss, count)
        gradients = [x.split(self.chunk) for x in torch.autograd.grad(loss, cached)]
        for part, first, second in zip(parts, *gradients, strict=True):
            now = self.vectors(context.model, part)
            context.backward((now[0] * first).sum() + (now[1] * second).sum())


@dataclasses.dataclass(frozen=True)
class TextGradCache(GradCache, LanguageModeling):
    """The same on texts: both halves of each packed row."""

    name: ClassVar[str] = "text_grad_cache"
    models: ClassVar[tuple[str, ...]] = ("encoder",)

    def eval_step(self, model, batch):
        loss, count = self.loss(model, batch)
        return {"loss": loss, "count": count, "bytes": batch.get("bytes", 0.0)}


COMPONENTS = {
    "loss_term": {"row_length": row_length, "z_loss": z_loss, "drift": Drift},
    "task": {
        "distillation": Distillation,
        "chunked": Chunked,
        "grad_cache": GradCache,
        "text_grad_cache": TextGradCache,
    },
}


def registered():
    """Context in which the plug-ins are registered; see `plugins.registered`."""
    return plugins.registered(COMPONENTS)
