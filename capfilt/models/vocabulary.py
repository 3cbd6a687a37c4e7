"""Words to token ids and back: BERT's WordPiece vocabulary with BLIP's two extra tokens.

A text is always [CLS] ... [SEP]; the first id is then replaced by the function that reads it:
kept for the unimodal encoder, [ENC] for the image-grounded encoder, [DEC] for the decoder.

A vocabulary is kept as its words and how a text is read (`wordpiece`), so that it is written as the same
bytes wherever it came from.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from capfilt.canonical import canonical_json, digest_of
from capfilt.errors import CapfiltError
from capfilt.models.wordpiece import (
    EXTRA,
    SPECIAL,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    Reading,
    Words,
    build_tokenizer,
    read_words,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tokenizers import AddedToken

SPECIAL_TOKENS_FILE = "special_tokens_map.json"
PLACE = "<image>"
"""Holds the place of a query in transformers' rows of queries and text."""

First = Literal["cls", "enc", "dec"]
"""Who reads a text: the unimodal encoder, the image-grounded encoder or the decoder."""

_ENDS = ("n't", "'m", "'s", "'ve", "'re")
_JOINED = (*((f" {mark}", mark) for mark in ".?!,"), (" ' ", "'"), *((f" {end}", end) for end in _ENDS))
"""What stands apart as tokens and together in a text, in the order of transformers."""


