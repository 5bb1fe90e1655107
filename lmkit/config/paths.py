"""Where conf/ is (in a wheel, an editable install or a checkout) and where caches go."""

import os
from pathlib import Path

import lmkit


def conf_dir() -> Path:
    """The packaged conf/ if it stands, else the checkout's beside the package."""
    package = Path(lmkit.__file__).resolve().parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def cache_dir(configured: str = "") -> Path:
    """The folder of caches: as configured, else $LMKIT_CACHE, else the user's cache folder."""
    if configured or os.environ.get("LMKIT_CACHE"):
        return Path(configured or os.environ["LMKIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lmkit"


def options_of(group: str) -> list[str]:
    """Names of the YAML files of a group."""
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
