"""The wheel in a clean environment: the core's packages alone, NumPy 1.26 and the newest.

    python tests/wheel/check_wheel.py [--diffusers]

Two minutes, most of them for torch: one environment, in which NumPy is swapped. --diffusers then
installs that extra and runs a tiny pipeline by a plan. TORCH_INDEX as in the Makefile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "Wan2.1/ckpts/Wan2.1-T2V-mini/profile.safetensors"
PARTS = ("profiling_core", "pyproject.toml", "README.md", "LICENSE")
OLDEST_NUMPY = "1.26.4"  # has wheels up to Python 3.12
ABSENT = ("matplotlib", "skimage", "diffusers", "transformers", "ray", "tqdm", "loguru")
IMPORTS = f"""
import argparse
import sys
from importlib.util import find_spec
import profiling_core
assert not {{"torch", "numpy"}} & set(sys.modules), "import profiling_core imports too much"
assert "site-packages" in profiling_core.__file__, profiling_core.__file__
assert not [name for name in {ABSENT} if find_spec(name)], "this environment is not clean"
for name in profiling_core.__all__:
    getattr(profiling_core, name)
try:
    profiling_core.cache_pipeline(argparse.Namespace(components={{"vae": 1}}), "balanced")
except ValueError as error:
    print(error)
"""
RECORDING = """
import numpy, torch
from profiling_core.recording import recorder
from profiling_core.recording.foreground import foreground_mask
signal = torch.randn(16, 5, 16, 16, generator=torch.Generator().manual_seed(0))
signal[:, :, 4:8, 4:8] += 3
print(numpy.__version__, int(foreground_mask("pca", signal=signal, grid=(5, 8, 8)).sum()))
"""
PIPELINE = """
import sys
sys.path.insert(0, sys.argv[1])
from profiling_core import cache_pipeline
from tiny_pipelines import wan
tiny = wan()
full = tiny.latents(num_inference_steps=12)
with cache_pipeline(tiny.pipe, "balanced") as cached:
    fast = tiny.latents(num_inference_steps=12)
assert fast.shape == full.shape and not fast.equal(full)
assert tiny.latents(num_inference_steps=12).equal(full)
"""


class Environment:
    """A virtual environment, and commands in it that see nothing of the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "venv" / "bin"
        python = shutil.which("python3.11") if sys.version_info >= (3, 13) else sys.executable
        if python is None:
            raise SystemExit(f"NumPy {OLDEST_NUMPY} needs Python 3.11, which is not here")
        subprocess.run([python, "-m", "venv", "--without-pip", folder / "venv"], check=True)

    def install(self, *what: str) -> None:
        if os.environ.get("TORCH_INDEX") and what[0].startswith("torch=="):
            what = (*what, "--index-url", os.environ["TORCH_INDEX"])
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "-qq"]
        subprocess.run([*pip, "--no-compile", *what], check=True)  # compiling takes a minute

    def run(self, program: str, *arguments: str, code: int = 0) -> str:
        """What a command prints; SystemExit where it ends otherwise than it should."""
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name not in hidden},
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        if done.returncode != code:
            raise SystemExit(f"{program} {' '.join(arguments)}: exit {done.returncode}\n{said}")
        return said


def check(folder: Path, *, diffusers: bool = False) -> None:
    """Build, install and try the wheel in `folder`."""
    wheel = built(folder)
    clean = Environment(folder)
    clean.install(torch_pin())
    clean.install(f"numpy=={OLDEST_NUMPY}", str(wheel))
    check_commands(clean, wheel.name.split("-")[1], OLDEST_NUMPY)
    clean.install("--upgrade", "numpy")
    newest = clean.run("python", "-c", "import numpy; print(numpy.__version__)").strip()
    assert newest.startswith("2."), newest
    check_commands(clean, wheel.name.split("-")[1], newest)
    if diffusers:
        clean.install(f"{wheel}[diffusers]")
        clean.run("python", "-c", PIPELINE, str(ROOT / "tests/lib"))
        log("cache_pipeline runs a diffusers pipeline")


def index_answers(folder: Path) -> bool:
    """Whether pip can fetch a small package now."""
    ask = [
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        "--retries",
        "0",
        "--timeout",
        "10",
    ]
    command = [sys.executable, "-m", "pip", *ask, "-d", str(folder), "safetensors"]
    return subprocess.run(command, capture_output=True).returncode == 0


def built(folder: Path) -> Path:
    """The wheel of a copy: a build leaves folders behind."""
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("profiling_dit-*.whl")
    log(f"built {wheel.name}")
    return wheel


def torch_pin() -> str:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def check_commands(clean: Environment, version: str, numpy: str) -> None:
    """What needs no extra works; what needs one says in a line how to install it."""
    said = clean.run("python", "-c", IMPORTS)
    assert said.count("\n") == 1 and "its parts are vae" in said, said
    assert clean.run("profiling-dit", "--version") == f"profiling-dit {version}\n"
    shown = clean.run("profiling-dit", "show", "balanced")
    assert "plan 'balanced' for wan2.1-t2v-14B" in shown
    assert clean.run("python", "-m", "profiling_core", "show", "balanced") == shown
    assert clean.run("python", "-c", RECORDING).startswith(f"{numpy} ")
    profile = ("--profile", str(PROFILE))
    plan = ("plan", *profile, "--speedup", "2", "-o", f"{numpy}.json")
    assert f"wrote {numpy}.json" in clean.run("profiling-dit", *plan)
    assert "speed-up" in clean.run("profiling-dit", "show", f"{numpy}.json")
    for command in (
        ("plan", *profile, "--speedup", "2", "-o", "b.json", "--frontier", "a.svg"),
        ("report", *profile, "-o", "a.html"),
    ):
        error = clean.run("profiling-dit", *command, code=2)
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert error.endswith('matplotlib is not installed: pip install "profiling-dit[report]"\n')
    log(f"with NumPy {numpy}: show, plan, recording and the public names; no other package")


def log(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--diffusers", action="store_true", help="try a tiny pipeline as well")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as tried:
        if index_answers(Path(tried)):
            check(Path(made), diffusers=asked.diffusers)
        else:
            log("not run: no package index answers, so there is nothing to install from")
