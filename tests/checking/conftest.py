"""The models and the comparison of states that the tests of `convlens.execution` have."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "execution"))
