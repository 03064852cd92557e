"""Where there is a GPU: the bundled checkpoint answers on it as on a CPU. CI has none and skips this file."""

import pytest
import torch
from test_pocket import ASKED, IMAGES

from helpers import POCKET, generate, generate_many, load_model_and_processor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
QUESTIONS, PICTURES = [question for _, question in ASKED], [IMAGES / picture for picture, _ in ASKED]


@pytest.fixture(scope="module")
def expected():
    loaded = load_model_and_processor(POCKET, device="cpu")
    return [generate(*loaded, question, picture) for picture, question in zip(PICTURES, QUESTIONS)]


@pytest.mark.parametrize("settings", [{}, {"attn_implementation": "eager"}, {"compile": True}])
def test_answers_are_those_of_the_cpu(expected, settings):
    loaded = load_model_and_processor(POCKET, device="cuda", **settings)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert [generate(*loaded, question, picture) for picture, question in zip(PICTURES, QUESTIONS)] == expected


def test_batches_are_those_of_the_cpu(expected):
    loaded = load_model_and_processor(POCKET, device="cuda")
    assert generate_many(*loaded, QUESTIONS, PICTURES, progress=False) == expected
