"""Whether a host answers, before a library waits for it much longer."""

from __future__ import annotations

import os
import threading
from urllib.parse import urlsplit

from huggingface_hub.utils import get_session

_SECONDS = 4.0


def unreachable(url: str) -> str | None:
    """Why its host does not answer one short request, which has 4 seconds, or HF_HUB_ETAG_TIMEOUT; None where it
    does."""
    seconds = _seconds()
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(url, timeout=seconds)
        except Exception as error:  # of whichever client the hub's library uses
            answers.append(str(error).strip() or type(error).__name__)
        else:
            answers.append(None)  # an error of the server's is timm's to report

    asking = threading.Thread(target=ask, daemon=True)  # nothing bounds the time that looking up a name takes
    asking.start()
    asking.join(seconds + 0.5)
    reason = answers[0] if answers else f"no answer within {seconds:g} s"
    return reason and f"{urlsplit(url).netloc} cannot be reached: {reason}"


def _seconds() -> float:
    try:
        return float(os.environ["HF_HUB_ETAG_TIMEOUT"])
    except (KeyError, ValueError):
        return _SECONDS
