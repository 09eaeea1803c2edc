"""Watching: a sketch of every layer's output at every step, by hooks that cost almost nothing.

`ActivationWatch` is what ``convlens.watch`` returns. The folder is not called ``watch`` because a
package attribute cannot be both that function and a module.
"""

from __future__ import annotations

from convlens.watching.activation_watch import ActivationWatch

__all__ = ["ActivationWatch"]
