"""Run microsoft/Phi-3-vision-128k-instruct on your own machine with transformers.

Importing this package registers the `phi3_v` architecture with transformers' Auto classes, so that plain
transformers code works on the checkpoint too, without remote code.
"""

from . import exercises, phi3_v  # noqa: F401  (phi3_v registers the architecture)
from .batches import generate_many
from .checkpoints import OFFICIAL, POCKET, CheckpointError
from .display import show_images
from .doctor import doctor
from .generation import Answer, generate, stream
from .images import ImageLoadError, load_image
from .loading import load_model_and_processor
from .prompts import format_prompt
from .widgets import ask_about_your_pictures

__version__ = "0.1.0"

__all__ = [
    "OFFICIAL",
    "POCKET",
    "Answer",
    "CheckpointError",
    "ImageLoadError",
    "ask_about_your_pictures",
    "doctor",
    "format_prompt",
    "generate",
    "generate_many",
    "load_image",
    "load_model_and_processor",
    "show_images",
    "stream",
]
