"""Seeded faults of the server."""

from tests.faults import fault


@fault("miniformer.runtime.native.slot_engine:NativeSlotEngine._prompt_parts")
def prompts_skip_a_token(original):
    """The last token of a part of a prompt is not read."""

    def prompt_parts(self, tokens, limit):
        parts = original(self, tokens, limit)
        for index, count in parts:
            if count > 1 and self._slots[index].num_cached:
                del self._slots[index].ids[self._slots[index].num_cached]
                return [(index, count - 1)]
        return parts

    return prompt_parts


@fault("miniformer.generation.slots:SlotDecoder.add")
def copies_share_their_samples(original):
    """All continuations of a prompt draw the same numbers."""
    return lambda self, *args, **options: original(self, *args, **{**options, "copy": 0})


@fault("miniformer.generation.slots:SlotDecoder._set_top")
def top_tokens_are_not_normalized(original):
    """The most likely tokens have logits in place of log-probabilities."""

    def set_top(sequences, logits):
        original(sequences, logits)
        for row, item in enumerate(sequences):
            item.top = [(token, float(logits[row, token])) for token, _ in item.top]

    return staticmethod(set_top)


@fault("miniformer.serving.routes.answers:usage")
def usage_is_off_by_one(original):
    """The last token is not counted."""
    return lambda prompt_tokens, new_tokens: original(prompt_tokens, new_tokens - 1)


@fault("miniformer.generation.detokenizer:StreamingDetokenizer.flush")
def streams_lose_held_back_text(original):
    """Text that is held back at the end is not sent."""
    return lambda self: ""


@fault("miniformer.data.chat:ChatTemplate.render")
def templates_are_left_out(original):
    """A chat is the texts of its messages."""
    return lambda self, messages, **options: "".join(item["content"] for item in messages)


@fault("miniformer.data.chat:ChatTemplate.encode")
def messages_make_special_tokens(original):
    """The rendered text is encoded as a whole."""

    return lambda self, messages, tokenizer: tokenizer.encode_template(self.render(messages)).ids


@fault("miniformer.serving.scheduling.worker:Worker._drop_cancelled")
def cancelled_rows_go_on(original):
    """Sequences of clients that have left are decoded to their end."""
    return lambda self: None


@fault("miniformer.serving.scheduling.jobs:FairQueue.push")
def a_full_queue_takes_more(original):
    """The limit of the queue is ignored."""

    def push(self, jobs):
        self.limit = 10**9
        return original(self, jobs)

    return push


@fault("miniformer.serving.scheduling.jobs:FairQueue.pop")
def a_request_of_many_texts_keeps_its_turn(original):
    """Jobs come in the order of arrival."""

    def pop(self):
        job = original(self)
        if job is not None and job.request in self._requests:
            self._requests.move_to_end(job.request, last=False)
        return job

    return pop


@fault("miniformer.serving.guard:Guard._check_key")
def keys_are_compared_by_their_start(original):
    """A part of a key is enough."""

    def check_key(self, scope):
        headers = dict(scope["headers"])
        key = headers.get(b"authorization", b"").partition(b" ")[2]
        if not key or not any(own.startswith(key) for own in self.keys):
            original(self, scope)

    return check_key


@fault("miniformer.serving.guard:Guard._read_body")
def bodies_have_no_limit(original):
    """Bodies of any size are read."""

    async def read_body(self, scope, receive):
        self.max_body = 10**12
        return await original(self, scope, receive)

    return read_body


@fault("miniformer.serving.routes.logit_bias:logit_bias")
def biases_are_left_out(original):
    """`logit_bias` is checked and ignored."""

    def logit_bias(biases, vocab_size):
        original(biases, vocab_size)

    return logit_bias


@fault("miniformer.serving.errors:as_api_error")
def a_broken_model_is_the_clients_fault(original):
    """Logits that are not finite are a bad request."""

    def as_api_error(error):
        result = original(error)
        result.status = min(result.status, 400)
        return result

    return as_api_error


@fault("miniformer.serving.routes.attention:source_attention")
def attention_begins_one_token_late(original):
    """The map is that of the following target tokens."""

    def source_attention(pipeline, source, target):
        result = original(pipeline, source, target)
        return {**result, "weights": result["weights"][1:]}

    return source_attention


@fault("miniformer.serving.generation:token_name")
def bytes_have_no_names(original):
    """Tokens of incomplete characters are replacement characters."""
    return lambda tokenizer, token: tokenizer.decode([token])


@fault("miniformer.serving.models:parse_names")
def names_of_models_may_repeat(original):
    """A second model of a name replaces the first."""

    def parse_names(arguments):
        return {argument.rpartition("=")[0] or argument: argument for argument in arguments}

    return parse_names


@fault("miniformer.serving.scheduling.worker:num_slots")
def memory_does_not_limit_slots(original):
    """`memory` is ignored."""
    return lambda model_config, config, has_source=False: config.slots


@fault("miniformer.serving.config:ServeConfig.cross_check")
def any_address_needs_no_key(original):
    """The server listens on all addresses without a key."""
    return lambda self: []


@fault("miniformer.serving.app:make_app")
def requests_have_no_guard(original):
    """Keys and sizes of bodies are not checked."""

    def make_app(models, config, metrics):
        app = original(models, config, metrics)
        app.user_middleware.clear()
        return app

    return make_app


