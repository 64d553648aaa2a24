"""Faults in `miniformer.generation`."""

from tests.faults import fault

# Sampling.


@fault("miniformer.generation.sampling:shares")
def top_p_is_dropped(original):
    """Tokens outside the nucleus stay."""

    def shares(logits, options):
        import dataclasses

        return original(logits, dataclasses.replace(options, top_p=None))

    return shares


@fault("miniformer.generation.sampling:shares")
def min_p_is_of_the_whole(original):
    """min_p is compared with probabilities, not with a share of the likeliest."""

    def shares(logits, options):
        import dataclasses

        found, ids = original(logits, dataclasses.replace(options, min_p=None))
        if options.min_p is not None:
            found = found.masked_fill(found < options.min_p, 0.0)
        return found, ids

    return shares


@fault("miniformer.generation.sampling:choose")
def seed_is_ignored(original):
    """Tokens are drawn from the global generator."""
    return lambda logits, options, uniform=None: original(logits, options)


@fault("miniformer.generation.sampling:uniforms")
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


@fault("miniformer.generation.sampling:uniforms")
def rows_are_sampled_alike(original):
    """Each row has the same random numbers."""
    return lambda options, rows, device: original(options, [(0, 0)] * len(rows), device)


@fault("miniformer.generation.sampling:row_generator")
def speculated_rows_are_sampled_alike(original):
    """Each speculated text has the same random numbers."""
    return lambda options, row, device: original(options, (0, 0), device)


@fault("miniformer.generation.sampling:choose")
def sampling_is_one_token_off(original):
    """A number on the boundary between two tokens, such as 0, chooses the one before."""

    def choose(logits, options, uniform=None):
        import torch

        from miniformer.generation.sampling import shares

        if options.temperature == 0 or uniform is None:
            return original(logits, options, uniform)
        probabilities, ids = shares(logits, options)
        cumulated = probabilities.double().cumsum(-1)
        place = (uniform.double()[:, None] * cumulated[:, -1:]).contiguous()
        chosen = torch.searchsorted(cumulated, place)
        return (chosen if ids is None else ids.gather(1, chosen))[:, 0]

    return choose


@fault("miniformer.generation.processors:repetition")
def repetition_penalty_rewards_unlikely_tokens(original):
    """Logits below zero are divided by the penalty, too."""

    def repetition(tokens, logits, *, penalty):
        import torch

        changed = original(tokens, logits, penalty=penalty)
        return torch.where(changed != logits, logits / penalty, logits)

    return repetition


@fault("miniformer.generation.processors:occurrence")
def penalties_count_the_prompt(original):
    """Frequency and presence penalties are of prompt and text."""

    def occurrence(tokens, logits, *, prompt_length, frequency, presence):
        return original(tokens, logits, prompt_length=0, frequency=frequency, presence=presence)

    return occurrence


@fault("miniformer.generation.processors:check_finite")
def logits_that_are_nan_are_sampled(original):
    """NaN and infinite logits are not refused."""
    return lambda largest, step: None


# Decoding.


@fault("miniformer.generation.decoding:_log_p")
def log_probabilities_are_not_normalized(original):
    """Log-probabilities are logits of the tokens less the largest one."""

    def log_p(logits, token):
        found = logits.float().gather(1, token[:, None])[:, 0] - logits.float().amax(-1)
        return found.tolist()

    return log_p


@fault("miniformer.generation.decoding:Begun.keep")
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


@fault("miniformer.generation.decoding:Begun._forget")
def all_rows_slide_when_one_is_full(original):
    """Every text loses its beginning when the longest one does."""
    return lambda self, full: original(self, full | True)


@fault("miniformer.generation.generate:Written.of")
def end_of_text_is_part_of_it(original):
    """The token that ends a text stays in it."""

    def of(cls, tokens, log_p, ends, score=None):
        import dataclasses

        found = original(cls, tokens, log_p, ends, score)
        return dataclasses.replace(found, tokens=tokens[: len(found.tokens) + found.ended])

    return of


@fault("miniformer.generation.prompts:padded")
def prompts_are_padded_without_a_mask(original):
    """Shorter prompts are read with their padding."""
    return lambda rows, name: (original(rows, name)[0], None)


@fault("miniformer.generation.modes:evaluating")
def model_is_left_in_eval_mode(original):
    """Parts of a model do not get their modes back."""

    def evaluating(model):
        import contextlib

        model.train(False)
        return contextlib.nullcontext()

    return evaluating


# Beam search.


