"""The parts of the speed benchmark, each a module with `measure` and `table`.

``measure(options)`` returns what is kept as JSON, ``table(entry)`` makes of that the
Markdown that is printed. A further part is a further module, named in `speed.PARTS`.
"""
