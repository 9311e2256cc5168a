"""The wire protocol of duolog, sans-I/O: frames, messages, errors, record batches.

Nothing here opens a socket, reads a clock or draws a random number. `WIRE.md` beside this
package is the specification; the modules are its implementation.
"""
