"""BERT's WordPiece: the words in a folder of whoever made it, and the tokenizer that is built of them.

A tokenizer is built from its words and from how a text is read, and from nothing else: what a file asks for
besides (truncation, padding, tokens around a text) has no say, and one vocabulary has one form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import AddedToken, Tokenizer
    from tokenizers.normalizers import BertNormalizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's own; looked up by these names, wherever they stand."""
EXTRA = ("[DEC]", "[ENC]")
"""Added after the vocabulary, in this order, as in BLIP's released code."""
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

_LONGEST_WORD = 100
"""Characters; BERT reads a longer word as [UNK]."""


@dataclass(frozen=True)
class Reading:
    """What is done to a text before its words are looked up (BERT's normaliser)."""

    lowercase: bool = True
    strip_accents: bool | None = None
    """None: where case is not read either."""
    chinese_apart: bool = True
    """Each CJK sign is a word."""
    clean_text: bool = True
    """Control characters are left out, and all white space is blanks."""

    def normalizer(self) -> BertNormalizer:
        """Return the library's normaliser that does so."""
        from tokenizers.normalizers import BertNormalizer

        return BertNormalizer(
            clean_text=self.clean_text,
            handle_chinese_chars=self.chinese_apart,
            strip_accents=self.strip_accents,
            lowercase=self.lowercase,
        )


@dataclass(frozen=True)
class Words:
    """What a folder's files say: words in the order of their ids, and how a text is read."""

    file: Path
    words: list[str]
    reading: Reading
    added: list[AddedToken]
    """Words of its own that a file has looked for in the text itself."""


def read_words(folder: Path) -> Words:
    """Read tokenizer.json, else vocab.txt; how a text is read goes by tokenizer_config.json where it says so.

    Raises CapfiltError where neither is there, for files that cannot be read or hold a tokenizer of another
    kind, and unless each id from 0 on has one word.
    """
    if (folder / TOKENIZER_FILE).is_file():
        found = _tokenizer_json(folder / TOKENIZER_FILE)
    elif (folder / VOCABULARY_FILE).is_file():
        found = _vocab_txt(folder / VOCABULARY_FILE)
    else:
        raise CapfiltError(
            f"{folder} holds neither {TOKENIZER_FILE} nor {VOCABULARY_FILE}",
            fix="give a whole bundle or checkpoint, with its tokenizer",
        )
    return replace(found, reading=_configured(folder / TOKENIZER_CONFIG_FILE, found.reading))


def _tokenizer_json(file: Path) -> Words:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise _unreadable(file, error) from error
    model, normalizer = tokenizer.model, tokenizer.normalizer
    if (
        not isinstance(model, WordPiece)
        or not isinstance(normalizer, BertNormalizer)
        or not isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        or (model.unk_token, model.continuing_subword_prefix) != ("[UNK]", "##")
        or model.max_input_chars_per_word != _LONGEST_WORD
    ):
        raise CapfiltError(
            f"{file} is a tokenizer of another kind than BERT's WordPiece",
            fix="give a BLIP checkpoint with the tokenizer it was trained with",
        )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    words = sorted(ids, key=ids.__getitem__)
    hole = next((number for number, word in enumerate(words) if ids[word] != number), None)
    if hole is not None:
        raise CapfiltError(
            f"{file} has no word of its own for id {hole}", fix="give a tokenizer whose ids run from 0 on"
        )
    named = tokenizer.get_added_tokens_decoder()
    ours = (*SPECIAL, *EXTRA)
    added = [named[number] for number in sorted(named) if named[number].content not in ours]
    reading = Reading(
        normalizer.lowercase, normalizer.strip_accents, normalizer.handle_chinese_chars, normalizer.clean_text
    )
    return Words(file, words, reading, added)


def _vocab_txt(file: Path) -> Words:
    try:
        words = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    numbers: dict[str, int] = {}
    for number, word in enumerate(words):
        if numbers.setdefault(word, number) != number:
            raise CapfiltError(
                f"{file} has the word {word!r} in line {numbers[word] + 1} and in line {number + 1}",
                fix="give a vocabulary with one word a line and each once",
            )
    return Words(file, words, Reading(), [])


def _configured(file: Path, reading: Reading) -> Reading:
    """Return how a text is read by tokenizer_config.json, and by `reading` where it says nothing."""
    if not file.is_file():
        return reading
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    names = {
        "lowercase": "do_lower_case",
        "strip_accents": "strip_accents",
        "chinese_apart": "tokenize_chinese_chars",
    }
    said = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    for ours, value in said.items():
        if not isinstance(value, bool) and not (ours == "strip_accents" and value is None):
            raise CapfiltError(
                f"{file}: {names[ours]} is {value!r}", fix=f"set {names[ours]} to true or false"
            )
    return replace(reading, **said)


def _unreadable(file: Path, error: Exception) -> CapfiltError:
    return CapfiltError(
        f"{file} cannot be read: {error}", fix="give a whole bundle or checkpoint, with its tokenizer"
    )


def build_tokenizer(ids: dict[str, int], reading: Reading, added: Sequence[AddedToken]) -> Tokenizer:
    """Build BERT's tokenizer of these words; around a text it puts [CLS] and [SEP] for whoever asks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = reading.normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens([token for token in (*SPECIAL, *EXTRA) if token in ids])
    tokenizer.add_tokens(list(added))
    # "[SEP]" in a stranger's text is five characters: a real one would end the text there.
    tokenizer.encode_special_tokens = True
    return tokenizer
