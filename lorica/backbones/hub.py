"""Whether timm's weights are at hand or can be fetched, before timm waits for them: without a network it would for a minute."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session
from timm.models import PretrainedCfg

_SECONDS = 4.0
_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def cached(name: str) -> Path | None:
    """The file with a model's weights that an earlier download left; None where there is none, or no such weights."""
    known = timm.get_pretrained_cfg(name)
    if known is None:
        return None
    if known.hf_hub_id:
        repository, _, revision = known.hf_hub_id.partition("@")
        names = (known.hf_hub_filename, *_FILES) if known.hf_hub_filename else _FILES
        found = (try_to_load_from_cache(repository, file, revision=revision or None) for file in names)
        return next((Path(file) for file in found if isinstance(file, str)), None)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(_own_url(known) or "").path).name
    return file if file.is_file() else None


def out_of_reach(name: str) -> str | None:
    """Why a model's weights cannot be fetched, as far as an answer of their host to one short request tells; None where they
    perhaps can.

    The request goes where the download would (HF_ENDPOINT, proxies), and is not made where HF_HUB_OFFLINE forbids it. It
    has 4 seconds, or HF_HUB_ETAG_TIMEOUT.
    """
    known = timm.get_pretrained_cfg(name)
    url = _url(known) if known else None
    if url is None:
        return None
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


def _url(known: PretrainedCfg) -> str | None:
    if known.hf_hub_id:
        return None if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    return _own_url(known)


def _own_url(known: PretrainedCfg) -> str | None:
    """Of weights that are not on the hub."""
    url = known.url if isinstance(known.url, str) else known.url[0] if known.url else None  # some have a hash beside it
    return url or None


def _seconds() -> float:
    try:
        return float(os.environ["HF_HUB_ETAG_TIMEOUT"])
    except (KeyError, ValueError):
        return _SECONDS