class Vocabulary:
    """A WordPiece tokenizer that knows BLIP's special tokens.

    `words` stand in the order of their ids and hold SPECIAL. `dec` begins captions where there is no [DEC];
    `added` are tokens among the words that a file has looked for in the text itself.
    """

    def __init__(
        self,
        words: Sequence[str],
        reading: Reading,
        *,
        dec: int | None = None,
        added: Sequence[AddedToken] = (),
    ) -> None:
        ids = {word: number for number, word in enumerate(words)}
        self.reading = reading
        self.pad, self.cls, self.sep = ids["[PAD]"], ids["[CLS]"], ids["[SEP]"]
        self.dec: int | None = ids.get("[DEC]", dec)
        """Begins a caption; None where a checkpoint names no such token."""
        self.enc: int | None = ids.get("[ENC]")
        """Begins a text that is matched; None where a checkpoint has no [ENC]."""
        self._words = tuple(words)
        self._tokenizer = build_tokenizer(ids, reading, added)

    def __len__(self) -> int:
        return len(self._words)

    @cached_property
    def digest(self) -> str:
        """Digest of the words in the order of their ids and of how a text is read: equal for equal ids."""
        reading = self.reading
        accents = reading.lowercase if reading.strip_accents is None else reading.strip_accents
        flags = [reading.lowercase, accents, reading.chinese_apart, reading.clean_text]
        return digest_of({"words": self._words, "reading": flags, "added": self._added()})

    def first_id(self, first: First) -> int:
        """Return the id that a text begins with; a checkpoint's vocabulary may lack the one that is asked."""
        found = {"cls": self.cls, "enc": self.enc, "dec": self.dec}[first]
        if found is not None:
            return found
        if first == "enc":
            raise CapfiltError(
                "the filter's vocabulary has no [ENC] to begin a text with",
                fix="begin it with [CLS]: --set filter.match_token=cls",
            )
        raise CapfiltError(
            "the vocabulary has no token that begins a caption",
            fix="give a captioner: a checkpoint whose config.json names a bos_token_id",
        )

    def encode(self, texts: Sequence[str], first: First, max_tokens: int) -> tuple[Tensor, Tensor]:
        """Return ids and `real`, both (texts, longest): long, and true where a token is no padding.

        A text longer than `max_tokens` is cut and keeps its final [SEP]. The name of a special token
        in a text is read as the characters it is written with.
        """
        start = self.first_id(first)
        encodings = self._tokenizer.encode_batch(
            [_encodable(text) for text in texts], add_special_tokens=False
        )
        rows = [[start, *encoding.ids[: max_tokens - 2], self.sep] for encoding in encodings]
        longest = max(map(len, rows), default=2)
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in rows])
        return ids.view(len(rows), longest), torch.arange(longest)[None, :] < lengths[:, None]

    def prompt(self, text: str) -> list[int]:
        """Return [DEC] and the ids of the words a caption begins with."""
        ids: list[int] = self._tokenizer.encode(_encodable(text), add_special_tokens=False).ids
        return [self.first_id("dec"), *ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out and no blank before a mark.

        Source: the released code, whose tokenizer cleans up blanks; transformers does so where its
        clean_up_tokenization_spaces is set, as in the files below.
        """
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        # The library looks at one token at a time: it joins a comma to its word, and leaves "it ' s".
        for apart, together in _JOINED:
            text = text.replace(apart, together)
        # It also keeps the mark of a piece that continues a word where no word came before it.
        return text.strip().removeprefix("##")

    def files(self) -> dict[str, bytes]:
        """Return the files of the vocabulary by name, the same bytes every time.

        With them a folder is a tokenizer of transformers too, of the same size and with the same ids.
        """
        tokens = self._special_tokens()
        config = {
            **tokens,
            "added_tokens_decoder": self._added(),
            "clean_up_tokenization_spaces": True,
            "do_lower_case": self.reading.lowercase,
            "strip_accents": self.reading.strip_accents,
            "tokenize_chinese_chars": self.reading.chinese_apart,
            "tokenizer_class": "BertTokenizer",
        }
        return {
            TOKENIZER_FILE: self._tokenizer.to_str().encode("utf-8"),
            VOCABULARY_FILE: "".join(f"{word}\n" for word in self._words).encode("utf-8"),
            TOKENIZER_CONFIG_FILE: f"{canonical_json(config)}\n".encode(),
            SPECIAL_TOKENS_FILE: f"{canonical_json(tokens)}\n".encode(),
        }

    def save(self, folder: Path) -> None:
        """Write the files into a folder that is there."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)

    def _special_tokens(self) -> dict[str, Any]:
        """Return the special tokens by the names that transformers has for them."""
        tokens: dict[str, Any] = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
        if "[DEC]" in self._words:
            tokens["bos_token"] = "[DEC]"
        if "[ENC]" in self._words:
            tokens["additional_special_tokens"] = ["[ENC]"]
        return tokens

    def _added(self) -> dict[str, dict[str, str | bool]]:
        """Return the tokens that are looked for in the text itself, by id, as transformers writes them."""
        return {
            str(number): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for number, token in sorted(self._tokenizer.get_added_tokens_decoder().items())
        }


def load_vocabulary(folder: Path, *, entries: int | None = None, dec: int | None = None) -> Vocabulary:
    """Read the vocabulary of a bundle, of a transformers folder or of BERT: tokenizer.json, else vocab.txt.

    Where tokenizer_config.json says how case, accents and CJK signs are read, it has the last word, as in
    transformers. [DEC] and [ENC] are added after a vocabulary that has neither, as the released code does,
    unless a model with embeddings for `entries` words has no room for them: then `dec`, its bos_token_id,
    begins captions (None for a filter) and there is no [ENC]. BLIP-2 adds [DEC] alone, and the <image> that
    transformers puts behind it, for which no model has an embedding, is left out. Raises CapfiltError for
    files that cannot be read or are of another kind, for a vocabulary that does not have `entries` words in
    the end, and for a `dec` that is another word than its [DEC].
    """
    found = read_words(folder)
    if entries == len(found.words) - 1 and found.words[-1] == PLACE:
        found = replace(
            found, words=found.words[:-1], added=[one for one in found.added if one.content != PLACE]
        )
    missing = [token for token in SPECIAL if token not in found.words]
    held = [token for token in EXTRA if token in found.words]
    is_blip2 = held == ["[DEC]"] and entries == len(found.words)
    if missing or (len(held) == 1 and not is_blip2):
        lacking = missing + [token for token in EXTRA if held and token not in held]
        raise CapfiltError(
            f"{found.file} lacks {', '.join(lacking)}",
            fix="give a whole bundle, or a checkpoint with the vocabulary of BERT it was trained with",
        )
    if not held and entries == len(found.words):
        _check_begins(dec, found)
        return Vocabulary(found.words, found.reading, dec=dec, added=found.added)
    # Of BLIP, or of BLIP-2, which matches texts that begin with [CLS] and adds [DEC] alone.
    added = EXTRA[:1] if entries == len(found.words) + 1 else EXTRA
    words = found.words if held else [*found.words, *added]
    if entries not in (None, len(words)):
        besides = "" if held else f" and {' and '.join(EXTRA)}"
        raise CapfiltError(
            f"{found.file} has {len(found.words)} entries{besides}; the model has embeddings for {entries}",
            fix="give the checkpoint the tokenizer it was trained with",
        )
    if dec not in (None, words.index("[DEC]")):
        raise CapfiltError(
            f"{found.file} has [DEC] at id {words.index('[DEC]')}; the model begins captions with id {dec}",
            fix="give the checkpoint the tokenizer it was trained with, or mend its config's bos_token_id",
        )
    return Vocabulary(words, found.reading, added=found.added)


def _check_begins(dec: int | None, found: Words) -> None:
    if dec is not None and not 0 <= dec < len(found.words):
        raise CapfiltError(
            f"{found.file} has {len(found.words)} entries and no [DEC]; the model begins captions with id "
            f"{dec}, which is none of them",
            fix="give the checkpoint the tokenizer it was trained with, or mend its config's bos_token_id",
        )


def train_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Train a WordPiece vocabulary of at most `size` entries, special tokens included.

    The same texts give the same vocabulary, in whatever order they come and in every process. The
    library's own WordPiece trainer numbers continuation pieces in the order of a hash map, and ties
    between merges follow those numbers; its BPE trainer is stable. So that one learns the pieces,
    over words in which a letter that continues a word is another letter than the one that begins it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    normalizer, splitter = Reading().normalizer(), pre_tokenizers.BertPreTokenizer()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    room = size - len(SPECIAL) - len(EXTRA)
    trainer = trainers.BpeTrainer(vocab_size=room, limit_alphabet=max(1, room // 2), show_progress=False)
    words = (
        " ".join(
            _marked(word) for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(_encodable(text)))
        )
        for text in texts
    )
    learner.train_from_iterator(words, trainer)
    pieces = [_piece(token) for token, _ in sorted(learner.get_vocab().items(), key=lambda entry: entry[1])]
    return Vocabulary((*SPECIAL, *pieces, *EXTRA), Reading())


def _encodable(text: str) -> str:
    """Return the text with lone surrogates, which JSON can smuggle in and UTF-8 cannot hold, as `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


_CONTINUES = 0xF0000
"""Added to the code point of a letter that continues a word: Unicode's private planes."""


def _marked(word: str) -> str:
    tail = (chr(ord(letter) + _CONTINUES) for letter in word[1:] if ord(letter) < 0x20000)
    return word[0] + "".join(tail)


def _piece(token: str) -> str:
    begins = ord(token[0]) < _CONTINUES
    plain = "".join(chr(ord(c) - _CONTINUES) if ord(c) >= _CONTINUES else c for c in token)
    return plain if begins else f"##{plain}"
