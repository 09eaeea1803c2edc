"""Other people's tools: each a thin file that imports its library only when it is itself imported.

- `convlens.integrations.lightning`: a callback that watches the model of a Lightning ``Trainer``.
- `convlens.integrations.skorch`, `.ignite`, `.transformers`: the same for skorch, Ignite, and the
  ``Trainer`` of Hugging Face.
- `convlens.integrations.tensorboard`: writes what was recorded as TensorBoard's event files.

Nothing in the core needs them, and this package imports none of them.
"""
