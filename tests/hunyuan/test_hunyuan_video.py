"""What only HunyuanVideo has of files; tests/trees holds what both trees share."""

from pathlib import Path

from hyvideo.video import default_name, save_folder
from tree_cases import NOW


def test_suffixes_belong_to_the_name_and_to_the_folder() -> None:
    name = default_name("cat", 42, "night: 2/3", still=False, now=NOW)
    assert name == "2026-01-02-030405_seed42_cat_night_2_3.mp4"
    assert save_folder("./results", "") == Path("results")
    assert save_folder("./results", "b") == Path("results_b")
