"""For authors of plug-ins: what each kind promises, as tests that yours inherit.

One module a kind, one class in it, for pytest. Begin with `launchers`.
"""
