"""`python -m lmkit.verify +experiment=gpt_small mesh.fsdp=4 mesh.tensor=2`."""

import sys

from lmkit.config.entry import run_verb

ABOUT = """Run one training step on one device and on the experiment's mesh; compare loss, every gradient and the
updated parameters. The model is shrunk, its structure kept; devices are pretended on the CPU
(verify.real_devices=true takes real ones). Exit status 1 where they differ."""

if __name__ == "__main__":
    sys.exit(run_verb("verify", "lmkit.verify.main:verify", ABOUT))
