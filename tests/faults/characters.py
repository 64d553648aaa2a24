"""Faults in the features of character n-grams."""

from tests.faults import fault


@fault("miniformer.model.wide_head.characters:CharacterFeatures.characters")
def characters_of_padding_count(original):
    """Padding has characters, too."""
    return lambda self, inputs: original(self, {**inputs, "attention_mask": None})


@fault("miniformer.model.wide_head.characters:character_keys")
def ngrams_of_characters_cross_words(original):
    """A space is a character like others."""

    def character_keys(codes, types, *, length):
        return original(codes + (codes > 0), types, length=length)

    return character_keys


@fault("miniformer.training.tuning.wide_head.characters:token_texts")
def tokens_lose_their_spaces(original):
    """The first token of a word has no space."""
    return lambda tokenizer: [text.strip() for text in original(tokenizer)]


@fault("miniformer.training.tuning.wide_head.characters:propose_characters")
def characters_are_left_out(original):
    """Texts have n-grams of tokens alone."""
    return lambda config, data: []
