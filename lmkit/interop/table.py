"""What a family's table is made of: rows for tensors, keys for the configuration."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import numpy as np

from lmkit.config.base import ConfigError
from lmkit.config.sections.model import Activation, ModelConfig, Norm, Position, RopeScaling, TransformerConfig

Json = dict[str, Any]
BLOCKS = "stack.blocks."
# Ours where 0 stands for a value worked out from others, and where that stands.
WORKED_OUT = {"num_kv_heads": "kv_heads", "head_dim": "head_size", "mlp_dim": "mlp_size",
              "num_decoder_layers": "decoder_layers", "max_source_len": "source_len"}  # fmt: skip
# Ours only: how a model is run, started and trained, not what it computes (while decoding no expert is ever full).
RUN_KEYS = {"dtype", "linear_dtype", "remat", "scan_layers", "microbatches", "rounds", "attention", "context_attention",
            "dropout", "init_std", "residual_init", "logit_scale_init", "capacity_factor", "balance_loss",
            "router_z_loss"}  # fmt: skip


class Layout(Enum):
    """How their tensor lies."""

    same = 0  # dims in our order, some of ours flattened into one of theirs
    linear = 1  # [out, in] for our [in, out]
    conv = 2  # [out, in, *taps] for our [taps x in, out]
    ours = 3  # our dims, one by one


@dataclass(frozen=True)
class Row:
    """One parameter of ours and its tensor of theirs.

    `{layer}` and `{expert}` in `theirs` stand for one tensor each of our leading dims; `part` (i, n) is the i-th of n
    that theirs holds side by side along its output; `first` is their number of our layer 0; `also` are other names,
    whose tensors must be equal where a file has several;
    `ins` counts the dims that a kernel contracts; `taps` is the shape of a convolution's window; `pad` counts the
    leading dims of size 1 that only theirs has.
    """

    ours: str
    theirs: str
    layout: Layout = Layout.same
    part: tuple[int, int] = (0, 1)
    first: int = 0
    also: tuple[str, ...] = ()
    ins: int = 1
    taps: tuple[int, ...] = ()
    pad: int = 0

    @property
    def each(self) -> int:
        """How many leading dims of ours are separate tensors of theirs."""
        return ("{layer}" in self.theirs) + ("{expert}" in self.theirs)

    def names(self, index: Sequence[int]) -> list[str]:
        """Their names of our element `index` of those dims, the usual one first."""
        places = [word for word in ("layer", "expert") if f"{{{word}}}" in self.theirs]
        numbers = dict(zip(places, index, strict=True))
        if "layer" in numbers:
            numbers["layer"] += self.first
        return [name.format(**numbers) for name in (self.theirs, *self.also)]

    def spans(self, own: Sequence[int]) -> list[tuple[int, int]]:
        """Our dims [from, to) that each dim of theirs flattens, in our order; `own` leaves out layers and experts."""
        if self.layout is Layout.ours:
            return [(dim, dim + 1) for dim in range(len(own))]
        if self.layout is Layout.linear or self.ours.endswith(".kernel"):
            return [(0, self.ins), (self.ins, len(own))]
        if self.ours.endswith((".bias", ".scale")):
            return [(0, len(own))]
        return [(dim, dim + 1) for dim in range(len(own))]

    def their_shape(self, own: Sequence[int]) -> tuple[int, ...]:
        """The shape of their tensor for ours of shape `own`."""
        if self.layout is Layout.conv:
            return (own[1], own[0] // math.prod(self.taps), *self.taps)
        flat = [math.prod(own[first:last]) for first, last in self.spans(own)]
        if flat:
            flat[-1] *= self.part[1]
        return (1,) * self.pad + tuple(flat[::-1] if self.layout is Layout.linear else flat)


def dense(ours: str, theirs: str, *, bias: bool = True, **options: Any) -> list[Row]:
    """A linear layer: kernel, and bias where there is one."""
    rows = [Row(f"{ours}.kernel", f"{theirs}.weight", Layout.linear, **options)]
    options.pop("ins", None)
    return [*rows, Row(f"{ours}.bias", f"{theirs}.bias", **options)] if bias else rows


def norm(ours: str, theirs: str, *, bias: bool = True, **options: Any) -> list[Row]:
    """A norm: scale, and bias where there is one."""
    rows = [Row(f"{ours}.scale", f"{theirs}.weight", **options)]
    return [*rows, Row(f"{ours}.bias", f"{theirs}.bias", **options)] if bias else rows


@dataclass(frozen=True)
class Key:
    """One configuration key of ours and theirs.

    `default` is what theirs means where it is absent, `null` where it is null (None: the same).
    """

    ours: str
    theirs: str
    default: Any = None
    null: Any = None
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value


ACTIVATIONS = {
    "gelu": Activation.gelu, "gelu_pytorch_tanh": Activation.gelu_tanh, "gelu_new": Activation.gelu_tanh,
    "silu": Activation.silu, "swish": Activation.silu, "relu": Activation.relu, "relu2": Activation.relu2,
    "quick_gelu": Activation.quick_gelu,
}  # fmt: skip


def name_of(ours: Activation) -> str:
    """Their usual name of a non-linearity."""
    return next(name for name, one in ACTIVATIONS.items() if one is ours)


def named(architecture: str) -> Callable[[Any], str]:
    """For families of one class."""
    return lambda config: architecture


def activation(theirs: str, default: str) -> Key:
    """The key of the MLP's non-linearity."""

    def read(name: str) -> Activation:
        if name not in ACTIVATIONS:
            raise ConfigError(f"{theirs}={name!r}: lmkit has {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    return Key(
        "activation", theirs, default, None, read, lambda ours: next(k for k, v in ACTIVATIONS.items() if v is ours)
    )


