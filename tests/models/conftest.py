from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Small models and the names of BLIP's weights are shared by several tests, and by a program that is killed.
sys.path.insert(0, str(Path(__file__).parent))

from small_models import WORDS

from capfilt.models.vocabulary import Vocabulary, train_vocabulary


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """A vocabulary of some hundred pieces."""
    return train_vocabulary(WORDS, 160)
