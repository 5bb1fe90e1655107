"""/v1/audio/transcriptions: a sound file to its text."""

import asyncio
import io
import math
from typing import Any

import numpy as np
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from lmkit.config.base import ConfigError
from lmkit.data.sources.audio import read_audio
from lmkit.serve.answers import answer
from lmkit.serve.call import Call, call_of
from lmkit.serve.errors import bad
from lmkit.serve.served import Served, check_model

FORMATS = ("json", "text", "verbose_json")
MOST_HOURS = 4
_NOT_HERE = {
    "prompt": "a transcript begins with the sound alone", "chunking_strategy": "windows are the model's",
    "include": "log-probabilities are not told", "known_speaker_names": "speakers are not told apart",
    "known_speaker_references": "speakers are not told apart",
}  # fmt: skip


async def transcriptions(request: Request) -> Response:
    """The route. The body is multipart/form-data."""
    served = request.app.state.server.ready()
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise bad("file", "file: send the sound as multipart/form-data")
    async with request.form(max_files=1) as form:
        language, format = await _asked(form, served)
        samples = await asyncio.to_thread(_samples, await _content(form))
    call = call_of(request.scope)
    call.charge(0, 0)
    return await answer(request, _answer(served, samples, language, format, call))


async def _asked(form: FormData, served: Served) -> tuple[str, str]:
    """Language and format. Raises Refused for a member that is wrong or not known."""
    values = {name: value for name, value in form.items() if isinstance(value, str)}
    check_model(values.get("model", served.name), served)
    for name, value in values.items():
        if name in _NOT_HERE:
            raise bad(name, f"{name}: not supported: {_NOT_HERE[name]}")
        if name not in ("model", "language", "response_format", "temperature", "timestamp_granularities[]", "stream"):
            raise bad(name, f"unknown parameter {name}", "unknown_parameter")
        if name == "temperature" and value.strip() not in ("", "0", "0.0"):
            raise bad(name, f"temperature={value[:20]}: not supported: the likeliest token is taken; set 0")
        if name == "stream" and value.lower() not in ("false", "0", ""):
            raise bad(name, "stream: not supported: the text comes when it is whole")
    format = values.get("response_format", "json")
    if format not in FORMATS:
        raise bad("response_format", f"response_format={format[:20]!r}: it must be one of {', '.join(FORMATS)}")
    for value in form.getlist("timestamp_granularities[]"):
        if value != "segment" or format != "verbose_json":
            raise bad("timestamp_granularities[]", "timestamp_granularities: segment alone, with verbose_json")
    language = values.get("language", "")
    try:
        served.listener.start(language)
    except ConfigError as error:
        raise bad("language", str(error).removeprefix("generate.")) from error
    return language, format


async def _content(form: FormData) -> bytes:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise bad("file", "file: send a sound file (wav, flac, ogg)")
    return await file.read()


def _samples(content: bytes) -> np.ndarray:
    """The sound. Raises Refused for what is none."""
    import soundfile

    try:
        hours = soundfile.info(io.BytesIO(content)).duration / 3600
        if hours > MOST_HOURS:
            raise bad("file", f"file: {hours:.1f} hours of sound; at most {MOST_HOURS}")
        return read_audio("file", content=content)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise bad("file", f"file: it cannot be read as sound (wav, flac, ogg): {error}") from error
    except ConfigError as error:
        raise bad("file", str(error)) from error


async def _answer(served: Served, samples: np.ndarray, language: str, format: str, call: Call) -> Response:
    heard = await served.listener.hear(samples, language)
    call.new_tokens, call.texts = heard.tokens, {"answer": heard.text}
    if format == "text":
        return PlainTextResponse(heard.text + "\n")
    usage = {"type": "duration", "seconds": math.ceil(heard.seconds)}
    told: dict[str, Any] = {"text": heard.text, "usage": usage}
    if format == "verbose_json":
        told |= {"task": "transcribe", "language": heard.language, "duration": round(heard.seconds, 3)}
        if heard.segments is not None:
            told["segments"] = [{"id": number} | one for number, one in enumerate(heard.segments)]
    return JSONResponse(told)
