"""What the parties of a grid must agree on.

Ids, units, limits, errors, frames and the messages of each dialogue.

Depends on no other room; imports msgspec and PyNaCl only, and never a pickle-family module.
"""
