"""What the parts of a plan are made of: strict frozen models, and the error of a bad plan."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Checked(BaseModel):
    """Unknown keys are refused, values are not coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def first_mistake(error: ValidationError) -> str:
    """Place and reason of the first mistake, in one line."""
    mistakes = error.errors(include_url=False, include_input=True)
    first = mistakes[0]
    place = ""
    for part in first["loc"]:
        if part in ("prediction", "intervals") and place.endswith("]") and len(place) < 12:
            continue  # the discriminator's tag is no key of the file
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif first["type"] == "missing":
        message = "missing"
    elif first["type"] not in ("value_error",):
        message += f", found {str(first['input'])[:60]!r}"
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"
