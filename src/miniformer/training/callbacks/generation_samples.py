"""A text written by the model at each validation, to be read while it learns."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning as L
from rich.console import Console
from torch.distributed.tensor import DTensor

from miniformer.config import GenerationConfig, UserError
from miniformer.training.distributed.strategies import full_state_dict
from miniformer.training.report.artifacts import RunArtifacts
from miniformer.training.setup.prepare import RunSetup
from miniformer.utils.jsonl import append_row, read_rows

_MAX_NEW_TOKENS = 64
_MAX_SHOWN_CHARS = 160  # characters of it in a line of the console


class SampleGeneration(L.Callback):
    """Has the model answer the same prompt at each validation; `samples.jsonl` keeps the answers.

    Args:
        run: what is trained.
        outputs: the run's folder, and its settings of decoding.
        console: where to show them.
    """

    def __init__(self, run: RunSetup, artifacts: RunArtifacts, console: Console) -> None:
        self.run, self.artifacts, self.console = run, artifacts, console
        self.path = artifacts.folder / "samples.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.prompts = self._select_prompts()

    def _select_prompts(self) -> list[str]:
        run = self.run
        records = getattr(run.data.chunks.get("val"), "records", None)
        if records is None or run.tokenizer is None:
            return []
        if run.config.sample_prompt is not None:
            return [run.config.sample_prompt]
        return run.task.sample_prompts(records)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not self.prompts or trainer.state.fn != "fit":
            return
        model = self.run.model
        if any(isinstance(each, DTensor) for each in model.parameters()):
            weights = full_state_dict(model)  # all devices have a hand in this
            model = self.artifacts.build_model(weights) if self.artifacts.is_global_zero else None
        if not self.artifacts.is_global_zero:
            return
        for row in self._generate(model, trainer.global_step):
            self.rows.append(row)
            append_row(self.path, row)
            text = (row["prompt"] + " -> " if self.run.kind == "seq2seq" else row["prompt"]) + (
                row["text"]
            )
            self.console.print(f"step {row['step']} writes: {text[:_MAX_SHOWN_CHARS]!r}")

    def _generate(self, model: Any, step: int) -> list[dict[str, Any]]:
        options = self._generation_config()
        assert self.run.tokenizer is not None
        try:
            texts = self.run.task.generate_text(model, self.run.tokenizer, self.prompts, options)
        except UserError as error:  # such as a prompt that leaves no room
            self.prompts = []
            self.console.print(f"no samples: {error}")
            return []
        pairs = zip(self.prompts, texts, strict=True)
        return [{"step": step, "prompt": prompt, "text": text} for prompt, text in pairs]

    def _generation_config(self) -> GenerationConfig:
        """Those of the model's directory, with chance that is the same each time."""
        default, tokenizer = self.artifacts.generation_config, self.run.tokenizer
        most = min(_MAX_NEW_TOKENS, default.max_new_tokens)
        if self.run.kind == "encoder" and tokenizer is not None:  # what it writes comes behind
            longest = max(len(tokenizer.encode(prompt)) for prompt in self.prompts)
            most = max(1, min(most, self.run.model_config.max_seq_len - longest - 1))
        seed = 0 if default.num_beams == 1 else None  # beams leave nothing to chance
        return dataclasses.replace(default, max_new_tokens=most, seed=seed)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = read_rows(self.path, state["rows"], truncate=self.artifacts.is_global_zero)
