"""How a model is built: pictures, image encoder, and what stands between them and text."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from capfilt.layers import Settings


class Images(Settings):
    """How a picture becomes numbers (BLIP's released processing: a square, bicubic, CLIP's mean and std)."""

    size_px: int = Field(384, ge=8, le=4096)
    """Side of the square that the image encoder sees, in pixels."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Subtracted from each channel, on a scale of 0 to 1."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Each channel is divided by it, on a scale of 0 to 1."""
    transparency: Literal["white", "drop"] = "white"
    """What shows where a picture is transparent: white, or the colour the file hides there, as for models
    whose pictures had their transparency dropped (BLIP's released code, transformers)."""


class Vision(Settings):
    """The image encoder: a ViT of timm. The name of one, where this group stands, is its `timm`."""

    timm: str | None = None
    """Name of a timm ViT, such as vit_base_patch16_384; its own sizes then replace the ones below."""
    patch_px: int = Field(16, ge=1)
    """Side of a patch, in pixels."""
    width: int = Field(768, ge=8)
    """Size of an image state."""
    layers: int = Field(12, ge=0)
    """Transformer layers."""
    heads: int = Field(12, ge=1)
    """Attention heads; they share the width."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Size of the hidden layer of the feed-forward part, as a multiple of the width."""
    norm_epsilon: float = Field(1e-6, gt=0)
    """Added to the variance in every norm (BLIP's released code: 1e-6; transformers' own default: 1e-5)."""
    stem: Literal["patch", "convolution"] = "patch"
    """How pixels become patches: one linear map, or a few convolutions that halve the side each time."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip():
            return {"timm": value.strip()}
        if not isinstance(value, (dict, cls)):
            raise ValueError("an image encoder is the name of a timm ViT, or a group such as {width = 768}")
        return value


class Text(Settings):
    """The hybrid text transformer (BLIP, section 3.1)."""

    width: int = Field(768, ge=8)
    """Size of a text state."""
    layers: int = Field(12, ge=1)
    """Layers, each with self-attention, cross-attention to the image and feed-forward."""
    heads: int = Field(12, ge=1)
    """Attention heads; they share the width."""
    feed_forward: int = Field(3072, ge=8)
    """Size of the hidden layer of the feed-forward part."""
    vocabulary: int = Field(30522, ge=16)
    """Most entries of a WordPiece vocabulary that is trained; a checkpoint brings its own."""
    max_tokens: int = Field(35, ge=4)
    """Longest text that is read, in tokens with its first and last one; the rest is cut."""
    places: int = Field(512, ge=4)
    """Rows of the table of positions: no text, prompt included, is longer."""
    norm_epsilon: float = Field(1e-12, gt=0)
    """Added to the variance in every norm."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of states set to zero during training."""


class Model(Settings):
    """MED, the multimodal mixture of encoder and decoder (BLIP, section 3.1)."""

    images: Images = Images()
    vision: Vision = Vision()
    text: Text = Text()
    embed: int = Field(256, ge=2)
    """Common width of the ITC projections."""
    temperature: float = Field(0.07, ge=0.001, le=0.5)
    """Where the learned temperature of ITC starts; it stays within [0.001, 0.5]."""
    shared_vision: bool = False
    """Captioner and filter keep the image encoder of the model they start from, untrained, so that a picture
    is encoded once for both."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.vision.timm is None and self.vision.width % self.vision.heads:
            raise ValueError("vision.width must be a multiple of vision.heads")
        if self.text.width % self.text.heads:
            raise ValueError("text.width must be a multiple of text.heads")
        if self.vision.timm is None and self.images.size_px % self.vision.patch_px:
            raise ValueError("images.size_px must be a multiple of vision.patch_px")
        if self.text.max_tokens > self.text.places:
            raise ValueError("text.max_tokens is above text.places")
        return self


class QFormer(Settings):
    """The querying transformer of BLIP-2 (Li et al., BLIP-2, 2023, section 3.1)."""

    queries: int = Field(32, ge=1)
    """Learned queries that look at the picture; as many states go on."""
    width: int = Field(768, ge=8)
    """Size of a state."""
    layers: int = Field(12, ge=1)
    """Layers, of queries and text together."""
    heads: int = Field(12, ge=1)
    """Attention heads; they share the width."""
    feed_forward: int = Field(3072, ge=8)
    """Size of the hidden layer of the feed-forward parts, that of queries and that of text."""
    cross_every: int = Field(2, ge=1)
    """Queries look at the picture in every so many layers, from the first one on."""
    vocabulary: int = Field(30522, ge=16)
    """Most entries of a WordPiece vocabulary that is trained; a checkpoint brings its own."""
    max_tokens: int = Field(32, ge=4)
    """Longest text that is read, in tokens with its first and last one; the rest is cut."""
    places: int = Field(512, ge=4)
    """Rows of the table of positions: no text is longer."""
    norm_epsilon: float = Field(1e-12, gt=0)
    """Added to the variance in every norm."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of states set to zero during training."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError("qformer.width must be a multiple of qformer.heads")
        if self.max_tokens > self.places:
            raise ValueError("qformer.max_tokens is above qformer.places")
        return self


class Language(Settings):
    """The frozen language model of BLIP-2 (section 3.3); which one, `bundles.language` says."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Its structure, as the config.json of its folder has it; filled in where it is empty."""
    max_tokens: int = Field(32, ge=4)
    """Longest text that is trained on, in its tokens, begin and end included."""
    ends_with: str = ""
    """Words whose one token ends a caption (LAVIS with OPT: a line break); empty for its end token."""


class Blip2(Settings):
    """A Q-Former between a frozen image encoder and a frozen language model (BLIP-2, InstructBLIP)."""

    family: Literal["blip2", "instructblip"] = "blip2"
    """instructblip: the Q-Former reads the instruction too (Dai et al., InstructBLIP, 2023, section 2.3)."""
    images: Images = Images(size_px=224)
    vision: Vision = Vision()
    vision_config: dict[str, Any] = Field(default_factory=dict)
    """Structure of an image encoder of transformers, as its config.json has it, instead of `vision`; filled
    in where `bundles.vision` is the folder of one."""
    qformer: QFormer = QFormer()
    language: Language = Language()
    embed: int = Field(256, ge=2)
    """Common width of the ITC projections."""
    temperature: float = Field(0.07, ge=0.001, le=0.5)
    """Where the learned temperature of ITC starts."""

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        if self.vision_config or self.vision.timm is not None:
            return self
        if self.vision.width % self.vision.heads:
            raise ValueError("vision.width must be a multiple of vision.heads")
        if self.images.size_px % self.vision.patch_px:
            raise ValueError("images.size_px must be a multiple of vision.patch_px")
        return self


class Foreign(Settings):
    """A model that other software builds and runs; capfilt asks it for captions or scores."""

    backend: str = Field(pattern=r"^\w+$")
    """Name of the file in `capfilt.models.backends` that asks it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What that needs to know, and what its answers depend on."""
    asked: dict[str, Any] = Field(default_factory=dict)
    """How it is asked, on which no answer depends: an address, requests at a time."""


def _kind(value: Any) -> str:
    """Return which structure a value describes."""
    if not isinstance(value, dict):
        return type(value).__name__
    return "Foreign" if "backend" in value else "Blip2" if "qformer" in value else "Model"


Structure = Annotated[
    Annotated[Model, Tag("Model")] | Annotated[Blip2, Tag("Blip2")] | Annotated[Foreign, Tag("Foreign")],
    Discriminator(_kind),
]
"""How any model is built."""
Trainable = Annotated[Annotated[Model, Tag("Model")] | Annotated[Blip2, Tag("Blip2")], Discriminator(_kind)]
"""How a model that is trained here is built."""
