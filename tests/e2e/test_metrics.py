"""All numbers of a run, compared with plain code: loops over the records, a simulated clock.

A plain torch loop takes the same steps with a copy of the model: loss, gradients, clipping, AdamW.
"""

import copy
import io
import json
import math
import re
import statistics

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

import miniformer
from miniformer import TrainConfig, trainer
from miniformer.data.batching.length_bucketing import LengthBucketBatcher
from miniformer.training.run import train
from miniformer.training.tuning import memory_tracker
from tests.kit import VERSE
from tests.kit.clock import Clock

WORDS = VERSE.split()
WIDTH, INNER, LAYERS, LIMIT, RATE, STEPS = 16, 64, 2, 1.25, 3e-3, 12
MODEL = {"d_model": WIDTH, "n_heads": 2, "n_layers": LAYERS, "d_ff": INNER, "max_seq_len": 64,
         "dropout": 0.0, "bias": False, "activation": "gelu"}  # fmt: skip
LOADING, LEARNING, VALIDATING, SAVING = 0.25, 2.0, 7.0, 3.0  # seconds of a batch, of a save
PEAK, MEMORY_KB = 5e6, 123_456


def pairs(count, shift=0):
    return [
        {"source": " ".join(WORDS[(i + shift) % 9 :][: 1 + i % 6]),
         "target": " ".join(WORDS[(i + shift) % 7 :][: 1 + i % 4])}
        for i in range(count)
    ]  # fmt: skip


TRAIN, VAL = pairs(40), pairs(7, 3)


class Witness(L.Callback):
    """Repeats each step in plain torch and records the expected numbers."""

    def __init__(self, clock):
        self.clock = clock
        self.steps = []  # of each optimizer step: a dict
        self.validations = []
        self.tokens = self.padding = self.flops = self.num_loaded = self.num_records = 0
        self.validated = 0.0  # seconds
        self.batches = []  # of the step under way
        self.optimizer = None

    def on_train_start(self, trainer, module):
        self.start = self.clock.now
        self.model = copy.deepcopy(module.model)
        decayed = [p for n, p in self.model.named_parameters() if is_matrix(n)]
        other_parameters = [p for n, p in self.model.named_parameters() if not is_matrix(n)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": 0.1},
                {"params": other_parameters, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
        )

    def on_train_batch_start(self, trainer, module, batch, index):
        self.clock.now += LEARNING
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates = {group["lr"] for group in optimizer.param_groups}

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        sources, targets = real_tokens(batch)
        self.tokens += sources + targets
        self.num_records += len(batch["source"])
        self.padding += batch["source"].numel() + batch["target"].numel() - sources - targets
        self.flops += flops(sources, batch["source"].shape[1], targets, batch["target"].shape[1])
        if trainer.global_step == len(self.steps):
            return
        self.step(module)
        self.batches = []

    def step(self, module):
        loss, count = 0.0, 0
        for batch in self.batches:
            mask = batch.get("source_mask")
            logits = self.model(batch["source"], batch["target"], source_mask=mask)
            loss = loss + F.cross_entropy(
                logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum"
            )
            count += int((batch["labels"] != -100).sum())
        self.optimizer.zero_grad()
        (loss / count).backward()
        norms = {}
        for name, parameter in self.model.named_parameters():
            group = re.match(r"(?:en|de)coder\.layers\.\d+|(?:en|de)coder\.\w+|\w+", name)[0]
            square = float(parameter.grad.double().square().sum())
            norms[group] = norms.get(group, 0.0) + square
        norms = {group: math.sqrt(square) for group, square in norms.items()}
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), LIMIT)
        (rate,) = self.rates
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        pairs = zip(self.model.parameters(), module.model.parameters(), strict=True)
        apart = max(float((plain - actual).detach().abs().max()) for plain, actual in pairs)
        self.steps.append({
            "apart": apart,
            "loss": float(loss.detach()) / count, "rate": rate, "norm": float(norm),
            "norms": norms, "tokens": self.tokens, "flops": self.flops,
            "padding": self.padding / (self.padding + self.tokens),
            "now": self.clock.now - self.start, "validated": self.validated,
            "waited": self.num_loaded * LOADING, "batches": len(self.batches),
            "records": self.num_records,
        })  # fmt: skip

    def on_validation_start(self, trainer, module):
        self.validation_start = self.clock.now
        total, count = 0.0, 0
        with torch.no_grad():
            for record in VAL:  # one by one, without padding
                source, target = (encoded(record[name]) for name in ("source", "target"))
                shifted = torch.cat([target[:, -1:], target[:, :-1]], 1)  # EOS is the start, too
                logits = self.model(source, shifted)
                total += float(F.cross_entropy(logits[0], target[0], reduction="sum"))
                count += target.numel()
        self.validations.append({"loss": total / count, "step": trainer.global_step})

    def on_validation_batch_start(self, *args):
        self.clock.now += VALIDATING

    def on_validation_end(self, trainer, module):
        self.validations[-1]["now"] = self.clock.now - self.start
        self.clock.now += SAVING
        self.validated += self.clock.now - self.validation_start


