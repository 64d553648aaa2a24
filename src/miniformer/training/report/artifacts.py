"""Files in the folder of a run: config, model directories, plots, the HTML report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniformer.checkpoint.artifacts import MODEL_CLASSES, read_task
from miniformer.checkpoint.directory import read_hf_metadata, save_directory
from miniformer.config import GenerationConfig
from miniformer.tasks.base import BatchStats
from miniformer.training.report.best_evaluation import BestEvaluation
from miniformer.training.report.curves import plot_loss
from miniformer.training.report.model_card import render_model_card
from miniformer.training.report.page import Report, write_report
from miniformer.training.setup.run_setup import RunSetup
from miniformer.utils.atomic import write_bytes, write_text


class RunArtifacts:
    """Writes the files of a run; on rank 0 only.

    Args:
        folder: the run's folder.
        run: the resolved run.
        is_global_zero: rank 0, which writes files.
    """

    def __init__(self, folder: Path, run: RunSetup, *, is_global_zero: bool = True) -> None:
        self.folder, self.run, self.is_global_zero = folder, run, is_global_zero
        self.predictions_plot = folder / "answers.png"  # predictions of the best model
        self.loss_plot = folder / "loss.png"
        self.task = run.task  # with the values that the last validation of a model has given it
        self.task_report = ""  # the task's report about the predictions of the best model
        self.generation_config = GenerationConfig()
        if run.tokenizer is not None:
            self.generation_config = run.task.default_generation_config(
                run.model_config, run.tokenizer
            )

    def build_model(self, weights: Mapping[str, Tensor]) -> Any:
        """An eval-mode model on the CPU with these weights, which are not copied."""
        with torch.device("meta"):
            model = MODEL_CLASSES[self.run.kind](self.run.model_config)
            if transforms := self.run.model.transforms:
                from miniformer.model.transforms import apply_transforms

                with torch.random.fork_rng(devices=[]):
                    model = apply_transforms(model, transforms)
        model.load_state_dict({name: x.cpu() for name, x in weights.items()}, assign=True)
        return model.eval()

    def save_model(
        self, name: str, weights: Mapping[str, Tensor], metrics: dict[str, float], *plots: Path
    ) -> None:
        """Writes the model directory `name`, with these metrics in its model card."""
        if not self.is_global_zero:
            return
        run, pretrained_path = self.run, self.run.pretrained_path
        save_directory(
            self.folder / name,
            model=self.build_model(weights),
            tokenizer=run.tokenizer,
            task=self.task.settings(),
            generation=self.generation_config,
            model_card=self._model_card(metrics, self.task_report if name == "best" else "", plots),
            image_paths=plots,
            hf_metadata={} if pretrained_path is None else read_hf_metadata(pretrained_path),
            source_directory=pretrained_path,
            data=run.data_settings,
        )

    def save_best(
        self, weights: Mapping[str, Tensor], metrics: dict[str, float], stats: list[BatchStats]
    ) -> None:
        """Writes the best model so far, with its task report."""
        if self.is_global_zero:
            self.fit_task_to_validation(stats, "best")
            self.update_task_report("validation", stats)
            plots = [self.predictions_plot] if self.predictions_plot.exists() else []
            self.save_model("best", weights, metrics, *plots)

    def fit_task_to_validation(self, stats: list[BatchStats], name: str) -> None:
        """Fits the task to a validation; without one, takes it from an earlier model `name`."""
        path = self.folder / name / "task.json"
        if stats:
            self.task = self.run.task.fit_to_validation(stats)
        elif path.is_file():  # a resumed run had no step to train
            self.task = read_task(path, self.run.kind)

    def update_task_report(self, split: str, stats: list[BatchStats]) -> None:
        """Plots and describes the predictions on validation or test data."""
        report = self.task.report_markdown(stats)
        has_plot = self.task.plot(stats, self.predictions_plot)
        text = f"On the {split} data:\n\n{report}".rstrip()
        self.task_report = text if has_plot or report else ""

    def save_loss_plot(self, rows: list[dict[str, float]]) -> None:
        """Plots the loss curve."""
        if self.is_global_zero:
            title = f"{self.folder.name}: loss"
            unit, marked = self.run.task.loss_unit, self.run.metric == "loss"
            plot_loss(rows, self.loss_plot, title=title, unit=unit, marked=marked)

    def finalize_model_card(self, name: str, metrics: dict[str, float]) -> None:
        """Rewrites the model card with the final metrics and all plots."""
        if not self.is_global_zero:
            return
        plots = [path for path in (self.predictions_plot, self.loss_plot) if path.exists()]
        directory = self.folder / name
        write_text(directory / "README.md", self._model_card(metrics, self.task_report, plots))
        for path in plots:
            write_bytes(directory / path.name, path.read_bytes())

    def _model_card(self, metrics: dict[str, float], task_report: str, plots: Any) -> str:
        run = self.run
        return render_model_card(
            run.model_config,
            metrics,
            name=run.name,
            settings=run.changed_settings(),
            model_kind=run.kind,
            task=run.task,
            tokenizer=run.tokenizer_summary,
            task_report=task_report,
            plots=[path.name for path in plots],
        )

    def write_html_report(
        self,
        rows: list[dict[str, float]],
        grad_norms: list[dict[str, Any]],
        samples: list[dict[str, Any]],
        metrics: dict[str, float],
        *,
        run_info: dict[str, str],
        notes: list[str],
        verdicts: list[str],
        evaluation: BestEvaluation | None,
    ) -> Path:
        """Writes `report.html`; returns its path."""
        run, path = self.run, self.folder / "report.html"
        if self.is_global_zero:
            size = run.model_config.num_params(seq2seq=run.kind == "seq2seq")
            resolved = {
                setting.name: f"{setting.value} ({setting.reason})" for setting in run.resolved
            }
            environment = {"model": f"{size:,} parameters", **run_info}
            if run.tokenizer_summary is not None:
                environment["tokenizer"] = run.tokenizer_summary
            has_table = evaluation is not None and evaluation.evaluation.confusion is not None
            paths = [self.folder / "lr.png"]
            if not has_table:
                paths.insert(0, self.predictions_plot)
            write_report(
                path,
                Report(
                    title=self.folder.name,
                    task=run.task.name.replace("_", " "),
                    loss_unit=run.task.loss_unit,
                    metric_rows=rows,
                    gradient_rows=grad_norms,
                    samples=samples,
                    metrics=metrics,
                    metric=run.metric,
                    verdicts=verdicts,
                    sections=[] if evaluation is None else evaluation.sections(),
                    given_settings=run.given,
                    changed_settings={**run.saved, **resolved},
                    environment=environment,
                    plots=[path for path in paths if path.exists()],
                    warnings=notes,
                ),
            )
        return path
