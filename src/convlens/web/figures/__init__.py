"""Bokeh figures, one function each: from the page of a run to a figure or a layout of linked ones.

The server sends them as JSON (`style.embed`); the report holds the same JSON.
"""