@fault("miniformer.serving.command:run")
def the_command_drops_settings(original):
    """Flags of `serve` are ignored."""
    return lambda values: original({"models": values["models"]})


@fault("miniformer.serving.metrics:Metrics.count_step")
def steps_count_as_tokens(original):
    """A step of several sequences counts as one token."""
    return lambda self, num_tokens, seconds: original(self, 1, seconds)


@fault("miniformer.serving.routes.bodies:Sampling.generation_options")
def stop_strings_are_not_passed_on(original):
    """`stop` is ignored."""

    def generation_options(self):
        options = original(self)
        options.pop("stop_strings", None)
        return options

    return generation_options


@fault("miniformer.serving.routes.openai:_prompt_list")
def prompts_are_answered_in_reverse(original):
    """Choices belong to other prompts."""
    return lambda prompt: original(prompt)[::-1]


@fault("miniformer.serving.routes.schemas:check_fields")
def unknown_fields_have_no_hint(original):
    """An unknown field does not name the nearest one."""
    return lambda values, known: values


@fault("miniformer.serving.routes.tasks:_predict")
def long_inputs_are_truncated(original):
    """Inputs that are too long are cut without a message."""

    async def predict(body, request, tasks):
        body.truncate = True
        return await original(body, request, tasks)

    return predict


@fault("miniformer.serving.server:_name_of")
def folders_do_not_name_models(original):
    """A single model is named model."""
    return lambda model: "model"


@fault("miniformer.serving.state:ServerState.template")
def templates_are_not_read(original):
    """Every model is a base model."""
    return lambda self, model: None


@fault("miniformer.serving.scheduling.pacing:PromptPacer.limit")
def prompts_are_read_as_fast_as_they_can_be(original):
    """The times of steps are ignored."""
    return lambda self, num_running, num_waiting: self.most


@fault("miniformer.serving.scheduling.pacing:PromptPacer.limit")
def waiting_sequences_do_not_count(original):
    """Many prompts are read as slowly as one."""
    return lambda self, num_running, num_waiting: original(self, num_running, 1)


@fault("miniformer.serving.scheduling.pacing:PromptPacer.limit")
def unknown_steps_read_few_tokens(original):
    """A number of sequences whose time is unknown stays unknown while prompts wait."""
    return lambda self, num_running, num_waiting: original(self, num_running, num_waiting) or 16


@fault("miniformer.serving.scheduling.predictions:run_predictions")
def joined_answers_go_to_the_next_request(original):
    """The first joined request gets the answers from the second input on."""
    import dataclasses

    def run_predictions(jobs):
        function = jobs[0].function
        shifted = dataclasses.replace(
            jobs[0], function=lambda inputs: [*(x := function(inputs))[1:], *x[:1]]
        )
        original([shifted, *jobs[1:]])

    return run_predictions


@fault("miniformer.serving.scheduling.predictions:run_predictions")
def an_invalid_input_fails_all_that_are_joined(original):
    """The error of one request is that of the others."""
    from miniformer.serving.scheduling.jobs import Failure

    def run_predictions(jobs):
        try:
            jobs[0].function([item for job in jobs for item in job.inputs])
        except Exception as error:
            for job in jobs:
                job.send(Failure(error))
        else:
            original(jobs)

    return run_predictions


@fault("miniformer.serving.scheduling.predictions:join_waiting")
def any_number_of_inputs_is_joined(original):
    """All waiting predictions of a group are computed at once."""

    def join_waiting(first, queue):
        jobs = iter(lambda: queue.pop_where(lambda job: job.group == first.group), None)
        return [first, *jobs]

    return join_waiting


@fault("miniformer.serving.routes.echo:prompt_tokens")
def echoed_tokens_have_the_scores_of_their_neighbors(original):
    """The log-probabilities of a prompt are one place too late."""

    def prompt_tokens(pipeline, prompt, inputs, num_top):
        import dataclasses

        tokens = original(pipeline, prompt, inputs, num_top)
        values = [tokens[0].logprob, *(token.logprob for token in tokens)]
        return [
            dataclasses.replace(token, logprob=value)
            for token, value in zip(tokens, values[: len(tokens)], strict=True)
        ]

    return prompt_tokens


@fault("miniformer.serving.routes.tasks:are_texts")
def whole_translations_are_calls(original):
    """A translation without beams is a call, for which all streams of the model wait."""
    return lambda values: False


@fault("miniformer.serving.routes.translations:encode_prompts")
def errors_of_translations_name_a_prompt(original):
    """An error of a source names the field of completions."""

    def encode_prompts(model, prompts, *, truncate, room, field="prompt"):
        return original(model, prompts, truncate=truncate, room=room)

    return encode_prompts


@fault("miniformer.serving.routes.translations:encode_prompts")
def streamed_translations_lose_their_source(original):
    """All pieces answer the first source."""

    def encode_prompts(model, prompts, **options):
        return original(model, [prompts[0] for _ in prompts], **options)

    return encode_prompts


@fault("miniformer.serving.server:_run_until_asked_to_end")
def ctrl_c_of_a_server_is_an_interrupted_command(original):
    """Ctrl-C leaves the server as an exception."""
    return lambda settings, listener: __import__("uvicorn").Server(settings).run(sockets=[listener])
