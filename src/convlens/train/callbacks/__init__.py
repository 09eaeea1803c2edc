"""The callbacks of a `Learner`, one module each; `base` has the class they derive from."""
