"""Small files of our own with the anchors of the upstream repositories, and git around them."""

import os
import subprocess
from pathlib import Path

PATCHES = Path(__file__).resolve().parents[2] / "patches"

WAN = '''"""A toy of t2v-14B: größer, 猫."""
import argparse

import wan


def _parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)

    args = parser.parse_args()  # the anchor

    return args


def _init_logging(rank):
    return rank


def generate(args):
    rank = 0
    _init_logging(rank)

    if args.seed > 9:
        wan_t2v = wan.WanT2V(
            seed=args.seed,
        )
        wan_t2v.generate()
    if args.seed <= 9:
        wan_i2v = wan.WanI2V(seed=args.seed)

        wan_i2v.generate()


if __name__ == "__main__":
    generate(_parse_args())
'''
CONFIG = """import argparse


def parse_args(namespace=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=str, default="HYVideo-T/2")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args(namespace=namespace)
    return args
"""
SAMPLE = """from hyvideo.config import parse_args
from hyvideo.inference import Sampler


def main():
    args = parse_args()
    hunyuan_video_sampler = Sampler.from_pretrained(
        "models",
        args=args,
    )
    hunyuan_video_sampler.predict(args.steps)


if __name__ == "__main__":
    main()
"""
FILES = {
    "Wan2.1": {"generate.py": WAN},
    "Wan2.2": {"generate.py": WAN.replace("t2v-14B", "t2v-A14B")},
    "HunyuanVideo": {"hyvideo/config.py": CONFIG, "sample_video.py": SAMPLE},
    "HunyuanVideo-I2V": {"hyvideo/config.py": CONFIG, "sample_image2video.py": SAMPLE},
}


def write_checkout(folder: Path, kind: str, **changes: tuple[str, str]) -> Path:
    """A toy of that kind; `changes`: name of a file without its end -> (old text, new text)."""
    for file, text in FILES[kind].items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        old, new = changes.get(path.stem, ("", ""))
        assert old in text
        path.write_bytes(text.replace(old, new).encode())
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """All files of a folder but git's."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in files.items() if not name.startswith(".git/")}


def git(folder: Path, *arguments: str, stdin: bytes | None = None) -> str:
    """Run git as nobody in particular, whatever the machine's settings are."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    user = ("-c", "user.name=toy", "-c", "user.email=toy@localhost")
    done = subprocess.run(
        ["git", *user, "-C", str(folder), *arguments],
        input=stdin,
        env=keep | quiet | {"GIT_CEILING_DIRECTORIES": str(folder.parent)},
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


def commit_all(folder: Path) -> str:
    """Commit everything in a folder and give the commit's name."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "toy")
    return git(folder, "rev-parse", "HEAD")
