"""What no training can do yet, refused before anything starts, with what can be done instead."""

from launch.config import ConfigError
from launch.settings import Settings


def check_trainable(settings: Settings) -> None:
    """ConfigError naming every setting that sampling knows and training does not."""
    model = settings.model
    wrong = [
        f"model.{name}: true, but no source gives training its layers and their classes; such weights are for sampling "
        f"alone: set model.{name}=false"
        for name in ("use_layer3d_rope", "use_additional_t_cond")
        if getattr(model, name)
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
