"""Runs an exported model; needs onnxruntime, numpy and tokenizers only.

    python run.py generate "Once upon a time" --temperature 0.8 --top_k 40
    python run.py translate "Ein Hund bellt." --num_beams 5
    python run.py classify - < lines.txt

From Python: `Model("FOLDER").generate(["Once upon a time"], temperature=0.8)`. `encoding.py` reads
inputs, `decoding.py` has the options of generated text, `export.json` the settings of the model.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tokenizers import Tokenizer

from miniformer.exporters.onnx.runner.decoding import (
    OPTIONS,
    Options,
    Output,
    RunError,
    State,
    StopFunction,
    beam_search,
    end_tokens,
    pad,
    resolve_options,
    sample,
)
from miniformer.exporters.onnx.runner.encoding import Row, answer, batches, cut, encode, read_json

FORMAT = 1  # of export.json
TEXT_COMMANDS = ("generate", "translate")
COMMANDS = (*TEXT_COMMANDS, "classify", "regress", "embed", "fill")
DTYPES = {"tensor(int64)": np.int64, "tensor(bool)": np.bool_, "tensor(float)": np.float32}


class Graph:
    """An ONNX graph. Its outputs stay in onnxruntime, and can be inputs without a copy."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            self.session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except ImportError as error:
            raise RunError(f"{error}; pip install -r requirements.txt") from None
        except Exception as error:  # the errors of onnxruntime have no other base
            raise RunError(f"{path}: {str(error).splitlines()[0]}") from None
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.outputs = [item.name for item in self.session.get_outputs()]

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Maps inputs to outputs by name: arrays, or values of earlier runs."""
        binding = self.session.io_binding()
        arrays: list[np.ndarray] = []  # live until the end of the run
        for name, item in self.inputs.items():
            if isinstance(value := feeds[name], np.ndarray):
                arrays.append(np.ascontiguousarray(value, DTYPES[item.type]))
                binding.bind_cpu_input(name, arrays[-1])
            else:
                binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        return dict(zip(self.outputs, binding.get_outputs(), strict=True))


class Model:
    """An exported model.

    Args:
        folder: the folder of export.json.
        threads: threads of onnxruntime; 0: as many as cores.
    """

    def __init__(self, folder: str | Path = ".", threads: int = 0) -> None:
        folder = Path(folder)
        self.about = read_description(folder / "export.json")
        self.tokenizer = read_tokenizer(folder / "tokenizer.json")
        source = read_tokenizer(folder / "source_tokenizer" / "tokenizer.json")
        self.input_tokenizer = source or self.tokenizer
        files = self.about["files"].items()
        self.graphs = {part: Graph(folder / name, threads) for part, name in files}

    def generate(self, texts: Sequence[Any], **options: Any) -> list[str]:
        """Continuations or translations, `num_return_sequences` of each input; see OPTIONS."""
        return [text for text, _ in self.generate_outputs(texts, **options)]

    translate = generate

    def generate_outputs(
        self, texts: Sequence[Any], *, truncate: bool = False, **options: Any
    ) -> list[tuple[str, Output]]:
        """Texts with tokens and scores; see `generate`."""
        values, results = self.options(options), dict[int, list[Output]]()
        rows = self.encode(texts, truncate, values["max_new_tokens"])
        for numbers in batches(rows):
            outputs = self.generate_tokens([rows[n].inputs for n in numbers], numbers, **options)
            copies = len(outputs) // len(numbers)
            results |= {n: outputs[k * copies :][:copies] for k, n in enumerate(numbers)}
        ordered = [output for number in range(len(rows)) for output in results[number]]
        return [(cut(self.decode(output.tokens), values), output) for output in ordered]

    def generate_tokens(
        self, inputs: Sequence[Any], numbers: Sequence[int] = (), **options: Any
    ) -> list[Output]:
        """Tokens of encoded inputs; their `numbers` and the seed determine the samples."""
        values = self.options(options)
        state, stop = self.start(inputs), self.stop_function(values)
        copies = range(max(values["num_beams"], values["num_return_sequences"]))
        state.select(np.arange(len(inputs)).repeat(len(copies)))
        if values["num_beams"] > 1:
            return beam_search(state, values, stop)
        names = [(number, copy) for number in numbers or range(len(inputs)) for copy in copies]
        rows: list[list[tuple[int, float]]] = [[] for _ in names]
        for row, token, logprob in sample(state, values, stop, names):
            rows[row].append((token, logprob))
        eos = end_tokens(values)
        return [Output([t for t, _ in row if t not in eos], sum(p for _, p in row)) for row in rows]

    def stream(self, text: Any, *, truncate: bool = False, **options: Any) -> Iterator[str]:
        """Parts of one generated text, of characters that later tokens do not change."""
        values, tokens, sent, result = self.options(options), list[int](), 0, ""
        rows = self.encode([text], truncate, values["max_new_tokens"])
        prefixes = [stop[:n] for stop in values["stop_strings"] or [] for n in range(1, len(stop))]
        state, stop = self.start([rows[0].inputs]), self.stop_function(values)
        for _, token, _ in sample(state, values, stop, [(0, 0)]):
            tokens += [token] if token not in end_tokens(values) else []
            result = self.decode(tokens)
            stable = cut(result[: self.stable_length(tokens, result)], values)
            end = len(stable) - max((len(x) for x in prefixes if stable.endswith(x)), default=0)
            if end > sent:
                yield result[sent:end]
                sent = end
        yield cut(result, values)[sent:]

    def predict(self, inputs: Sequence[Any], *, truncate: bool = False) -> list[Any]:
        """Classes, values, vectors or filled texts of inputs."""
        graph, rows = self.graph("model"), self.encode(inputs, truncate)
        answers: dict[int, Any] = {}
        for numbers in batches(rows):
            values, mask = pad([rows[n].inputs for n in numbers])
            feeds = {next(iter(graph.inputs)): values, "attention_mask": mask}
            feeds["token_type_ids"] = pad([rows[n].types for n in numbers])[0]
            (outputs,) = graph.run(feeds).values()
            for n, x in zip(numbers, outputs.numpy().astype(np.float64), strict=True):
                answers[n] = answer(rows[n], x, self.about, self.decode)
        return [answers[number] for number in range(len(rows))]

    classify = regress = embed = fill = predict

    def encode(self, values: Sequence[Any], truncate: bool = False, room: int = 0) -> list[Row]:
        """Encodes inputs; `room` is left for new tokens after a prompt."""
        return encode(values, self.about, self.input_tokenizer, truncate, room)

    def start(self, inputs: Sequence[Any]) -> State:
        """The state after prompts, or after the start tokens of the targets of sources."""
        decoder = self.graph("decoder")
        if "encoder" not in self.graphs:
            return State(decoder, inputs, {})
        encoder, (values, mask) = self.graph("encoder"), pad(inputs)
        outputs = encoder.run({next(iter(encoder.inputs)): values, "attention_mask": mask})
        source = {name.replace("present", "past_key_values"): x for name, x in outputs.items()}
        source["encoder_attention_mask"] = mask
        return State(decoder, [self.about["start"]] * len(inputs), source)

    def graph(self, part: str) -> Graph:
        """The graph of a part, if the model has it."""
        if part not in self.graphs:
            raise RunError(f"the model cannot do this; its command is {self.about['command']}")
        return self.graphs[part]

    def options(self, given: Options) -> Options:
        """All options; see `resolve_options`."""
        return resolve_options(self.about["generation"], given)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return "" if self.tokenizer is None else str(self.tokenizer.decode(tokens))

    def stable_length(self, tokens: list[int], text: str) -> int:
        """Number of characters of the text of tokens that later tokens do not change."""
        about, count = self.about["tokenizer"], len(tokens)
        length = len(text.rstrip("\ufffd"))  # without a part of a character
        if about["joins_bytes"]:  # an invalid byte changes the text of the bytes before it
            while count and re.fullmatch("<0x..>", self.tokenizer.id_to_token(tokens[count - 1])):
                count -= 1
            length = min(length, len(self.decode(tokens[:count])))
        return min(length, max(0, text.rfind(" "))) if about["joins_words"] else length

    def stop_function(self, options: Options) -> StopFunction:
        """Condition on the new tokens of a row: EOS, or a stop string in their text."""
        eos, stops = end_tokens(options), options["stop_strings"] or []
        return lambda tokens: (
            tokens[-1] in eos
            or (bool(stops) and any(stop in self.decode(tokens) for stop in stops))
        )


def read_description(path: Path) -> dict[str, Any]:
    """Reads export.json."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        form = about["format"]
        known = all(isinstance(about[x], dict) for x in ("files", "input", "output", "generation"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: missing or damaged ({error!r}); export the model again") from None
    if form != FORMAT or not known:
        raise RunError(f"{path}: format {form!r} is unknown; this run.py reads {FORMAT}")
    return about  # type: ignore[no-any-return]


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a file, which takes special tokens in texts as texts; None: no file."""
    if not path.exists():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare exceptions
        raise RunError(f"{path}: {error}") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


class Parser(argparse.ArgumentParser):
    """Parser whose errors are of the class RunError."""

    def error(self, message: str) -> NoReturn:
        """Raises a RunError."""
        raise RunError(f"{message}; see --help")


def run(arguments: Sequence[str] | None) -> None:
    """Runs a command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("inputs", nargs="*", help="texts; pairs and vectors as JSON; -: stdin")
    parser.add_argument("--folder", default=Path(__file__).parent, help="folder of export.json")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as cores")
    parser.add_argument("--truncate", action="store_true", help="truncate inputs that are too long")
    for name, (kind, _, _, _) in OPTIONS.items():
        action = "append" if name.startswith("stop_") else "store"
        parser.add_argument(f"--{name}", type=kind, action=action)
    values = vars(parser.parse_args(arguments))
    command, truncate = values["command"], values["truncate"]
    options = {name: values[name] for name in OPTIONS if values[name] is not None}
    model = Model(values["folder"], values["threads"])
    if command != model.about["command"]:
        known = model.about["command"] or "none: its graphs are for onnxruntime itself"
        raise RunError(f"the model cannot {command}; its command is {known}")
    inputs = values["inputs"]
    if inputs in ([], ["-"]):
        inputs = sys.stdin.read().splitlines()
    if model.about["input"]["kind"] != "text":
        inputs = [*map(read_json, inputs)]
    if command not in TEXT_COMMANDS:
        if options:
            raise RunError(f"{next(iter(options))} is for commands that generate text")
        for item in model.predict(inputs, truncate=truncate):
            print(json.dumps(item, ensure_ascii=False))
        return
    starts = inputs if command == "generate" else [""] * len(inputs)
    values = model.options(options)
    if len(inputs) == values["num_beams"] == values["num_return_sequences"] == 1:
        parts = model.stream(inputs[0], truncate=truncate, **options)
        first = next(parts, "")  # an error comes before the text
        for part in chain([starts[0], first], parts):
            print(part, end="", flush=True)
        print()
        return
    texts = model.generate(inputs, truncate=truncate, **options)
    for number, text in enumerate(texts):
        print(starts[number // values["num_return_sequences"]] + text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code, 2 for wrong input."""
    try:
        run(arguments)
    except RunError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
