"""Wan2.1: text to video with the official checkpoints, command line and Python entry.

    import wan
    pipeline = wan.WanT2V(wan.configs.WAN_CONFIGS["t2v-1.3B"], checkpoint_dir="Wan2.1-T2V-1.3B")
    video = pipeline.generate("a cat", size=(832, 480))

What stands for which official file:

generate.py (beside this folder)      generate.py
configs.py                            wan/configs/
text2video.py                         wan/text2video.py
model.py, rope.py                     wan/modules/model.py
attention.py                          wan/modules/attention.py
t5.py                                 wan/modules/t5.py, wan/modules/tokenizers.py
vae.py                                wan/modules/vae.py
sigmas.py, scheduler.py               wan/utils/fm_solvers.py, wan/utils/fm_solvers_unipc.py
video.py                              cache_video and cache_image of wan/utils/utils.py
profiling_core/parallel/              wan/distributed/

checkpoint.py, weights.py and checks.py have no official file: they check before loading.
"""

from typing import Any

from . import configs

__all__ = ["WanT2V", "configs"]


def __getattr__(name: str) -> Any:
    """WanT2V, loaded on first use: torch and diffusers take seconds."""
    if name == "WanT2V":
        from .text2video import WanT2V

        return WanT2V
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
