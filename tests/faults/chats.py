"""Seeded faults of conversations: what is learned of them, templates, tokens."""

import numpy as np

from tests.faults import fault


@fault("miniformer.data.batching.example_packing:ExamplePackingBatcher.collate")
def packing_drops_the_mask(original):
    """Packed windows have labels for prompts, too."""

    def collate(self, chunk, windows, rng=None):
        columns = {name: x for name, x in chunk.columns.items() if name != "learn"}
        offsets = {name: x for name, x in chunk.offsets.items() if name != "learn"}
        return original(self, type(chunk)(columns, offsets), windows, rng)

    return collate


@fault("miniformer.tasks.common.chat_texts:encode_chats")
def labels_one_early(original):
    """The mask is that of the tokens, not of the labels."""

    def encode_chats(*args, **options):
        return [
            {**x, "learn": np.append(False, x["learn"][:-1])[: len(x["learn"])]}
            for x in original(*args, **options)
        ]

    return encode_chats


@fault("miniformer.tasks.common.chat_texts:encode_chats")
def overlong_answers_are_cut(original):
    """A conversation that is too long loses its end."""

    def encode_chats(*args, seq_len, **options):
        examples = original(*args, seq_len=10**6, **options)
        return [{**x, "ids": x["ids"][:seq_len], "learn": x["learn"][:seq_len]} for x in examples]

    return encode_chats


@fault("miniformer.data.conversations.learned:_turn_end")
def answers_without_their_end(original):
    """The end of a turn is not learned, so that answers never stop."""

    def turn_end(template, tokenizer, messages, number, text, contents):
        return contents[number][1], True

    return turn_end


@fault("miniformer.data.conversations.learned:_answer_start")
def prompts_are_learned(original):
    """An answer begins at the question before it."""

    def answer_start(template, messages, number, text, contents):
        return contents[number - 1][0]

    return answer_start


@fault("miniformer.data.conversations.learned:find_learned")
def template_marks_are_needed(original):
    """Nothing is learned with a template that marks no answers."""

    def find_learned(template, tokenizer, messages, train_on):
        learned = original(template, tokenizer, messages, train_on)
        return learned if template.has_generation_tag else learned._replace(spans=[])

    return find_learned


@fault("miniformer.data.conversations.learned:spells_token")
def messages_make_special_tokens_in_training(original):
    """The rendered text is encoded as a whole."""
    return lambda segment, tokenizer: False


@fault("miniformer.data.conversations.sandbox:ChatEnvironment._step")
def steps_count_a_hundred_thousandfold(original):
    """A template of a few loops ends at the limit."""

    def step(self):
        self._steps += 99_999
        original(self)

    return step


@fault("miniformer.checkpoint.add_tokens:_with_rows")
def new_tokens_have_no_mean(original):
    """Rows of new tokens are zero."""

    def with_rows(tensor, size, rows, used):
        result = original(tensor, size, rows, used)
        result[rows] = 0
        return result

    return with_rows


@fault("miniformer.checkpoint.add_tokens:_save")
def old_tokenizer_files_stay(original):
    """The directory of an imported model keeps its tokenizer.json."""

    def save(pipeline, model, out):
        pipeline.model = model
        pipeline.save(out)

    return save


@fault("miniformer.checkpoint.chat:ChatSession.reset")
def reset_keeps_the_messages(original):
    """/reset does nothing."""
    return lambda self: None


@fault("miniformer.data.conversations.convert:LAYOUTS")
def inputs_are_left_out(original):
    """The input of an instruction is not converted."""
    alpaca = original["alpaca"]
    return {**original, "alpaca": lambda record: alpaca({**record, "input": ""})}


@fault("miniformer.checkpoint.chat:ChatSession._prompt")
def left_out_turns_are_not_stated(original):
    """Turns that no longer fit are left out silently."""

    def prompt(self, messages):
        result = original(self, messages)
        self.notes = []
        return result

    return prompt


@fault("miniformer.checkpoint.directory:save_directory")
def templates_are_not_stored(original):
    """A model directory has no chat template."""

    def save_directory(directory, *, task, **options):
        task = {name: value for name, value in task.items() if name != "chat_template"}
        original(directory, task=task, **options)

    return save_directory


@fault("miniformer.data.conversations.messages:_order_problem")
def second_turns_in_a_row_are_fine(original):
    """The order of turns is not checked."""
    return lambda previous, role: None


@fault("miniformer.commands.data_example:learned_example")
def nothing_is_marked_as_learned(original):
    """The example of `data check` has no marks around what is learned."""

    def learned_example(task, split, tokenizer):
        for line in original(task, split, tokenizer):
            yield line if "learned: in" in line else line.replace("[[", "").replace("]]", "")

    return learned_example


@fault("miniformer.commands.data_convert:run")
def invalid_records_are_dropped_unasked(original):
    """`data convert` drops invalid records without `--invalid drop`."""
    return lambda options: original({**options, "invalid": "drop"})


@fault("miniformer.commands.chat:talk")
def ctrl_c_ends_a_chat_at_once(original):
    """The first Ctrl-C ends a conversation in the terminal."""

    def talk(session, lines, *, interactive=False, write=None, note=None):
        return original(session, lines, interactive=False, write=write, note=note)

    return talk
