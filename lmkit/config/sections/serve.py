"""`serve`: where a model is served, how much it may take at a time, and who may ask."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from lmkit.config.base import ConfigError, Section, key


class EmbeddingPooling(Enum):
    """What stands for a whole text in /v1/embeddings."""

    mean = 0  # over its tokens
    cls = 1  # its first token
    last = 2  # its last token


@dataclass
class ServeConfig(Section):
    """An HTTP server with OpenAI's API."""

    section: ClassVar[str] = "serve"
    changes_results: ClassVar[bool] = False

    host: str = key("127.0.0.1", "address it listens on; without serve.keys a loopback address only")
    port: int = key(8000, "TCP port; 0 = one that is free", at_least=0, at_most=65535)
    name: str = key("", "id of the model in /v1/models and in answers; '' = the name of the folder of init_from")
    slots: int = key(16, "requests that are decoded at the same time; more of them wait", at_least=1)
    max_len: int = key(0, "tokens of a prompt and its text together; 0 = the model's longest", at_least=0)
    prefill_chunk: int = key(256, "tokens of a prompt that are computed between two decoding steps", at_least=16)
    prefix_mib: int = key(256, "MiB of KV cache kept for prompts that begin alike; 0 = none", at_least=0)
    queue: int = key(256, "requests that may wait; one more is answered 429", at_least=0)
    pooling: EmbeddingPooling = key(
        EmbeddingPooling.mean, "what stands for a text in /v1/embeddings: mean, cls or last"
    )
    keys: str = key("", "file of hashed API keys, made by python -m lmkit.serve.keys; '' = no keys, loopback only")
    max_body_mib: float = key(32.0, "MiB of a request's body; a longer one is answered 413", at_least=0.001)
    request_timeout_sec: float = key(600.0, "a request that takes longer is ended; 0 = never", at_least=0)
    drain_sec: float = key(30.0, "after SIGTERM, requests in hand may finish for so long", at_least=0)
    tls_cert: str = key("", "certificate of HTTPS, PEM; with serve.tls_key")
    tls_key: str = key("", "private key of HTTPS, PEM; with serve.tls_cert")
    access_log: str = key("", "file that gets a JSON line for each request: who, when, tokens, status; '' = none")
    log_texts: bool = key(False, "texts of requests and answers in the access log, too")
    page: bool = key(True, "a page at / to try the model")
    metrics: bool = key(True, "figures for Prometheus at /metrics")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.tls_cert) != bool(self.tls_key):
            given, other = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise ConfigError(f"serve.{given}={getattr(self, given)} without serve.{other}: HTTPS needs both")
        if self.log_texts and not self.access_log:
            raise ConfigError("serve.log_texts=True without serve.access_log: say where with serve.access_log=FILE")
