"""A folder of transformers loaded whole, for the backends that run one; or refused in words.

transformers draws weights that a folder lacks at random and says so in a log: captions and scores would look
like those of a poor model. Here that is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capfilt.data.images import flattened
from capfilt.errors import CapfiltError
from capfilt.models.checkpoints.names import few
from capfilt.models.devices import inference_type, refuse_int8

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL.Image import Image

_LEAST_PX = 4
_LONGEST = 100
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is looked for on the hub, and no code that a folder brings is run."""


def load_model(auto: Any, folder: Path, device: str, precision: str, *, called: str, fix: str) -> Any:
    """Load a model with one of transformers' Auto classes, ready to be asked, in fp32 or bf16.

    `called` names it in errors, whose mend is `fix`: CapfiltError where the folder holds no such model, or
    lacks some of its weights.
    """
    refuse_int8(precision, f"{called} is run by transformers")
    model, found = load(
        lambda: auto.from_pretrained(
            folder, dtype=inference_type(precision), output_loading_info=True, **LOCAL
        ),
        called,
        fix,
    )
    if missing := sorted(found["missing_keys"]):
        kind = model.config.model_type
        raise CapfiltError(f"{called} is a {kind} without {few(missing)}", fix=fix)
    return model.eval().requires_grad_(False).to(device)


def load(make: Callable[[], Any], called: str, fix: str) -> Any:
    """Return what `make` reads of a folder; what transformers raises becomes a CapfiltError."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return make()
    # A package that a processor needs is an ImportError, weights of another shape are a RuntimeError.
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        raise CapfiltError(f"{called} cannot be loaded: {first_line(error)}", fix=fix) from error


def presentable(picture: Image) -> Image:
    """Return a decoded picture as any processor takes it: RGB, transparency on white, and no thread.

    Processors take a picture 1 or 3 pixels high for one whose channels come first, and some refuse strips
    (Qwen2-VL: longer than 200 times their width). Such a picture is put on white, in the middle.
    """
    import PIL.Image

    picture = flattened(picture)
    least = max(_LEAST_PX, -(-max(picture.size) // _LONGEST))
    wide, high = (max(side, least) for side in picture.size)
    if (wide, high) == picture.size:
        return picture
    ground = PIL.Image.new("RGB", (wide, high), (255, 255, 255))
    ground.paste(picture, ((wide - picture.width) // 2, (high - picture.height) // 2))
    return ground


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
