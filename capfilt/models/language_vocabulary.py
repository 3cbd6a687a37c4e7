"""A language model's tokenizer, whatever its kind, as text to token ids and back.

It is held as the bytes of its files, so that a bundle writes what was read and transformers loads it there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from capfilt.canonical import digest_of
from capfilt.errors import CapfiltError
from capfilt.models.language_model import is_encoder_decoder
from capfilt.models.vocabulary import PLACE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capfilt.settings.models import Language

LANGUAGE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
"""Files that the tokenizers of transformers are made of."""


class LanguageVocabulary:
    """The tokenizer of a language model.

    `files` are those of a tokenizer's folder by name, `language` says whose it is and what ends a caption.
    Raises CapfiltError for files that transformers makes no fast tokenizer of, and for one that does not fit
    the model.
    """

    def __init__(self, files: Mapping[str, bytes], language: Language) -> None:
        self._files = dict(files)
        self._tokenizer = _loaded(files, language.config)
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        # A text from the web that spells a special token must not end there.
        self._backend.encode_special_tokens = True
        self.begin, self.closing = self._template()
        """What the tokenizer puts before a text, and after it."""
        self.sep = self._end(language)
        """Ends a caption."""
        pad = self._tokenizer.pad_token_id
        self.pad: int = self.sep if pad is None else int(pad)
        """Fills up rows, and is never looked at."""
        self.is_encoder = is_encoder_decoder(language.config)
        """Whether an encoder reads what stands before a caption, with what the tokenizer puts after it."""
        self._ends_with = language.ends_with
        self._entries = language.config.get("vocab_size")
        if self._entries is not None and len(self) > self._entries:
            raise CapfiltError(
                f"the language model has embeddings for {self._entries} tokens, and its tokenizer has "
                f"{len(self)}",
                fix="give the language model the tokenizer that it was trained with",
            )

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def image_token(self) -> int:
        """Id that holds the place of a query where transformers reads queries and text in one row.

        Its own <image>, else the id that transformers' processor gives one that it adds; where the model has
        no embedding left for it, the padding's, so that what is padded cannot be read there.
        """
        own = self._tokenizer.get_vocab().get(PLACE)
        if own is not None:
            return int(own)
        return len(self) if self._entries is None or len(self) < self._entries else self.pad

    @cached_property
    def digest(self) -> str:
        """Digest of the files and of what ends a caption."""
        named = {name: hashlib.sha256(data).hexdigest() for name, data in self._files.items()}
        return digest_of({"files": named, "ends_with": self._ends_with})

    def files(self) -> dict[str, bytes]:
        """Return the tokenizer's files by name, as they were read."""
        return dict(self._files)

    def save(self, folder: Path) -> None:
        """Write the files into a folder that is there."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def encode(self, texts: Sequence[str], first: str = "", max_tokens: int = 32) -> tuple[Tensor, Tensor]:
        """Return ids and `real`, both (texts, longest): what begins a text, the text, and its end.

        A text longer than `max_tokens` is cut on the right; there the end token is lost, and with it nothing
        teaches that the text ended, unless the tokenizer itself puts it after every text (LAVIS: OPT and
        Vicuna lose it, T5 does not). `first` is of no meaning here: a language model has one way to begin.
        """
        del first
        return self._rows([self._ended([*self.begin, *ids], max_tokens) for ids in self._ids(texts)])

    def encode_output(self, texts: Sequence[str], max_tokens: int | None) -> tuple[Tensor, Tensor]:
        """Return ids and `real` of texts that are written after others: as `encode`, nothing before them.

        Without `max_tokens` no text is cut.
        """
        return self._rows([self._ended(ids, max_tokens) for ids in self._ids(texts)])

    def prompt(self, text: str) -> list[int]:
        """Return the ids of what stands before a caption: what begins a text, and its words.

        An encoder reads a whole text, with what the tokenizer puts after it. A decoder-only model whose
        tokenizer puts nothing before a text has no ids for an empty one.
        """
        return [*self.begin, *self._ids([text])[0], *(self.closing if self.is_encoder else [])]

    @cached_property
    def blank(self) -> str:
        """What a text that is written after others begins with: a blank where they would be joined."""
        output, real = self.encode_output(["a"], 8)
        whole = self.decode([*self.prompt("a"), *output[0][real[0]].tolist()])
        return " " if whole == "aa" and not self.is_encoder else ""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens and blanks around it left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        # Lone surrogates, which JSON can smuggle in, are nothing that UTF-8 could hold.
        whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return [one.ids for one in self._backend.encode_batch(whole, add_special_tokens=False)]

    def _ended(self, ids: list[int], max_tokens: int | None) -> list[int]:
        if self.closing == [self.sep] and max_tokens is not None:
            return [*ids[: max_tokens - 1], self.sep]
        return [*ids, self.sep][:max_tokens]

    def _rows(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows), default=0)
        ids = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in rows], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        return ids.view(len(rows), longest), torch.arange(longest)[None, :] < lengths[:, None]

    def _template(self) -> tuple[list[int], list[int]]:
        encoding = self._backend.encode("a", add_special_tokens=True)
        words = [n for n, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: words[0]], encoding.ids[words[-1] + 1 :]

    def _end(self, language: Language) -> int:
        if language.ends_with:
            ids = self._ids([language.ends_with])[0]
            if len(ids) != 1:
                raise CapfiltError(
                    f"model.language.ends_with is {language.ends_with!r}, which is {len(ids)} tokens of this "
                    "language model and not one",
                    fix='leave it empty for the end token: --set model.language.ends_with=""',
                )
            return ids[0]
        ends = (self._tokenizer.eos_token_id, language.config.get("eos_token_id"))
        for end in ends:
            if end is not None:
                return int(end[0] if isinstance(end, list) else end)
        raise CapfiltError(
            "the language model's tokenizer names no end token",
            fix="name eos_token in its tokenizer_config.json, or set model.language.ends_with",
        )


def load_language_vocabulary(folder: Path, language: Language) -> LanguageVocabulary:
    """Read the tokenizer of a language model from its folder; see `LanguageVocabulary`."""
    try:
        files = {name: (folder / name).read_bytes() for name in LANGUAGE_FILES if (folder / name).is_file()}
    except OSError as error:
        raise CapfiltError(
            f"the tokenizer in {folder} cannot be read: {error.strerror}", fix="copy the folder again, whole"
        ) from error
    if not files:
        raise CapfiltError(
            f"{folder} holds no tokenizer",
            fix="give the folder of a language model with its tokenizer.json",
        )
    return LanguageVocabulary(files, language)


def begun_by_end(vocabulary: LanguageVocabulary, language: Language) -> LanguageVocabulary:
    """Return a tokenizer that puts its end token before a text instead of what it began with.

    LAVIS makes `</s>` the begin token of Vicuna's tokenizer (Blip2VicunaInstruct), and its Q-Former learnt
    so. LAVIS's token for padding is left out: nothing looks at padding.
    """
    from tokenizers import processors

    with tempfile.TemporaryDirectory() as name:
        tokenizer = _loaded(vocabulary.files(), language.config)
        end = tokenizer.eos_token
        tokenizer.add_special_tokens({"bos_token": end})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
        )
        tokenizer.save_pretrained(name)
        made = load_language_vocabulary(Path(name), language)
    if made.begin != [tokenizer.eos_token_id]:
        raise CapfiltError(
            f"transformers puts {made.begin} before a text and not {end}, as LAVIS does",
            fix="give the folder of Vicuna with its tokenizer.json",
        )
    return made


def _loaded(files: Mapping[str, bytes], config: Mapping[str, Any]) -> Any:
    """Return the tokenizer that transformers makes of files, in a folder of their own."""
    from transformers import AutoTokenizer

    fix = "give the folder of a language model with its tokenizer.json"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        if "model_type" in config:
            # Which tokenizer class has which special tokens, not every tokenizer's own files say.
            (folder / "config.json").write_text(json.dumps({"model_type": config["model_type"]}))
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers and tokenizers raise of every kind
            raise CapfiltError(f"transformers cannot read the tokenizer: {error}", fix=fix) from error
    if not tokenizer.is_fast or not len(tokenizer):
        raise CapfiltError("transformers has no fast tokenizer for these files", fix=fix)
    return tokenizer
