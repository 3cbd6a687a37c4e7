"""The Q-Former of BLIP-2 in its first stage: learned queries that look at a picture, and text beside them.

Queries and text go through one transformer; what sees what (`qformer_masks`) makes the three objectives.
It is transformers' own, every weight under its name there, with the language head that transformers lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt.models.frozen import FrozenImageEncoder
from capfilt.models.learner import PairLearner
from capfilt.models.memory import SeenStates
from capfilt.models.qformer_masks import additive, bidirectional, multimodal_causal, unimodal
from capfilt.models.text import WordHead
from capfilt.settings import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from capfilt.models.cards import Objective
    from capfilt.models.vocabulary import First
    from capfilt.settings import Blip2

LOWEST_TEMPERATURE = 0.001
"""Below it nothing is divided by; the released code has no bounds, and trained models stay far above."""


def qformer_config(model: Blip2, image_width: int, *, words: int, reads: bool) -> Any:
    """Return transformers' configuration of a Q-Former over image states of this width.

    `words` are the entries of its vocabulary; one that `reads` has the parts for text.
    """
    from transformers import Blip2QFormerConfig

    qformer = model.qformer
    return Blip2QFormerConfig(
        vocab_size=words,
        hidden_size=qformer.width,
        num_hidden_layers=qformer.layers,
        num_attention_heads=qformer.heads,
        intermediate_size=qformer.feed_forward,
        hidden_dropout_prob=qformer.dropout,
        attention_probs_dropout_prob=qformer.dropout,
        max_position_embeddings=qformer.places,
        layer_norm_eps=qformer.norm_epsilon,
        cross_attention_frequency=qformer.cross_every,
        encoder_hidden_size=image_width,
        use_qformer_text_input=reads,
        pad_token_id=None,  # or the word of that id would not be trained, whatever the vocabulary has there
        attn_implementation="sdpa",
    )


class QFormer(PairLearner):
    """Frozen image encoder, queries, Q-Former and the heads of the objectives it is trained for."""

    match_token: First = "cls"
    """First token of a text whose match is judged: BLIP-2 has no [ENC]."""

    def __init__(self, model: Blip2, vocabulary_size: int, objectives: Iterable[Objective]) -> None:
        from transformers import Blip2QFormerModel
        from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

        super().__init__()
        served = set(objectives)
        self.objectives: tuple[Objective, ...] = tuple(o for o in ("itc", "itm", "lm") if o in served)
        width = model.qformer.width
        self.vision_model = FrozenImageEncoder(model)
        self.query_tokens = nn.Parameter(torch.empty(1, model.qformer.queries, width))
        config = qformer_config(model, self.vision_model.width, words=vocabulary_size, reads=True)
        self.embeddings: Any = Blip2TextEmbeddings(config)
        self.qformer: Any = Blip2QFormerModel(config)
        for drawn in (self.query_tokens, *self.embeddings.parameters()):
            nn.init.normal_(drawn, std=0.02)
        if "itc" in self.objectives:
            self.vision_projection = nn.Linear(width, model.embed)
            self.text_projection = nn.Linear(width, model.embed)
            self.temperature = nn.Parameter(torch.tensor(model.temperature))
        if "itm" in self.objectives:
            self.itm_head = nn.Linear(width, 2)
        if "lm" in self.objectives:
            head = Text(width=width, heads=model.qformer.heads, norm_epsilon=model.qformer.norm_epsilon)
            self.word_head = WordHead(head, self.embeddings.word_embeddings)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.query_tokens.device

    @property
    def queries(self) -> int:
        """How many queries look at a picture."""
        return self.query_tokens.shape[1]

    def clamp_temperature(self) -> None:
        """Hold the learned temperature above zero; called after every step."""
        if "itc" in self.objectives:
            with torch.no_grad():
                self.temperature.clamp_(min=LOWEST_TEMPERATURE)

    def checkpoint_gradients(self, on: bool) -> None:
        """Have the backward pass compute the Q-Former's states again instead of keeping them, or not."""
        # Its newer name and the one before; with the old name the newer versions warn.
        kind = "activation" if hasattr(self.qformer, "activation_checkpointing_enable") else "gradient"
        if on:
            getattr(self.qformer, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(self.qformer, f"{kind}_checkpointing_disable")()

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return image states, (images, states, image width), of pixels (images, 3, side, side)."""
        states: Tensor = self.vision_model(pixels)
        return states.to(self.query_tokens.dtype)

    def memory(self, image_states: Tensor) -> list[SeenStates]:
        """Return what the queries look at: the states themselves; each layer makes its own keys of them."""
        return [SeenStates(image_states)]

    def query_states(self, image_states: Tensor, instruction: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return what the queries extract of pictures, (rows, queries, width).

        With an `instruction`, ids and `real` of (rows, tokens), queries and text see each other. Pictures
        then may be fewer than rows, each serving as many neighbouring ones.
        """
        if instruction is None:
            return self._run(self.query_tokens.expand(len(image_states), -1, -1), None, image_states)
        ids, real = instruction
        mask = bidirectional(self.queries, real)
        return self._joint(ids, mask, image_states)[:, : self.queries]

    def image_features(self, image_states: Tensor) -> Tensor:
        """Return ITC features of unit length, (images, queries, embed), one of each query."""
        return self.query_features(self.query_states(image_states))

    def query_features(self, query_states: Tensor) -> Tensor:
        """Return the same of what `query_states` gave, (images, queries, width)."""
        return _unit(self.vision_projection, query_states)

    def text_features(self, ids: Tensor, real: Tensor) -> Tensor:
        """Return ITC features of unit length, (rows, embed), of texts that begin with [CLS]."""
        states = self._run(self.embeddings(input_ids=ids), unimodal(0, real), None)
        return _unit(self.text_projection, states[:, 0])

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return cosines, (images, texts), of each text with the query that is most like it.

        `images` is (images, queries, embed), `texts` (texts, embed).
        """
        return (images @ texts.T).amax(1)

    def itm_logits(self, ids: Tensor, real: Tensor, memory: Sequence[SeenStates]) -> Tensor:
        """Return (rows, 2) logits, column 1 for a match, of texts that begin with [CLS]: the queries' mean.

        `memory` holds one image a row, or one for several neighbouring rows.
        """
        states = self.query_states(memory[0].states, (ids, real))
        with torch.autocast(states.device.type, enabled=False):
            logits: Tensor = self.itm_head(states).mean(1)
        return logits

    def lm_logits(self, ids: Tensor, memory: Sequence[SeenStates]) -> Tensor:
        """Return logits of each next token, (rows, tokens, vocabulary), of texts that begin with [DEC].

        Padding, which follows the text, is seen by no token that counts.
        """
        mask = multimodal_causal(self.queries, torch.ones_like(ids, dtype=torch.bool))
        states = self._joint(ids, mask, memory[0].states)[:, self.queries :]
        logits: Tensor = self.word_head(states, self.embeddings.word_embeddings)
        return logits

    def _joint(self, ids: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        """Return states of queries and text in one pass, (rows, queries + tokens, width)."""
        several = len(ids) // max(1, len(image_states))
        if several > 1:
            image_states = image_states.repeat_interleave(several, 0)
        queries = self.query_tokens.expand(len(ids), -1, -1)
        return self._run(self.embeddings(input_ids=ids, query_embeds=queries), mask, image_states)

    def _run(self, embedded: Tensor, mask: Tensor | None, image_states: Tensor | None) -> Tensor:
        """Return the Q-Former's states, (rows, places, width); without image states all places are text.

        In the numbers of its weights, whatever the rest computes in: in half precision it is unstable.
        """
        with torch.autocast(embedded.device.type, enabled=False):
            dtype = self.query_tokens.dtype
            states: Tensor = self.qformer(
                query_embeds=embedded.to(dtype),
                query_length=0 if image_states is None else self.queries,
                attention_mask=None if mask is None else additive(mask, dtype),
                encoder_hidden_states=None if image_states is None else image_states.to(dtype),
            ).last_hidden_state
        return states


def _unit(projection: nn.Linear, states: Tensor) -> Tensor:
    with torch.autocast(states.device.type, enabled=False):
        return F.normalize(projection(states), dim=-1)
