"""What torch's operators do to receptive fields.

`windows` read neighbours, `mixing` reads whole axes, `moving` rearranges elements, `choosing` uses
constant indices and masks. Each effect takes a `calls.Call`; `geometry.operators` assigns them.
"""
