"""The public interface: a change of these lists must be deliberate."""

import dataclasses
import re
import tomllib

import pytest

import miniformer
from miniformer.model.transformer import Transformer
from tests.kit import ROOT, run_python, tiny_config

PUBLIC = {
    "ConfigError", "CrossAttention", "DecoderLayer", "EncoderLayer", "FeedForward",
    "GenerationConfig", "GenerationInput", "JSONLinesDataset", "KVCache", "LossTerm",
    "MiniFormerDataModule", "MiniFormerLitModule", "Mixture", "MultiHeadAttention",
    "Pipeline", "Seq2SeqTransformer", "SlotDecoder", "Tokenizer",
    "TrainConfig", "Transformer", "TransformerConfig", "UserError", "__version__",
    "apply_transforms", "assert_no_leaks", "compare", "effective_weight", "export",
    "find_leaks", "from_hf", "import_hf", "load", "merge_transforms", "prune", "quantize",
    "register", "serve", "set_activation_checkpointing", "set_attention_backend", "stop_run",
    "to_hf", "train", "weight_matrices",
}  # fmt: skip
PATHS_OF_THE_SPECIFICATION = [
    "miniformer.config.model_config:TransformerConfig",
    "miniformer.model.transformer:Transformer",
    "miniformer.train_config:TrainConfig",
    "miniformer.trainer:main",
]
MODEL_FIELDS = {
    "vocab_size": 10000, "d_model": 256, "n_heads": 8, "n_layers": 4, "d_ff": None, "dropout": 0.1,
    "token_dropout": 0.0,
    "activation": "gelu", "position": "rotary", "rotary_pct": 1.0, "rotary_base": 10000.0,
    "rotary_base_local": None, "rotary_scaling": None, "relative_buckets": 32,
    "relative_max_distance": 128, "pre_norm": True, "norm_placement": None,
    "first_attention_norm": True, "parallel_residual": False, "norm": "layernorm", "norm_eps": 1e-5,
    "max_seq_len": 1024, "n_kv_heads": None, "head_dim": None, "bias": True,
    "attention_bias": None, "qkv_bias": None, "feed_forward_bias": None, "norm_bias": None,
    "qk_norm": None, "sliding_window": None, "window_pattern": None,
    "logit_softcap": None, "final_softcap": None, "attention_sinks": False,
    "attention_scale": None, "attention": "standard", "feed_forward": "standard", "causal": False,
    "embedding_norm": False, "embedding_scale": None, "token_types": None, "tie_embeddings": True,
    "head": "linear", "head_activation": None, "head_bias": False, "output_bias": None,
    "logit_scale": None,
    "input_dim": None, "output_dim": None, "ordered_outputs": False, "pooling": "mean",
    "n_decoder_layers": None, "wide_head": None, "input": None,
    "source_vocab_size": None,
}  # fmt: skip
TRAIN_FIELDS = {
    "test_path", "task_config", "batch_tokens", "batch_order", "streaming", "checkpoint_metric",
    "train_path", "val_path", "task", "model", "model_config", "tokenizer", "batch_size", "seq_len",
    "auto", "source_tokenizer", "init_from", "pretrain", "model_size",
    "lr", "weight_decay", "scheduler", "warmup_steps", "max_epochs", "max_steps", "max_time",
    "val_check_interval", "optimizer", "gradient_clip_val", "accumulate_grad_batches", "precision",
    "activation_checkpointing",
    "accelerator", "num_workers", "seed", "deterministic", "work_dir", "experiment_name", "logger",
    "early_stopping_patience", "find_lr", "layer_lr_decay", "warmup_ratio", "optimizer_config",
    "scheduler_config",
    "ema_decay", "average_checkpoints", "memory_limit", "find_batch_size", "compile", "devices",
    "num_nodes", "strategy", "resume", "checkpoint_interval", "sample_prompt", "val_share",
    "folds", "fold", "threads", "input_field", "label_field", "text_field", "input_separator",
    "columns", "delimiter", "quoting", "encoding", "wide_head", "callbacks", "transforms",
    "adapter", "adapter_config", "base_weights", "quantize_aware", "loss_terms", "early_exit",
    "sparse_training",
}  # fmt: skip
WEIGHTS = {
    "embedding.weight", "final_norm.weight", "final_norm.bias", "head.weight",
    *(
        f"layers.0.{module}.{kind}"
        for module in (
            "attention_norm", "attention.q_proj", "attention.k_proj", "attention.v_proj",
            "attention.o_proj", "feed_forward_norm", "feed_forward.gate_proj",
            "feed_forward.up_proj", "feed_forward.down_proj",
        )
        for kind in ("weight", "bias")
    ),
}  # fmt: skip


