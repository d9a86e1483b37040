"""`profiling-dit compare`: full and cached clips of a user's own model, side by side.

What a folder of a comparison holds:

settings.json  all that shapes a clip; another value is refused, prompts, seeds and plans may change
rows.jsonl     one row a run, as it ends
full/          the full runs: clip and latent, fp32, from which every plan is measured
strips/        four frames of every clip, for the report
videos/        with --save-videos: mp4 as VBench reads them; frames/: PNG as FID tools read them
table.md       the tables; report.html: the same as a page
"""
