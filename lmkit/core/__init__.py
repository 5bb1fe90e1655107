"""What every verb stands on: the state of a run, the step, the task it learns, and how they are set up."""
