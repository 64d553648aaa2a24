"""The tests that run against a mutant, by its module.

Each module has stages, which run in order until one fails. The first stage has the tests of the
module; the next ones have tests of its users.
"""

from fnmatch import fnmatch

UNIT, E2E = "tests/unit/test_{}.py", "tests/e2e/test_{}.py"
REFERENCE, TEXTS = ["tests/parity/test_reference.py"], ["tests/parity/test_hugging_face_texts.py"]
BATTERY = [f"tests/battery/test_{name}.py" for name in ("reference", "whole_models", "decoding")]
RUNS = [E2E.format(name) for name in ("training_run", "numbers", "resume")]
TASKS, HUB = [E2E.format("tasks")], [E2E.format("hub")]


def _unit(*names: str) -> list[str]:
    return [UNIT.format(name) for name in names]


# Patterns below src/miniformer with their stages; the first match applies.
TABLE: tuple[tuple[str, tuple[list[str], ...]], ...] = (
    ("model/ops/allocation_tracker.py", (_unit("memory", "cross_entropy"), BATTERY)),
    ("model/attention_backends/__init__.py", (_unit("backends", "masks"), BATTERY)),
    ("model/cache*.py", (_unit("cache"), BATTERY, _unit("beam", "speculation"))),
    ("model/ops/activation_checkpointing.py", (_unit("checkpointing", "memory"), BATTERY)),
    ("model/ops/cross_entropy.py", (_unit("cross_entropy", "tasks"),)),
    ("runtime/cuda_graphs.py", (_unit("graphs"),)),
    ("model/hub.py", (HUB, _unit("finding"))),
    ("model/attention_backends/functions.py", (_unit("backends"), BATTERY)),
    ("model/masks.py", (_unit("masks", "backends"), BATTERY)),
    ("runtime/native/*", (_unit("native"), _unit("beam"))),
    ("model/norm.py", (_unit("norm"), REFERENCE, BATTERY)),
    ("model/pretrained.py", (_unit("families", "hf_files", "config"), HUB, REFERENCE)),
    ("model/rotary_scaling.py", (["tests/battery/test_real_widths.py"], BATTERY)),
    ("model/seq2seq.py",
     (_unit("seq2seq_generation", "beam", "cache", "backends"), REFERENCE, BATTERY)),
    ("model/stack.py", (_unit("parts", "backends", "masks", "cache"), REFERENCE, BATTERY)),
    ("model/*", (_unit("parts", "masks", "cache", "families", "registry"), REFERENCE, BATTERY)),
    ("generation/beam_search.py", (_unit("beam", "seq2seq_generation"), TEXTS)),
    ("generation/constrained.py", (_unit("constraint"),)),
    ("generation/detokenizer.py", (_unit("streaming", "subwords"),)),
    ("generation/logits_processors.py", (_unit("processors", "beam"), TEXTS)),
    ("generation/sampling.py", (_unit("sampling", "speculation", "processors"),)),
    ("generation/speculative.py", (_unit("speculation", "sampling"),)),
    ("generation/*", (_unit("sampling", "processors", "streaming", "seq2seq_generation", "beam"),
                      _unit("speculation", "constraint", "scoring", "cache"))),
    ("tasks/common/sequence_input.py",
     (_unit("task_options", "tasks", "standardize", "subwords"), TASKS)),
    ("tasks/language_modeling.py", (_unit("tasks", "task", "tokenizer", "streaming"), TASKS)),
    ("tasks/masked_lm.py", (_unit("masked_lm", "tasks", "subwords"), TASKS)),
    ("tasks/common/scoring.py", (_unit("scoring", "lm_eval"),)),
    ("tasks/common/series.py", (_unit("series", "tasks"), TASKS)),
    ("tasks/common/standardize.py", (_unit("standardize"), TASKS)),
    ("tasks/common/text_metrics.py", (_unit("text_metrics"),)),
    ("tasks/common/input_encoding.py",
     (_unit("task_options", "tasks", "tokenizer", "subwords", "packing"), TASKS)),
    ("tasks/*", (_unit("tasks", "task", "task_options", "subwords", "streaming"), TASKS)),
    ("training/optim/weight_averaging.py", (_unit("averaging"), [E2E.format("averages")], RUNS)),
    ("training/setup/init_from.py", (_unit("standardize"), [E2E.format("beginning")], HUB)),
    ("training/resume/callback_states.py", ([E2E.format("callback_states")],)),
    ("training/callbacks/validation.py", (_unit("training"), [E2E.format("averages")], RUNS)),
    ("training/report/model_card.py", (_unit("run_files"), RUNS)),
    ("training/resume/storage.py", ([E2E.format("resume")], RUNS)),
    ("training/tuning/auto_tune.py", ([E2E.format("choosing")], TASKS)),
    ("training/tuning/compile.py", (_unit("compile", "training"),)),
    ("training/distributed/strategies.py", ([E2E.format("devices")], _unit("training"))),
    ("training/tuning/lr_finder.py", (_unit("finding"),)),
    ("training/callbacks/nan_check.py", (_unit("finite"),)),
    ("training/setup/given.py", ([E2E.format("callback_states")],)),
    ("training/callbacks/grad_norms.py", (_unit("gradients", "training"), RUNS)),
    ("training/callbacks/interrupt.py", (_unit("training"), RUNS, [E2E.format("devices")])),
    ("training/distributed/launcher.py", (_unit("run_files"), [E2E.format("devices")], RUNS)),
    ("training/lit_module.py", (_unit("training"), RUNS, [E2E.format("devices")])),
    ("training/report/loggers.py", (_unit("loggers", "training"), RUNS)),
    ("training/tuning/hardware.py", (_unit("machine"),)),
    ("training/tuning/memory_planner.py", (_unit("memory"), RUNS)),
    ("training/optim/muon.py", (_unit("optimizers"),)),
    ("training/optim/optimizers.py", (_unit("optimizers", "training"),)),
    ("training/optim/param_groups.py", (_unit("optimizers", "training"),)),
    ("training/tuning/memory_tracker.py", (_unit("memory"),)),
    ("training/setup/prepare.py",
     (_unit("sizing", "choosing_tokenizers", "training"), TASKS, RUNS)),
    ("training/report/*", (_unit("report"), RUNS)),
    ("training/*/restart*.py", (_unit("run_files"), [E2E.format("restarts")])),
    ("training/resume/config.py", ([E2E.format("resume")],)),
    ("utils/jsonl.py", (_unit("run_files"), RUNS)),
    ("training/setup/run_folder.py", (_unit("run_files"), [E2E.format("run_folder")], RUNS)),
    ("training/resume/callback.py", ([E2E.format("resume")],)),
    ("training/tuning/data_defaults.py", (_unit("sizing"),)),
    ("training/setup/tokenizers.py", (_unit("choosing_tokenizers"), TASKS)),
    ("training/resume/verify.py", ([E2E.format("resume")],)),
    ("training/setup/pretraining.py", ([E2E.format("resume")],)),
    ("training/callbacks/monitor.py", (_unit("machine", "flops", "training"), RUNS)),
    ("training/*", (_unit("training", "optimizers"), RUNS, TASKS)),
)  # fmt: skip


def stages(module: str) -> tuple[list[str], ...]:
    """Pytest's arguments, stage by stage, for a module's path below src/miniformer."""
    return next(stages for pattern, stages in TABLE if fnmatch(module, pattern))
