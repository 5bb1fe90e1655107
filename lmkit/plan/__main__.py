"""`python -m lmkit.plan +experiment=gpt3_175b hardware=v5p_512`."""

import sys

from lmkit.config.entry import run_verb

ABOUT = """Tell by arithmetic, in seconds and with no accelerator, whether an experiment fits on given hardware, how
fast it runs, how long it takes, and what it costs. hardware=h100_64 is 64 H100s; hardware=v5p_512 and
hardware=v5p:8x8x8 are 512 devices of a TPU v5p. Exit status 1 where it does not fit."""

if __name__ == "__main__":
    sys.exit(run_verb("plan", "lmkit.plan.main:plan", ABOUT))
