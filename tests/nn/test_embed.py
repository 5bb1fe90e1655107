"""The look-up in a table that is split over a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from lmkit.compiler.topology import topology_devices
from lmkit.config.arithmetic.mesh import AXES
from lmkit.nn import forms
from lmkit.nn.embed import _sharded_rows
from lmkit.parallel.rules import spec_of


def look_up(mesh: Mesh, shapes: tuple[int, int, int], dtype: jnp.dtype, width: int):
    """(the jitted look-up and the table's gradient; the shapes of its table, ids and cotangents)."""
    vocab, rows, length = shapes
    dims = {(vocab, width): ("vocab", "embed"), (rows, length): ("batch", "seq"),
            (rows, length, width): ("batch", "seq_norm", "width")}  # fmt: skip
    dtypes = (jnp.dtype(jnp.float32), jnp.dtype(jnp.int32), dtype)
    args = [
        jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, spec_of(names, dict(mesh.shape))))
        for (shape, names), kind in zip(dims.items(), dtypes, strict=True)
    ]

    def run(table, ids, d_rows):
        rows, back = jax.vjp(lambda table: _sharded_rows(table, ids, "vocab", dtype, True), table)
        return rows, back(d_rows)[0]

    return jax.jit(run), args


def mesh_of(devices: list, **sizes: int) -> Mesh:
    shape = [sizes.get(axis, 1) for axis in AXES]
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


@pytest.mark.parametrize("chunks", [1, 4])
def test_rows_and_their_gradient_by_hand(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place gets its own token's row, in chunks of the sequence as well."""
    monkeypatch.setattr(forms, "row_padding", lambda columns: chunks)
    mesh = mesh_of(jax.devices()[:8], data=2, fsdp=2, tensor=2)
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        run, shapes = look_up(mesh, (16, 8, 16), jnp.dtype(jnp.float32), 8)
        values = (rng.normal(size=(16, 8)), rng.integers(0, 16, (8, 16)), rng.normal(size=(8, 16, 8)))
        args = [jax.device_put(x.astype(s.dtype), s.sharding) for x, s in zip(values, shapes, strict=True)]
        assert str(run.trace(*args).jaxpr).count("scan[") == (2 if chunks > 1 else 0)
        rows, d_table = run(*args)
    table, ids, d_rows = values
    np.testing.assert_allclose(rows, table[ids], rtol=1e-6)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, d_rows)
    np.testing.assert_allclose(d_table, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_few_columns_a_device_take_no_more_of_a_tpu_than_the_stream() -> None:
    """16 columns of 256 are padded to 128: looked up at once they took 20 times the stream."""
    pytest.importorskip("libtpu", reason="LOUD: libtpu is not installed (pip install 'lmkit[tpu]')")
    mesh = mesh_of(topology_devices("v5e:4x4"), fsdp=16)
    with jax.set_mesh(mesh):
        run, shapes = look_up(mesh, (2048, 16, 8192), jnp.dtype(jnp.bfloat16), 256)
        compiled = run.lower(*shapes).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 5 * 8192 * 256 * 2
