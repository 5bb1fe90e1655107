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
    """Where the files of `init_from` are: a path as it stands, or a hub id, hub://org/name[@revision].

    Only what begins with hub:// reaches the network: the configuration, weights and tokenizer are fetched, unless the
    hub's cache has them. With HF_HUB_OFFLINE=1 the cache alone is asked. Raises ConfigError where it is neither.
    """
    name = init_from.removeprefix("hub://")
    if name == init_from:
        path = Path(init_from).expanduser()
        if not path.exists() and _ID.fullmatch(name):
            raise ConfigError(
                f"init_from={init_from}: there is no such path; a model of the hub is init_from=hub://{name}"
            )
        return path
    if not _ID.fullmatch(name):
        raise ConfigError(f"init_from={init_from}: a hub id is hub://org/name or hub://org/name@revision")
    repo, _, revision = name.partition("@")
    return _fetch(init_from, repo, revision or None)


def _fetch(init_from: str, repo: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise ConfigError(f"init_from={init_from}: pip install 'lmkit[hub]' to fetch it") from None
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
    raise ConfigError(f"init_from={init_from}: {problem}")
