"""transformers' `generate`: python decode_transformers.py FOLDER ROWS PROMPT NEW, as decode_llama.mjs answers."""

import json
import sys
import time
from itertools import pairwise
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList


class Clock(LogitsProcessor):
    """Notes when each token is chosen."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores):
        self.times.append((time.perf_counter(), time.process_time()))
        return scores


def main() -> None:
    folder, (rows, prompt, new) = sys.argv[1], map(int, sys.argv[2:])
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[400 + place + row for place in range(prompt)] for row in range(rows)])
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        clock = Clock()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new, max_new_tokens=new,
                pad_token_id=0, eos_token_id=None, logits_processor=LogitsProcessorList([clock]),
            )  # fmt: skip
        steps = list(pairwise(clock.times[1:]))
        walls, cpus = ([after[i] - before[i] for before, after in steps] for i in (0, 1))
        print(json.dumps({"walls": walls, "cpus": cpus, "tokens": out[0, prompt:].tolist()}), flush=True)


if __name__ == "__main__":
    main()