def is_matrix(name):
    """Returns whether a parameter decays: only matrices of linear layers."""
    return "proj" in name


def encoded(text):
    """Ids of a text: its bytes and EOS."""
    ids = miniformer.Tokenizer.train("byte", []).encode(text)
    assert len(ids) == len(text.encode())
    return torch.tensor([[*ids, END]])


END = miniformer.Tokenizer.train("byte", []).eos_id


def real_tokens(batch):
    """Tokens of sources and of targets, including EOS."""
    sources = sum(row.tolist().index(END) + 1 for row in batch["source"])
    targets = sum(sum(label != -100 for label in row) for row in batch["labels"].tolist())
    return sources, targets


def flops(sources, source_length, targets, target_length):
    """FLOPs of forward and backward passes of this model: 2 per multiply-add, backward twice."""
    layer = 4 * WIDTH * WIDTH + 2 * WIDTH * INNER
    total = LAYERS * sources * (layer + 2 * WIDTH * source_length)
    seen = sum(range(1, target_length + 1)) / target_length
    cross = 2 * WIDTH * WIDTH + 2 * WIDTH * source_length
    total += LAYERS * targets * (layer + 2 * WIDTH * seen + cross)
    total += LAYERS * sources * 2 * WIDTH * WIDTH  # keys and values of cross-attention
    total += targets * WIDTH * 258
    return 3 * 2 * total


def settings(folder, **changes):
    return {
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "val.jsonl"),
        "task": "seq2seq", "task_config": {"eval_generate_samples": 0}, "tokenizer": "byte",
        "model_config": MODEL, "batch_size": 4, "accumulate_grad_batches": 2, "lr": RATE,
        "optimizer": "adamw", "gradient_clip_val": LIMIT, "max_steps": STEPS,
        "val_check_interval": 5, "precision": "float32", "logger": "csv",
        "work_dir": str(folder / "runs"), **changes,
    }  # fmt: skip


def write(folder):
    for name, records in (("train", TRAIN), ("val", VAL)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)


@pytest.fixture(scope="module")
def run(tmp_path_factory, real_pictures_of_module):
    """A run with the simulated clock: its folder, its witness, its output, and its result."""
    folder = tmp_path_factory.mktemp("numbers")
    write(folder)
    (folder / "status").write_text(f"VmRSS:\t 5 kB\nVmHWM:\t {MEMORY_KB} kB\n")
    with pytest.MonkeyPatch.context() as patched:
        clock = Clock().install(patched)
        witness = Witness(clock)
        original = LengthBucketBatcher.collate

        def collate(self, *args):
            clock.now += LOADING
            witness.num_loaded += args[-1] is not None  # only training has a random generator
            return original(self, *args)

        patched.setattr(LengthBucketBatcher, "collate", collate)
        patched.setattr(memory_tracker, "_PROC_STATUS", folder / "status")
        patched.setattr(
            "miniformer.training.callbacks.monitor.peak_flops", lambda device, dtype: PEAK
        )
        console = Console(file=io.StringIO(), width=300)
        result = train(TrainConfig(**settings(folder)), console=console, callbacks=[witness])
        trainer.report_result(result, console)
    return folder / "runs" / "seq2seq", witness, console.file.getvalue(), result


