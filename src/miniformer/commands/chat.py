"""`miniformer chat`: a conversation with a model in the terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.commands.models import add_adapter_flag
from miniformer.config import GenerationConfig, UserError
from miniformer.config.command_line import add_config_flags, resolve_model

if TYPE_CHECKING:
    from miniformer.checkpoint.chat import ChatSession

# Of the tokenizer, or for several sequences.
_NO_FLAG = (
    "eos_id", "num_return_sequences", "num_beams", "length_penalty", "length_normalization",
    "num_beam_groups", "diversity_penalty", "context_shift",
)  # fmt: skip
_HELP = "/reset starts anew, /save FILE.jsonl stores the conversation, /exit ends"

DESCRIPTION = (
    "Talk to a model that was trained on conversations. Answers are streamed. Ctrl-C stops an "
    f"answer; a second one ends. {_HELP}. If standard input is no terminal, each line of it is a "
    "message. Options that are not given are those of the model's generation_config.json."
)
ONLY_GIVEN = True  # other options are those of the model directory


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument("--system", type=str, help="system message, before the first question")
    parser.add_argument(
        "--chat_template",
        type=str,
        help="a name, a file or a directory of a chat template; without it, that of the model",
    )
    add_adapter_flag(parser)
    add_config_flags(parser, GenerationConfig, skip=_NO_FLAG)


def run(values: dict[str, Any]) -> int:
    """Talks; returns the exit code."""
    directory, adapter = values.pop("directory"), values.pop("adapter", None)
    system, template = values.pop("system", None), values.pop("chat_template", None)
    GenerationConfig.from_dict(values)  # reports errors before torch is imported
    options, _ = GenerationConfig.current_names(values, warn=False)
    from miniformer.checkpoint.chat import ChatSession
    from miniformer.checkpoint.pipeline import load

    pipeline = load(resolve_model(directory), adapter=adapter)
    session = ChatSession(pipeline, template=template, system=system, **options)
    if not sys.stdin.isatty():
        return talk(session, _piped_lines())
    import readline  # noqa: F401  (keys of `input`)

    print(f"{shlex.quote(directory)}: {_HELP}", file=sys.stderr)
    return talk(session, iter(lambda: input("> "), None), interactive=True)


def talk(
    session: ChatSession,
    lines: Iterator[str],
    *,
    interactive: bool = False,
    write: Callable[[str], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> int:
    """Answers each line until the last one, /exit, or Ctrl-C twice; returns the exit code.

    Args:
        session: the conversation.
        lines: messages and commands.
        interactive: errors are shown, and the next line is read; false: they are raised.
        write: prints a piece of an answer.
        note: prints a line for the user.
    """
    write = write or (lambda text: print(text, end="", flush=True))
    note = note or (lambda text: print(f"({text})", file=sys.stderr, flush=True))
    interrupted = False
    while True:
        try:
            line = next(lines, None)
            if line is None or line.strip() in ("/exit", "/quit"):
                return 0
            if line.strip():
                _answer(session, line, write, note)
            interrupted = False
        except EOFError:
            write("\n")
            return 0
        except KeyboardInterrupt:
            write("\n")
            if interrupted or not interactive:
                return 130
            interrupted = True
            note("stopped; Ctrl-C again ends")
        except UserError as error:
            if not interactive:
                raise
            note(str(error))


def _answer(
    session: ChatSession, line: str, write: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Runs a command, or prints the answer to a message."""
    name, _, argument = line.strip().partition(" ")
    if name == "/reset":
        session.reset()
        note("a new conversation")
    elif name == "/save":
        if not argument:
            raise UserError("/save needs a file, such as /save chat.jsonl")
        session.save(Path(argument.strip()))
        note(f"added to {argument.strip()}")
    elif name.startswith("/") and name[1:].isalpha():
        note(f"{name} is no command; {_HELP}")
    else:
        stream = session.ask(line)
        num_notes = 0
        try:
            for part in stream:
                for text in session.notes[num_notes:]:
                    note(text)
                num_notes = len(session.notes)
                write(part)
            write("\n")
        finally:
            stream.close()  # type: ignore[attr-defined]  # a generator
        for text in session.notes[num_notes:]:
            note(text)


def _piped_lines() -> Iterator[str]:
    """Lines of standard input.

    Raises:
        UserError: they are not UTF-8.
    """
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            yield raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: line {number}: {error}; give UTF-8") from None