def same(pairs: Mapping[str, str], **defaults: Any) -> tuple[Key, ...]:
    """Keys that differ in name alone, {ours: theirs}, with the defaults of ours."""
    return tuple(Key(ours, theirs, defaults.get(ours)) for ours, theirs in pairs.items())


def read_labels(theirs: Json) -> int:
    """How many classes a classifier of theirs has: two where it does not say."""
    return len(theirs.get("id2label") or {}) or theirs.get("num_labels") or 2


def write_labels(count: int) -> Json:
    """Names of so many classes, by which theirs counts them; nothing for none."""
    names = [f"LABEL_{number}" for number in range(count)]
    return {"id2label": {str(n): name for n, name in enumerate(names)},
            "label2id": {name: n for n, name in enumerate(names)}} if count else {}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """The table of one `model_type`.

    Attributes:
        schema: our configuration.
        architecture: the name of their class for a configuration of ours.
        keys: keys that correspond one to one.
        fixed: what is always so of ours.
        must: what has to be so of theirs, where it is there.
        hooks: (read, write) pairs for keys that need more than a name: theirs to ours, ours to theirs.
        rows: the tensors of a configuration.
        prefix: what files of the bare model leave out of the names.
        ignored: endings of names that a model of ours has no use for, which are told when they are not read.
        made: tensors that are theirs alone, by the configuration; a file must have these values.
        implied: the same, but files rarely have them and exports have none.
    """

    model_type: str
    schema: type[ModelConfig]
    architecture: Callable[[Any], str]
    rows: Callable[[Any], Iterable[Row]]
    keys: tuple[Key, ...] = ()
    fixed: Json = field(default_factory=dict)
    must: Json = field(default_factory=dict)
    hooks: tuple[tuple[Callable[[Json], Json], Callable[[Any], Json]], ...] = ()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    made: Callable[[Any], dict[str, np.ndarray]] = lambda config: {}
    implied: Callable[[Any], dict[str, np.ndarray]] = lambda config: {}

    def read_config(self, theirs: Json) -> Any:
        """Our configuration for their config.json. Raises ConfigError for what lmkit cannot compute or understand."""
        try:
            return self._read(theirs)
        except ConfigError:
            raise
        except KeyError as error:
            raise ConfigError(f"config.json has no {error}, which a {self.model_type} needs") from error
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:  # a value of any type
            raise ConfigError(f"config.json is no configuration of a {self.model_type}: {error}") from error

    def _read(self, theirs: Json) -> Any:
        for name, value in self.must.items():
            got = theirs.get(name)
            allowed = value if isinstance(value, tuple) else (value,)
            if got is not None and got not in allowed:
                raise ConfigError(
                    f"config.json: {name}={got!r} is not supported, only {' or '.join(map(repr, allowed))}"
                )
        ours = dict(self.fixed)
        for key in self.keys:
            value = theirs.get(key.theirs)
            if value is None and key.theirs in theirs:
                value = key.null
            if value is None:
                value = key.default
            if value is None:
                raise ConfigError(f"config.json has no {key.theirs!r}, which a {self.model_type} needs")
            ours[key.ours] = key.read(value)
        for read, _ in self.hooks:
            ours |= read(theirs)
        return self.schema(**ours)

    def write_config(self, config: Any) -> Json:
        """Their config.json for our configuration. Raises ConfigError naming the keys that it cannot express."""
        theirs = {"architectures": [self.architecture(config)], "model_type": self.model_type, "dtype": "float32"}
        theirs |= {name: value[0] if isinstance(value, tuple) else value for name, value in self.must.items()}
        for key in self.keys:
            theirs[key.theirs] = key.write(getattr(config, WORKED_OUT.get(key.ours, key.ours)))
        for _, write in self.hooks:
            theirs |= write(config)
        if wrong := unlike(config, self.read_config(theirs)):
            raise ConfigError(f"{self.model_type} has no way to say {', '.join(wrong)}")
        return theirs


