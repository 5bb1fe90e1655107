"""`python -m lmkit`: what there is."""

from lmkit import __version__
from lmkit.config.paths import options_of

VERBS = {
    "prepare": "raw text, images or sounds to the store that train reads; cleaned, on a cluster, checked",
    "plan": "will it fit, how long, what does it cost: by arithmetic, with no accelerator",
    "plan.scaling": "the scaling law that finished runs follow, and what it says of larger ones",
    "train": "train a model; prepares its data when that is missing",
    "verify": "the same step on one device and on a mesh must give the same numbers",
    "evaluate": "figures of a model: its run's own or lm-eval's tasks, with intervals, every answer kept",
    "generate": "text from a run, a Hugging Face folder or a .gguf file",
    "serve": "OpenAI's HTTP API for a model: texts, embeddings, classes, transcripts",
    "export": "write a run, LoRA folded in, as a Hugging Face folder, StableHLO functions or a GGUF file",
    "show": "what a row of a step holds: its text, by documents",
    "launch": "the same experiment on Slurm, Kubernetes or a TPU pod",
}


def main() -> None:
    """Prints the verbs and the experiments."""
    print(f"lmkit {__version__}: a JAX research toolkit for large models with sharding\n")
    for verb, about in VERBS.items():
        print(f"  python -m lmkit.{verb:<13} {about}")
    print(f"\nexperiments: {', '.join(options_of('experiment'))}")
    print("example:     python -m lmkit.train +experiment=gpt_small")
    print("all keys:    python -m lmkit.train --help")


if __name__ == "__main__":
    main()