@fault("miniformer.generation.beam:Beams.rows")
def beams_change_places_without_their_tokens(original):
    """Beams that change places keep the tokens that they had."""

    def rows(self, chosen):
        import torch

        kept = (torch.arange(chosen.shape[1]) % self.tokens.shape[1]).expand_as(chosen)
        return original(self, chosen)._replace(tokens=original(self, kept).tokens)

    return rows


@fault("miniformer.generation.beam:Search._divisor")
def length_penalty_is_ignored(original):
    """Scores of hypotheses are sums."""
    return lambda self, length: 1.0


@fault("miniformer.generation.beam:Search.over")
def search_stops_at_the_next_token(original):
    """A search ends once its best hypotheses beat what the next token can reach."""

    def over(self):
        reachable = self.running.scores[:, 0] / self._divisor(self.step + 1)
        ended = self.ended.scores[:, -1].isfinite().all()
        return original(self) or bool(ended and (self.ended.scores[:, -1] >= reachable).all())

    return over


@fault("miniformer.generation.beam:Search.advance")
def beams_continue_from_the_first_row(original):
    """Every row's beams continue the hypotheses of row 0."""

    def advance(self, log_p, tokens=None):
        origin, token = original(self, log_p, tokens)
        return origin % self.beams, token

    return advance


# Speculation.


@fault("miniformer.generation.speculation:_judge")
def every_draft_token_is_accepted(original):
    """Draft tokens are kept whatever the model thinks."""

    def judge(allowed, guess, shares, generator):
        return (guess, True) if len(guess) else original(allowed, guess, shares, generator)

    return judge


@fault("miniformer.generation.speculation:_judge")
def rejected_draft_leaves_the_distribution_whole(original):
    """After a rejected draft token the next one is drawn as if there had been no draft."""

    def judge(allowed, guess, shares, generator):
        token, kept = original(allowed, guess, shares, generator)
        return (token, True) if kept else original(allowed, guess[:0], None, generator)

    return judge


# Streams and constraints.


@fault("miniformer.generation.constraint:Constraint._mask")
def answer_ends_before_it_is_whole(original):
    """The end of text is always allowed."""

    def mask(self, state):
        allowed = original(self, state)
        allowed[self.ends] = True
        return allowed

    return mask


@fault("miniformer.generation.constraint:Constraint.complete")
def cut_answer_passes_for_whole(original):
    """A text that ran out of tokens counts as complete."""
    return lambda self, tokens: True


@fault("miniformer.generation.pieces:open_stop")
def stop_prefix_is_given(original):
    """The beginning of a stop string is given out."""
    return lambda text, stops: 0


@fault("miniformer.generation.pieces:Pieces.add")
def stop_prefix_before_half_character_is_given(original):
    """Bytes of half a character hide the beginning of a stop string before them."""
    from miniformer.generation.pieces import open_stop

    def add(self, token):
        self.tokens.append(token)
        text = self.decode(self.tokens)
        settled = self.settled(self.tokens, text)
        return self._give(text, min(settled, len(text) - open_stop(text, self.stop.stops)))

    return add


@fault("miniformer.generation.pieces:StopAt._end")
def stop_window_starts_within_character(original):
    """A stop string is looked for in text whose first byte belongs to an earlier character."""
    return lambda self, tokens, count: self.decode(tokens[-count:])


@fault("miniformer.generation.pieces:StopAt.__call__")
def stop_window_is_too_short(original):
    """A stop string is looked for in the last tokens, though these may have no text."""

    def call(self, tokens):
        return self._within(self.decode(tokens[-4 * self.longest - 4 :]))

    return call


@fault("miniformer.generation.decoding:Begun.__init__")
def sliding_text_is_cut_one_token_early(original):
    """A text that slides is cut when it is as long as the model reads."""

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.longest -= self.slide

    return init


@fault("miniformer.generation.modes:evaluating")
def dropout_stays_on_in_generation(original):
    """A model in train mode generates in train mode."""
    import contextlib

    @contextlib.contextmanager
    def evaluating(model):
        yield

    return evaluating


@fault("miniformer.generation.processors:not_yet")
def text_may_end_one_token_early(original):
    """A text may end one token before its shortest length."""
    return lambda tokens, logits, *, ends, until: original(
        tokens, logits, ends=ends, until=until - 1
    )


@fault("miniformer.generation.processors:not_yet")
def text_may_end_one_token_late(original):
    """A text of its shortest length may not end."""
    return lambda tokens, logits, *, ends, until: original(
        tokens, logits, ends=ends, until=until + 1
    )


@fault("miniformer.generation.prompts:check")
def one_token_more_than_there_is_room_for(original):
    """A text may be one token longer than the model reads."""

    def check(config, ids, options):
        import dataclasses

        return original(
            dataclasses.replace(config, max_seq_len=config.max_seq_len + 1), ids, options
        )

    return check
