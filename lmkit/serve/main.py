"""`lmkit.serve`: what can be checked before the server's own packages, a device or a port are touched."""

import importlib
import importlib.util
import ipaddress
import ssl
from pathlib import Path

from lmkit.config.base import ConfigError
from lmkit.config.experiment import Experiment
from lmkit.config.sections.serve import ServeConfig

_PACKAGES = ("starlette", "uvicorn", "prometheus_client", "python_multipart", "llguidance", "jinja2")


def serve(experiment: Experiment) -> int:
    """Serves the model of `init_from` until a signal ends it; returns the exit status."""
    check_packages()
    check_settings(experiment.serve)
    return importlib.import_module("lmkit.serve.run").run(experiment)


def check_packages() -> None:
    """Raises ConfigError where the extra `serve` is not installed."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"lmkit.serve needs {', '.join(missing)}: pip install 'lmkit[serve]'")


def check_settings(settings: ServeConfig) -> None:
    """Raises ConfigError for an address that everybody reaches without keys, and for files that are not there."""
    if not settings.keys and not is_loopback(settings.host):
        raise ConfigError(
            f"serve.host={settings.host} without serve.keys: whoever reaches this address could use the model; make a "
            f"key with python -m lmkit.serve.keys and set serve.keys=FILE, or set serve.host=127.0.0.1"
        )
    for name in ("keys", "tls_cert", "tls_key"):
        value = getattr(settings, name)
        if value and not Path(value).expanduser().is_file():
            way_out = f"; python -m lmkit.serve.keys create {value} --name NAME makes it" if name == "keys" else ""
            raise ConfigError(f"serve.{name}={value}: no such file{way_out}")
    if settings.tls_cert:
        cert, own = (Path(value).expanduser() for value in (settings.tls_cert, settings.tls_key))
        try:  # without a password, else OpenSSL would ask the terminal for one
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, own, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"serve.tls_cert={settings.tls_cert} serve.tls_key={settings.tls_key}: {error}; give a PEM certificate "
                f"and its own private key, without a password"
            ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
