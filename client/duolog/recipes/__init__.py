"""The recipes of the coordination client, as asynchronous context managers.

Names and znodes are kazoo's, so that programs of both kinds work together. What all of them share:

- A lost connection is waited out. A create whose answer was lost is found again by its unique
  name, so that there is never a second one; a write that must be done once (a counter's) is done
  once.
- Cancelling is safe at every await: a claim that was made is withdrawn in the background (by a
  task of the client; the end of the session removes it, too).
- Nobody watches more than one other znode to get his turn: no herd.
- While the session is SUSPENDED nothing is certain, since the server may expire it before the
  connection is back. What is held has an event `lost`, which is set at once; what must not be
  done twice is fenced by `token` or made part of `transaction()`.
"""
