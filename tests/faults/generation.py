"""Faults in `miniformer.generation`."""

from tests.faults import fault

# Sampling.


@fault("miniformer.generation.sampling:filtered_probs")
def top_p_is_dropped(original):
    """Tokens outside the nucleus stay."""

    def shares(logits, options):
        import dataclasses

        return original(logits, dataclasses.replace(options, top_p=None))

    return shares


@fault("miniformer.generation.sampling:filtered_probs")
def min_p_is_of_the_whole(original):
    """min_p is compared with probabilities, not with a share of the likeliest."""

    def shares(logits, options):
        import dataclasses

        found, ids = original(logits, dataclasses.replace(options, min_p=None))
        if options.min_p is not None:
            found = found.masked_fill(found < options.min_p, 0.0)
        return found, ids

    return shares


@fault("miniformer.generation.sampling:sample_next_token")
def seed_is_ignored(original):
    """Tokens are drawn from the global generator."""
    return lambda logits, options, uniform=None: original(logits, options)


@fault("miniformer.generation.sampling:row_uniforms")
def rows_share_one_generator(original):
    """All rows draw from one generator, so that a row's text depends on the others."""

    def uniforms(options, rows, device):
        import torch

        if options.temperature == 0:
            return None
        generator = torch.Generator().manual_seed(options.seed or 0)
        shape = options.max_new_tokens, len(rows)
        return torch.rand(shape, generator=generator, dtype=torch.float64).T.to(device)

    return uniforms


@fault("miniformer.generation.sampling:row_uniforms")
def rows_are_sampled_alike(original):
    """Each row has the same random numbers."""
    return lambda options, rows, device: original(options, [(0, 0)] * len(rows), device)


@fault("miniformer.generation.sampling:row_generator")
def speculated_rows_are_sampled_alike(original):
    """Each speculated text has the same random numbers."""
    return lambda options, row, device: original(options, (0, 0), device)


@fault("miniformer.generation.sampling:sample_next_token")
def sampling_is_one_token_off(original):
    """A number on the boundary between two tokens, such as 0, chooses the one before."""

    def choose(logits, options, uniform=None):
        import torch

        from miniformer.generation.sampling import filtered_probs

        if options.temperature == 0 or uniform is None:
            return original(logits, options, uniform)
        probabilities, ids = filtered_probs(logits, options)
        cumulated = probabilities.double().cumsum(-1)
        place = (uniform.double()[:, None] * cumulated[:, -1:]).contiguous()
        chosen = torch.searchsorted(cumulated, place)
        return (chosen if ids is None else ids.gather(1, chosen))[:, 0]

    return choose


@fault("miniformer.generation.logits_processors:repetition_penalty")
def repetition_penalty_rewards_unlikely_tokens(original):
    """Logits below zero are divided by the penalty, too."""

    def repetition(tokens, logits, *, penalty):
        import torch

        changed = original(tokens, logits, penalty=penalty)
        return torch.where(changed != logits, logits / penalty, logits)

    return repetition


@fault("miniformer.generation.logits_processors:frequency_presence_penalty")
def penalties_count_the_prompt(original):
    """Frequency and presence penalties are of prompt and text."""

    def occurrence(tokens, logits, *, prompt_length, frequency, presence):
        return original(tokens, logits, prompt_length=0, frequency=frequency, presence=presence)

    return occurrence


@fault("miniformer.generation.logits_processors:check_finite")
def logits_that_are_nan_are_sampled(original):
    """NaN and infinite logits are not refused."""
    return lambda largest, step: None


# Decoding.


@fault("miniformer.generation.loop:_token_logprobs")
def log_probabilities_are_not_normalized(original):
    """Log-probabilities are logits of the tokens less the largest one."""

    def log_p(logits, token):
        found = logits.float().gather(1, token[:, None])[:, 0] - logits.float().amax(-1)
        return found.tolist()

    return log_p


@fault("miniformer.generation.loop:DecodingState.select_rows")
def remaining_rows_continue_other_texts(original):
    """Where a row has ended, the others continue from the rows before them."""

    def keep(self, rows, copies=1):
        import torch

        if copies == 1 and len(rows) < len(self.tokens):
            tokens = self.tokens[rows]
            original(self, torch.arange(len(rows)), copies)
            self.tokens = tokens
        else:
            original(self, rows, copies)

    return keep


@fault("miniformer.generation.loop:DecodingState._truncate_context")
def all_rows_slide_when_one_is_full(original):
    """Every text loses its beginning when the longest one does."""
    return lambda self, full: original(self, full | True)


@fault("miniformer.generation.api:GenerationOutput.from_tokens")
def end_of_text_is_part_of_it(original):
    """The token that ends a text stays in it."""

    def of(cls, tokens, log_p, ends, score=None):
        import dataclasses

        found = original(cls, tokens, log_p, ends, score)
        return dataclasses.replace(found, tokens=tokens[: len(found.tokens) + found.finished])

    return of


@fault("miniformer.generation.inputs:left_pad")
def prompts_are_padded_without_a_mask(original):
    """Shorter prompts are read with their padding."""
    return lambda rows, name: (original(rows, name)[0], None)


@fault("miniformer.generation.modes:eval_mode")
def model_is_left_in_eval_mode(original):
    """Parts of a model do not get their modes back."""

    def evaluating(model):
        import contextlib

        model.train(False)
        return contextlib.nullcontext()

    return evaluating