def rows_of(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def speeds(witness):
    """Tokens/s, MFU and wait fraction from each step to the next, in plain code."""
    result = []
    for before, now in zip(witness.steps, witness.steps[1:], strict=False):
        passed = now["now"] - before["now"] - (now["validated"] - before["validated"])
        assert passed == pytest.approx(now["batches"] * (LOADING + LEARNING))
        result.append({
            "tokens_per_second": (now["tokens"] - before["tokens"]) / passed,
            "mfu": (now["flops"] - before["flops"]) / passed / PEAK,
            "waiting": (now["waited"] - before["waited"]) / passed,
        })  # fmt: skip
    return result


@pytest.mark.catches(
    "mfu_is_three_times_too_large",
    "padding_counts_as_tokens",
    "padding_is_a_share_of_tokens",
    "validation_counts_as_training",
    "waiting_for_data_is_not_counted",
    "memory_is_in_mebibytes",
    "short_gradients_are_lengthened",
    "target_flops_are_those_of_sources",
    "metrics_forget_accumulated_batches",
)
def test_train_metrics_match_a_plain_loop(run):
    folder, witness, _, _ = run
    rows = [row for row in rows_of(folder) if "train_loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert {step["norm"] > LIMIT for step in witness.steps} == {True, False}, "clipped, and not"
    for row, step in zip(rows, witness.steps, strict=True):
        assert step["apart"] < 1e-5, "the weights after the step"
        assert row["train_loss"] == pytest.approx(step["loss"], rel=1e-5)
        assert row["lr"] == step["rate"]
        assert row["grad_norm"] == pytest.approx(step["norm"], rel=1e-4)
        assert row["tokens"] == step["tokens"]
        assert row["padding"] == round(step["padding"], 4)
        assert row["seconds"] == round(step["now"], 3)
        assert row["memory_mb"] == 126.4  # 123,456 kB
    assert "tokens_per_second" not in rows[0], "there is no throughput before the first step"
    for row, speed in zip(rows[1:], speeds(witness), strict=True):
        assert row["tokens_per_second"] == round(speed["tokens_per_second"], 1)
        assert row["mfu"] == round(speed["mfu"], 4)
        assert row["waiting"] == round(speed["waiting"], 4)


@pytest.mark.catches("the_learning_rate_is_that_of_the_next_step")
def test_logged_lr_matches_the_schedule(run):
    """A twentieth of the run is warm-up, less than a step here; then half a cosine."""
    rates = [step["rate"] for step in run[1].steps]
    want = [RATE * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert rates == pytest.approx(want)


@pytest.mark.catches("validation_loss_is_the_mean_of_batches")
def test_validation_metrics_match_single_records(run):
    folder, witness, _, _ = run
    rows = [row for row in rows_of(folder) if "val_loss" in row]
    assert [row["step"] for row in rows] == [5, 10, STEPS]
    for row, seen in zip(rows, witness.validations, strict=True):
        assert row["step"] == seen["step"]
        assert row["val_loss"] == pytest.approx(seen["loss"], rel=1e-5)
        assert row["seconds"] == round(seen["now"], 3)
        assert row["tokens"] == witness.steps[row["step"] - 1]["tokens"]


@pytest.mark.catches("layer_norms_are_those_after_clipping")
def test_gradient_norms_are_those_before_clipping(run):
    folder, witness, _, _ = run
    rows = rows_of(folder, "gradients.jsonl")
    assert [row.pop("step") for row in rows] == list(range(1, STEPS + 1))
    for row, step in zip(rows, witness.steps, strict=True):
        assert row == pytest.approx(step["norms"], rel=1e-4)


@pytest.mark.catches("loggers_count_batches")
def test_loggers_get_the_metrics_of_metrics_jsonl(run):
    folder, _, _, _ = run
    (table,) = folder.rglob("metrics.csv")
    names, *lines = (line.split(",") for line in table.read_text().splitlines())
    logged = {}
    for line in lines:
        values = dict(zip(names, line, strict=True))
        step = int(values.pop("step"))
        for name, value in values.items():
            if value and name != "epoch":
                assert logged.setdefault((step, name), float(value)) == float(value)
    rows, gradients = rows_of(folder), rows_of(folder, "gradients.jsonl")
    for name in ("tokens_per_second", "mfu", "waiting", "memory_mb", "val_loss"):
        want = {row["step"]: row[name] for row in rows if name in row}
        assert {s: v for (s, n), v in logged.items() if n == name} == pytest.approx(want, rel=1e-6)
    for name in ("train_loss", "lr", "grad_norm"):  # every tenth step
        want = {row["step"]: row[name] for row in rows if name in row and row["step"] == 10}
        assert {s: v for (s, n), v in logged.items() if n == name} == pytest.approx(want, rel=1e-6)
    for row in gradients:
        for group, norm in row.items():
            if group != "step":
                assert logged[row["step"], f"grad_norm/{group}"] == pytest.approx(norm, rel=1e-6)


LINE = re.compile(
    r"^ *(\d+)%  epoch (\d+)  step (\d+)/(\d+)  loss ([\d.]+)(?:  val loss ([\d.]+))?"
    r"  elapsed ([\d:]+)  left ([\d:]+)  ([\d,]+) tokens/s  padding (\d+)%$", re.M
)  # fmt: skip


def seconds_of(clock):
    """Seconds of a clock such as 1:05."""
    minutes, seconds = clock.split(":")
    return 60 * int(minutes) + int(seconds)


@pytest.mark.catches("time_left_is_time_gone", "the_progress_line_has_the_mean_of_the_run")
def test_progress_line_averages_since_the_previous_line(run):
    """A line is due 15 seconds of training after the last one."""
    _, witness, out, _ = run
    lines = LINE.findall(out)
    before, due = witness.steps[0], []
    for number, step in enumerate(witness.steps, 1):
        passed = step["now"] - before["now"] - (step["validated"] - before["validated"])
        if passed >= 15:
            due.append((number, step, before, passed))
            before = step
    assert [int(line[2]) for line in lines] == [number for number, *_ in due] == [5, 9]
    for line, (number, step, before, passed) in zip(lines, due, strict=True):
        percent, epoch, _, steps, loss, val, elapsed, left, rate, padding = line
        assert int(percent) == round(100 * number / STEPS)
        assert float(loss) == pytest.approx(step["loss"], abs=6e-4)
        losses = [seen["loss"] for seen in witness.validations if seen["step"] < number]
        assert (float(val) if val else None) == (
            pytest.approx(losses[-1], abs=6e-4) if losses else None
        )
        assert int(rate) == round((step["tokens"] - before["tokens"]) / passed)
        assert int(padding) == round(100 * step["padding"])
        assert int(steps) == STEPS
        assert int(epoch) == math.ceil(step["records"] / len(TRAIN))
        assert seconds_of(elapsed) == pytest.approx(step["now"], abs=0.5001), "rounded"
        remaining = step["now"] * (STEPS - number) / number
        assert seconds_of(left) == pytest.approx(remaining, abs=0.5001), "rounded"


@pytest.mark.catches("the_summary_counts_validation")
def test_final_lines_have_the_metrics_of_the_run(run):
    folder, witness, out, result = run
    first, last = witness.steps[0], witness.steps[-1]
    training_seconds = last["now"] - last["validated"]
    waited = (last["waited"] - first["waited"]) / (training_seconds - first["now"])
    assert (
        f"trained on {last['tokens']:,} tokens in {training_seconds:,.0f} s; "
        f"padding {last['padding']:.1%}; waited for data {waited:.1%} of the time\n"
    ) in out
    best = min(witness.validations, key=lambda seen: seen["loss"])
    assert f"\nvalidation loss {best['loss']:.4f}, at step {best['step']}\n" in out
    for seen in witness.validations:
        assert f"\nstep {seen['step']}: validation loss {seen['loss']:.4f}\n" in out
    assert result.metrics == {
        "val_loss": pytest.approx(best["loss"], rel=1e-5), "step": best["step"],
        "training_tokens": last["tokens"], "seconds": round(witness.validations[-1]["now"], 1)
        + SAVING,
    }  # fmt: skip
    count = sum(p.numel() for p in miniformer.load(folder / "last").model.parameters())
    assert f"\nmodel: {count:,} parameters\n" in out
    lengths = sum(len(r["source"]) + len(r["target"]) + 2 for r in TRAIN)
    assert f"training data: {len(TRAIN)} records, {lengths:,} tokens\n" in out


@pytest.mark.catches("a_tied_weight_is_counted_twice", "the_card_rounds_to_three_digits")
def test_model_card_has_the_metrics_of_the_run(run):
    folder, witness, _, _ = run
    card = (folder / "best" / "README.md").read_text()
    best = min(witness.validations, key=lambda seen: seen["loss"])
    table = dict(re.findall(r"^\| ([\w ]+) \| ([\d.,]+) \|$", card, re.M))
    assert table == {
        "validation loss": f"{best['loss']:.4g}", "step": str(best["step"]),
        "training tokens": f"{witness.steps[-1]['tokens']:,}",
        "seconds": f"{witness.validations[-1]['now'] + SAVING:.4g}",
    }  # fmt: skip
    count = sum(p.numel() for p in miniformer.load(folder / "best").model.parameters())
    assert f", {count:,} parameters: 2 + 2 layers x 16, 2 heads, " in card
    last = (folder / "last" / "README.md").read_text()
    assert f"| train loss | {witness.steps[-1]['loss']:.4g} |" in last
    assert f"| step | {STEPS} |" in last


@pytest.mark.catches("hours_are_minutes", "the_report_has_the_last_speed")
def test_report_has_the_metrics_of_the_run(run):
    folder, witness, _, _ = run
    page = (folder / "report.html").read_text()
    tiles = re.findall(
        r'<div title="[^"]*"><dt>([^<]*)</dt><dd>([^<]*)<small>([^<]*)</small>', page
    )
    best = min(witness.validations, key=lambda seen: seen["loss"])
    rates, mfus = ([round(speed[name], digits) for speed in speeds(witness)]
                     for name, digits in (("tokens_per_second", 1), ("mfu", 4)))  # fmt: skip
    seconds = witness.validations[-1]["now"] + SAVING
    assert tiles == [
        ("validation loss", f"{best['loss']:.4g}", "nats/token"),
        ("step", str(best["step"]), ""),
        ("training tokens", f"{witness.steps[-1]['tokens']:,}", ""),
        ("time", f"{seconds // 60:.0f} min {seconds % 60:.0f} s", ""),
        ("tokens per second", f"{statistics.median(rates):.4g}", "median"),
        (
            "MFU",
            f"{100 * statistics.median(mfus):.3g} %",
            "of the measured peak, median",
        ),
        ("memory", "126.4", "MB, peak"),
    ]
    count = sum(p.numel() for p in miniformer.load(folder / "best").model.parameters())
    assert f"<td>{count:,} parameters</td>" in page
    assert f"best: {best['loss']:.4g} at step {best['step']}" in page


# What two passes over 12 records take, counted record by record: tokens, and rows that are packed.
TEXTS = [" ".join(WORDS[i:][: 2 + i % 5]) for i in range(12)]
WINDOW = 16


def packed_tokens():
    total = sum(len(text) + 1 for text in TEXTS)
    return total // WINDOW * WINDOW  # complete windows; the rest is for a later epoch


@pytest.mark.catches("padding_counts_as_tokens")
@pytest.mark.parametrize(
    ("task", "records", "tokens"),
    [
        ("language_modeling", [{"text": text} for text in TEXTS], packed_tokens()),
        ("classification", [{"input": t, "label": len(t) % 2} for t in TEXTS],
         sum(len(text) + 1 for text in TEXTS)),
        ("classification", [{"input": [[1.0, i]] * (i + 1), "label": i % 2} for i in range(12)],
         sum(range(1, 13))),
        ("regression", [{"input": [t, t[:3]], "value": len(t)} for t in TEXTS],
         sum(len(text) + len(text[:3]) + 2 for text in TEXTS)),
        ("masked_lm", [{"text": text} for text in TEXTS], sum(len(text) + 1 for text in TEXTS)),
        ("seq2seq", [{"source": t, "target": t[3::-1]} for t in TEXTS],
         sum(len(text) + len(text[:4]) + 2 for text in TEXTS)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_trained_tokens_are_those_of_the_records(tmp_path, monkeypatch, task, records, tokens):
    """Two epochs; padding is the number of positions of batches minus the tokens."""

    class Positions(L.Callback):
        def __init__(self):
            self.count = 0

        def on_train_batch_start(self, trainer, module, batch, index):
            for name in ("input_ids", "inputs", "source", "target"):
                self.count += math.prod(batch[name].shape[:2]) if name in batch else 0

    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(
        "miniformer.training.callbacks.monitor.peak_flops", lambda device, dtype: PEAK
    )
    positions, console = Positions(), Console(file=io.StringIO(), width=300)
    long = {} if task in ("seq2seq", "classification", "regression") else {"seq_len": WINDOW}
    vectors = isinstance(records[0].get("input", "-")[0], list)
    tokenizer = None if vectors else "byte"
    config = TrainConfig(
        train_path=str(tmp_path / "train.jsonl"), task=task, tokenizer=tokenizer, batch_size=3,
        model_config={**MODEL, "n_layers": 1}, max_epochs=2, logger="none", work_dir=str(tmp_path),
        precision="float32", **long,
    )  # fmt: skip
    result = train(config, console=console, callbacks=[positions])
    assert result.metrics["training_tokens"] == 2 * tokens
    rows = rows_of(result.folder)
    assert rows[-1]["tokens"] == 2 * tokens
    assert rows[-1]["padding"] == round(1 - 2 * tokens / positions.count, 4)
    assert f"; padding {1 - 2 * tokens / positions.count:.1%}; " in console.file.getvalue()


class Stop(L.Callback):
    """Stops a run at a batch, without further writes, as a kill would."""

    def __init__(self, batch):
        self.left = batch

    def on_train_batch_start(self, *args):
        self.left -= 1
        if self.left < 0:
            raise Stopped


class Stopped(Exception):
    pass


@pytest.mark.catches("a_resumed_clock_forgets_validations", "a_resumed_run_counts_tokens_anew")
def test_resumed_run_continues_its_metrics(tmp_path, monkeypatch):
    """Its clock stops between the processes, and repeated steps count once."""
    monkeypatch.setattr(
        "miniformer.training.callbacks.monitor.peak_flops", lambda device, dtype: PEAK
    )
    monkeypatch.setattr("tests.e2e.test_metrics.LOADING", 0.0)
    write(tmp_path)
    results = {}
    for name, stop in (("complete", None), ("stopped", 17)):
        clock = Clock().install(monkeypatch)
        console = Console(file=io.StringIO(), width=300)
        config = TrainConfig(
            **settings(tmp_path, experiment_name=name, checkpoint_interval=2, logger="none")
        )

        class Ticks(L.Callback):
            on_train_batch_start = on_validation_batch_start = on_validation_end = None

            def __init__(self, clock):
                def tick(*args):
                    clock.now += LEARNING

                self.on_train_batch_start = self.on_validation_batch_start = tick
                self.on_validation_end = tick

        if stop is not None:
            with pytest.raises(Stopped):
                train(config, console=console, callbacks=[Ticks(clock), Stop(stop)])
            clock.now += 12_345.0
            config = TrainConfig(resume=str(tmp_path / "runs" / name))
        result = train(config, console=console, callbacks=[Ticks(clock)])
        rows = rows_of(result.folder)
        for row in rows:
            row.pop("memory_mb", None)
        results[name] = rows, result.metrics, re.findall("trained on .*", console.file.getvalue())
    complete, stopped = results["complete"], results["stopped"]
    again = [row for row in stopped[0] if "train_loss" in row and "mfu" not in row]
    assert [row["step"] for row in again] == [1, 9]  # the first step of each process
    for row in again[1:]:
        index = stopped[0].index(row)
        for name in ("tokens_per_second", "mfu", "waiting"):
            del complete[0][index][name]
    assert stopped == complete
