"""The page and the report: what a run's record holds, in the browser. Reads runs, needs no torch.

An address names what is seen (`view.View`); `site.Site` answers it with a page (`pages`,
``templates/``, ``panels/``), a figure (``figures/``) or data (`data`). ``static/site.js`` draws the
figures and asks every two seconds for what is new.
"""

from convlens.web.address import Address, make_address

__all__ = ["Address", "make_address"]
