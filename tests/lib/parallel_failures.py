"""The Wan command line on two processes, one of which may fail."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2] / "Wan2.1"
sys.path[:0] = [str(TREE), str(TREE.parent)]
RANK = int(os.environ["RANK"])


def fail_at_a_step(end: str) -> None:
    """Rank 1 raises, or is killed, at its third model call."""
    from profiling_core.errors import InputError
    from wan.model import WanModel

    forward, calls = WanModel.forward, []

    def failing(self: WanModel, *args: object, **kwargs: object) -> object:
        calls.append(None)
        if RANK == 1 and len(calls) == 3:
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise InputError("this rank has had enough")
        return forward(self, *args, **kwargs)

    WanModel.forward = failing


def note_prompt(target: str) -> None:
    """Every rank writes down the prompt that it samples with; the first alone may extend it."""
    from transformers import AutoModelForCausalLM

    from wan.text2video import WanT2V

    generate = WanT2V.generate

    def noting(self: WanT2V, prompt: str, *args: object, **kwargs: object) -> object:
        Path(f"{target}.{RANK}").write_bytes(prompt.encode())
        return generate(self, prompt, *args, **kwargs)

    WanT2V.generate = noting
    if RANK:
        AutoModelForCausalLM.from_pretrained = None


def main(way: str, target: str) -> None:
    prompt, plan, seed = "red circle", "balanced", "5"
    if way == "plan" and RANK == 1:
        plan = "fast"
    if way in ("raise", "kill"):
        fail_at_a_step(way)
    what = ["--delta_cache", plan]
    if way == "whole":
        note_prompt(target)
        seed, what = "-1", ["--offload_model", "true", "--delta_profile", f"{target}.profile"]
        what += ["--use_prompt_extend", "--prompt_extend_model", f"{target}.qwen"]
    options = ["--task", "t2v-mini", "--frame_num", "5", "--sample_steps", "6"]
    options += ["--prompt", prompt, "--base_seed", seed, "--save_file", target]
    sys.argv = ["generate.py", *options, *what]
    runpy.run_path(str(TREE / "generate.py"), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