# Beam search.


@fault("miniformer.generation.beam_search:BeamHypotheses.select")
def beams_change_places_without_their_tokens(original):
    """Beams that change places keep the tokens that they had."""

    def rows(self, chosen):
        import torch

        kept = (torch.arange(chosen.shape[1]) % self.tokens.shape[1]).expand_as(chosen)
        return original(self, chosen)._replace(tokens=original(self, kept).tokens)

    return rows


@fault("miniformer.generation.beam_search:BeamSearch._length_divisor")
def length_penalty_is_ignored(original):
    """Scores of hypotheses are sums."""
    return lambda self, length: 1.0


@fault("miniformer.generation.beam_search:BeamSearch.is_done")
def search_stops_at_the_next_token(original):
    """A search ends once its best hypotheses beat what the next token can reach."""

    def over(self):
        reachable = self.running.scores[:, 0] / self._length_divisor(self.step + 1)
        ended = self.finished.scores[:, -1].isfinite().all()
        return original(self) or bool(ended and (self.finished.scores[:, -1] >= reachable).all())

    return over


@fault("miniformer.generation.beam_search:BeamSearch.advance")
def beams_continue_from_the_first_row(original):
    """Every row's beams continue the hypotheses of row 0."""

    def advance(self, log_p, tokens=None):
        origin, token = original(self, log_p, tokens)
        return origin % self.beams_per_group, token

    return advance


# Speculation.


@fault("miniformer.generation.speculative:_accept_or_resample")
def every_draft_token_is_accepted(original):
    """Draft tokens are kept whatever the model thinks."""

    def judge(allowed, guess, shares, generator):
        return (guess, True) if len(guess) else original(allowed, guess, shares, generator)

    return judge


@fault("miniformer.generation.speculative:_accept_or_resample")
def rejected_draft_leaves_the_distribution_whole(original):
    """After a rejected draft token the next one is drawn as if there had been no draft."""

    def judge(allowed, guess, shares, generator):
        token, kept = original(allowed, guess, shares, generator)
        return (token, True) if kept else original(allowed, guess[:0], None, generator)

    return judge


# Streams and constraints.


@fault("miniformer.generation.constrained:Constraint._allowed_tokens")
def answer_ends_before_it_is_whole(original):
    """The end of text is always allowed."""

    def mask(self, state):
        allowed = original(self, state)
        allowed[self.eos_token_ids] = True
        return allowed

    return mask


@fault("miniformer.generation.constrained:Constraint.is_complete")
def cut_answer_passes_for_whole(original):
    """A text that ran out of tokens counts as complete."""
    return lambda self, tokens: True


@fault("miniformer.generation.detokenizer:partial_stop_length")
def stop_prefix_is_given(original):
    """The beginning of a stop string is given out."""
    return lambda text, stops: 0


@fault("miniformer.generation.detokenizer:StreamingDetokenizer.add_token")
def stop_prefix_before_half_character_is_given(original):
    """Bytes of half a character hide the beginning of a stop string before them."""
    from miniformer.generation.detokenizer import partial_stop_length

    def add(self, token):
        self.tokens.append(token)
        text = self.decode(self.tokens)
        settled = self.stable_length(self.tokens, text)
        return self._emit(
            text, min(settled, len(text) - partial_stop_length(text, self.stop.stop_strings))
        )

    return add


@fault("miniformer.generation.detokenizer:StopStringChecker._decode_tail")
def stop_window_starts_within_character(original):
    """A stop string is looked for in text whose first byte belongs to an earlier character."""
    return lambda self, tokens, count: self.decode(tokens[-count:])


@fault("miniformer.generation.detokenizer:StopStringChecker.__call__")
def stop_window_is_too_short(original):
    """A stop string is looked for in the last tokens, though these may have no text."""

    def call(self, tokens):
        return self._contains_stop(self.decode(tokens[-4 * self.max_stop_length - 4 :]))

    return call


@fault("miniformer.generation.loop:DecodingState.__init__")
def sliding_text_is_cut_one_token_early(original):
    """A text that slides is cut when it is as long as the model reads."""

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.max_seq_len -= self.truncate

    return init


@fault("miniformer.generation.modes:eval_mode")
def dropout_stays_on_in_generation(original):
    """A model in train mode generates in train mode."""
    import contextlib

    @contextlib.contextmanager
    def evaluating(model):
        yield

    return evaluating


@fault("miniformer.generation.logits_processors:min_new_tokens")
def text_may_end_one_token_early(original):
    """A text may end one token before its shortest length."""
    return lambda tokens, logits, *, ends, until: original(
        tokens, logits, ends=ends, until=until - 1
    )


@fault("miniformer.generation.logits_processors:min_new_tokens")
def text_may_end_one_token_late(original):
    """A text of its shortest length may not end."""
    return lambda tokens, logits, *, ends, until: original(
        tokens, logits, ends=ends, until=until + 1
    )


@fault("miniformer.generation.inputs:check_prompts")
def one_token_more_than_there_is_room_for(original):
    """A text may be one token longer than the model reads."""

    def check(config, ids, options):
        import dataclasses

        return original(
            dataclasses.replace(config, max_seq_len=config.max_seq_len + 1), ids, options
        )

    return check
