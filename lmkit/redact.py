"""What must not be written down: credentials in URLs, values of keys that look like secrets, well-known tokens.

All that lmkit writes of a configuration, a command line or a diff goes through here: the one list of what is a secret.
"""

import re
from collections.abc import Iterable
from typing import Any

HIDDEN = "***"
# A name that says that its value is a secret. `tokens` counts something; `end_token` and its kin are of a tokenizer.
_SECRET = re.compile(r"passw(or)?d|passphrase|secret|api_?key|access_?key|private_?key|credential|(^|_)token$")
_OURS = re.compile(
    r"(^|_)(bos|eos|start|end|stop|mask|pad|unk|sep|cls|special|image|audio|decoder_start|next|last|first|per|each|"
    r"a|the|every|one|num|max|min|by)_token$"
)
_NAME = r"[A-Za-z_][\w.-]*"
_URL_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)[^/\s'\"]+@")
_SIGNED = r"(?:token|sig|signature|key|secret|password|credential|awsaccesskeyid|expires|policy)"
_URL_QUERY = re.compile(rf"(?P<place>[A-Za-z][\w+.-]*://[^\s?'\"#]+\?)(?=[^\s'\"#]*\b[\w-]*{_SIGNED}=)[^\s'\"#]*", re.I)
_LITERAL = re.compile(rf"(?P<name>{_NAME})(?P<sign>['\"]?\s*[:=]\s*)(?P<quote>['\"])(?P<value>[^'\"\n]+)(?P=quote)")
_VARIABLE = re.compile(r"\b(?P<name>[A-Z][A-Z0-9_]*)(?P<sign>=|: )(?P<value>[^\s'\"]+)")
_FLAG = re.compile(rf"(?P<name>--{_NAME})(?P<sign>[= ])(?P<value>[^\s'\"]+)")
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}|"
    r"AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|xox[a-z]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
)
_WORD = re.compile(rf"(?P<name>[+~]*{_NAME})=(?P<value>.+)", re.DOTALL)


def is_secret(name: str) -> bool:
    """Whether a key, a variable or an option of this name holds a secret."""
    last = name.rsplit(".", 1)[-1].lower().replace("-", "_").strip("_+~")
    return bool(_SECRET.search(last)) and not _OURS.search(last)


def redact(value: Any) -> Any:
    """A plain value (dicts, lists, strings) without its secrets."""
    if isinstance(value, dict):
        return {
            name: HIDDEN if isinstance(one, str) and one and isinstance(name, str) and is_secret(name) else redact(one)
            for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(one) for one in value]
    return redact_text(value) if isinstance(value, str) else value


def redact_words(words: Iterable[str]) -> list[str]:
    """A command line without its secrets: the value after KEY=, or in the word after --KEY, too."""
    found, hide = [], False
    for word in words:
        found.append(HIDDEN if hide else redact_text(word))
        hide = word.startswith("--") and "=" not in word and is_secret(word)
    return found


def redact_text(text: str) -> str:
    """A text without its secrets: a value, a word of a command line, a diff."""
    if (word := _WORD.fullmatch(text)) and is_secret(word["name"]):
        return f"{word['name']}={HIDDEN}"
    text = _URL_LOGIN.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _URL_QUERY.sub(rf"\g<place>{HIDDEN}", text)
    for pattern in (_LITERAL, _VARIABLE, _FLAG):
        text = pattern.sub(_hide, text)
    return _TOKENS.sub(HIDDEN, text)


def _hide(found: re.Match) -> str:
    if not is_secret(found["name"]):
        return found[0]
    quote = found.groupdict().get("quote") or ""
    return f"{found['name']}{found['sign']}{quote}{HIDDEN}{quote}"
