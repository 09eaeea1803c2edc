"""What torch's operators do to the fields of the tensors they read, by family.

`windows` read neighbours, `mixing` reads whole axes, `moving` puts elements elsewhere, `choosing`
goes by constant indices and masks. Each effect takes a `calls.Call`; `geometry.operators` says
which operator has which.
"""
