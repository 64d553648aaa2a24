"""The tests that run against a mutant, by its module.

Each module has stages, which run in order until one fails. The first stage has the tests of the
module; the next ones have tests of its users.
"""

from fnmatch import fnmatch
from pathlib import PurePosixPath

E2E = "tests/e2e/test_{}.py"
REFERENCE, TEXTS = ["tests/parity/test_reference.py"], ["tests/parity/test_hugging_face_texts.py"]
BATTERY = [f"tests/battery/test_{name}.py" for name in ("reference", "whole_models", "decoding")]
RUNS = [E2E.format(name) for name in ("training_run", "metrics", "resume")]
TASKS, HUB = [E2E.format("tasks")], [E2E.format("hub")]


def _unit(*modules: str) -> list[str]:
    """Unit tests of modules, which are paths below the package without a suffix."""
    paths = [PurePosixPath("tests/unit", module) for module in modules]
    return [str(path.with_name(f"test_{path.name}.py")) for path in paths]


# Patterns below src/miniformer with their stages; the first match applies.
TABLE: tuple[tuple[str, tuple[list[str], ...]], ...] = (
    (
        "model/ops/allocation_tracker.py",
        (_unit("training/tuning/memory_planner", "model/ops/cross_entropy"), BATTERY),
    ),
    (
        "model/attention_backends/__init__.py",
        (_unit("model/attention_backends", "model/masks"), BATTERY),
    ),
    (
        "model/cache*.py",
        (
            _unit("model/cache/kv_cache", "model/cache/protocol"),
            BATTERY,
            _unit("generation/beam_search", "generation/speculative"),
        ),
    ),
    (
        "model/ops/activation_checkpointing.py",
        (_unit("model/ops/activation_checkpointing", "training/tuning/memory_planner"), BATTERY),
    ),
    ("model/ops/cross_entropy.py", (_unit("model/ops/cross_entropy", "tasks/tasks"),)),
    ("runtime/cuda_graphs.py", (_unit("runtime/cuda_graphs"),)),
    ("model/hub.py", (HUB, _unit("training/tuning/lr_finder"))),
    ("model/attention_backends/functions.py", (_unit("model/attention_backends"), BATTERY)),
    ("model/masks.py", (_unit("model/masks", "model/attention_backends"), BATTERY)),
    ("runtime/native/*", (_unit("runtime/native"), _unit("generation/beam_search"))),
    ("model/norm.py", (_unit("model/norm"), REFERENCE, BATTERY)),
    (
        "model/pretrained.py",
        (_unit("config/architectures", "interop/hf", "config/config"), HUB, REFERENCE),
    ),
    ("model/rotary_scaling.py", (["tests/battery/test_real_widths.py"], BATTERY)),
    (
        "model/seq2seq.py",
        (
            _unit(
                "model/seq2seq",
                "generation/beam_search",
                "model/cache/kv_cache",
                "model/attention_backends",
            ),
            REFERENCE,
            BATTERY,
        ),
    ),
    ("model/memory.py", (_unit("model/memory", "model/cache/protocol"), BATTERY)),
    ("model/execution_settings.py", (_unit("model/execution_settings"), BATTERY)),
    (
        "model/stack.py",
        (
            _unit("model/model", "model/attention_backends", "model/masks", "model/cache/kv_cache"),
            REFERENCE,
            BATTERY,
        ),
    ),
    (
        "model/*",
        (
            _unit(
                "model/model",
                "model/masks",
                "model/cache/kv_cache",
                "config/architectures",
                "registry/registry",
            ),
            REFERENCE,
            BATTERY,
        ),
    ),
    ("generation/beam_search.py", (_unit("generation/beam_search", "model/seq2seq"), TEXTS)),
    ("generation/constrained.py", (_unit("generation/constrained"),)),
    (
        "generation/detokenizer.py",
        (_unit("generation/detokenizer", "data/tokenizers/bpe_dropout"),),
    ),
    (
        "generation/logits_processors.py",
        (_unit("generation/logits_processors", "generation/beam_search"), TEXTS),
    ),
    (
        "generation/inference.py",
        (_unit("generation/inference", "generation/sampling", "runtime/rounded/model"),),
    ),
    (
        "generation/runtime.py",
        (_unit("generation/runtime", "generation/sampling", "runtime/native"),),
    ),
    (
        "generation/sampling.py",
        (_unit("generation/sampling", "generation/speculative", "generation/logits_processors"),),
    ),
    ("generation/speculative.py", (_unit("generation/speculative", "generation/sampling"),)),
    (
        "generation/*",
        (
            _unit(
                "generation/sampling",
                "generation/logits_processors",
                "generation/detokenizer",
                "model/seq2seq",
                "generation/beam_search",
            ),
            _unit(
                "generation/speculative",
                "generation/constrained",
                "tasks/common/scoring",
                "model/cache/kv_cache",
            ),
        ),
    ),
    (
        "tasks/common/sequence_input.py",
        (
            _unit(
                "tasks/base",
                "tasks/tasks",
                "tasks/common/standardize",
                "data/tokenizers/bpe_dropout",
            ),
            TASKS,
        ),
    ),
    (
        "tasks/language_modeling.py",
        (
            _unit(
                "tasks/tasks",
                "tasks/language_modeling",
                "data/tokenizers/tokenizer",
                "generation/detokenizer",
            ),
            TASKS,
        ),
    ),
    (
        "tasks/masked_lm.py",
        (_unit("tasks/masked_lm", "tasks/tasks", "data/tokenizers/bpe_dropout"), TASKS),
    ),
    ("tasks/common/scoring.py", (_unit("tasks/common/scoring", "interop/lm_eval"),)),
    ("tasks/common/series.py", (_unit("tasks/common/series", "tasks/tasks"), TASKS)),
    ("tasks/common/standardize.py", (_unit("tasks/common/standardize"), TASKS)),
    ("tasks/common/text_metrics.py", (_unit("tasks/common/text_metrics"),)),
    (
        "tasks/common/generated_texts.py",
        (_unit("tasks/common/generated_texts", "tasks/common/text_metrics"), TASKS),
    ),
    (
        "tasks/common/input_encoding.py",
        (
            _unit(
                "tasks/base",
                "tasks/tasks",
                "data/tokenizers/tokenizer",
                "data/tokenizers/bpe_dropout",
                "data/batching/packing",
            ),
            TASKS,
        ),
    ),
    (
        "tasks/*",
        (
            _unit(
                "tasks/tasks",
                "tasks/common/generated_texts",
                "tasks/language_modeling",
                "tasks/base",
                "data/tokenizers/bpe_dropout",
                "generation/detokenizer",
            ),
            TASKS,
        ),
    ),
    (
        "training/optim/weight_averaging.py",
        (_unit("training/optim/weight_averaging"), [E2E.format("weight_averaging")], RUNS),
    ),
    (
        "training/setup/init_from.py",
        (_unit("tasks/common/standardize"), [E2E.format("init_from")], HUB),
    ),
    ("training/resume/callback_states.py", ([E2E.format("callback_states")],)),
    (
        "training/callbacks/validation.py",
        (_unit("training/callbacks/validation"), [E2E.format("weight_averaging")], RUNS),
    ),
    ("training/report/model_card.py", (_unit("training/report/model_card"), RUNS)),
    (
        "training/resume/storage.py",
        (_unit("training/resume/storage"), [E2E.format("resume")], RUNS),
    ),
    ("training/setup/auto_tune.py", ([E2E.format("auto_tune")], TASKS)),
    ("training/tuning/compile.py", (_unit("model/compile", "training/tuning/compile"),)),
    ("training/distributed/strategies.py", ([E2E.format("devices")], _unit("training/lit_module"))),
    ("training/tuning/lr_finder.py", (_unit("training/tuning/lr_finder"),)),
    ("training/callbacks/nan_check.py", (_unit("training/callbacks/nan_check"),)),
    ("training/evaluate.py", (RUNS,)),
    (
        "training/callbacks/grad_norms.py",
        (_unit("training/callbacks/grad_norms", "training/lit_module"), RUNS),
    ),
    (
        "training/callbacks/interrupt.py",
        (_unit("training/callbacks/interrupt"), RUNS, [E2E.format("devices")]),
    ),
    (
        "training/distributed/launcher.py",
        (_unit("training/distributed/launcher"), [E2E.format("devices")], RUNS),
    ),
    ("training/lit_module.py", (_unit("training/lit_module"), RUNS, [E2E.format("devices")])),
    ("training/report/loggers.py", (_unit("training/report/loggers"), RUNS)),
    ("training/tuning/hardware.py", (_unit("training/tuning/hardware"),)),
    ("training/tuning/memory_planner.py", (_unit("training/tuning/memory_planner"), RUNS)),
    ("training/optim/muon.py", (_unit("training/optim/optimizers"),)),
    ("training/optim/optimizers.py", (_unit("training/optim/optimizers", "training/lit_module"),)),
    (
        "training/optim/param_groups.py",
        (_unit("training/optim/param_groups", "training/optim/optimizers", "training/lit_module"),),
    ),
    ("training/tuning/memory_tracker.py", (_unit("training/tuning/memory_planner"),)),
    (
        "training/setup/prepare.py",
        (
            _unit(
                "training/tuning/data_defaults", "training/setup/tokenizers", "training/lit_module"
            ),
            TASKS,
            RUNS,
        ),
    ),
    ("training/report/*", (_unit("training/report/report"), RUNS)),
    ("training/*/restart*.py", (_unit("training/resume/restart_folder"), [E2E.format("restarts")])),
    ("training/resume/config.py", (_unit("training/resume/config"), [E2E.format("resume")])),
    ("utils/jsonl.py", (_unit("utils/jsonl"), RUNS)),
    (
        "training/setup/run_folder.py",
        (_unit("training/setup/run_folder"), [E2E.format("run_folder")], RUNS),
    ),
    ("training/resume/callback.py", (_unit("training/resume/callback"), [E2E.format("resume")])),
    ("training/tuning/data_defaults.py", (_unit("training/tuning/data_defaults"),)),
    ("training/setup/tokenizers.py", (_unit("training/setup/tokenizers"), TASKS)),
    ("training/resume/verify.py", (_unit("training/resume/verify"), [E2E.format("resume")])),
    (
        "training/setup/pretraining.py",
        (_unit("training/setup/pretraining"), [E2E.format("resume")]),
    ),
    (
        "training/callbacks/monitor.py",
        (
            _unit(
                "training/tuning/hardware",
                "training/callbacks/monitor",
                "training/callbacks/budget",
            ),
            RUNS,
        ),
    ),
    ("training/*", (_unit("training/lit_module", "training/optim/optimizers"), RUNS, TASKS)),
)


def stages(module: str) -> tuple[list[str], ...]:
    """Pytest's arguments, stage by stage, for a module's path below src/miniformer."""
    return next(stages for pattern, stages in TABLE if fnmatch(module, pattern))
