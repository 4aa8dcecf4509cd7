"""The ledger process: who did what, what it cost, and that the sum of all accounts is zero."""
