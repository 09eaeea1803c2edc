"""The parts of a page as plain values for their templates, ``templates/panels/NAME.html``."""
