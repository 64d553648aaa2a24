"""Text samples that the model generates at each validation."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning as L
from rich.console import Console
from torch.distributed.tensor import DTensor

from miniformer.config import GenerationConfig, UserError
from miniformer.training.distributed.strategies import full_state_dict
from miniformer.training.report.artifacts import RunArtifacts
from miniformer.training.setup.run_setup import RunSetup
from miniformer.utils.jsonl import append_row, read_rows

_MAX_NEW_TOKENS = 64
_MAX_SHOWN_CHARS = 160  # of a sample in a console line


class SampleGeneration(L.Callback):
    """Generates text from the same prompts at each validation and appends it to `samples.jsonl`.

    Args:
        run: the resolved run.
        artifacts: the run's folder and generation config.
        console: prints the samples.
        prompt: the prompt; None: prompts of the task.
    """

    def __init__(
        self, run: RunSetup, artifacts: RunArtifacts, console: Console, prompt: str | None
    ) -> None:
        self.run, self.artifacts, self.console = run, artifacts, console
        self.path = artifacts.folder / "samples.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.prompts = self._select_prompts(prompt)

    def _select_prompts(self, prompt: str | None) -> list[str]:
        run = self.run
        records = getattr(run.data.chunks.get("val"), "records", None)
        if records is None or run.tokenizer is None:
            return []
        return run.task.sample_prompts(records) if prompt is None else [prompt]

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not self.prompts or trainer.state.fn != "fit":
            return
        model = self.run.model
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            weights = full_state_dict(model)  # collective: every rank calls it
            model = self.artifacts.build_model(weights) if self.artifacts.is_global_zero else None
        if not self.artifacts.is_global_zero:
            return
        for row in self._generate(model, trainer.global_step):
            self.rows.append(row)
            append_row(self.path, row)
            separator = " -> " if self.run.kind == "seq2seq" else ""
            text = f"{row['prompt']}{separator}{row['text']}"
            self.console.print(f"step {row['step']} sample: {text[:_MAX_SHOWN_CHARS]!r}")

    def _generate(self, model: Any, step: int) -> list[dict[str, Any]]:
        config = self._generation_config()
        assert self.run.tokenizer is not None
        try:
            texts = self.run.task.generate_text(model, self.run.tokenizer, self.prompts, config)
        except UserError as error:  # such as a prompt that fills the context
            self.prompts = []
            self.console.print(f"no samples: {error}")
            return []
        pairs = zip(self.prompts, texts, strict=True)
        return [{"step": step, "prompt": prompt, "text": text} for prompt, text in pairs]

    def _generation_config(self) -> GenerationConfig:
        """The model directory's generation config with a fixed seed and a token limit."""
        default, tokenizer = self.artifacts.generation_config, self.run.tokenizer
        max_new_tokens = min(_MAX_NEW_TOKENS, default.max_new_tokens)
        if self.run.kind == "encoder" and tokenizer is not None:
            # Prompt and continuation share the context.
            max_prompt_len = max(len(tokenizer.encode(prompt)) for prompt in self.prompts)
            max_new_tokens = max(
                1, min(max_new_tokens, self.run.model_config.max_seq_len - max_prompt_len - 1)
            )
        seed = 0 if default.num_beams == 1 else None  # beam search is deterministic
        return dataclasses.replace(default, max_new_tokens=max_new_tokens, seed=seed)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = read_rows(self.path, state["rows"], truncate=self.artifacts.is_global_zero)
