"""lm-eval's tasks on a model of ours: packed scoring, the harness's model, tasks that need no network."""
