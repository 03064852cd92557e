"""Run microsoft/Phi-3-vision-128k-instruct on your own machine with transformers.

Importing this package registers the `phi3_v` architecture with transformers' Auto classes, so that plain
transformers code works on the checkpoint too, without remote code.
"""

import os
import sys

# Idle threads sleep instead of spinning: otherwise two kernels on one machine, or a kernel and a video call, slow each
# other down several times over. PyTorch reads this when it is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .checkpoints import OFFICIAL, POCKET, CheckpointError
from .doctor import doctor

__version__ = "0.1.0"
import_error = None

try:
    from . import exercises, phi3_v  # phi3_v registers the architecture
    from .batches import generate_many
    from .display import show_images
    from .drawing import draw_text
    from .generation import Answer, generate, stream
    from .images import ImageLoadError, load_image
    from .loading import load_model_and_processor
    from .prompts import format_prompt
    from .widgets import ask_about_your_pictures
except Exception as error:  # an old transformers fails in more ways than an ImportError
    import_error = error  # for the doctor
    if sys.argv[0] != "-m":  # it is "-m" while `python -m helpers` starts, which prints the doctor's report instead
        raise ImportError("\n".join(f"{problem}; {fix}" for problem, fix in doctor().problems)) from error

__all__ = [
    "OFFICIAL",
    "POCKET",
    "Answer",
    "CheckpointError",
    "ImageLoadError",
    "ask_about_your_pictures",
    "doctor",
    "draw_text",
    "exercises",
    "format_prompt",
    "generate",
    "generate_many",
    "load_image",
    "load_model_and_processor",
    "phi3_v",
    "show_images",
    "stream",
]
