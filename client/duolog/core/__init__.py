"""Pure decisions of the client: no sockets, no clocks, no event loop.

Everything here is plain functions and classes that are stepped from outside with `now_ms`.
"""
