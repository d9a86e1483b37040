"""HunyuanVideo: text to video with the official checkpoints, command line and Python entry.

    from hyvideo.inference import HunyuanVideoSampler

What stands for which official file:

sample_video.py (beside this folder)  sample_video.py, and the options of hyvideo/config.py
config.py                             hyvideo/constants.py, the table of hyvideo/modules/models.py
inference.py                          hyvideo/inference.py
pipeline.py                           hyvideo/diffusion/pipelines/pipeline_hunyuan_video.py
sigmas.py, scheduler.py               hyvideo/diffusion/schedulers/
model.py                              hyvideo/modules/models.py
layers.py                             the blocks of models.py, token_refiner.py, *_layers.py there
rope.py                               hyvideo/modules/posemb_layers.py
attention.py                          hyvideo/modules/attenion.py (so spelt there)
fp8.py                                hyvideo/modules/fp8_optimization.py
text_encoder.py                       hyvideo/text_encoder/
vae.py                                hyvideo/vae/
video.py                              hyvideo/utils/file_utils.py

checkpoint.py, weights.py and checks.py have no official file: they check before loading.
"""
