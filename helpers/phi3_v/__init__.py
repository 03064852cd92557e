"""Phi-3-Vision and Phi-3.5-Vision for transformers, without remote code.

Importing this package registers its classes with the Auto classes, which then find them by `model_type:
phi3_v`. Registered classes win over the code that a checkpoint's `auto_map` names, which is never run.
"""

import sys

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from .configuration_phi3_v import Phi3VConfig
from .image_processing_phi3_v import Phi3VImageProcessor
from .modeling_phi3_v import Phi3VForCausalLM, Phi3VModel
from .processing_phi3_v import Phi3VProcessor, escape_control_tokens

AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)
AutoImageProcessor.register(Phi3VConfig, image_processor_classes={"pil": Phi3VImageProcessor}, exist_ok=True)
AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)
AutoModel.register(Phi3VConfig, Phi3VModel, exist_ok=True)
AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
AutoModelForMultimodalLM.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
# `pipeline` looks for a video processor too, and would ask to run the checkpoint's code in search of one.
AutoVideoProcessor.register(Phi3VConfig, Phi3VImageProcessor, exist_ok=True)
# transformers 5.17 hides this class where torchvision is missing, although nothing in it needs torchvision; the module
# there is not the one that `import transformers` first gave.
sys.modules["transformers"].AutoImageProcessor = AutoImageProcessor

__all__ = [
    "Phi3VConfig",
    "Phi3VForCausalLM",
    "Phi3VImageProcessor",
    "Phi3VModel",
    "Phi3VProcessor",
    "escape_control_tokens",
]
