"""How similar pictures and texts are by their ITC features, of one vector a picture or of several.

A dual encoder and BLIP have one vector for a picture; BLIP-2 has one for each query, and the query that is
most like a text counts (Li et al., BLIP-2, 2023, section 3.1). Whoever compares features does it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.floating[Any]]

_PRODUCTS_AT_ONCE = 1 << 22
"""Of queries and texts: many queries make many products of which few are kept."""


def similarities(pictures: Numbers, texts: Numbers) -> Numbers:
    """Return cosines of all pictures with all texts, shape (pictures, texts).

    All features are of unit length: `texts` (texts, embed), `pictures` (pictures, embed) or (pictures,
    queries, embed), of whose queries the most similar one counts.
    """
    import numpy as np

    if pictures.ndim == 2:
        return pictures @ texts.T
    count, queries, embed = pictures.shape
    best: Numbers = np.empty((count, len(texts)), np.result_type(pictures, texts))
    some = max(1, _PRODUCTS_AT_ONCE // max(1, queries * len(texts)))
    for first in range(0, count, some):
        part = pictures[first : first + some]
        products = part.reshape(-1, embed) @ texts.T
        best[first : first + some] = products.reshape(len(part), queries, len(texts)).max(1)
    return best


def similarities_of_pairs(pictures: Numbers, texts: Numbers) -> NDArray[np.float64]:
    """Return the cosine of each picture with the text of the same row, shape (pairs,), summed in float64.

    Features are as in `similarities`, one picture and one text a row.
    """
    import numpy as np

    products = np.einsum("i...j,ij->i...", pictures, texts, dtype=np.float64)
    found: NDArray[np.float64] = products if products.ndim == 1 else products.max(1)
    return found