def unlike(config: ModelConfig, other: ModelConfig, prefix: str = "model.", ignore: Iterable[str] = ()) -> list[str]:
    """The keys, but for those to ignore, with our values, in which two configurations compute different things."""
    mine, yours, found = _canonical(config), _canonical(other), []
    for name in mine:
        if name in ignore:
            continue
        if isinstance(mine[name], ModelConfig):
            found += unlike(mine[name], yours[name], f"{prefix}{name}.")
        elif name not in yours or not _equal(mine[name], yours[name]):
            found.append(f"{prefix}{name}={getattr(mine[name], 'name', mine[name])}")
    return found


def _equal(one: Any, other: Any) -> bool:
    close = isinstance(one, float) and isinstance(other, float)
    return abs(one - other) <= 1e-6 * abs(one) if close else one == other


def _canonical(config: ModelConfig) -> Json:
    """What decides a model's arithmetic: zeros worked out, keys of what is switched off left out."""
    values = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in RUN_KEYS}
    if not isinstance(config, TransformerConfig):
        return values
    values |= {name: getattr(config, source) for name, source in WORKED_OUT.items() if name in values}
    values["attention_scale"] = config.attention_scale or config.head_size**-0.5
    if config.rope_scaling is RopeScaling.none:
        values["rope_local_theta"] = config.rope_local_theta or config.rope_theta
    values["windows"] = tuple(config.window_of(layer) for layer in range(config.num_layers))
    del values["sliding_window"], values["global_every"], values["global_first"]
    off = {
        "rope_": config.position is not Position.rope,
        "rope_local_theta": not config.sliding_window,
        "rope_factor": config.rope_scaling is RopeScaling.none,
        "rope_original_len": config.rope_scaling is not RopeScaling.llama3,
        "rope_low_freq": config.rope_scaling is not RopeScaling.llama3,
        "rope_high_freq": config.rope_scaling is not RopeScaling.llama3,
        "max_": config.position is not Position.learned,
        "relative_": config.position is not Position.relative,
        "experts_per_token": not config.num_experts,
        "renormalize_experts": not config.num_experts,
        "qkv_bias": config.bias,
        "key_bias": not (config.bias or config.qkv_bias),
        "norm_offset": config.norm is Norm.layernorm,
    }
    return {name: v for name, v in values.items() if not any(name.startswith(key) for key in off if off[key])}
