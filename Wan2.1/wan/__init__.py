"""Wan2.1: text and pictures to video with the official checkpoints, command line and Python entry.

    import wan
    pipeline = wan.WanT2V(wan.configs.WAN_CONFIGS["t2v-1.3B"], checkpoint_dir="Wan2.1-T2V-1.3B")
    video = pipeline.generate("a cat", size=(832, 480))

WanI2V takes a picture after the prompt, WanFLF2V a first and a last one, WanVace what its
`prepare_source` makes of a video, a mask and reference pictures.

What stands for which official file:

generate.py (beside this folder)      generate.py
configs.py                            wan/configs/
text2video.py                         wan/text2video.py
image2video.py                        wan/image2video.py, wan/first_last_frame2video.py
vace.py                               wan/vace.py
model.py, rope.py                     wan/modules/model.py
vace_model.py                         wan/modules/vace_model.py
attention.py                          wan/modules/attention.py
t5.py                                 wan/modules/t5.py, wan/modules/tokenizers.py
clip.py                               wan/modules/clip.py, wan/modules/xlm_roberta.py
vae.py                                wan/modules/vae.py
sigmas.py, scheduler.py               wan/utils/fm_solvers.py, wan/utils/fm_solvers_unipc.py
prompt_extend.py                      wan/utils/prompt_extend.py
sources.py                            wan/utils/vace_processor.py
video.py                              cache_video and cache_image of wan/utils/utils.py
profiling_core/parallel/              wan/distributed/

checkpoint.py, pictures.py, weights.py and checks.py have no official file: they check before
loading.
"""

from typing import Any

from . import configs

__all__ = ["WanFLF2V", "WanI2V", "WanT2V", "WanVace", "configs"]


def __getattr__(name: str) -> Any:
    """The pipelines, loaded on first use: torch and diffusers take seconds."""
    if name in __all__:
        from . import vace

        return getattr(vace, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
