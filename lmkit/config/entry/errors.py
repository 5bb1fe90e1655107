"""What a user can mend, as one line."""

import dataclasses
import errno
import re

from lmkit.config.base import UserError, nearest
from lmkit.config.entry.keys import all_keys_of
from lmkit.config.experiment import Experiment
from lmkit.config.paths import options_of
from lmkit.redact import redact_text


def explain(error: BaseException) -> str | None:
    """One line for what the user can mend, without secrets, or None for anything else."""
    line = _explain(error)
    return None if line is None else redact_text(line)


def _explain(error: BaseException) -> str | None:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if any("No space left" in str(one) or getattr(one, "errno", None) == errno.ENOSPC for one in causes):
        return "the disk is full: free space, then repeat the command with run.dir= of this run (see its checkpoints/)"
    for one in causes:
        if isinstance(one, UserError):
            return str(one)
    composing = [one for one in causes if type(one).__module__.split(".")[0] in ("hydra", "omegaconf")]
    composing.sort(key=lambda one: "full_key" not in str(one))  # the one that names the key comes first
    if composing:
        return _explain_hydra(composing[0])
    if any(isinstance(one, RuntimeError) and "home directory" in str(one) for one in causes):
        return "there is no home directory: set HOME, or LMKIT_CACHE to a folder for caches, and give paths without ~"
    for one in causes:
        if isinstance(one, OSError) and one.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            if one.filename is None:  # a semaphore: of TensorBoard's writer, of processes that read
                return (
                    f"no semaphore can be made here ({one.strerror}; they lie in /dev/shm): mount it writable, or set "
                    f"tracker=none and data.read_processes=0"
                )
            return f"no permission to write {one.filename}: choose another place with run.dir= or data.cache_dir="
    return None


def _explain_hydra(error: BaseException) -> str:
    text = str(error)
    if unknown := re.search(r"Key '([^']+)' (?:is )?not in|Could not override '([^']+)'", text):
        found = re.search(r"full_key: (\S+)", text)
        full = found[1] if found else unknown[1] or unknown[2]
        return unknown_key(full)
    if option := re.search(r"(?:Could not find|In '.*': Could not find) '([\w-]+)/([\w.-]+)'", text):
        options = options_of(option[1])
        return f"no {option[1]} named {option[2]!r}.{nearest(option[2], options)} There are: {', '.join(options)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = re.search(r"full_key: (\S+)", text)
    where = f"{found[1]}: " if found else ""
    return where + (lines[0] if lines else type(error).__name__)


def unknown_key(full: str) -> str:
    sections = [field.name for field in dataclasses.fields(Experiment)]
    all_keys = [name for name, *_ in all_keys_of(Experiment)] + sections
    for name, _, default, _ in all_keys_of(Experiment):
        if isinstance(default, dict) and full.startswith(f"{name}."):
            return f"{name} is a dictionary: give it whole, with a + before its name: '+{name}={{NAME: VALUE, ...}}'"
    if full in all_keys:
        return (
            f"{full} is a key of another family of models than the one chosen: leave it out, or choose with model=NAME"
        )
    return f"unknown key {full!r}.{nearest(full, all_keys)} All keys: python -m lmkit.train --help"
