"""Words to token ids and back: an uncased WordPiece vocabulary with BLIP's two extra tokens.

A text is always [CLS] ... [SEP]; the first id is then replaced by the function that reads it:
kept for the unimodal encoder, [ENC] for the image-grounded encoder, [DEC] for the decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
EXTRA = ("[DEC]", "[ENC]")
"""Added after the vocabulary, in this order, as in BLIP's released code."""
TOKENIZER_FILE = "tokenizer.json"


class Vocabulary:
    """A WordPiece tokenizer that knows BLIP's special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # A file can carry a truncation and padding of its own; ours are below.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # "[SEP]" in a stranger's text is five characters: a real one would end the text there.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        known = tokenizer.get_vocab(with_added_tokens=True)
        missing = [token for token in (*SPECIAL, *EXTRA) if token not in known]
        if missing:
            raise CapfiltError(
                f"the vocabulary lacks {', '.join(missing)}", fix="use a bundle that capfilt wrote"
            )
        self.pad, self.cls, self.sep = known["[PAD]"], known["[CLS]"], known["[SEP]"]
        self.dec, self.enc = known["[DEC]"], known["[ENC]"]

    def __len__(self) -> int:
        size: int = self._tokenizer.get_vocab_size()
        return size

    def encode(
        self, texts: Sequence[str], first: Literal["cls", "enc", "dec"], max_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Return ids and `real`, both (texts, longest): long, and true where a token is no padding.

        A text longer than `max_tokens` is cut and keeps its final [SEP]. The name of a special token
        in a text is read as the characters it is written with.
        """
        start = {"cls": self.cls, "enc": self.enc, "dec": self.dec}[first]
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
        return [self.dec, *self._tokenizer.encode(_encodable(text), add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        # The library keeps the mark of a piece that continues a word where no word came before it.
        return text.strip().removeprefix("##")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and vocab.txt, the same bytes every time."""
        self._tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)
        entries = sorted(self._tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in entries), encoding="utf-8")


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a bundle."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILE
    try:
        return Vocabulary(Tokenizer.from_file(str(path)))
    except CapfiltError:
        raise
    except Exception as error:  # the Rust side raises bare Exception
        raise CapfiltError(
            f"{path} cannot be read: {error}", fix="give a whole bundle, with its tokenizer"
        ) from error


def train_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """Train a WordPiece vocabulary of at most `size` entries, special tokens included.

    The same texts give the same vocabulary, in whatever order they come and in every process. The
    library's own WordPiece trainer numbers continuation pieces in the order of a hash map, and ties
    between merges follow those numbers; its BPE trainer is stable. So that one learns the pieces,
    over words in which a letter that continues a word is another letter than the one that begins it.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
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
    ids = {word: number for number, word in enumerate((*SPECIAL, *pieces))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([*SPECIAL, *EXTRA])
    return Vocabulary(tokenizer)


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
