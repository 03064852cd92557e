"""A model for the tests of training."""

from training import train


def small_model(processor, layers: int = 1):
    """The model that is trained, with a layer in the tower and few in the decoder."""
    config = train.build_config(processor)
    config.num_hidden_layers = layers
    config.img_processor["vision_config"]["num_hidden_layers"] = 2  # of these the last is not built
    return train.Phi3VForCausalLM(config)