@pytest.mark.catches("misspelled_public_name_is_none")
def test_public_names():
    assert set(miniformer.__all__) == PUBLIC == set(dir(miniformer))
    for name in PUBLIC:
        assert getattr(miniformer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Transfomer'"):
        _ = miniformer.Transfomer


@pytest.mark.parametrize("path", PATHS_OF_THE_SPECIFICATION)
def test_public_import_paths_of_the_specification(path):
    module, name = path.split(":")
    assert getattr(__import__(module, fromlist=[name]), name)


def test_model_config_fields_and_defaults():
    assert miniformer.TransformerConfig().to_dict() == MODEL_FIELDS


def test_train_config_fields_are_the_flags_of_train():
    assert {field.name for field in dataclasses.fields(miniformer.TrainConfig)} == TRAIN_FIELDS
    shown = run_python("-m", "miniformer.trainer", "--help").stdout
    flags = set(re.findall(r"^  --(\w+)", shown, re.MULTILINE))
    assert flags == TRAIN_FIELDS | {"config", "print_config", "dry_run", "quiet"}
    help_texts = dict(re.findall(r"^  --(\w+)(.*?)(?=^  -|\Z)", shown, re.MULTILINE | re.DOTALL))
    for flag in TRAIN_FIELDS:  # every flag has a description
        text = re.sub(r"\(type: .*|\b[A-Z_]+\b|\{.*?\}", "", help_texts[flag], flags=re.DOTALL)
        assert len(re.findall(r"[a-z]{2,}", text)) >= 1, (flag, help_texts[flag])


def test_weight_names():
    model = Transformer(tiny_config(n_layers=1, activation="swiglu", tie_embeddings=False))
    assert set(model.state_dict()) == WEIGHTS


@pytest.mark.parametrize(
    "code",
    [
        "import miniformer",
        "import miniformer; miniformer.TransformerConfig(); miniformer.GenerationConfig()",
        "from miniformer.train_config import TrainConfig; TrainConfig(train_path='x')",
        "from miniformer.cli import main; main(['--version'])",
        "from miniformer.cli import main; main(['--help'])",
        "from miniformer.trainer import main; main(['--help'])",
        "from miniformer.trainer import main; main(['--lr', 'x'])",
    ],
)
def test_import_of_heavy_packages_is_lazy(code):
    done = run_python(
        "-c",
        "import sys\n"
        f"try:\n    {code}\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'numpy', 'tokenizers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)",
    )
    assert done.returncode == 0, done.stderr


def test_saved_models_need_no_packages_of_training():
    done = run_python(
        "-c",
        "import sys, miniformer\n"
        "miniformer.load, miniformer.Pipeline\n"
        "slow = {'lightning', 'torchmetrics', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {slow}' if slow else 0)",
    )
    assert done.returncode == 0, done.stderr


def test_import_changes_nothing_in_torch():
    done = run_python(
        "-c",
        "import torch\n"
        "before = (torch.allclose, torch.Tensor.backward, torch.Tensor.__contains__,\n"
        "          torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed())\n"
        "import miniformer\n"
        "for name in miniformer.__all__: getattr(miniformer, name)\n"
        "after = (torch.allclose, torch.Tensor.backward, torch.Tensor.__contains__,\n"
        "         torch.get_default_dtype(), torch.get_num_threads(), torch.initial_seed())\n"
        "assert before == after",
    )
    assert done.returncode == 0, done.stderr


def test_torch_requirement_has_a_lower_bound_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torch,) = (line for line in project["dependencies"] if line.startswith("torch>"))
    assert re.fullmatch(r"torch>=[\d.]+", torch)
    assert len(project["dependencies"]) <= 10


def test_import_layers_are_kept():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0
