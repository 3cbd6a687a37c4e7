"""Models that others made, as they save them: folders of transformers with all that belongs to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from small_language import (
    ENDING,
    Family,
    LanguageKind,
    in_transformers,
    language_folder,
    small_prompted,
    small_structure,
)
from small_qformer import SMALL_BLIP2, small_qformer

from capfilt.models.checkpoints.qformer import INSTRUCTION as INSTRUCTION
from capfilt.models.frozen import vision_config
from capfilt.models.language_vocabulary import load_language_vocabulary
from capfilt.models.qformer import qformer_config

if TYPE_CHECKING:
    from pathlib import Path

    from capfilt.models.vocabulary import Vocabulary
    from capfilt.settings import Images


def retrieval(folder: Path, vocabulary: Vocabulary) -> Path:
    """Save Blip2ForImageTextRetrieval: its tokenizer is BERT's with [DEC], as that of the released one."""
    tokenizer = bert(folder / "words", vocabulary)
    settings = SMALL_BLIP2
    config = transformers.Blip2Config(
        vision_config=vision_config(settings).to_dict(),
        qformer_config=qformer_config(settings, 32, words=len(tokenizer), reads=True).to_dict(),
        num_query_tokens=settings.qformer.queries,
        image_text_hidden_size=settings.embed,
    )
    theirs = transformers.Blip2ForImageTextRetrieval(config)
    own = small_qformer(("itc", "itm"), len(tokenizer)).state_dict()
    theirs.load_state_dict({name: one for name, one in own.items() if name != "temperature"})
    theirs.save_pretrained(folder / "model")
    transformers.Blip2Processor(processor(settings.images), tokenizer).save_pretrained(folder / "model")
    return folder / "model"


def generation(folder: Path, family: Family, kind: LanguageKind, vocabulary: Vocabulary) -> Path:
    """Save a captioner of BLIP-2 or InstructBLIP, whose tokenizer has an <image> as the released ones do."""
    folder.mkdir()
    language = language_folder(kind, folder / "language")
    settings = small_structure(kind, language, family)
    reader = bert(folder / "words", vocabulary)
    model = small_prompted(settings, len(reader) if family == "instructblip" else None)
    end = load_language_vocabulary(language, settings.language).sep
    model.language_model.get_output_embeddings().weight.data[end].mul_(ENDING)
    (folder / "written").mkdir()
    theirs = in_transformers(model, settings, folder / "written")
    theirs.config.text_config.eos_token_id = end
    tokenizer = transformers.AutoTokenizer.from_pretrained(language)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    theirs.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    theirs.save_pretrained(folder / "model")
    parts: list[Any] = [processor(settings.images), tokenizer]
    made = transformers.Blip2Processor
    if family == "instructblip":
        made = transformers.InstructBlipProcessor
        parts.append(reader)
    made(*parts, num_query_tokens=model.queries).save_pretrained(folder / "model")
    return folder / "model"


def bert(folder: Path, vocabulary: Vocabulary) -> Any:
    """Return BERT's tokenizer of these words with [DEC] after them and no [ENC]."""
    folder.mkdir(parents=True)
    words = [w for w in vocabulary.files()["vocab.txt"].decode().splitlines() if w not in ("[DEC]", "[ENC]")]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    assert len(tokenizer) == len(words) + 1
    return tokenizer


def processor(images: Images) -> Any:
    return transformers.BlipImageProcessorPil(size={"height": images.size_px, "width": images.size_px})
