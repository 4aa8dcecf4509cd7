"""The contracts seen from Python: artifacts, addresses, one connection to a chain, keys, vouchers.

A pip user needs neither Node nor a compiler: ``artifacts/`` has what ``contracts/src`` compiles to.
Everything here needs the extra ``chain``, and nothing else of gristmill may: import a module of
this room where a chain is asked for, not above it.

In this room an address is 20 bytes, a hash 32, an amount an integer of the token's base units,
which are micro-credits. Files and people get addresses as checked text (EIP-55).
"""
