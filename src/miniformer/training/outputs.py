"""What a run leaves in its folder: model directories, pictures, samples, the report."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniformer.checkpoint.companions import MODELS
from miniformer.checkpoint.directory import read_remembered, save_directory
from miniformer.config import GenerationConfig
from miniformer.tasks.task import Measured
from miniformer.training.card import model_card
from miniformer.training.plot import plot_loss
from miniformer.training.preparation import Prepared
from miniformer.training.report.page import Report, write_report
from miniformer.utils.atomic import write_bytes, write_text


class Outputs:
    """Writes what a run leaves; only the first device does.

    Args:
        folder: the run's.
        run: what was prepared.
        writes: whether this device is the one.
    """

    def __init__(self, folder: Path, run: Prepared, *, writes: bool = True) -> None:
        self.folder, self.run, self.writes = folder, run, writes
        self.answers = folder / "answers.png"  # what the best model gets right and wrong
        self.loss = folder / "loss.png"
        self.more = ""  # what the task says of the best model's answers
        self.generation = GenerationConfig()
        if run.tokenizer is not None:
            self.generation = run.task.generation(run.model_config, run.tokenizer)

    def begin(self) -> None:
        """Writes what the run is taken up again with: its settings, its task, its tokenizer."""
        if self.writes:
            settings = json.dumps({**self.run.config.to_dict(), "resume": None}, indent=2) + "\n"
            write_text(self.folder / "train_config.json", settings)
            task = json.dumps(self.run.task.settings(), indent=2) + "\n"
            write_text(self.folder / "task.json", task)
            if self.run.tokenizer is not None:
                self.run.tokenizer.save(self.folder / "tokenizer.json")
                if self.run.tokenizer.source is not None:
                    (self.folder / "source_tokenizer").mkdir(exist_ok=True)
                    self.run.tokenizer.source.save(
                        self.folder / "source_tokenizer" / "tokenizer.json"
                    )

    def model_of(self, weights: Mapping[str, Tensor]) -> Any:
        """A plain model on the CPU with these weights; they are not copied."""
        with torch.device("meta"):
            model = MODELS[self.run.kind](self.run.model_config)
        model.load_state_dict({name: x.cpu() for name, x in weights.items()}, assign=True)
        return model.eval()

    def save(
        self, name: str, weights: Mapping[str, Tensor], figures: dict[str, float], *pictures: Path
    ) -> None:
        """Writes the model directory `name`, with these figures in its card."""
        if not self.writes:
            return
        run, origin = self.run, self.run.origin
        save_directory(
            self.folder / name,
            model=self.model_of(weights),
            tokenizer=run.tokenizer,
            task=run.task.settings(),
            generation=self.generation,
            card=self._card(figures, self.more if name == "best" else "", pictures),
            pictures=pictures,
            remembered={} if origin is None else read_remembered(origin),
            origin=origin,
        )

    def save_best(
        self, weights: Mapping[str, Tensor], figures: dict[str, float], measured: list[Measured]
    ) -> None:
        """Writes the best model so far, with what its task says of its answers."""
        if self.writes:
            self.describe("validation", measured)
            self.save("best", weights, figures, *([self.answers] if self.answers.exists() else []))

    def describe(self, name: str, measured: list[Measured]) -> None:
        """Draws and says what there is to know of answers on validation or test data."""
        said = self.run.task.describe(measured)
        drawn = self.run.task.draw(measured, self.answers)
        self.more = f"On the {name} data:\n\n{said}".rstrip() if drawn or said else ""

    def draw_loss(self, rows: list[dict[str, float]]) -> None:
        """Draws the loss curve."""
        if self.writes:
            title = f"{self.folder.name}: loss"
            plot_loss(rows, self.loss, title=title, unit=self.run.task.unit)

    def complete(self, name: str, figures: dict[str, float]) -> None:
        """Has the card of a model directory tell the whole story, now that the run is over."""
        if not self.writes:
            return
        pictures = [each for each in (self.answers, self.loss) if each.exists()]
        shown = self.folder / name
        write_text(shown / "README.md", self._card(figures, self.more, pictures))
        for picture in pictures:
            write_bytes(shown / picture.name, picture.read_bytes())

    def _card(self, figures: dict[str, float], more: str, pictures: Any) -> str:
        run = self.run
        return model_card(
            run.model_config,
            run.config,
            copy.copy(figures),
            kind=run.kind,
            task=run.task,
            tokenizer=run.described,
            more=more,
            pictures=[picture.name for picture in pictures],
        )

    def report(
        self,
        rows: list[dict[str, float]],
        gradients: list[dict[str, Any]],
        samples: list[dict[str, Any]],
        figures: dict[str, float],
        *,
        facts: dict[str, str],
        notes: list[str],
    ) -> Path:
        """Writes `report.html`, a page about the whole run; returns its path."""
        run, path = self.run, self.folder / "report.html"
        if self.writes:
            size = run.model_config.num_params(seq2seq=run.kind == "seq2seq")
            about = {"model": f"{size:,} parameters", **facts}
            if run.described is not None:
                about["tokenizer"] = run.described
            pictures = [each for each in (self.answers, self.folder / "lr.png") if each.exists()]
            write_report(
                path,
                Report(
                    title=self.folder.name,
                    task=run.task.name.replace("_", " "),
                    unit=run.task.unit,
                    rows=rows,
                    gradients=gradients,
                    samples=samples,
                    figures=figures,
                    settings=run.config.changed(),
                    facts=about,
                    pictures=pictures,
                    notes=notes,
                ),
            )
        return path
