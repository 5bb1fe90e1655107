"""MaxText's train step, compiled ahead of time for a TPU that is not here. For a Python with MaxText, without lmkit.

PYTHON tools/speed/maxtext_step.py OUT key=value ...      # writes OUT.txt.gz, the text, and OUT.json, the memory
"""

import gzip
import json
import os
import sys
from pathlib import Path

os.environ.update(JAX_PLATFORMS="cpu", DECOUPLE_GCLOUD="TRUE", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
                  TPU_ACCELERATOR_TYPE="v5litepod-1", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0")  # fmt: skip
PLAIN = """run_name=aot base_output_directory=aot_out hardware=tpu skip_jax_distributed_system=true
    dataset_type=synthetic opt_type=adamw enable_checkpointing=false enable_goodput_recording=false
    weight_dtype=float32 dtype=bfloat16 scan_layers=true steps=100 enable_tensorboard=false jax_cache_dir=
    gcs_metrics=false log_config=false compile_topology_num_slices=1"""


def main() -> None:
    import maxtext  # type: ignore[import-not-found]
    from absl import app  # type: ignore[import-not-found]
    from maxtext.trainers.pre_train import train_compile  # type: ignore[import-not-found]

    out, compile_step = sys.argv[1], train_compile.jit_and_compile

    def keep(*args: object, **kwargs: object) -> object:
        compiled = compile_step(*args, **kwargs)
        with gzip.open(f"{out}.txt.gz", "wt", compresslevel=3) as file:
            file.write(compiled.as_text())
        Path(f"{out}.json").write_text(json.dumps({"peak_bytes": compiled.memory_analysis().peak_memory_in_bytes}))
        return compiled

    train_compile.jit_and_compile = keep
    base = Path(str(maxtext.__file__)).parent / "configs" / "base.yml"
    app.run(train_compile.main, ["train_compile", str(base), *PLAIN.split(), *sys.argv[2:]])


if __name__ == "__main__":
    main()
