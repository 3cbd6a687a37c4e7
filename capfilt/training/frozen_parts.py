"""What a model came with to stay as it is: in no checkpoint, since it comes with the model again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def frozen_parts(model: nn.Module) -> frozenset[str]:
    """Return the names of parameters without a gradient, and of what modules of nothing else remember.

    The image encoder and the language model of a Q-Former are such: 80% of its numbers and more.
    """
    names = {name for name, one in model.named_parameters(remove_duplicate=False) if not one.requires_grad}
    for prefix, module in model.named_modules():
        own = list(module.parameters())
        if prefix and own and not any(one.requires_grad for one in own):
            names.update(f"{prefix}.{name}" for name in module.state_dict())
    return frozenset(names)
