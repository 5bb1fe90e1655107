"""A server from its start to its end: checks, a port, the model behind it, a newer checkpoint in its place."""

import threading
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.decode.request import EngineStats
from lmkit.parallel.devices import setup_jax
from lmkit.parallel.mesh import build_mesh
from lmkit.serve.app import make_app, routes_of
from lmkit.serve.guard import Guard
from lmkit.serve.life import listen, run_server
from lmkit.serve.loading import MIB, Found, Loaded, find, fingerprint_of, load
from lmkit.serve.served import Server
from lmkit.weights import open_model


def run(experiment: Experiment) -> int:
    """Serves until a signal; returns the exit status. Raises what kept the model from being loaded."""
    settings = experiment.serve
    model = open_model(experiment.init_from)
    if not (routes := routes_of(model.config)):
        raise ConfigError(
            f"init_from={experiment.init_from}: {type(model.config).__name__} of this kind is not served; models are "
            f"that write text (gpt), encode it (bert), tell classes (bert, vit) or transcribe sound (encdec with "
            f"num_mels)"
        )
    found = find(experiment, model)
    listening = listen(settings.host, settings.port)
    setup_jax(experiment.run)
    mesh = build_mesh(experiment.mesh)
    host, port = listening.getsockname()[:2]
    scheme, shown = "https" if settings.tls_cert else "http", f"[{host}]" if ":" in host else host
    behind = Behind(found, Server(found.name, routes), experiment, mesh, f"{scheme}://{shown}:{port}")
    files = {name: Path(value).expanduser() if (value := getattr(settings, name)) else None
             for name in ("keys", "access_log")}  # fmt: skip
    guard = Guard(
        behind.stats, reload=behind.reload, name=found.name, length=found.length,
        chat=found.conversation is not None, max_body=round(settings.max_body_mib * MIB),
        timeout_sec=settings.request_timeout_sec, drain_sec=settings.drain_sec, log_texts=settings.log_texts,
        page=settings.page, metrics=settings.metrics, **files,
    )  # fmt: skip
    tls = {f"ssl_{key}": str(Path(value).expanduser())
           for key, value in (("certfile", settings.tls_cert), ("keyfile", settings.tls_key)) if value}  # fmt: skip
    app = guard.around(make_app(behind.server, guard.routes))
    loading = threading.Thread(target=behind.load, args=(guard.life.ready,), name="lmkit-loading", daemon=True)
    loading.start()
    try:
        status = run_server(app, guard.life, listening, **tls)
    finally:
        behind.close()
    if behind.error is not None:
        raise behind.error
    return status


class Behind:
    """The model behind a server: loaded on a thread, so that /ready can say that it is not there yet."""

    def __init__(self, found: Found, server: Server, experiment: Experiment, mesh: Mesh, address: str):
        self.server, self._found, self._experiment, self._mesh = server, found, experiment, mesh
        self._address = address
        self._loaded: Loaded | None = None
        self.error: Exception | None = None

    def load(self, ready: Callable[[], None]) -> None:
        """Loads the model, says so, and calls `ready`."""
        try:
            self._loaded = load(self._found, self._experiment.serve, self._mesh)
        except Exception as error:
            self.error, self.server.failure = error, "the model could not be loaded"
            return
        self.server.served = self._loaded.served
        ready()
        print(f"{self.server.name} is ready at {self._address}/v1", flush=True)

    def stats(self) -> EngineStats:
        """Of the engine; of a model without one its state alone."""
        if self.error is not None:
            return EngineStats(failure="the model could not be loaded")
        engine = self._loaded.served.engine if self._loaded else None
        return engine.stats() if engine is not None else EngineStats()

    def reload(self) -> str:
        """Swaps in what `init_from` has now. Raises ConfigError where that is another kind of model."""
        if self._loaded is None:
            raise ConfigError("the model is still being loaded")
        loaded, model = self._loaded, open_model(self._experiment.init_from)
        new, old = fingerprint_of(model), loaded.served.fingerprint
        if new == old:
            return f"{old} is the newest there is"
        if model.config != self._found.model.config:
            raise ConfigError(f"init_from={self._experiment.init_from} has another kind of model now: start a server")
        params = model.for_inference(self._mesh)[1]
        loaded.served.fingerprints.append(new)  # before a text of them can begin
        loaded.swap(params)
        return f"{old} gave way to {new}"

    def close(self) -> None:
        """Ends the threads of what was loaded."""
        if self._loaded is not None:
            self._loaded.served.close()
