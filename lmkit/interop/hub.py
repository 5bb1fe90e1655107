"""Models by their id on the Hugging Face hub: fetched once, then found in its cache."""

import os
import re
from pathlib import Path
from typing import Any

from lmkit.config.base import ConfigError
from lmkit.files import shared_files
from lmkit.interop.names import TOKENIZER_FILES

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES)
_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def locate(init_from: str) -> Path:
    """Where the files of `init_from` are: a path as it stands, or a hub id (hub://org/name[@revision], org/name).

    A hub id's files are fetched (only the configuration, weights and tokenizer), unless the hub's cache has them.
    With HF_HUB_OFFLINE=1 the cache alone is asked. Raises ConfigError where it is neither.
    """
    name = init_from.removeprefix("hub://")
    path = Path(init_from).expanduser()
    if name == init_from and (path.exists() or not _ID.fullmatch(name)):
        return path
    if not _ID.fullmatch(name):
        raise ConfigError(f"init_from={init_from}: a hub id is hub://org/name or hub://org/name@revision")
    repo, _, revision = name.partition("@")
    return _fetch(init_from, repo, revision or None)


def _fetch(init_from: str, repo: str, revision: str | None) -> Path:
    nowhere = "" if init_from.startswith("hub://") else "no such path here, and as a hub id: "
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise ConfigError(f"init_from={init_from}: {nowhere}pip install 'lmkit[hub]' to fetch it") from None
    # the environment as it is now: the package reads it once, when it is imported
    options: Any = {"endpoint": os.environ.get("HF_ENDPOINT")}
    try:
        with shared_files():  # the hub's cache is no part of a run
            place = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(FILES), **options)
        return Path(place).absolute()
    except errors.RevisionNotFoundError:
        problem = f"{repo} has no revision {revision!r} on the hub"
    except errors.GatedRepoError:
        problem = f"{repo} asks for consent: give it on the hub's page, and log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        problem = f"no repository {repo!r} on the hub (a private one needs `hf auth login`)"
    except errors.LocalEntryNotFoundError:
        problem = f"{repo} is not in the cache and the hub cannot be reached; fetch it where there is a network"
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ConfigError(f"init_from={init_from}: {nowhere}{problem}")
