"""The error of this tree for what a user can put right."""


class InputError(ValueError):
    """One line that names the value at fault and the way out; `sample_video.py` prints it bare."""
