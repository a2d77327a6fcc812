"""Whether weights are at hand or can be fetched, before a library waits for them: without a network it would for a
minute."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import HfHubHTTPError
from timm.models import PretrainedCfg

from lorica.errors import BackboneError
from lorica.network import unreachable

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
    """Why a model's weights cannot be fetched, as far as an answer of their host to one short request tells; None where
    they perhaps can.

    The request goes where the download would (HF_ENDPOINT, proxies), and is not made where HF_HUB_OFFLINE forbids it.
    """
    known = timm.get_pretrained_cfg(name)
    url = _url(known) if known else None
    return None if url is None else unreachable(url)


def snapshot(name: str, files: list[str], *, remedy: str) -> Path:
    """The folder with these files of a model of Hugging Face's hub, fetched or left by an earlier download.

    Args:
        files: patterns of their names.
        remedy: what else one can do, where that fails.

    Raises:
        BackboneError: no such model, or no network; within 5 seconds.
    """
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)
    try:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=reason is not None))
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = reason or str(error).strip().splitlines()[0]
        raise BackboneError(f"backbone.name: cannot get {name} ({why}); {remedy}") from error


def _url(known: PretrainedCfg) -> str | None:
    if known.hf_hub_id:
        return None if constants.HF_HUB_OFFLINE else constants.ENDPOINT
    return _own_url(known)


def _own_url(known: PretrainedCfg) -> str | None:
    """Of weights that are not on the hub."""
    url = known.url if isinstance(known.url, str) else known.url[0] if known.url else None  # some have a hash beside it
    return url or None
